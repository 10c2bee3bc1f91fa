//! A model out of a checkpoint, ready to judge clips: what `eval` and `predict` have in common.

use crate::{
    Error, Result,
    batch::Normalise,
    checkpoint::{layout::Header, load},
    device::Device,
    feed, metrics,
    trainer::autocast,
};
use configs::{Config, Precision};
use models::Model;
use shards::{
    format::{ClipIndex, Dataset},
    stream::{EvalPass, Stream, StreamOptions, View},
};
use std::{io::IsTerminal, sync::Arc};
use storage::Location;
use tokio::runtime::Runtime;

/// A trained model with the settings that it was trained under.
pub struct Restored {
    pub header: Header,
    /// The checkpoint's folder.
    pub url: String,
    pub config: Config,
    pub model: Model,
    pub normalise: Normalise,
    runtime: Runtime,
    threads: usize,
}

/// Temporal windows x spatial crops of each clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Views {
    pub clips: u32,
    pub crops: u32,
}

/// What the model says of one clip, averaged over its views.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipScore {
    /// Place among the clips that were asked for.
    pub place: u32,
    /// -1: unlabelled.
    pub label: i64,
    /// Mean over the views of the softmax.
    pub probabilities: Vec<f64>,
    pub views: u32,
}

impl Restored {
    /// The newest whole checkpoint of a run, or the one in a `.../step-N` folder. `threads`: for
    /// computing and for decoding; absent: one a core.
    pub fn open(checkpoint: &str, device: &str, threads: Option<usize>) -> Result<Self> {
        collective::init()?;
        collective::keep_pages();
        let device = match Device::parse(device)? {
            Device::Cuda(i) => {
                collective::load_cuda()?;
                Device::Cuda(i).torch()
            }
            cpu => cpu.torch(),
        };
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = threads.unwrap_or(cores).max(1);
        tch::set_num_threads(threads as i32);
        let runtime =
            Runtime::new().map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
        let location = Location::parse(checkpoint)?;
        let loaded = runtime.block_on(load::open(&location, |text| tracing::warn!("{text}")))?;
        let (config, url) = (loaded.config()?, loaded.url.clone());
        let (header, parts) = loaded.into_parts();
        let data = &config.data;
        let mut model = Model::new(
            &config.model,
            header.classes as i64,
            i64::from(data.frames),
            i64::from(data.augment.crop),
            device,
        )?;
        model.load(parts.model)?;
        if config.train.channels_last {
            model.to_channels_last()?;
        }
        let normalise = Normalise::new(&config, device);
        Ok(Self { header, url, config, model, normalise, runtime, threads })
    }

    /// Opens a dataset.
    pub fn dataset(&self, url: &str) -> Result<Arc<Dataset>> {
        let location = Location::parse(url)?;
        Ok(Arc::new(self.runtime.block_on(Dataset::open(&location))?))
    }

    /// Judges `clips` of `dataset` and hands each clip's score to `each`, in order, with progress on
    /// stderr. `batch`: views of one forward pass.
    pub fn score(
        &self,
        dataset: &Arc<Dataset>,
        clips: Vec<ClipIndex>,
        views: Views,
        batch: u32,
        mut each: impl FnMut(ClipScore) -> Result<()>,
    ) -> Result<()> {
        let data = &self.config.data;
        let options = StreamOptions::new(self.runtime.handle().clone(), self.threads, data.prefetch.0);
        let total = clips.len();
        let pass = EvalPass {
            clips,
            rank: 0,
            world: 1,
            batch,
            clip: feed::clip_spec(&self.config),
            view: View::Eval {
                short_side: data.eval.short_side,
                crop: data.eval.crop,
                clips: views.clips,
                crops: views.crops,
                sampling: feed::test_sampling(&self.config),
            },
        };
        let stream = Stream::eval(dataset.clone(), pass, &options)?;
        let mut progress = Progress { total, done: 0, shown: None };
        score(
            &self.model,
            stream,
            &self.normalise,
            self.config.train.precision,
            || (),
            |clip| {
                progress.one_more();
                each(clip)
            },
        )
    }
}

/// Runs the model over the stream's views and hands on each clip's mean probabilities once its last
/// view was seen. `tick` is called after every batch.
pub fn score(
    model: &Model,
    mut stream: Stream,
    normalise: &Normalise,
    precision: Precision,
    mut tick: impl FnMut(),
    mut each: impl FnMut(ClipScore) -> Result<()>,
) -> Result<()> {
    let mut averager = Averager::default();
    while let Some(batch) = stream.next()? {
        if batch.labels.is_empty() {
            continue;
        }
        let rows = {
            let _no_grad = tch::no_grad_guard();
            let _autocast = autocast(precision, normalise.device)?;
            metrics::probabilities(&model.forward(&normalise.tensor(&batch)?, false)?)?
        };
        for (i, row) in rows.into_iter().enumerate() {
            if let Some(done) = averager.add(batch.clips[i], batch.labels[i], row)? {
                each(done)?;
            }
        }
        tick();
    }
    averager.finish().map_or(Ok(()), each)
}

/// Gathers the views of a clip, which come one after another.
#[derive(Default)]
struct Averager {
    open: Option<ClipScore>,
}

impl Averager {
    /// Adds a view; gives back the clip before if this view begins another.
    fn add(&mut self, place: u32, label: i64, view: Vec<f64>) -> Result<Option<ClipScore>> {
        if view.iter().any(|p| !p.is_finite()) {
            return Err(Error::Output { place });
        }
        if let Some(open) = self.open.as_mut().filter(|o| o.place == place) {
            open.probabilities.iter_mut().zip(&view).for_each(|(sum, p)| *sum += p);
            open.views += 1;
            return Ok(None);
        }
        let next = ClipScore { place, label, probabilities: view, views: 1 };
        Ok(self.open.replace(next).map(ClipScore::mean))
    }

    fn finish(self) -> Option<ClipScore> {
        self.open.map(ClipScore::mean)
    }
}

impl ClipScore {
    fn mean(mut self) -> Self {
        let views = f64::from(self.views);
        self.probabilities.iter_mut().for_each(|p| *p /= views);
        self
    }
}

impl std::str::FromStr for Views {
    type Err = String;

    /// "10x3": ten windows over the clip's time, each in three crops along its long side.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let pair = text.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match pair {
            Some((clips @ 1.., crops @ 1..)) => Ok(Self { clips, crops }),
            _ => Err("write clips x crops, like 10x3".into()),
        }
    }
}

impl std::fmt::Display for Views {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}x{}", self.clips, self.crops)
    }
}

/// One line on stderr that is written over on a terminal; else a line every tenth.
struct Progress {
    total: usize,
    done: usize,
    shown: Option<usize>,
}

impl Progress {
    fn one_more(&mut self) {
        self.done += 1;
        let terminal = std::io::stderr().is_terminal();
        let percent = 100 * self.done / self.total.max(1);
        let mark = if terminal { percent } else { percent / 10 };
        if self.shown == Some(mark) && self.done != self.total {
            return;
        }
        self.shown = Some(mark);
        let line = format!("{percent:3} % of {} clips", self.total);
        match terminal {
            true if self.done == self.total => eprintln!("\r{line}"),
            true => eprint!("\r{line}"),
            false => eprintln!("{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_a_clip_are_averaged_across_batches() {
        let mut a = Averager::default();
        assert_eq!(a.add(0, 1, vec![1.0, 0.0]).unwrap(), None);
        assert_eq!(a.add(0, 1, vec![0.5, 0.5]).unwrap(), None);
        let first = a.add(1, -1, vec![0.25, 0.75]).unwrap().unwrap();
        assert_eq!(first, ClipScore { place: 0, label: 1, probabilities: vec![0.75, 0.25], views: 2 });
        assert_eq!(a.finish().unwrap().probabilities, [0.25, 0.75]);
        assert!(Averager::default().add(0, 0, vec![f64::NAN]).is_err());
    }

    #[test]
    fn views_are_written_with_an_x() {
        assert_eq!("10x3".parse(), Ok(Views { clips: 10, crops: 3 }));
        for bad in ["10", "0x3", "3x0", "x", "10x3x1", "-1x3"] {
            assert!(bad.parse::<Views>().is_err(), "{bad}");
        }
        assert_eq!(Views { clips: 4, crops: 3 }.to_string(), "4x3");
    }
}
