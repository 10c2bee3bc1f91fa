//! Epochs drawn from several pools of clips in given shares: classes equally often, or datasets by weight.
//!
//! Each pool goes through its clips in passes of its own: every clip once before any twice, whatever the epochs
//! are. How many clips an epoch takes from a pool is a formula, so nothing needs to be remembered from one
//! epoch to the next.

use super::PlanSpec;
use crate::random::Keyed;
use crate::{Error, Result};
use std::sync::Arc;

/// Pools of clips, and what each gives to an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Places inside the split; of every pool, at least one.
    pub pools: Arc<Vec<Vec<u32>>>,
    pub shares: Shares,
}

/// Clips of each pool in an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shares {
    /// So many clips in all, as many of each pool, within one; which pools give one more changes with the epochs, so
    /// that over the run no pool is ahead of another by more than one.
    Equal(u64),
    /// So many of each, the same in every epoch.
    Fixed(Vec<u64>),
}

impl Pools {
    /// The clips of each class are a pool; `labels`: the class of each place of the split.
    pub fn of_classes(labels: impl IntoIterator<Item = i32>, epoch_clips: u64) -> Self {
        let mut pools: std::collections::BTreeMap<i32, Vec<u32>> = Default::default();
        for (place, label) in (0..).zip(labels) {
            pools.entry(label).or_default().push(place);
        }
        Self { pools: Arc::new(pools.into_values().collect()), shares: Shares::Equal(epoch_clips) }
    }

    pub(super) fn check(&self, clips: u64) -> Result<()> {
        let bad = |why: &str| Err(Error::Usage(format!("plan the epochs: {why}")));
        if self.pools.is_empty() || self.pools.iter().any(Vec::is_empty) {
            return bad("a pool has no clips");
        }
        if self.pools.iter().flatten().any(|c| u64::from(*c) >= clips) {
            return bad("a pool has a clip that is not in the split");
        }
        match &self.shares {
            Shares::Equal(0) => bad("an epoch has no clips"),
            Shares::Fixed(n) if n.len() != self.pools.len() => {
                bad("the pools and their shares differ in number")
            }
            Shares::Fixed(n) if n.iter().sum::<u64>() == 0 => bad("an epoch has no clips"),
            _ => Ok(()),
        }
    }

    /// Clips of an epoch.
    pub fn epoch_clips(&self) -> u64 {
        match &self.shares {
            Shares::Equal(all) => *all,
            Shares::Fixed(each) => each.iter().sum(),
        }
    }

    /// Clips that the epochs before `epoch` take from a pool.
    fn taken(&self, epoch: u64, pool: usize) -> u64 {
        match &self.shares {
            // Hermite's identity: these sum to epoch x all over the pools.
            Shares::Equal(all) => {
                ((u128::from(epoch) * u128::from(*all) + pool as u128) / self.pools.len() as u128) as u64
            }
            Shares::Fixed(each) => epoch.saturating_mul(each[pool]),
        }
    }

    /// The clips of an epoch, shuffled.
    pub(super) fn order(&self, spec: &PlanSpec, epoch: u64) -> Vec<u32> {
        let mut order = Vec::with_capacity(self.epoch_clips() as usize);
        for (number, pool) in self.pools.iter().enumerate() {
            let len = pool.len() as u64;
            let (mut at, end) = (self.taken(epoch, number), self.taken(epoch.saturating_add(1), number));
            while at < end {
                let (pass, from) = (at / len, at % len);
                let more = (len - from).min(end - at);
                let mut clips = pool.clone();
                Keyed::new("pool order", &spec.dataset_digest, &[spec.seed, number as u64, pass])
                    .shuffle(&mut clips);
                order.extend_from_slice(&clips[from as usize..(from + more) as usize]);
                at += more;
            }
        }
        Keyed::new("epoch order", &spec.dataset_digest, &[spec.seed, epoch]).shuffle(&mut order);
        order
    }
}

/// Shares `all` clips out by weight: rounded down, and one more to those with the largest remainders
/// (the earlier of equals), so that they sum to `all`.
///
/// # Errors
/// A weight that is not above 0, or so small that a share is empty: by the place of the weight.
pub fn by_weight(weights: &[f64], all: u64) -> std::result::Result<Vec<u64>, (usize, String)> {
    let sum: f64 = weights.iter().sum();
    for (i, weight) in weights.iter().enumerate() {
        if !(weight.is_finite() && *weight > 0.0 && sum.is_finite()) {
            return Err((i, format!("its weight is {weight}; it must be above 0")));
        }
    }
    let exact: Vec<f64> = weights.iter().map(|w| w / sum * all as f64).collect();
    let mut shares: Vec<u64> = exact.iter().map(|x| *x as u64).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let missing = all.saturating_sub(shares.iter().sum());
    for &i in by_remainder.iter().cycle().take(missing as usize) {
        shares[i] += 1;
    }
    match shares.iter().position(|s| *s == 0) {
        Some(i) => Err((i, format!("its weight of {} leaves it none of {all} clips an epoch", weights[i]))),
        None => Ok(shares),
    }
}
