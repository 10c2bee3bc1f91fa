//! How well an epoch is shuffled, measured as Mosaic Streaming's simulator does
//! (`simulation/core/shuffle_quality.py`): the Shannon entropy of the distances between neighbours.
//!
//! A true permutation of n clips has the entropy of the triangular distribution of distances, and
//! any order that keeps neighbours together has less. The same is asked of the data files that neighbours
//! come from. A step is the same whatever the order inside its batch, so that order is drawn anew first.

use super::Job;
use crate::random::Keyed;
use crate::trainset::TrainSet;

/// Entropy of the first epoch's order as a part of a true permutation's: 1 is as good, 0 no shuffle at all.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Quality {
    /// Of the clips' places among all that the job trains on.
    pub clips: f64,
    /// Of the places of their data files; 1 where there is only one.
    pub files: f64,
}

/// Measures the order of all global batches of epoch 0, one after another.
pub fn quality(job: &Job) -> Quality {
    let TrainSet { sources, clips, plan, .. } = &job.set;
    let batch = |step| {
        let mut batch: Vec<u32> = plan.global_batch(0, step).iter().map(|s| s.clip).collect();
        Keyed::new("order in a batch", "", &[step]).shuffle(&mut batch);
        batch
    };
    let order: Vec<u32> = (0..plan.steps_per_epoch(0)).flat_map(batch).collect();
    let mut random = order.clone();
    random.sort_unstable();
    Keyed::new("true permutation", "", &[]).shuffle(&mut random);
    // The files of one dataset are numbered after those of the one before.
    let before: Vec<u32> = sources
        .datasets()
        .scan(0, |next, d| Some(std::mem::replace(next, *next + d.manifest.files.len() as u32)))
        .collect();
    let file = |&place: &u32| {
        let (source, clip) = sources.place(clips[place as usize]);
        before[source] + sources.dataset(source).clip(clip).file
    };
    let files = |order: &[u32]| -> Vec<u32> { order.iter().map(file).collect() };
    let part = |order: &[u32], random: &[u32]| match entropy(random) {
        most if most > 0.0 => entropy(order) / most,
        _ => 1.0,
    };
    Quality { clips: part(&order, &random), files: part(&files(&order), &files(&random)) }
}

/// Shannon entropy, nats, of the distances between neighbours.
pub(super) fn entropy(order: &[u32]) -> f64 {
    let mut distances: Vec<u32> = order.windows(2).map(|w| w[0].abs_diff(w[1])).collect();
    distances.sort_unstable();
    let all = distances.len() as f64;
    let share = |same: &[u32]| same.len() as f64 / all;
    distances.chunk_by(|a, b| a == b).map(share).map(|p| -p * p.ln()).sum()
}
