//! Accuracy on a dataset: one view a clip inside a training run, many views for `marey eval`.

use crate::{
    Error, Result,
    batch::Normalise,
    metrics::{Tally, ranked},
    report,
    restore::{Restored, Views, score},
};
use configs::Precision;
use models::Model;
use serde_json::{Value, json};
use shards::{
    format::{ClipIndex, Dataset},
    stream::Stream,
};
use std::path::PathBuf;

/// `marey eval`
#[derive(Clone, Debug, clap::Args)]
pub struct EvalArgs {
    /// A run (its newest whole checkpoint is taken) or one checkpoints/step-N folder.
    #[arg(long)]
    pub checkpoint: String,
    /// The dataset.
    #[arg(long)]
    pub data: String,
    /// The split to measure [default: the one that training evaluated].
    #[arg(long)]
    pub split: Option<String>,
    /// Windows in time x crops in space of each clip, whose probabilities are averaged.
    #[arg(long, default_value = "10x3")]
    pub views: Views,
    /// Views of one forward pass.
    #[arg(long, default_value_t = 8)]
    pub batch: u32,
    /// Measure only this many clips, spread evenly over the split.
    #[arg(long)]
    pub limit: Option<usize>,
    /// Print JSON, with the prediction for every clip, instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Write that JSON to a file.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Threads to compute and decode with [default: one a core].
    #[arg(long)]
    pub threads: Option<usize>,
    /// cpu, or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

/// Counts this rank's clips, which `stream` yields in one or more views each. `tick` is called
/// after every batch: the evaluation is alive.
pub fn run(
    model: &Model,
    stream: Stream,
    normalise: &Normalise,
    precision: Precision,
    tick: impl FnMut(),
) -> Result<Tally> {
    let mut tally = Tally::new(model.classes() as usize);
    score(model, stream, normalise, precision, tick, |clip| tally.add(&clip.probabilities, clip.label))?;
    Ok(tally)
}

/// Measures, prints, and writes what was asked for.
pub fn command(args: EvalArgs) -> Result<()> {
    let restored = Restored::open(&args.checkpoint, &args.device, args.threads)?;
    let dataset = restored.dataset(&args.data)?;
    restored.header.check_labels(&restored.url, &dataset.manifest.labels)?;
    let split = args.split.clone().unwrap_or_else(|| restored.config.data.eval_split.clone());
    let clips = spread(dataset.clips_of(&split)?, args.limit);
    let labels = &restored.header.labels;

    let mut tally = Tally::new(labels.len());
    let mut predictions = Vec::with_capacity(clips.len());
    restored.score(&dataset, clips.clone(), args.views, args.batch, |clip| {
        tally.add(&clip.probabilities, clip.label)?;
        predictions.push(prediction(&dataset, clips[clip.place as usize], labels, &clip.probabilities));
        Ok(())
    })?;
    if tally.clips() == 0 {
        return Err(Error::Usage(format!(
            "measure {split} of {}: none of its {} clips has a label",
            args.data,
            clips.len()
        )));
    }

    let result = summary(&args, &restored, &dataset, &split, &tally, predictions);
    if let Some(path) = &args.out {
        let io = |source| Error::Io { path: path.display().to_string(), source };
        std::fs::write(path, format!("{result:#}\n")).map_err(io)?;
    }
    if args.json {
        println!("{result:#}");
        return Ok(());
    }
    println!(
        "{} of split {split}, {} of them labelled, {} views each; step {} of {}\n",
        report::clips(clips.len()),
        tally.clips(),
        args.views,
        restored.header.step,
        restored.url
    );
    print!("{}", report::tally(&tally, labels));
    Ok(())
}

/// `limit` clips at even distances.
fn spread(clips: Vec<ClipIndex>, limit: Option<usize>) -> Vec<ClipIndex> {
    match limit {
        Some(n) if n < clips.len() => (0..n).map(|i| clips[i * clips.len() / n]).collect(),
        _ => clips,
    }
}

fn prediction(dataset: &Dataset, clip: ClipIndex, labels: &[String], probabilities: &[f64]) -> Value {
    let meta = dataset.clip(clip);
    let label = meta.label.and_then(|l| usize::try_from(l).ok());
    let best = ranked(probabilities, 5);
    json!({
        "clip_id": meta.clip_id,
        "source": meta.source,
        "start_s": meta.start_s,
        "label": label.and_then(|l| labels.get(l)),
        "label_id": label,
        "correct": label.map(|l| best.first() == Some(&l)),
        "top": report::top(&best, labels, probabilities),
    })
}

fn summary(
    args: &EvalArgs,
    restored: &Restored,
    dataset: &Dataset,
    split: &str,
    tally: &Tally,
    predictions: Vec<Value>,
) -> Value {
    let header = &restored.header;
    let per_class = |(c, name): (usize, &String)| {
        let n = tally.per_class()[c];
        json!({ "label": name, "clips": n.clips, "correct": n.correct, "accuracy": n.accuracy() })
    };
    let row = |t| (0..tally.classes()).map(|p| tally.confusion(t, p)).collect::<Vec<u64>>();
    json!({
        "checkpoint": restored.url,
        "step": header.step,
        "epoch": header.epoch,
        "config_digest": header.config_digest,
        "trained_on_dataset_digest": header.dataset_digest,
        "dataset": dataset.location.url(),
        "dataset_digest": dataset.digest,
        "split": split,
        "views": { "clips": args.views.clips, "crops": args.views.crops },
        "clips": tally.clips(),
        "top1": tally.top1(),
        "top5": tally.top5(),
        "loss": tally.loss(),
        "labels": header.labels,
        "per_class": header.labels.iter().enumerate().map(per_class).collect::<Vec<_>>(),
        "confusion": (0..tally.classes()).map(row).collect::<Vec<_>>(),
        "predictions": predictions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_spreads_over_the_split() {
        let clips: Vec<ClipIndex> = (0..10).map(ClipIndex).collect();
        let of = |limit| spread(clips.clone(), limit).iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(of(Some(3)), [0, 3, 6]);
        assert_eq!(of(Some(99)), of(None));
    }
}
