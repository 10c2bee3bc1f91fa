//! From the job's configuration to this rank's stream of batches.

use crate::{Result, checkpoint::layout::Place, session::Assignment};
use configs::Config;
use shards::{
    format::Dataset,
    job::{clip_spec, test_sampling, train_view},
    plan::{Plan, PlanSpec},
    stream::{EvalPass, Stream, StreamOptions, TrainPass, View},
};
use std::sync::Arc;
use tokio::runtime::Handle;

/// Where one rank's clips come from.
pub struct Feed<'a> {
    pub config: &'a Config,
    pub dataset: &'a Arc<Dataset>,
    pub runtime: &'a Handle,
    /// Decode threads, where the job names none.
    pub threads: usize,
}

impl Feed<'_> {
    /// The order of the training clips. An empty split is an error.
    pub fn plan(&self) -> Result<Arc<Plan>> {
        let (data, train) = (&self.config.data, &self.config.train);
        let clips = self.dataset.clips_of(&data.train_split)?.len() as u64;
        Ok(Arc::new(Plan::new(PlanSpec {
            dataset_digest: self.dataset.digest.clone(),
            seed: self.config.seed,
            clips,
            lanes: data.lanes,
            global_batch: train.global_batch,
            drop_last: data.drop_last,
        })?))
    }

    /// Steps of the whole job.
    pub fn total_steps(&self, plan: &Plan) -> u64 {
        let all = self.config.train.epochs * plan.steps_per_epoch();
        self.config.train.max_steps.map_or(all, |max| max.min(all))
    }

    /// This rank's training batches from `from` to the end of the job.
    pub fn train(&self, plan: &Arc<Plan>, at: &Assignment, from: Place, total: u64) -> Result<Stream> {
        let data = &self.config.data;
        let pass = TrainPass {
            clips: self.dataset.clips_of(&data.train_split)?,
            plan: plan.clone(),
            rank: at.rank as u32,
            world: at.world as u32,
            start: (from.epoch, from.step_in_epoch),
            end: total,
            clip: clip_spec(self.config),
            view: train_view(self.config, &self.dataset.manifest)?,
        };
        Ok(Stream::train(self.dataset.clone(), pass, &self.options())?)
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
        let data = &self.config.data;
        let threads = if data.threads == 0 { self.threads } else { data.threads };
        StreamOptions::new(self.runtime.clone(), threads, data.prefetch.0)
    }
}
