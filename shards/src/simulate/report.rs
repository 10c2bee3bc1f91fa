//! From counts to times, rates and prices; as text and JSON.

use super::{Cluster, Counts, Job, Quality, quality};
use crate::inspect::size;
use serde::Serialize;
use std::fmt::Write;

/// How fast things are, and what they cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    /// Of a node, bits a second.
    pub bandwidth: f64,
    /// Of a GET until its first byte, seconds.
    pub latency: f64,
    /// GETs that a worker has under way.
    pub requests_at_once: usize,
    /// What a worker can compute; `None`: it never waits for itself.
    pub clips_per_second: Option<f64>,
    /// Money for 1,000 GETs.
    pub price_per_1000_gets: f64,
    /// Money for 10^9 bytes out of the store.
    pub price_per_gb: f64,
}

/// What binds an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Bound {
    Bandwidth,
    Latency,
    Compute,
}

/// One epoch over all nodes.
#[derive(Clone, Debug, Serialize)]
struct Epoch {
    epoch: usize,
    #[serde(flatten)]
    total: Counts,
    hit_rate: f64,
    node_bytes_mean: u64,
    node_bytes_max: u64,
    /// The slowest node's; without compute, a lower bound on the epoch.
    seconds: f64,
    bound: Bound,
    /// Over all nodes.
    requests_per_second: f64,
    cost: f64,
}

/// One size of cluster.
#[derive(Clone, Debug, Serialize)]
struct World {
    workers: u32,
    nodes: usize,
    epochs: Vec<Epoch>,
    cost: f64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    clips: u64,
    steps_per_epoch: u64,
    cache: u64,
    quality: Quality,
    /// What a person should know of the job's clips.
    notes: Vec<String>,
    worlds: Vec<World>,
}

impl Report {
    /// A report on a job, with caches of `cache` bytes.
    pub fn new(job: &Job, cache: u64) -> Self {
        let plan = &job.set.plan;
        Self {
            clips: plan.spec().epoch_clips(),
            steps_per_epoch: plan.steps_per_epoch(0),
            cache,
            quality: quality(job),
            notes: job.set.notes.clone(),
            worlds: Vec::new(),
        }
    }

    /// Adds what [`super::simulate`] found for one size of cluster.
    pub fn add(&mut self, cluster: &Cluster, nodes: &[Vec<Counts>], pace: &Pace) {
        let epochs: Vec<Epoch> = (0..nodes.first().map_or(0, Vec::len))
            .map(|n| epoch(n, &nodes.iter().map(|node| node[n]).collect::<Vec<_>>(), cluster, pace))
            .collect();
        let cost = epochs.iter().map(|e| e.cost).sum();
        self.worlds.push(World { workers: cluster.workers, nodes: nodes.len(), epochs, cost });
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} clips in {} steps an epoch; a cache of {} a node\n\
             shuffle: {:.4} of a true permutation's entropy (data files: {:.4})\n\
             {}\n\
             workers nodes epoch   bytes/node (most)       GETs  hit rate  seconds  bound      GETs/s     cost\n",
            self.clips,
            self.steps_per_epoch,
            size(self.cache),
            self.quality.clips,
            self.quality.files,
            self.notes.iter().map(|note| format!("{note}\n")).collect::<String>(),
        );
        for world in &self.worlds {
            for e in &world.epochs {
                let bytes = format!("{} ({})", size(e.node_bytes_mean), size(e.node_bytes_max));
                let bound = format!("{:?}", e.bound).to_lowercase();
                // Writing to a String never fails.
                let _ = writeln!(
                    out,
                    "{:>7} {:>5} {:>5}   {bytes:<21} {:>8}  {:>6.1} %  {:>7.1}  {bound:<9} {:>7.0} {:>8.2}",
                    world.workers,
                    world.nodes,
                    e.epoch,
                    e.total.requests,
                    100.0 * e.hit_rate,
                    e.seconds,
                    e.requests_per_second,
                    e.cost,
                );
            }
        }
        out
    }
}

fn epoch(epoch: usize, nodes: &[Counts], cluster: &Cluster, pace: &Pace) -> Epoch {
    let total = nodes.iter().fold(Counts::default(), Counts::plus);
    let most = |f: fn(&Counts) -> u64| nodes.iter().map(f).max().unwrap_or(0);
    let at_once = pace.requests_at_once.max(1) as f64 * f64::from(cluster.workers_per_node);
    let compute = pace
        .clips_per_second
        .map_or(0.0, |c| most(|n| n.views) as f64 / c / f64::from(cluster.workers_per_node));
    let bounds = [
        (Bound::Bandwidth, most(|n| n.bytes) as f64 * 8.0 / pace.bandwidth),
        (Bound::Latency, most(|n| n.requests) as f64 * pace.latency / at_once),
        (Bound::Compute, compute),
    ];
    let (bound, seconds) = bounds.into_iter().fold(bounds[0], |a, b| if b.1 > a.1 { b } else { a });
    Epoch {
        epoch,
        hit_rate: total.hit_rate(),
        node_bytes_mean: total.bytes / nodes.len().max(1) as u64,
        node_bytes_max: most(|n| n.bytes),
        seconds,
        bound,
        requests_per_second: if seconds > 0.0 { total.requests as f64 / seconds } else { 0.0 },
        cost: total.requests as f64 / 1e3 * pace.price_per_1000_gets
            + total.bytes as f64 / 1e9 * pace.price_per_gb,
        total,
    }
}
