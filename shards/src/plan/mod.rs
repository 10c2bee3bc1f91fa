//! Which clips make up each global batch: a pure function of the dataset, the seed and the batch.
//!
//! Clips are dealt into lanes (clip i to lane i mod lanes) and permuted inside each, every epoch anew.
//! A step takes `global_batch / lanes` clips from each lane, lane after lane, or a multiple of that in
//! multigrid training. A rank owns a contiguous range of lanes, so the global batches are the same at every
//! world size.
//!
//! ```text
//! order.rs    the order of each lane's clips, and what a plan is known by
//! groups.rs   neighbours in a file, read together and shuffled inside a window
//! pools.rs    epochs drawn from classes or datasets in given shares
//! steps.rs    how many steps an epoch has, and what each takes from a lane
//! ```

mod groups;
mod order;
mod pools;
mod steps;

pub use groups::Groups;
pub use order::Order;
pub use pools::{Pools, Shares, by_weight};
pub use steps::{Shape, Stage};

use crate::{Error, Result};
use order::Epoch;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use steps::Steps;

/// What a plan is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanSpec {
    /// [`crate::format::Dataset::digest`].
    pub dataset_digest: String,
    pub seed: u64,
    /// Clips of the split, after those that were left out.
    pub clips: u64,
    /// A divisor of `global_batch`, and the most ranks there can be.
    pub lanes: u32,
    /// Clips of one step over all ranks.
    pub global_batch: u32,
    /// Leave out the last, short global batch.
    pub drop_last: bool,
    /// Shapes of the steps over the epochs, in order; empty: every step is one global batch.
    pub stages: Vec<Stage>,
    pub order: Order,
    /// Digest of the list of clips that were left out of the split; empty: none were.
    pub left_out: String,
}

/// One clip of a global batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sample {
    /// Place inside the split.
    pub clip: u32,
    /// Place in the epoch; unique in it, and the same at every world size.
    pub position: u64,
}

/// The order of all clips of a run.
#[derive(Debug)]
pub struct Plan {
    spec: PlanSpec,
    steps: Steps,
    /// The permutations last asked for: a step must not pay for a whole epoch's.
    cache: Mutex<Arc<Epoch>>,
}

impl Plan {
    /// Checks the numbers.
    ///
    /// # Errors
    /// An empty split, a global batch that the lanes do not divide, an epoch without a step.
    pub fn new(spec: PlanSpec) -> Result<Self> {
        let PlanSpec { clips, lanes, global_batch, .. } = spec;
        let bad = |why: String| Err(Error::Usage(format!("plan the epochs: {why}")));
        if clips == 0 {
            return bad("the split has no clips".into());
        }
        if clips > u64::from(u32::MAX) {
            return bad(format!("{clips} clips are more than 2^32"));
        }
        if lanes == 0 || global_batch == 0 {
            return bad(format!("global_batch is {global_batch} and lanes {lanes}; both must be at least 1"));
        }
        if global_batch % lanes != 0 {
            return bad(format!("global_batch {global_batch} is not a multiple of lanes {lanes}"));
        }
        match &spec.order {
            Order::Uniform => {}
            Order::Grouped(groups) if groups.clips() == clips => {}
            Order::Grouped(groups) => {
                return bad(format!("{clips} clips are to be shuffled in groups of {}", groups.clips()));
            }
            Order::Pools(pools) => pools.check(clips)?,
        }
        let clips = spec.epoch_clips();
        let (shortest, longest) = (clips / u64::from(lanes), clips.div_ceil(u64::from(lanes)));
        let steps = Steps::new(&spec, shortest, longest)?;
        Ok(Self { cache: Mutex::new(Epoch::new(&spec, 0)), steps, spec })
    }

    /// What it was made from.
    pub fn spec(&self) -> &PlanSpec {
        &self.spec
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self, epoch: u64) -> u64 {
        self.steps.of_epoch(epoch)
    }

    /// Steps of the run before an epoch.
    pub fn first_step(&self, epoch: u64) -> u64 {
        self.steps.before_epoch(epoch)
    }

    /// Epoch, and step in it, of the run's step number `step`, counted from 0.
    pub fn place(&self, step: u64) -> (u64, u64) {
        self.steps.place(step)
    }

    /// Clips of an epoch that each of a rank's pieces has yet to show from a step on; `None` but for
    /// [`Order::Grouped`].
    pub(crate) fn left_of_pieces(
        &self,
        epoch: u64,
        step: u64,
        lanes: Range<u32>,
    ) -> Option<HashMap<u32, u32>> {
        let Order::Grouped(groups) = &self.spec.order else { return None };
        let orders = self.epoch(epoch);
        let end = self.steps_per_epoch(epoch);
        let mut left = HashMap::new();
        for lane in lanes {
            let order = orders.lane(&self.spec, lane);
            let at = |step| self.steps.taken_before(epoch, step).min(self.lane_len(lane)) as usize;
            for &place in &order[at(step)..at(end)] {
                *left.entry(groups.piece_of(place)).or_default() += 1;
            }
        }
        Some(left)
    }

    /// What a step shows, where the plan has stages.
    pub fn shape(&self, epoch: u64, step: u64) -> Option<Shape> {
        self.steps.shape(epoch, step)
    }

    /// The clips of one step over all ranks, lane after lane. Only an epoch's last one may be short;
    /// empty beyond the epoch.
    pub fn global_batch(&self, epoch: u64, step: u64) -> Vec<Sample> {
        self.lanes_batch(epoch, step, 0..self.spec.lanes)
    }

    /// Clips of a step over all ranks, without naming them.
    pub fn global_clips(&self, epoch: u64, step: u64) -> u64 {
        self.clips_before(epoch, step, self.spec.lanes)
    }

    /// One rank's part of a step. Concatenated over the ranks they are [`Plan::global_batch`]; in an
    /// epoch's short last step a rank's part may be empty.
    ///
    /// # Errors
    /// More ranks than lanes, or a rank outside the world.
    pub fn local(&self, epoch: u64, step: u64, rank: u32, world: u32) -> Result<Vec<Sample>> {
        Ok(self.lanes_batch(epoch, step, self.lanes_of_rank(rank, world)?))
    }

    /// The lanes a rank owns.
    ///
    /// # Errors
    /// More ranks than lanes, or a rank outside the world.
    pub fn lanes_of_rank(&self, rank: u32, world: u32) -> Result<Range<u32>> {
        let lanes = self.spec.lanes;
        if world == 0 || rank >= world {
            return Err(Error::Usage(format!("plan for rank {rank} of {world}: there is no such rank")));
        }
        if world > lanes {
            return Err(Error::Usage(format!(
                "plan for {world} workers: data.lanes is {lanes}, the most workers this job can have"
            )));
        }
        let part = sequential(u64::from(lanes), rank, world);
        Ok(part.start as u32..part.end as u32)
    }

    /// Clips of a lane: the first lanes hold one more where the lanes do not divide the clips.
    fn lane_len(&self, lane: u32) -> u64 {
        let (clips, lanes) = (self.spec.epoch_clips(), u64::from(self.spec.lanes));
        clips / lanes + u64::from(u64::from(lane) < clips % lanes)
    }

    /// The places of a lane that a step takes.
    fn take(&self, epoch: u64, step: u64, lane: u32) -> Range<u64> {
        if step >= self.steps_per_epoch(epoch) {
            return 0..0;
        }
        let len = self.lane_len(lane);
        let at = |step| self.steps.taken_before(epoch, step).min(len);
        at(step)..at(step + 1)
    }

    /// Clips that a step takes from the lanes before `lane`.
    fn clips_before(&self, epoch: u64, step: u64, lane: u32) -> u64 {
        let count = |lane| {
            let taken = self.take(epoch, step, lane);
            taken.end - taken.start
        };
        (0..lane).map(count).sum()
    }

    fn lanes_batch(&self, epoch: u64, step: u64, lanes: Range<u32>) -> Vec<Sample> {
        let orders = self.epoch(epoch);
        // Every step before the last is full.
        let full = self.steps.taken_before(epoch, step).saturating_mul(self.spec.lanes.into());
        let mut position = full.saturating_add(self.clips_before(epoch, step, lanes.start));
        let mut batch = Vec::new();
        for lane in lanes {
            let taken = self.take(epoch, step, lane);
            if taken.is_empty() {
                continue;
            }
            let order = orders.lane(&self.spec, lane);
            for &clip in &order[taken.start as usize..taken.end as usize] {
                batch.push(Sample { clip, position });
                position += 1;
            }
        }
        batch
    }

    fn epoch(&self, epoch: u64) -> Arc<Epoch> {
        // A poisoned lock holds a whole value all the same: it is replaced, never changed in place.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.number() != epoch {
            *cache = Epoch::new(&self.spec, epoch);
        }
        cache.clone()
    }
}

/// The contiguous part of `clips` that a rank evaluates; the parts differ by at most one clip.
pub fn sequential(clips: u64, rank: u32, world: u32) -> Range<u64> {
    let at = |r: u32| (u128::from(clips) * u128::from(r) / u128::from(world.max(1))) as u64;
    at(rank.min(world))..at(rank.saturating_add(1).min(world))
}

#[cfg(test)]
mod tests;
