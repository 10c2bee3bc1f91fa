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
    job::stream_options,
    stream::{EvalPass, Stream, View},
};
use std::{collections::HashMap, io::IsTerminal, sync::Arc};
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

/// What became of one clip.
#[derive(Clone, Debug, PartialEq)]
pub enum Judged {
    Score(ClipScore),
    /// Left out, because its stored bytes are not what was written: its place, and what the reading failed to do.
    Damaged {
        place: u32,
        why: String,
    },
}

impl Judged {
    /// Place among the clips that were asked for.
    pub fn place(&self) -> u32 {
        match self {
            Judged::Score(clip) => clip.place,
            Judged::Damaged { place, .. } => *place,
        }
    }

    /// The views' own scores, where they were asked for and the clip is whole.
    pub fn views(&self) -> &[Vec<f64>] {
        match self {
            Judged::Score(clip) => &clip.views,
            Judged::Damaged { .. } => &[],
        }
    }
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

    /// Judges `clips` of `dataset` and hands what became of each to `each`, in order. `batch`: views of one
    /// forward pass, which is all that memory grows with: clips are streamed under the job's `data.prefetch`,
    /// and of a clip's views only the running sum is kept unless `keep_views`. A damaged clip is an error or is
    /// left out, as the job's `data.on_damage` says.
    pub fn score(
        &self,
        dataset: &Arc<Dataset>,
        clips: Vec<ClipIndex>,
        test: &Test,
        batch: u32,
        keep_views: bool,
        each: impl FnMut(Judged) -> Result<()>,
    ) -> Result<()> {
        let options = stream_options(&self.config, self.runtime.handle().clone(), self.threads);
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
        judge.score(stream, || Ok(()), each)
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
    /// Runs the model over the stream's views and hands on what became of each clip, in order, once its last view
    /// was seen. A clip of which the stream lacks any view is damaged. `tick` is called after every batch, and its
    /// error ends the pass.
    pub fn score(
        &self,
        mut stream: Stream,
        mut tick: impl FnMut() -> Result<()>,
        mut each: impl FnMut(Judged) -> Result<()>,
    ) -> Result<()> {
        let mut gather = Gather { ensemble: self.ensemble, keep_views: self.keep_views, open: None };
        let mut hand = |done: Option<Judged>| done.map_or(Ok(()), &mut each);
        while let Some(batch) = stream.next()? {
            let rows = match batch.clips.is_empty() {
                true => vec![],
                false => metrics::rows(&self.probabilities(&self.normalise.tensor(&batch)?)?)?,
            };
            // Views and what is missing of them both come in the order of the clips.
            let mut missing = batch.missing.into_iter().peekable();
            for (&place, row) in batch.clips.iter().zip(rows) {
                while let Some(lost) = missing.next_if(|lost| lost.clip <= place) {
                    hand(gather.lacks(lost.clip, lost.why))?;
                }
                hand(gather.add(place, row)?)?;
            }
            for lost in missing {
                hand(gather.lacks(lost.clip, lost.why))?;
            }
            tick()?;
        }
        hand(gather.take())
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
    open: Option<Open>,
}

/// The clip under way.
struct Open {
    clip: ClipScore,
    /// Views so far.
    seen: u32,
    /// Why a view is missing.
    damage: Option<String>,
}

impl Gather {
    /// Adds a view; gives back the clip before if this view begins another.
    fn add(&mut self, place: u32, view: Vec<f64>) -> Result<Option<Judged>> {
        if view.iter().any(|p| !p.is_finite()) {
            return Err(Error::Output { place });
        }
        let (ensemble, keep_views) = (self.ensemble, self.keep_views);
        let (done, open) = self.turn_to(place);
        if keep_views {
            open.clip.views.push(view.clone());
        }
        let pairs = open.clip.scores.iter_mut().zip(&view);
        match ensemble {
            _ if open.seen == 0 => open.clip.scores = view,
            Ensemble::Mean => pairs.for_each(|(all, p)| *all += p),
            Ensemble::Max => pairs.for_each(|(all, p)| *all = all.max(*p)),
        }
        open.seen += 1;
        Ok(done)
    }

    /// Notes that a view is missing; gives back the clip before if this one is another.
    fn lacks(&mut self, place: u32, why: String) -> Option<Judged> {
        let (done, open) = self.turn_to(place);
        open.damage.get_or_insert(why);
        done
    }

    fn turn_to(&mut self, place: u32) -> (Option<Judged>, &mut Open) {
        let other = self.open.as_ref().is_some_and(|open| open.clip.place != place);
        let done = if other { self.take() } else { None };
        let fresh =
            || Open { clip: ClipScore { place, scores: vec![], views: vec![] }, seen: 0, damage: None };
        (done, self.open.get_or_insert_with(fresh))
    }

    /// The clip under way, which is done.
    fn take(&mut self) -> Option<Judged> {
        let Open { mut clip, seen, damage } = self.open.take()?;
        if let Some(why) = damage {
            return Some(Judged::Damaged { place: clip.place, why });
        }
        if self.ensemble == Ensemble::Mean {
            clip.scores.iter_mut().for_each(|p| *p /= f64::from(seen));
        }
        Some(Judged::Score(clip))
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

    fn score(judged: Option<Judged>) -> ClipScore {
        match judged {
            Some(Judged::Score(clip)) => clip,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn views_of_a_clip_are_averaged_across_batches() {
        let mut g = gather(Ensemble::Mean, false);
        assert_eq!(g.add(0, vec![1.0, 0.0]).unwrap(), None);
        assert_eq!(g.add(0, vec![0.5, 0.5]).unwrap(), None);
        let first = score(g.add(1, vec![0.25, 0.75]).unwrap());
        assert_eq!(first, ClipScore { place: 0, scores: vec![0.75, 0.25], views: vec![] });
        assert_eq!(score(g.take()).scores, [0.25, 0.75]);
        assert!(gather(Ensemble::Mean, false).add(0, vec![f64::NAN]).is_err());
    }

    #[test]
    fn a_clip_that_lacks_a_view_has_no_score() {
        let mut g = gather(Ensemble::Mean, true);
        assert_eq!(g.add(3, vec![0.5, 0.5]).unwrap(), None);
        assert_eq!(g.lacks(3, "read run 2".into()), None);
        assert_eq!(g.lacks(3, "read run 3".into()), None);
        assert_eq!(g.add(3, vec![0.5, 0.5]).unwrap(), None);
        let third = Judged::Damaged { place: 3, why: "read run 2".into() };
        assert_eq!(g.lacks(4, "read run 0".into()), Some(third), "the first reason");
        let fourth = g.add(5, vec![1.0, 0.0]).unwrap().unwrap();
        assert_eq!((fourth.place(), matches!(fourth, Judged::Damaged { .. })), (4, true));
        assert_eq!(score(g.take()).place, 5);
    }

    #[test]
    fn the_largest_of_the_views_and_the_views_themselves() {
        let mut g = gather(Ensemble::Max, true);
        for view in [vec![0.9, 0.1], vec![0.2, 0.4], vec![0.3, 0.3]] {
            assert_eq!(g.add(7, view).unwrap(), None);
        }
        let clip = score(g.take());
        assert_eq!(clip.scores, [0.9, 0.4]);
        assert_eq!(clip.views, [[0.9, 0.1], [0.2, 0.4], [0.3, 0.3]]);
    }
}
