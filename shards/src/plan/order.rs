//! How the clips of an epoch are ordered, and what a plan is known by.

use super::{Groups, PlanSpec, Pools, Shares};
use crate::random::Keyed;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// How the clips of an epoch are ordered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Each lane has its own clips, permuted in every epoch.
    #[default]
    Uniform,
    /// Each lane has its own groups of neighbours, permuted in every epoch and shuffled inside a window.
    Grouped(Groups),
    /// An epoch draws from pools in given shares. Lanes do not keep their clips from one epoch to the next.
    Pools(Pools),
}

/// One epoch's orders, made on first use.
#[derive(Debug)]
pub(super) struct Epoch {
    epoch: u64,
    lanes: Vec<OnceLock<Vec<u32>>>,
    /// With [`Order::Pools`]: of all lanes, clip i being lane i mod lanes'.
    whole: OnceLock<Vec<u32>>,
}

impl Epoch {
    pub(super) fn new(spec: &PlanSpec, epoch: u64) -> Arc<Self> {
        let lanes = (0..spec.lanes).map(|_| OnceLock::new()).collect();
        Arc::new(Self { epoch, lanes, whole: OnceLock::new() })
    }

    pub(super) fn number(&self) -> u64 {
        self.epoch
    }

    /// The clips of a lane, in order.
    pub(super) fn lane(&self, spec: &PlanSpec, lane: u32) -> &[u32] {
        self.lanes[lane as usize].get_or_init(|| self.order(spec, lane))
    }

    fn order(&self, spec: &PlanSpec, lane: u32) -> Vec<u32> {
        let lanes = spec.lanes as usize;
        match &spec.order {
            Order::Uniform => {
                let mut clips: Vec<u32> = (lane..spec.clips as u32).step_by(lanes).collect();
                let key = [spec.seed, self.epoch, u64::from(lane)];
                Keyed::new("lane order", &spec.dataset_digest, &key).shuffle(&mut clips);
                clips
            }
            Order::Grouped(groups) => groups.order(spec, self.epoch, lane),
            Order::Pools(pools) => {
                let whole = self.whole.get_or_init(|| pools.order(spec, self.epoch));
                whole.iter().skip(lane as usize).step_by(lanes).copied().collect()
            }
        }
    }
}

impl PlanSpec {
    /// Clips of an epoch.
    pub fn epoch_clips(&self) -> u64 {
        match &self.order {
            Order::Uniform | Order::Grouped(_) => self.clips,
            Order::Pools(pools) => pools.epoch_clips(),
        }
    }

    /// What the order of the clips is a function of, by the names of the configuration: two plans with equal
    /// identities are the same plan.
    pub fn identity(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut say = |name: &str, value: String| {
            all.insert(name.to_string(), value);
        };
        say("dataset", self.dataset_digest.clone());
        say("seed", self.seed.to_string());
        say("clips of the split", self.clips.to_string());
        say("data.lanes", self.lanes.to_string());
        say("train.global_batch", self.global_batch.to_string());
        say("data.drop_last", self.drop_last.to_string());
        if !self.left_out.is_empty() {
            say("data.quarantine", self.left_out.clone());
        }
        if !self.stages.is_empty() {
            let stages = self.stages.iter().flat_map(|s| {
                let shapes = s.cycle.iter().flat_map(|c| [c.batch, c.frames, c.side].map(u64::from));
                [s.end, s.cycle.len() as u64].into_iter().chain(shapes)
            });
            say("train.multigrid", hash(stages));
        }
        match &self.order {
            Order::Uniform => {}
            Order::Grouped(groups) => say("data.shuffle", hash(groups.numbers())),
            Order::Pools(pools) => {
                let places = pools.pools.iter().flat_map(|p| {
                    std::iter::once(p.len() as u64).chain(p.iter().map(|place| u64::from(*place)))
                });
                say("pools of clips", hash(places));
                let each = match &pools.shares {
                    Shares::Equal(all) => format!("{all}, pools alike"),
                    Shares::Fixed(each) => format!("{} {}", self.epoch_clips(), hash(each.iter().copied())),
                };
                say("clips of an epoch", each);
            }
        }
        all
    }
}

/// The first 16 bytes of the SHA-256 of numbers.
fn hash(numbers: impl Iterator<Item = u64>) -> String {
    let mut hash = Sha256::new();
    numbers.for_each(|n| hash.update(n.to_le_bytes()));
    hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}
