//! A model out of a checkpoint, ready to judge clips: what `eval` and `predict` have in common.

use crate::{
    Error, Result,
    batch::Normalise,
    checkpoint::{
        layout::{self, Header},
        load,
    },
    device::Device,
    feed, metrics,
    trainer::autocast,
};
use configs::{Config, Ensemble, LossKind, Precision, Test};
use models::Model;
use shards::{
    format::{ClipIndex, Dataset},
    stream::{EvalPass, Stream, StreamOptions, View},
};
use std::{
    collections::{BTreeMap, HashMap},
    io::IsTerminal,
    sync::Arc,
};
use storage::{Location, sha256_hex};
use tch::Tensor;
use tokio::runtime::Runtime;

/// A whole, verified checkpoint whose model is not built yet.
pub struct Opened {
    pub header: Header,
    /// The checkpoint's folder.
    pub url: String,
    /// SHA-256 of its manifest, which names every file's: the checkpoint's identity.
    pub digest: String,
    pub config: Config,
    tensors: HashMap<String, Tensor>,
    runtime: Runtime,
}

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

/// What the model says of one clip.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipScore {
    /// Place among the clips that were asked for.
    pub place: u32,
    /// Of each class, over all views: probabilities that sum to 1, or one of each class on its own where a
    /// clip may bear several.
    pub scores: Vec<f64>,
    /// The views' own scores, where they were asked for.
    pub views: Vec<Vec<f64>>,
}

/// How a model judges.
pub struct Judge<'a> {
    pub model: &'a Model,
    pub normalise: &'a Normalise,
    pub precision: Precision,
    /// What it was trained on: softmax after cross-entropy, a sigmoid of each class after binary cross-entropy.
    pub loss: LossKind,
    pub ensemble: Ensemble,
    /// Keep [`ClipScore::views`].
    pub keep_views: bool,
}

impl Opened {
    /// The newest whole checkpoint of a run, or the one in a `.../step-N` folder.
    pub fn open(checkpoint: &str) -> Result<Self> {
        collective::init()?;
        let runtime =
            Runtime::new().map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
        let location = Location::parse(checkpoint)?;
        let loaded = runtime.block_on(load::open(&location, |text| tracing::warn!("{text}")))?;
        let (config, url) = (loaded.config()?, loaded.url.clone());
        let manifest = Location::parse(&url)?;
        let digest = sha256_hex(&runtime.block_on(manifest.get(layout::MANIFEST))?);
        let (header, parts) = loaded.into_parts();
        Ok(Self { header, url, digest, config, tensors: parts.model, runtime })
    }

    /// Opens a dataset whose labels are the model's.
    pub fn labelled_dataset(&self, url: &str) -> Result<Arc<Dataset>> {
        let location = Location::parse(url)?;
        let dataset = self.runtime.block_on(Dataset::open(&location))?;
        self.header.check_labels(&self.url, &dataset.manifest.labels)?;
        Ok(Arc::new(dataset))
    }

    /// Builds the model. `threads`: for computing and for decoding; absent: one a core.
    pub fn restore(self, device: Device, threads: Option<usize>) -> Result<Restored> {
        collective::keep_pages();
        if let Device::Cuda(_) = device {
            collective::load_cuda()?;
        }
        let device = device.torch();
        let threads = threads.unwrap_or_else(cores).max(1);
        tch::set_num_threads(threads as i32);
        let Self { header, url, config, tensors, runtime, .. } = self;
        let data = &config.data;
        let mut model = Model::new(
            &config.model,
            header.classes as i64,
            i64::from(data.frames),
            i64::from(data.augment.crop),
            device,
        )?;
        model.load(tensors)?;
        if config.train.channels_last {
            model.to_channels_last()?;
        }
        let normalise = Normalise::new(&config, device);
        Ok(Restored { header, url, config, model, normalise, runtime, threads })
    }
}

impl Restored {
    /// [`Opened::open`] and [`Opened::restore`] on a device like "cpu" or "cuda:0".
    pub fn open(checkpoint: &str, device: &str, threads: Option<usize>) -> Result<Self> {
        let device = Device::parse(device)?;
        Opened::open(checkpoint)?.restore(device, threads)
    }

    /// Opens a dataset.
    pub fn dataset(&self, url: &str) -> Result<Arc<Dataset>> {
        let location = Location::parse(url)?;
        Ok(Arc::new(self.runtime.block_on(Dataset::open(&location))?))
    }

    /// Judges `clips` of `dataset` and hands each clip's score to `each`, in order. `batch`: views of one
    /// forward pass, which is all that memory grows with: clips are streamed under the job's `data.prefetch`,
    /// and of a clip's views only the running sum is kept unless `keep_views`.
    pub fn score(
        &self,
        dataset: &Arc<Dataset>,
        clips: Vec<ClipIndex>,
        test: &Test,
        batch: u32,
        keep_views: bool,
        each: impl FnMut(ClipScore) -> Result<()>,
    ) -> Result<()> {
        let prefetch = self.config.data.prefetch.0;
        let options = StreamOptions {
            requests: feed::request_policy(&self.config.data.requests),
            ..StreamOptions::new(self.runtime.handle().clone(), self.threads, prefetch)
        };
        let clip = feed::clip_spec(&self.config);
        let pass = EvalPass { clips, rank: 0, world: 1, batch, clip, view: view(test) };
        let stream = Stream::eval(dataset.clone(), pass, &options)?;
        let judge = Judge {
            model: &self.model,
            normalise: &self.normalise,
            precision: self.config.train.precision,
            loss: self.config.loss.kind,
            ensemble: test.ensemble,
            keep_views,
        };
        // The stream stops at damage: none is missing.
        judge.score(stream, || Ok(()), each).map(|_missing| ())
    }

    /// Runs I/O to its end.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

/// The views of a test.
pub fn view(test: &Test) -> View {
    let Test { views, short_side, crop, sampling, .. } = *test;
    let sampling = feed::test_sampling(sampling);
    View::Eval { short_side, crop, clips: views.clips, crops: views.crops, sampling }
}

impl Judge<'_> {
    /// Runs the model over the stream's views and hands on each clip's score once its last view was seen.
    /// `tick` is called after every batch, and its error ends the pass. Clips of which the stream lacks a view are
    /// left out: gives back their places and what is wrong with them.
    pub fn score(
        &self,
        mut stream: Stream,
        mut tick: impl FnMut() -> Result<()>,
        mut each: impl FnMut(ClipScore) -> Result<()>,
    ) -> Result<BTreeMap<u32, String>> {
        let mut missing = BTreeMap::new();
        let mut gather = Gather { ensemble: self.ensemble, keep_views: self.keep_views, open: None };
        while let Some(batch) = stream.next()? {
            // A clip's views are neighbours, so all that it lacks is known before it is done.
            missing.extend(batch.missing.iter().map(|m| (m.clip, m.why.clone())));
            if batch.clips.is_empty() {
                continue;
            }
            let rows = metrics::rows(&self.probabilities(&self.normalise.tensor(&batch)?)?)?;
            for (&place, row) in batch.clips.iter().zip(rows) {
                if let Some(done) = gather.add(place, row)?.filter(|clip| !missing.contains_key(&clip.place))
                {
                    each(done)?;
                }
            }
            tick()?;
        }
        gather.finish().filter(|clip| !missing.contains_key(&clip.place)).map_or(Ok(()), each)?;
        Ok(missing)
    }

    /// Scores (B, classes) of clips (B, 3, T, H, W).
    fn probabilities(&self, clips: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let _autocast = autocast(self.precision, self.normalise.device)?;
        Ok(match self.loss {
            LossKind::CrossEntropy => self.model.probabilities(clips)?,
            LossKind::Bce => self.model.forward(clips, false)?.f_sigmoid()?,
        })
    }
}

/// Gathers the views of a clip, which come one after another.
struct Gather {
    ensemble: Ensemble,
    keep_views: bool,
    /// The clip under way and how many of its views were seen.
    open: Option<(ClipScore, u32)>,
}

impl Gather {
    /// Adds a view; gives back the clip before if this view begins another.
    fn add(&mut self, place: u32, view: Vec<f64>) -> Result<Option<ClipScore>> {
        if view.iter().any(|p| !p.is_finite()) {
            return Err(Error::Output { place });
        }
        let kept = self.keep_views.then(|| view.clone());
        let ensemble = self.ensemble;
        if let Some((open, seen)) = self.open.as_mut().filter(|(o, _)| o.place == place) {
            open.scores.iter_mut().zip(&view).for_each(|(all, p)| match ensemble {
                Ensemble::Mean => *all += p,
                Ensemble::Max => *all = all.max(*p),
            });
            open.views.extend(kept);
            *seen += 1;
            return Ok(None);
        }
        let done = self.take();
        self.open = Some((ClipScore { place, scores: view, views: kept.into_iter().collect() }, 1));
        Ok(done)
    }

    fn take(&mut self) -> Option<ClipScore> {
        let (mut clip, seen) = self.open.take()?;
        if self.ensemble == Ensemble::Mean {
            clip.scores.iter_mut().for_each(|p| *p /= f64::from(seen));
        }
        Some(clip)
    }

    fn finish(mut self) -> Option<ClipScore> {
        self.take()
    }
}

/// Cores of this machine that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// One line on stderr that is written over on a terminal; else a line every tenth.
pub struct Progress {
    total: usize,
    done: usize,
    shown: Option<usize>,
}

impl Progress {
    /// Of `total` clips, `done` already.
    pub fn new(total: usize, done: usize) -> Self {
        Self { total, done, shown: None }
    }

    /// `clips` more are done.
    pub fn advance(&mut self, clips: usize) {
        self.done += clips;
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

    fn gather(ensemble: Ensemble, keep_views: bool) -> Gather {
        Gather { ensemble, keep_views, open: None }
    }

    #[test]
    fn views_of_a_clip_are_averaged_across_batches() {
        let mut g = gather(Ensemble::Mean, false);
        assert_eq!(g.add(0, vec![1.0, 0.0]).unwrap(), None);
        assert_eq!(g.add(0, vec![0.5, 0.5]).unwrap(), None);
        let first = g.add(1, vec![0.25, 0.75]).unwrap().unwrap();
        assert_eq!(first, ClipScore { place: 0, scores: vec![0.75, 0.25], views: vec![] });
        assert_eq!(g.finish().unwrap().scores, [0.25, 0.75]);
        assert!(gather(Ensemble::Mean, false).add(0, vec![f64::NAN]).is_err());
    }

    #[test]
    fn the_largest_of_the_views_and_the_views_themselves() {
        let mut g = gather(Ensemble::Max, true);
        for view in [vec![0.9, 0.1], vec![0.2, 0.4], vec![0.3, 0.3]] {
            assert_eq!(g.add(7, view).unwrap(), None);
        }
        let clip = g.finish().unwrap();
        assert_eq!(clip.scores, [0.9, 0.4]);
        assert_eq!(clip.views, [[0.9, 0.1], [0.2, 0.4], [0.3, 0.3]]);
    }
}
