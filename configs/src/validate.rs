//! What serde cannot see: sizes that must fit together.

use crate::{Error, Job, Model, Result, Scale};

/// Checks `job`; the error names the key to change.
pub fn check(name: &str, job: &Job) -> Result<()> {
    let bad = |key: &str, why: String| Err(Error::invalid(name, key, why));
    let (d, t) = (&job.data, &job.train);
    if t.global_batch == 0 || d.lanes == 0 || t.global_batch % d.lanes != 0 {
        return bad(
            "data.lanes",
            format!(
                "train.global_batch = {} is not a multiple of data.lanes = {}; the batch is dealt evenly to the lanes",
                t.global_batch, d.lanes
            ),
        );
    }
    if job.cluster.workers.max(job.cluster.min_workers) > d.lanes {
        return bad(
            "cluster.workers",
            format!(
                "{} workers cannot share data.lanes = {}; a worker owns at least one lane",
                job.cluster.workers.max(job.cluster.min_workers),
                d.lanes
            ),
        );
    }
    if let Model::Slowfast(m) = &job.model
        && (m.alpha == 0 || d.frames % m.alpha != 0)
    {
        return bad(
            "data.frames",
            format!("{} frames are not a multiple of model.alpha = {}", d.frames, m.alpha),
        );
    }
    if let Scale::ShortSide { min, max } = d.augment.scale
        && (min < d.augment.crop || max < min)
    {
        return bad(
            "data.augment.scale",
            format!("short side {min}..={max} must be ascending and at least the crop, {}", d.augment.crop),
        );
    }
    if d.eval.short_side < d.eval.crop {
        return bad(
            "data.eval.short_side",
            format!("{} is smaller than the crop, {}", d.eval.short_side, d.eval.crop),
        );
    }
    Ok(())
}
