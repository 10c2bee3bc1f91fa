//! What happens in a video: the most probable classes, for the whole and for each clip cut from it.

use crate::{
    Error, Result,
    metrics::ranked,
    report,
    restore::{Judged, Restored},
};
use configs::{Test, Views};
use serde_json::json;
use shards::format::{ClipIndex, Dataset};

/// `marey predict`, once the video is ingested.
#[derive(Clone, Debug, clap::Args)]
pub struct PredictArgs {
    /// A run (its newest whole checkpoint is taken) or one checkpoints/step-N folder.
    #[arg(long)]
    pub checkpoint: String,
    /// A dataset that holds the video, labelled or not.
    #[arg(long)]
    pub data: String,
    /// Windows in time x crops in space of each clip, whose probabilities are averaged.
    #[arg(long, default_value = "5x3")]
    pub views: Views,
    /// How many classes to name.
    #[arg(long, default_value_t = 5)]
    pub top: usize,
    /// Views of one forward pass.
    #[arg(long, default_value_t = 8)]
    pub batch: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Threads to compute and decode with [default: one a core].
    #[arg(long)]
    pub threads: Option<usize>,
    /// cpu, or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

/// One video: its clips' probabilities in order of time.
struct Video {
    source: String,
    clips: Vec<(ClipIndex, Vec<f64>)>,
}

/// Predicts and prints.
pub fn command(args: PredictArgs) -> Result<()> {
    let restored = Restored::open(&args.checkpoint, &args.device, args.threads)?;
    let dataset = restored.dataset(&args.data)?;
    let clips: Vec<ClipIndex> = (0..dataset.clips.len() as u32).map(ClipIndex).collect();
    if clips.is_empty() {
        return Err(Error::Usage(format!(
            "predict: no clip could be read from the video; `marey inspect {}` says why",
            args.data
        )));
    }
    let mut scored = vec![];
    let test = Test { views: args.views, ..restored.config.data.test_views() };
    restored.score(&dataset, clips.clone(), &test, args.batch, false, |judged| match judged {
        Judged::Score(clip) => {
            scored.push((clips[clip.place as usize], clip.scores));
            Ok(())
        }
        // A video of which a part is missing is no video, whatever the job has to say of its training clips.
        Judged::Damaged { why, .. } => Err(Error::Evaluation(why)),
    })?;
    let videos = by_source(&dataset, scored);
    if args.json {
        println!("{:#}", as_json(&args, &restored, &dataset, &videos));
    } else {
        print!("{}", as_text(&args, &restored, &dataset, &videos));
    }
    Ok(())
}

fn by_source(dataset: &Dataset, scored: Vec<(ClipIndex, Vec<f64>)>) -> Vec<Video> {
    let mut videos: Vec<Video> = vec![];
    for (clip, probabilities) in scored {
        let source = dataset.clip(clip).source;
        match videos.iter_mut().find(|v| v.source == source) {
            Some(v) => v.clips.push((clip, probabilities)),
            None => videos.push(Video { source: source.into(), clips: vec![(clip, probabilities)] }),
        }
    }
    for v in &mut videos {
        v.clips.sort_by(|a, b| dataset.clip(a.0).start_s.total_cmp(&dataset.clip(b.0).start_s));
    }
    videos
}

impl Video {
    /// The mean over the clips.
    fn probabilities(&self) -> Vec<f64> {
        let mut sum = vec![0.0; self.clips.first().map_or(0, |(_, p)| p.len())];
        for (_, p) in &self.clips {
            sum.iter_mut().zip(p).for_each(|(s, p)| *s += p / self.clips.len() as f64);
        }
        sum
    }
}

fn as_text(args: &PredictArgs, restored: &Restored, dataset: &Dataset, videos: &[Video]) -> String {
    let labels = &restored.header.labels;
    let mut text = String::new();
    for v in videos {
        let p = v.probabilities();
        text += &format!("{} ({}, {} views each)\n", v.source, report::clips(v.clips.len()), args.views);
        text += &report::bars(&ranked(&p, args.top), labels, &p);
        if v.clips.len() > 1 {
            text += "\nstart\n";
            for (clip, p) in &v.clips {
                let best = ranked(p, 1)[0];
                let start = dataset.clip(*clip).start_s;
                text += &format!("{start:7.1} s  {:6.2} %  {}\n", 100.0 * p[best], labels[best]);
            }
        }
    }
    text
}

fn as_json(
    args: &PredictArgs,
    restored: &Restored,
    dataset: &Dataset,
    videos: &[Video],
) -> serde_json::Value {
    let labels = &restored.header.labels;
    let top = |p: &[f64]| report::top(&ranked(p, args.top), labels, p);
    let clip = |(clip, p): &(ClipIndex, Vec<f64>)| {
        let meta = dataset.clip(*clip);
        let seconds = f64::from(meta.num_frames) / meta.fps;
        json!({ "clip_id": meta.clip_id, "start_s": meta.start_s, "seconds": seconds, "top": top(p) })
    };
    let video = |v: &Video| {
        let clips: Vec<_> = v.clips.iter().map(clip).collect();
        json!({ "source": v.source, "top": top(&v.probabilities()), "clips": clips })
    };
    json!({
        "checkpoint": restored.url,
        "step": restored.header.step,
        "views": { "clips": args.views.clips, "crops": args.views.crops },
        "videos": videos.iter().map(video).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_video_is_the_mean_of_its_clips() {
        let clips = vec![(ClipIndex(0), vec![1.0, 0.0]), (ClipIndex(1), vec![0.5, 0.5])];
        let v = Video { source: "v.mp4".into(), clips };
        assert_eq!(v.probabilities(), [0.75, 0.25]);
    }
}
