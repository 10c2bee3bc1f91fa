//! Multigrid training (Wu et al. 2020, "A Multigrid Method for Efficiently Training Video Models"): which shapes
//! the clips of each epoch and step have. The arithmetic is PySlowFast's (`slowfast/utils/multigrid.py`,
//! `slowfast/datasets/multigrid_helper.py`), rounding included.

use crate::{Job, Schedule, ScheduleKind};
use serde::Deserialize;

/// Smaller clips in larger batches first: about the same accuracy in a fraction of the time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Multigrid {
    /// The shape changes over the epochs, in each interval between two steps of the rate anew.
    #[serde(default = "yes")]
    pub long_cycle: bool,
    /// (T, side) of each shape of the long cycle, as parts of `data.frames` and `data.augment.crop`.
    #[serde(default = "long_cycle_factors")]
    pub long_cycle_factors: Vec<[f64; 2]>,
    /// The side changes from step to step.
    #[serde(default = "yes")]
    pub short_cycle: bool,
    /// Sides of the short cycle's first steps, as parts of `data.augment.crop`; its last has the long cycle's.
    #[serde(default = "short_cycle_factors")]
    pub short_cycle_factors: [f64; 2],
    /// Epochs relative to those of the configuration, which are a plain job's.
    #[serde(default = "epoch_factor")]
    pub epoch_factor: f64,
}

impl Default for Multigrid {
    fn default() -> Self {
        Self {
            long_cycle: true,
            long_cycle_factors: long_cycle_factors(),
            short_cycle: true,
            short_cycle_factors: short_cycle_factors(),
            epoch_factor: epoch_factor(),
        }
    }
}

/// Epochs in a row whose steps go through the same shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The first epoch that is no longer of it.
    pub end: u64,
    /// The interval between two steps of the learning rate that it lies in.
    pub interval: usize,
    /// The steps' shapes, in turn, from the first in every epoch; the last is the long cycle's.
    pub cycle: Vec<StepShape>,
}

/// What a step shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Clips, in global batches.
    pub batch: u32,
    /// What the short cycle contributes to `batch`; the groups of sub-batch norm grow with it.
    pub short: u32,
    /// T
    pub frames: u32,
    /// Pixels.
    pub crop: u32,
}

impl Stage {
    /// The long cycle's shape.
    pub fn base(&self) -> StepShape {
        // A stage has at least one shape by construction.
        self.cycle[self.cycle.len() - 1]
    }
}

impl Job {
    /// The stages of the job, never empty; a plain job has one.
    pub fn stages(&self) -> Vec<Stage> {
        let plain = StepShape { batch: 1, short: 1, frames: self.data.frames, crop: self.data.augment.crop };
        match &self.train.multigrid {
            None => vec![Stage { end: self.train.epochs, interval: 0, cycle: vec![plain] }],
            Some(m) if m.long_cycle => m.long_stages(self),
            Some(m) => {
                let end = (self.train.epochs as f64 * m.epoch_factor) as u64;
                vec![Stage { end, interval: 0, cycle: m.cycle(self, plain) }]
            }
        }
    }

    /// Epochs that the job trains: `train.epochs`, times the epoch factor of multigrid training.
    pub fn total_epochs(&self) -> u64 {
        self.stages().last().map_or(0, |s| s.end)
    }

    /// The learning rate's schedule over the epochs that the job trains: its steps are moved with the stages.
    /// The long cycle's batch is not in it yet: [`Job::rate_factor`].
    pub fn schedule_of_stages(&self) -> Schedule {
        let mut schedule = self.schedule.clone();
        let Some(m) = self.train.multigrid.as_ref().filter(|_| schedule.kind == ScheduleKind::Steps) else {
            return schedule;
        };
        if !m.long_cycle {
            schedule.steps.iter_mut().for_each(|s| *s = (*s * m.epoch_factor).floor());
            return schedule;
        }
        let stages = self.stages();
        let ends: Vec<u64> = (0..schedule.steps.len())
            .map(|i| stages.iter().filter(|s| s.interval <= i).map(|s| s.end).max().unwrap_or(0))
            .collect();
        schedule.steps = ends.iter().map(|e| *e as f64).collect();
        // The first half of the fine-tuning keeps the rate before it.
        if let (Some(last), Some(step)) = (stages.last(), schedule.steps.last_mut()) {
            *step = ((*step as u64 + last.end) / 2) as f64;
        }
        schedule
    }

    /// What the learning rate at fractional epoch `at` is multiplied by: the long cycle's batch in global
    /// batches. The short cycle changes the rate no more than it changes the batch on average over a few steps.
    pub fn rate_factor(&self, at: f64) -> f64 {
        let stages = self.stages();
        let stage = stages.iter().find(|s| at < s.end as f64).or(stages.last());
        let base = stage.map(Stage::base);
        base.map_or(1.0, |s| f64::from(s.batch) / f64::from(s.short))
    }
}

impl Multigrid {
    /// `get_long_cycle_schedule`. Where the rate has no steps, all epochs are one interval, without fine-tuning.
    fn long_stages(&self, job: &Job) -> Vec<Stage> {
        let (frames, crop) = (f64::from(job.data.frames), f64::from(job.data.augment.crop));
        let clip = frames * crop * crop;
        let batch = |t: f64, side: f64| (clip / (t * side * side)).round_ties_even().max(1.0);
        let shapes: Vec<StepShape> = self
            .long_cycle_factors
            .iter()
            .map(|[t, s]| {
                let (t, side) = ((frames * t).round_ties_even(), (crop * s).round_ties_even());
                StepShape { batch: batch(t, side) as u32, short: 1, frames: t as u32, crop: side as u32 }
            })
            .collect();
        // The mean batch over a short cycle.
        let means: Vec<f64> = shapes
            .iter()
            .map(|s| {
                let mut all = vec![f64::from(s.batch)];
                if self.short_cycle {
                    all.extend(self.short_cycle_factors.map(|f| batch(s.frames.into(), crop * f)));
                }
                all.iter().sum::<f64>() / all.len() as f64
            })
            .collect();
        let epochs = job.train.epochs as f64;
        let steps: Vec<f64> = match job.schedule.kind {
            ScheduleKind::Steps => [0.0].iter().chain(&job.schedule.steps).copied().collect(),
            _ => vec![0.0, epochs],
        };
        let (mut parts, mut iterations) = (vec![], 0.0);
        for (interval, pair) in steps.windows(2).enumerate() {
            for (shape, mean) in shapes.iter().zip(&means) {
                let part = (pair[1] - pair[0]) * mean / means.iter().sum::<f64>();
                iterations += part / mean;
                parts.push((interval, *shape, part));
            }
        }
        if let (ScheduleKind::Steps, Some(last), Some(mean), Some(shape)) =
            (job.schedule.kind, steps.last(), means.last(), shapes.last())
        {
            // Fine-tuning saves as many iterations as the rest.
            let tuning = (epochs - last) / (last / iterations) * mean;
            parts.push((steps.len() - 1, *shape, tuning));
        }
        let stretch = epochs * self.epoch_factor / parts.iter().map(|p| p.2).sum::<f64>();
        let mut total = 0.0;
        parts
            .into_iter()
            .map(|(interval, shape, part)| {
                total += part * stretch;
                Stage { end: total.round_ties_even() as u64, interval, cycle: self.cycle(job, shape) }
            })
            .collect()
    }

    /// `ShortCycleBatchSampler`: the shapes of a stage's steps.
    fn cycle(&self, job: &Job, base: StepShape) -> Vec<StepShape> {
        if !self.short_cycle {
            return vec![base];
        }
        let crop = f64::from(job.data.augment.crop);
        let mut cycle: Vec<StepShape> = self
            .short_cycle_factors
            .iter()
            .map(|f| {
                let short = (f64::from(base.crop) / (f * crop)).powi(2).round_ties_even().max(1.0) as u32;
                let side = (f * crop).round_ties_even() as u32;
                StepShape { batch: base.batch * short, short, crop: side, ..base }
            })
            .collect();
        cycle.push(base);
        cycle
    }
}

fn yes() -> bool {
    true
}
fn long_cycle_factors() -> Vec<[f64; 2]> {
    let half = 0.5f64.sqrt();
    vec![[0.25, half], [0.5, half], [0.5, 1.0], [1.0, 1.0]]
}
fn short_cycle_factors() -> [f64; 2] {
    [0.5, 0.5f64.sqrt()]
}
fn epoch_factor() -> f64 {
    1.5
}
