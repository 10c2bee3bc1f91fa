//! Accuracy on a dataset: one view a clip inside a training run, many views for `marey eval`.
//!
//! `marey eval` writes its [`plan`] into a folder, the [`parts`] finish one of its [`pieces`] after the other
//! there, in as many processes as devices were asked for, and the [`summary`] is made from all of them. So
//! an evaluation that was killed goes on from the pieces that are finished.

mod parts;
mod pieces;
mod plan;
mod summary;

pub use parts::{PartArgs, part};

use crate::{
    Error, Result,
    device::{Device, parse_devices},
    metrics::Tally,
    report,
    restore::{Judge, Judged, Opened, Progress, view},
};
use configs::{LossKind, Test, TestSampling, Views};
use plan::Plan;
use shards::{
    format::{Clip, ClipIndex, Dataset},
    stream::Stream,
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};
use storage::Location;

/// `marey eval`
#[derive(Clone, Debug, clap::Args)]
pub struct EvalArgs {
    /// A run (its newest whole checkpoint is taken) or one checkpoints/step-N folder.
    #[arg(long, value_name = "URL")]
    pub checkpoint: String,
    /// The dataset.
    #[arg(long, value_name = "URL")]
    pub data: String,
    /// The split to measure [default: the one that training evaluated].
    #[arg(long)]
    pub split: Option<String>,
    /// Windows in time x crops in space of each clip, whose scores are averaged [default: data.test's, or 10x3].
    #[arg(long)]
    pub views: Option<Views>,
    /// Short side that frames are resized to, pixels [default: data.test's, or data.eval's].
    #[arg(long, value_name = "PIXELS")]
    pub short_side: Option<u32>,
    /// Side of the square crop, pixels [default: as for the short side].
    #[arg(long, value_name = "PIXELS")]
    pub crop: Option<u32>,
    /// Where the windows lie: pyslowfast or mmaction2 [default: data.test's, or pyslowfast].
    #[arg(long)]
    pub sampling: Option<TestSampling>,
    /// Views of one forward pass: what memory depends on, however many views a clip has.
    #[arg(long, default_value_t = 8)]
    pub batch: u32,
    /// Measure only this many clips, spread evenly over the split.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print JSON, with the prediction for every clip, instead of tables.
    #[arg(long)]
    pub json: bool,
    /// Where the work is kept, finished or not: the same command goes on from there. The JSON is eval.json in it.
    #[arg(long, value_name = "URL")]
    pub out: Option<String>,
    /// Write every view's scores as Parquet.
    #[arg(long, value_name = "FILE")]
    pub scores: Option<PathBuf>,
    /// Processes on the CPU, each with its part of the clips; the same as --devices cpu:N.
    #[arg(long, value_name = "N", conflicts_with = "devices", value_parser = clap::value_parser!(u32).range(1..))]
    pub workers: Option<u32>,
    /// cpu:N, cuda:all or cuda:0,1: a process for each [default: cpu].
    #[arg(long)]
    pub devices: Option<String>,
    /// Threads to compute and decode with, of all processes together [default: one a core].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// The clips of an evaluation and what is asked of them.
pub struct Split {
    dataset: Arc<Dataset>,
    clips: Vec<ClipIndex>,
    loss: LossKind,
}

impl Split {
    /// The clips of one of the dataset's splits.
    pub fn new(dataset: &Arc<Dataset>, name: &str, loss: LossKind) -> Result<Self> {
        Ok(Self { clips: dataset.clips_of(name)?, dataset: dataset.clone(), loss })
    }

    /// Nothing counted yet of these clips.
    fn tally(&self) -> Tally {
        let classes = self.dataset.manifest.labels.len();
        match self.loss {
            LossKind::CrossEntropy => Tally::new(classes),
            LossKind::Bce => Tally::multi_label(classes, self.clips.len()),
        }
    }

    /// The clip at a place of the split.
    pub fn clip(&self, place: usize) -> Clip<'_> {
        self.dataset.clip(self.clips[place])
    }
}

/// Counts this rank's clips, which `stream` yields of `split` in one or more views each. `tick` is called
/// after every batch and may end it: the evaluation is alive. Gives back besides what is wrong with each clip that is
/// left out, by its place.
pub fn run(
    judge: &Judge,
    stream: Stream,
    split: &Split,
    tick: impl FnMut() -> Result<()>,
) -> Result<(Tally, BTreeMap<u32, String>)> {
    let (mut tally, mut missing) = (split.tally(), BTreeMap::new());
    judge.score(stream, tick, |judged| {
        match judged {
            Judged::Score(clip) => {
                let place = clip.place as usize;
                tally.count(place, &clip.scores, &labels(split.clip(place)))?;
            }
            Judged::Damaged { place, why } => {
                missing.insert(place, why);
            }
        }
        Ok(())
    })?;
    Ok((tally, missing))
}

/// Measures, prints, and writes what was asked for.
pub fn command(args: EvalArgs) -> Result<()> {
    let devices = devices(&args)?;
    let opened = Opened::open(&args.checkpoint)?;
    let dataset = opened.labelled_dataset(&args.data)?;
    let (header, loss) = (opened.header.clone(), opened.config.loss.kind);
    let test = asked(&args, opened.config.data.test_views());
    view(&test).check()?;
    let name = args.split.clone().unwrap_or_else(|| opened.config.data.eval_split.clone());
    let clips = plan::spread(dataset.clips_of(&name)?, args.limit);
    if clips.is_empty() {
        return Err(Error::Usage("evaluate: --limit 0 leaves no clip".into()));
    }

    let scratch = tempfile::tempdir()
        .map_err(|source| Error::Io { path: std::env::temp_dir().display().to_string(), source })?;
    let out = match &args.out {
        Some(url) => Location::parse(url)?,
        None => Location::parse(&scratch.path().display().to_string())?,
    };
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    let plan = Plan::new(
        (&opened.url, &opened.digest),
        &dataset,
        &name,
        args.limit,
        &test,
        args.scores.is_some(),
        clips.len(),
        devices.len(),
    );
    let (plan, todo) = runtime.block_on(async {
        let plan = plan.begin(&out).await?;
        let todo = plan.todo(&out).await?;
        Ok::<_, Error>((plan, todo))
    })?;
    let before = plan.clips - plan.count(&todo);
    if before > 0 {
        eprintln!("going on after {} of {} in {}", report::clips(before), plan.clips, out.url());
    }
    let mut progress = Progress::new(plan.clips, before);
    let worked = match &devices[..] {
        _ if todo.is_empty() => Ok(()),
        [device] => opened.restore(*device, args.threads).and_then(|restored| {
            let done = |clips| progress.advance(clips);
            parts::work(&restored, &dataset, &plan, &out, &todo, args.batch, done)
        }),
        _ => {
            drop(opened);
            parts::spread(&plan, &out, &todo, &devices, args.threads, args.batch, &mut progress)
        }
    };
    let split = Split { dataset, clips, loss };
    worked.and_then(|()| runtime.block_on(missing(&plan, &out))).map_err(|e| unfinished(e, &args))?;
    if let Some(file) = &args.scores {
        runtime.block_on(pieces::join_views(&out, plan.pieces(), file))?;
    }
    let result = runtime.block_on(summary::Summary::read(&plan, &out, &split, &header))?;
    if let Some((_, why)) = result.missing.first().filter(|_| result.missing.len() == plan.clips) {
        return Err(Error::Evaluation(format!(
            "measure {name} of {}: all of its {} are damaged: failed to {why}",
            args.data,
            report::clips(plan.clips)
        )));
    }
    if result.tally.clips() == 0 {
        return Err(Error::Usage(format!(
            "measure {name} of {}: none of its {} clips has a label",
            args.data, plan.clips
        )));
    }
    let json = result.json(&plan, &test, &split, &header);
    if args.out.is_some() {
        runtime.block_on(out.put("eval.json", format!("{json:#}\n").into_bytes()))?;
    }
    if args.json {
        println!("{json:#}");
        result.left_out().iter().for_each(|line| eprintln!("{line}"));
    } else {
        print!("{}", result.text(&plan, &test, &header));
    }
    Ok(())
}

/// The classes that a clip bears, ascending as the index has them.
fn labels(clip: Clip) -> Vec<usize> {
    clip.label_ids().into_iter().filter_map(|l| usize::try_from(l).ok()).collect()
}

/// The job's own views but for what the command line says.
fn asked(args: &EvalArgs, test: Test) -> Test {
    Test {
        views: args.views.unwrap_or(test.views),
        short_side: args.short_side.unwrap_or(test.short_side),
        crop: args.crop.unwrap_or(test.crop),
        sampling: args.sampling.unwrap_or(test.sampling),
        ensemble: test.ensemble,
    }
}

fn devices(args: &EvalArgs) -> Result<Vec<Device>> {
    let text = match (&args.devices, args.workers) {
        (Some(text), _) => text.clone(),
        (None, n) => format!("cpu:{}", n.unwrap_or(1)),
    };
    if text.starts_with("cuda") {
        collective::init()?;
        collective::load_cuda()?;
    }
    parse_devices(&text, || tch::Cuda::device_count().max(0) as usize)
}

/// Every piece is there, whatever the processes said of themselves.
async fn missing(plan: &Plan, out: &Location) -> Result<()> {
    let todo = plan.todo(out).await?;
    match plan.count(&todo) {
        0 => Ok(()),
        n => Err(Error::Evaluation(format!("judge {n} of {} clips", plan.clips))),
    }
}

fn unfinished(e: Error, args: &EvalArgs) -> Error {
    match (e, &args.out) {
        (Error::Evaluation(why), Some(out)) => {
            Error::Evaluation(format!("{why}; the same command goes on from what is finished in {out}"))
        }
        (Error::Evaluation(why), None) => {
            Error::Evaluation(format!("{why}; with --out an evaluation can go on from what is finished"))
        }
        (e, _) => e,
    }
}
