//! What a job will ask of its store and caches, worked out before it runs: the production plan, sampling,
//! joining of runs into requests, and cache core over a dataset's index. No byte of a clip is read.
//!
//! ```text
//! node.rs       one node: its ranks' steps against its cache
//! quality.rs    how good the order is, against a true permutation
//! synthetic.rs  an index made up from a few numbers
//! report.rs     counts to times, rates and prices; as text and JSON
//! command.rs    `marey-shards simulate`
//! ```
//!
//! The counts are exact without a cache, and with one that holds all that it is offered, where no epoch shows a clip to
//! two ranks of a node (tests compare them with real streams'). Otherwise they suppose that each rank's steps are
//! fetched one after another, while a real stream fetches several at once, so that which run finds the last room, or
//! is fetched for two, may differ.

pub mod command;
mod node;
mod quality;
mod report;
mod synthetic;
#[cfg(test)]
mod tests;

pub use node::Counts;
pub use quality::{Quality, quality};
pub use report::{Pace, Report};
pub use synthetic::{Synthetic, synthetic};

use crate::format::Dataset;
use crate::job::{clip_spec, train_view};
use crate::sampling::{ClipSpec, View};
use crate::stream::{Augment, TrainPass};
use crate::trainset::TrainSet;
use crate::{Error, Result};
use configs::Config;
use node::Node;
use std::sync::Arc;

/// The part of a job that decides what is read.
#[derive(Clone, Debug)]
pub struct Job {
    /// What it trains on.
    pub set: TrainSet,
    pub clip: ClipSpec,
    /// [`View::Train`].
    pub view: View,
    pub epochs: u64,
}

impl Job {
    /// The first `epochs` epochs of the job of `config` on `dataset`, which is the one that it names or stands in for it.
    ///
    /// # Errors
    /// As [`TrainSet::open`].
    pub async fn open(config: &Config, dataset: &Arc<Dataset>, epochs: u64) -> Result<Self> {
        let set = TrainSet::open(config, dataset).await?;
        // What changes pixels has no say in what is read.
        Ok(Self { set, clip: clip_spec(config), view: train_view(config, Augment::NONE), epochs })
    }

    /// A rank's part of it.
    fn pass(&self, rank: u32, world: u32) -> TrainPass {
        TrainPass {
            clips: self.set.clips.clone(),
            plan: self.set.plan.clone(),
            rank,
            world,
            start: (0, 0),
            end: self.set.plan.first_step(self.epochs),
            clip: self.clip,
            view: self.view.clone(),
        }
    }
}

/// The machines of a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// Ranks; at most the plan's lanes.
    pub workers: u32,
    /// Ranks that share a node and its cache.
    pub workers_per_node: u32,
    /// Limit of a node's cache, bytes; 0: none. Several datasets go without one, as in a job.
    pub cache: u64,
}

/// What every node asks in every epoch: by node, then by epoch.
///
/// # Errors
/// More workers than lanes, or none.
pub fn simulate(job: &Job, cluster: &Cluster) -> Result<Vec<Vec<Counts>>> {
    let Cluster { workers, workers_per_node, cache } = *cluster;
    if workers == 0 || workers_per_node == 0 {
        return Err(Error::Usage("simulate 0 workers: give at least 1".into()));
    }
    job.set.plan.lanes_of_rank(0, workers)?;
    let cache = if job.set.sources.datasets().count() == 1 { cache } else { 0 };
    (0..workers.div_ceil(workers_per_node))
        .map(|number| {
            // Node after node: one cache's index is in memory at a time.
            let ranks = number * workers_per_node..((number + 1) * workers_per_node).min(workers);
            let mut node = Node::new(job, cache, ranks.len());
            node.run(ranks, workers)
        })
        .collect()
}
