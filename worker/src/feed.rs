//! From the job's configuration to this rank's stream of batches.

use crate::{Result, checkpoint::layout::Place, session::Assignment, trainset::TrainSet};
use configs::Config;
use shards::{
    format::Dataset,
    plan::{Plan, PlanSpec, Shape, Stage},
    stream::{
        Augment, ClipSpec, ColorJitter, Erasing, EvalPass, RandAugment, Scale, Stream, StreamOptions,
        TestSampling, TrainPass, View,
    },
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
        let data = &self.config.data;
        let augment = &data.augment;
        let scale = match augment.scale {
            configs::Scale::ShortSide { min, max } => Scale::ShortSide { min, max },
            configs::Scale::Resized { area, aspect } => Scale::Resized { area, aspect },
        };
        let pass = TrainPass {
            clips: self.set.clips.clone(),
            plan: plan.clone(),
            rank: at.rank as u32,
            world: at.world as u32,
            start: (from.epoch, from.step_in_epoch),
            end: total,
            clip: clip_spec(self.config),
            view: View::Train {
                crop: augment.crop,
                scale,
                flip: augment.flip,
                seed: self.config.seed,
                repeats: augment.repeats,
                augment: self.augment()?,
            },
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

    /// An unknown name among the labels that are never mirrored is an error.
    fn augment(&self) -> Result<Augment> {
        let data = &self.config.data;
        let a = &data.augment;
        Ok(Augment {
            no_flip: self.dataset.manifest.label_ids("data.augment.no_flip", &a.no_flip)?,
            color_jitter: a.color_jitter.map(|j| ColorJitter {
                brightness: j.brightness,
                contrast: j.contrast,
                saturation: j.saturation,
            }),
            rand_augment: a.rand_augment.map(|r| RandAugment {
                magnitude: r.magnitude,
                magnitude_std: r.magnitude_std,
                num_ops: r.num_ops,
                prob: r.prob,
            }),
            erasing: a.random_erasing.map(|e| Erasing {
                prob: e.prob,
                area: e.area,
                aspect: e.aspect,
                mean: data.mean,
                std: data.std,
            }),
        })
    }

    fn options(&self) -> StreamOptions {
        let data = &self.config.data;
        let threads = if data.threads == 0 { self.threads } else { data.threads };
        StreamOptions::new(self.runtime.clone(), threads, data.prefetch.0)
    }
}

/// The shapes of multigrid training; none in a plain job.
pub fn stages(config: &Config) -> Vec<Stage> {
    if config.train.multigrid.is_none() {
        return vec![];
    }
    let shape = |s: &configs::StepShape| Shape { batch: s.batch, frames: s.frames, side: s.crop };
    let stage = |s: &configs::Stage| Stage { end: s.end, cycle: s.cycle.iter().map(shape).collect() };
    config.stages().iter().map(stage).collect()
}

/// The fractional epoch at which a step begins.
pub fn fraction(plan: &Plan, epoch: u64, step: u64) -> f64 {
    let steps = plan.steps_per_epoch(epoch);
    (epoch * steps + step) as f64 / steps as f64
}

/// The temporal window of the job's clips.
pub fn clip_spec(config: &Config) -> ClipSpec {
    let data = &config.data;
    ClipSpec {
        frames: data.frames,
        sampling_rate: data.sampling_rate,
        fps: data.fps,
        single_frame: config.train.single_frame,
    }
}

/// Where the windows of an evaluation lie.
pub fn test_sampling(sampling: configs::TestSampling) -> TestSampling {
    match sampling {
        configs::TestSampling::PySlowFast => TestSampling::PySlowFast,
        configs::TestSampling::MmAction2 => TestSampling::MmAction2,
    }
}
