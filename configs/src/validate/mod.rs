//! What serde cannot see: ranges, and sizes that must fit together.

mod data;
mod model;
mod train;

use crate::{Error, Job, Model, Result};

/// Checks `job`; the error names the key to change.
pub fn check(name: &str, job: &Job) -> Result<()> {
    let at = Rules { name };
    at.data(job)?;
    at.lanes(job)?;
    match &job.model {
        Model::Slowfast(m) => at.slowfast(m, job.data.frames)?,
        Model::Resnet3d(m) => at.resnet3d(m)?,
        Model::VideoSwin(m) => at.video_swin(m, job.data.frames)?,
    }
    at.train(job)?;
    at.multigrid(job)?;
    at.optimizer(&job.optimizer)?;
    at.schedule(&job.schedule, &job.optimizer, job.train.epochs)?;
    at.cluster(job)
}

/// The rules, for the configuration called `name`.
struct Rules<'a> {
    name: &'a str,
}

impl Rules<'_> {
    /// Fails with `why`, completed by what was given, unless `ok`.
    fn require(&self, ok: bool, key: &str, why: impl Into<String>) -> Result<()> {
        if ok { Ok(()) } else { Err(Error::invalid(self.name, key, why)) }
    }

    fn positive(&self, key: &str, value: f64) -> Result<()> {
        let ok = value.is_finite() && value > 0.0;
        self.require(ok, key, format!("{value} must be greater than 0"))
    }

    fn not_negative(&self, key: &str, value: f64) -> Result<()> {
        let ok = value.is_finite() && value >= 0.0;
        self.require(ok, key, format!("{value} must be 0 or more"))
    }

    /// 0 is allowed, 1 is not.
    fn fraction(&self, key: &str, value: f64) -> Result<()> {
        self.require((0.0..1.0).contains(&value), key, format!("{value} must be at least 0 and below 1"))
    }
}
