//! A rank's batches, one after another: planned, fetched, verified and decoded ahead of the trainer.
//!
//! ```text
//! sources.rs   several datasets as one
//! batches.rs   what each batch shows: pure
//! pipeline.rs  fetches on tokio, decodes on rayon, keeps the order and the byte budget
//! ```

mod batches;
mod pipeline;
mod sources;

pub use crate::augment::{Augment, ColorJitter, Erasing, RandAugment};
pub use crate::reader::Stats;
pub use crate::sampling::{ClipSpec, Scale, TestSampling, View};
pub use configs::OnDamage;
pub use sources::{Source, Sources};

use crate::cache::{self, Cache};
use crate::format::{ClipIndex, Dataset};
use crate::plan::Plan;
use crate::reader::Reader;
use crate::{Error, Result};
pub(crate) use batches::{BatchPlan, Batches, Grouped};
use pipeline::{Pending, Spares};
use std::sync::Arc;
use std::time::{Duration, Instant};
use storage::RequestPolicy;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// How the stream works; but for `on_damage`, none of it changes what comes out.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Where requests run.
    pub runtime: tokio::runtime::Handle,
    /// Decode threads; 0: one a core.
    pub threads: usize,
    /// Ceiling on the bytes of batches and fetched runs that wait or are being made; one batch is
    /// always made, however large.
    pub prefetch_bytes: u64,
    /// How the store is asked.
    pub requests: RequestPolicy,
    /// What becomes of a clip whose stored bytes are not what was written, also when they are fetched again: an error
    /// that names it ends the stream, or its batch lacks it and everything else comes as it would.
    pub on_damage: OnDamage,
    /// The node's cache, opened for this dataset.
    pub cache: Option<Arc<Cache>>,
}

impl StreamOptions {
    /// `threads` and `prefetch_bytes`, the usual requests, and a stop at damage.
    pub fn new(runtime: tokio::runtime::Handle, threads: usize, prefetch_bytes: u64) -> Self {
        let (requests, on_damage) = (RequestPolicy::default(), OnDamage::Stop);
        Self { runtime, threads, prefetch_bytes, requests, on_damage, cache: None }
    }
}

/// A rank's part of a training run.
#[derive(Clone, Debug)]
pub struct TrainPass {
    /// The split, as [`Dataset::clips_of`] or [`Sources::clips_of`] gives it.
    pub clips: Vec<ClipIndex>,
    pub plan: Arc<Plan>,
    pub rank: u32,
    pub world: u32,
    /// First (epoch, step in it).
    pub start: (u64, u64),
    /// Steps of the whole run, counted from (0, 0): the stream ends before this one.
    pub end: u64,
    pub clip: ClipSpec,
    /// [`View::Train`].
    pub view: View,
}

/// A rank's part of an evaluation.
#[derive(Clone, Debug)]
pub struct EvalPass {
    /// The split, as [`Dataset::clips_of`] gives it.
    pub clips: Vec<ClipIndex>,
    pub rank: u32,
    pub world: u32,
    /// Views of a batch; rounded down to whole windows of all their crops, but at least one.
    pub batch: u32,
    pub clip: ClipSpec,
    /// [`View::Eval`].
    pub view: View,
}

/// One rank's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// 0 in an evaluation.
    pub epoch: u64,
    /// Step in the epoch; in an evaluation, the batch's number.
    pub step: u64,
    /// RGB, (B, T, H, W, C), contiguous.
    pub frames: Vec<u8>,
    /// [B, T, H, W, 3]. B may be 0 in an epoch's short last step.
    pub shape: [usize; 5],
    /// The first label id of each view; -1: unlabelled.
    pub labels: Vec<i64>,
    /// All label ids of each view.
    pub label_sets: Vec<Vec<i32>>,
    /// Places inside the split.
    pub clips: Vec<u32>,
    /// Places in the epoch; in an evaluation, places inside the split.
    pub positions: Vec<u64>,
    /// The view's number of its clip; in training, of the repeat. A clip's views are neighbours.
    pub views: Vec<u32>,
    /// How long the trainer waited for this batch.
    pub waited: Duration,
    /// What all ranks together are to show in this step: clips x repeats; in an evaluation, B.
    pub global_clips: usize,
    /// Windows that are left out of all the above but `global_clips`, because their clips are damaged.
    pub missing: Vec<Missing>,
}

/// A window that its batch lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The clip's place inside the split.
    pub clip: u32,
    /// The clip's place in the epoch.
    pub position: u64,
    /// Views that the window would have been shown in.
    pub views: u32,
    /// The error that names file, clip and run.
    pub why: String,
}

/// Prefetched batches, in order. Dropping it stops all that it does.
#[derive(Debug)]
pub struct Stream {
    queue: mpsc::Receiver<Pending>,
    /// One a dataset.
    readers: Arc<[Reader]>,
    spares: Arc<Spares>,
    /// Batches not yet handed out: a queue that closes early must not pass for the end.
    left: u64,
    failed: bool,
    _driver: AbortOnDropHandle<()>,
}

impl Stream {
    /// A rank's batches of a training run.
    ///
    /// # Errors
    /// Numbers that cannot be: names them. No I/O happens here.
    pub fn train(dataset: Arc<Dataset>, pass: TrainPass, options: &StreamOptions) -> Result<Self> {
        Self::train_of(dataset.into(), pass, options)
    }

    /// [`Stream::train`] on several datasets.
    ///
    /// # Errors
    /// As [`Stream::train`].
    pub fn train_of(sources: Sources, pass: TrainPass, options: &StreamOptions) -> Result<Self> {
        let batches = Batches::train(&sources, pass)?;
        Self::start(&sources, batches, options)
    }

    /// A rank's batches of an evaluation: its contiguous part of the split, each clip in every view.
    ///
    /// # Errors
    /// Numbers that cannot be: names them. No I/O happens here.
    pub fn eval(dataset: Arc<Dataset>, pass: EvalPass, options: &StreamOptions) -> Result<Self> {
        let sources = Sources::from(dataset);
        let batches = Batches::eval(&sources, pass)?;
        Self::start(&sources, batches, options)
    }

    /// The next batch; `None` after the last. Blocks: for the trainer's own thread, not for a task.
    /// The first error in the order of the batches comes in its batch's place and ends the stream.
    ///
    /// # Errors
    /// Storage, or damage: names file, clip and run.
    #[expect(clippy::should_implement_trait, reason = "it can fail")]
    pub fn next(&mut self) -> Result<Option<Batch>> {
        futures::executor::block_on(self.next_async())
    }

    /// [`Stream::next`] for a task.
    ///
    /// # Errors
    /// As [`Stream::next`].
    pub async fn next_async(&mut self) -> Result<Option<Batch>> {
        if self.failed {
            return Err(Error::Stopped("read the next batch: an earlier error ended the stream".into()));
        }
        if self.left == 0 {
            return Ok(None);
        }
        let asked = now();
        let batch = self.receive().await;
        match batch {
            Ok(mut batch) => {
                self.left -= 1;
                batch.waited = now().saturating_duration_since(asked);
                Ok(Some(batch))
            }
            Err(e) => {
                self.failed = true;
                self.queue.close();
                Err(e)
            }
        }
    }

    /// Takes back the memory of a batch that is done with: a later one is made in it.
    pub fn recycle(&self, batch: Batch) {
        self.spares.put(batch.frames);
    }

    /// Bytes and requests so far.
    pub fn stats(&self) -> Stats {
        self.readers.iter().map(|r| r.stats()).sum()
    }

    /// What the node's cache has done for this process so far; `None` without one.
    pub fn cache_stats(&self) -> Option<cache::Stats> {
        self.readers.iter().find_map(Reader::cache_stats)
    }

    /// Batches still to come.
    pub fn batches_left(&self) -> u64 {
        self.left
    }

    async fn receive(&mut self) -> Result<Batch> {
        let ended =
            |e: String| Error::Stopped(format!("read the next batch: the prefetching ended early{e}"));
        let pending = self.queue.recv().await.ok_or_else(|| ended(String::new()))?;
        // The batch's share of the budget is freed here: from now on the trainer owns it.
        let (batch, _share) = pending.await.map_err(|e| ended(format!(" ({e})")))??;
        Ok(batch)
    }

    fn start(sources: &Sources, batches: Batches, options: &StreamOptions) -> Result<Self> {
        // A cache is one dataset's.
        let cache = options.cache.clone().filter(|_| sources.datasets().count() == 1);
        let reader =
            |d: &Arc<Dataset>| Ok(Reader::new(d.clone(), options.requests)?.with_cache(cache.clone()));
        let readers: Arc<[Reader]> = sources.datasets().map(reader).collect::<Result<Vec<_>>>()?.into();
        let left = batches.remaining();
        let spares = Arc::new(Spares::default());
        let (driver, queue) = pipeline::start(readers.clone(), batches, spares.clone(), options)?;
        Ok(Self { queue, readers, spares, left, failed: false, _driver: driver })
    }
}

/// The clock, read for [`Batch::waited`] only: nothing depends on it.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
