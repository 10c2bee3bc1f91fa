//! Where the steps of a run lie: how many there are in each epoch, and what each takes from a lane.

use super::PlanSpec;
use crate::{Error, Result};
use std::ops::Range;

/// Epochs in a row whose steps go through the same shapes (multigrid training's long cycle).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The first epoch that is no longer of it; of the last stage, all further epochs are.
    pub end: u64,
    /// The shapes of the steps, in turn, from the first in every epoch (the short cycle). Not empty.
    pub cycle: Vec<Shape>,
}

/// What a step shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Clips, in global batches.
    pub batch: u32,
    /// Frames of a clip, T.
    pub frames: u32,
    /// Side of the square crop, pixels.
    pub side: u32,
}

/// The steps of all epochs.
#[derive(Debug)]
pub(super) struct Steps {
    /// Never empty.
    stages: Vec<Timing>,
}

/// A stage's epochs and the sizes of their steps.
#[derive(Debug)]
struct Timing {
    epochs: Range<u64>,
    /// Steps of the run before it.
    first_step: u64,
    steps_per_epoch: u64,
    /// Clips of a lane before each step of a cycle, then those of the whole cycle.
    before: Vec<u64>,
    /// What the steps of a cycle show; empty in a plan without stages.
    shapes: Vec<Shape>,
}

impl Steps {
    /// Lays the steps out over lanes of at least `shortest` and at most `longest` clips.
    pub(super) fn new(spec: &PlanSpec, shortest: u64, longest: u64) -> Result<Self> {
        let bad = |why: String| Err(Error::Usage(format!("plan the epochs: {why}")));
        let per_lane = u64::from(spec.global_batch / spec.lanes);
        let plain = [Stage { end: u64::MAX, cycle: vec![] }];
        let given = if spec.stages.is_empty() { &plain[..] } else { &spec.stages };
        let (mut stages, mut epoch, mut first_step): (Vec<Timing>, u64, u64) = (vec![], 0, 0);
        for (i, stage) in given.iter().enumerate() {
            let end = if i + 1 == given.len() { u64::MAX } else { stage.end };
            if end <= epoch {
                // Rounded away.
                continue;
            }
            if spec.stages.iter().any(|s| s.cycle.iter().any(|c| c.batch == 0) || s.cycle.is_empty()) {
                return bad("a stage has a step without clips".into());
            }
            let sizes: Vec<u64> = match stage.cycle.is_empty() {
                true => vec![per_lane],
                false => stage.cycle.iter().map(|s| per_lane * u64::from(s.batch)).collect(),
            };
            let mut before = vec![0];
            for size in sizes {
                before.push(before[before.len() - 1] + size);
            }
            let steps_per_epoch = match spec.drop_last {
                true => whole_steps(&before, shortest),
                false => whole_steps(&before, longest - 1) + 1,
            };
            if steps_per_epoch == 0 {
                let batch =
                    stage.cycle.first().map_or(1, |s| u64::from(s.batch)) * u64::from(spec.global_batch);
                return bad(format!(
                    "{} clips do not fill one global batch of {batch} and drop_last is set",
                    spec.clips
                ));
            }
            let timing = Timing {
                epochs: epoch..end,
                first_step,
                steps_per_epoch,
                before,
                shapes: stage.cycle.clone(),
            };
            first_step = first_step.saturating_add((end - epoch).saturating_mul(steps_per_epoch));
            epoch = end;
            stages.push(timing);
        }
        Ok(Self { stages })
    }

    fn stage(&self, epoch: u64) -> &Timing {
        let at = self.stages.partition_point(|s| s.epochs.end <= epoch);
        &self.stages[at.min(self.stages.len() - 1)]
    }

    pub(super) fn of_epoch(&self, epoch: u64) -> u64 {
        self.stage(epoch).steps_per_epoch
    }

    /// Steps of the run before the epoch; no more than there are numbers.
    pub(super) fn before_epoch(&self, epoch: u64) -> u64 {
        let stage = self.stage(epoch);
        let epochs = epoch - stage.epochs.start;
        stage.first_step.saturating_add(epochs.saturating_mul(stage.steps_per_epoch))
    }

    /// Epoch, and step in it, of the run's step number `step`.
    pub(super) fn place(&self, step: u64) -> (u64, u64) {
        let at = self.stages.partition_point(|s| s.first_step <= step).max(1) - 1;
        let stage = &self.stages[at];
        let within = step - stage.first_step;
        (stage.epochs.start + within / stage.steps_per_epoch, within % stage.steps_per_epoch)
    }

    /// Clips that the steps before `step` take from a lane long enough.
    pub(super) fn taken_before(&self, epoch: u64, step: u64) -> u64 {
        let before = &self.stage(epoch).before;
        let cycle = before.len() as u64 - 1;
        (step / cycle).saturating_mul(before[cycle as usize]).saturating_add(before[(step % cycle) as usize])
    }

    pub(super) fn shape(&self, epoch: u64, step: u64) -> Option<Shape> {
        let shapes = &self.stage(epoch).shapes;
        shapes.get((step % shapes.len().max(1) as u64) as usize).copied()
    }
}

/// Steps that `clips` clips of a lane fill.
fn whole_steps(before: &[u64], clips: u64) -> u64 {
    let cycle = before.len() - 1;
    let (cycles, rest) = (clips / before[cycle], clips % before[cycle]);
    cycles * cycle as u64 + before[1..cycle].iter().filter(|b| **b <= rest).count() as u64
}
