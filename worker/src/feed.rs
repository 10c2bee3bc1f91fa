//! From the job's configuration to this rank's stream of batches.

use crate::{Result, checkpoint::layout::Place, session::Assignment};
use configs::Config;
pub use shards::job::{clip_spec, stages};
use shards::{
    cache::Cache,
    format::Dataset,
    job::{augment, stream_options, train_view},
    plan::{Plan, PlanSpec},
    stream::{EvalPass, Stream, StreamOptions, TestSampling, TrainPass, View},
    trainset::TrainSet,
};
use std::sync::Arc;
use tokio::runtime::Handle;

/// Where one rank's clips come from.
pub struct Feed<'a> {
    pub config: &'a Config,
    pub dataset: &'a Arc<Dataset>,
    pub set: &'a TrainSet,
    pub runtime: &'a Handle,
    /// Decode threads, where the job names none.
    pub threads: usize,
    pub cache: Option<Arc<Cache>>,
}

/// The node's cache, as the job has it. Without one the job goes on, only slower.
pub fn open_cache(config: &Config, dataset: &Dataset) -> Option<Arc<Cache>> {
    let wanted = config.data.cache.as_ref()?;
    match Cache::open(wanted.folder.as_ref(), wanted.limit.0, &dataset.digest) {
        Ok(cache) => Some(Arc::new(cache)),
        Err(e) => {
            tracing::warn!("this worker goes on without a cache: failed to {e}");
            None
        }
    }
}

impl Feed<'_> {
    /// The job's plan without the shapes of multigrid training: every step is one global batch of full clips.
    pub fn plain_plan(&self) -> Result<Arc<Plan>> {
        let spec = self.set.plan.spec().clone();
        Ok(Arc::new(Plan::new(PlanSpec { stages: vec![], ..spec })?))
    }

    /// Steps of the whole job.
    pub fn total_steps(&self, plan: &Plan) -> u64 {
        let all = plan.first_step(self.config.total_epochs());
        self.config.train.max_steps.map_or(all, |max| max.min(all))
    }

    /// This rank's training batches from `from` to the end of the job.
    pub fn train(&self, plan: &Arc<Plan>, at: &Assignment, from: Place, total: u64) -> Result<Stream> {
        let pass = TrainPass {
            clips: self.set.clips.clone(),
            plan: plan.clone(),
            rank: at.rank as u32,
            world: at.world as u32,
            start: (from.epoch, from.step_in_epoch),
            end: total,
            clip: clip_spec(self.config),
            view: train_view(self.config, augment(self.config, &self.dataset.manifest)?),
        };
        Ok(Stream::train_of(self.set.sources.clone(), pass, &self.options())?)
    }

    /// This rank's share of the evaluation split, one central view a clip.
    /// `None`: the dataset has no such split.
    pub fn eval(&self, at: &Assignment) -> Result<Option<Stream>> {
        let data = &self.config.data;
        if !self.dataset.manifest.splits.contains_key(&data.eval_split) {
            return Ok(None);
        }
        let pass = EvalPass {
            clips: self.dataset.clips_of(&data.eval_split)?,
            rank: at.rank as u32,
            world: at.world as u32,
            batch: self.config.train.global_batch.div_ceil(at.world as u32),
            clip: clip_spec(self.config),
            view: View::Eval {
                short_side: data.eval.short_side,
                crop: data.eval.crop,
                clips: 1,
                crops: 1,
                sampling: test_sampling(data.test_views().sampling),
            },
        };
        Ok(Some(Stream::eval(self.dataset.clone(), pass, &self.options())?))
    }

    fn options(&self) -> StreamOptions {
        let threads = if self.config.data.threads == 0 { self.threads } else { self.config.data.threads };
        let options = stream_options(self.config, self.runtime.clone(), threads);
        StreamOptions { cache: self.cache.clone(), ..options }
    }
}

/// The fractional epoch at which a step begins.
pub fn fraction(plan: &Plan, epoch: u64, step: u64) -> f64 {
    let steps = plan.steps_per_epoch(epoch);
    (epoch * steps + step) as f64 / steps as f64
}

/// Where the windows of an evaluation lie.
pub fn test_sampling(sampling: configs::TestSampling) -> TestSampling {
    match sampling {
        configs::TestSampling::PySlowFast => TestSampling::PySlowFast,
        configs::TestSampling::MmAction2 => TestSampling::MmAction2,
    }
}
