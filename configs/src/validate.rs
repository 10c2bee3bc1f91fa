//! What serde cannot see: ranges, and sizes that must fit together.

use crate::{
    Error, Job, Model, Optimizer, Result, Scale, Schedule, ScheduleKind, Seconds, SlowFast, VideoSwin,
};

/// Checks `job`; the error names the key to change.
pub fn check(name: &str, job: &Job) -> Result<()> {
    let at = Rules { name };
    at.data(job)?;
    at.lanes(job)?;
    match &job.model {
        Model::Slowfast(m) => at.slowfast(m, job.data.frames)?,
        Model::VideoSwin(m) => at.video_swin(m, job.data.frames)?,
    }
    at.train(job)?;
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

    fn data(&self, job: &Job) -> Result<()> {
        let d = &job.data;
        self.require(!d.url.is_empty(), "data.url", "it is empty; name a dataset")?;
        self.require(!d.train_split.is_empty(), "data.train_split", "it is empty")?;
        self.require(!d.eval_split.is_empty(), "data.eval_split", "it is empty")?;
        self.positive("data.frames", d.frames.into())?;
        self.positive("data.sampling_rate", d.sampling_rate.into())?;
        if let Some(fps) = d.fps {
            self.positive("data.fps", fps)?;
        }
        let finite = d.mean.iter().all(|m| m.is_finite());
        self.require(finite, "data.mean", format!("{:?} must be three finite numbers", d.mean))?;
        for deviation in d.std {
            self.positive("data.std", deviation)?;
        }
        let a = &d.augment;
        self.positive("data.augment.crop", a.crop.into())?;
        let flip = (0.0..=1.0).contains(&a.flip);
        self.require(flip, "data.augment.flip", format!("{} must lie between 0 and 1", a.flip))?;
        match a.scale {
            Scale::ShortSide { min, max } => self.require(
                a.crop <= min && min <= max,
                "data.augment.scale",
                format!("short side {min}..={max} must be ascending and at least the crop, {}", a.crop),
            )?,
            Scale::Resized { area, aspect } => {
                let ok = 0.0 < area[0] && area[0] <= area[1] && area[1] <= 1.0;
                let why = format!("area = {area:?} must be ascending, above 0 and at most 1");
                self.require(ok, "data.augment.scale", why)?;
                let ok = 0.0 < aspect[0] && aspect[0] <= aspect[1] && aspect[1].is_finite();
                let why = format!("aspect = {aspect:?} must be ascending and above 0");
                self.require(ok, "data.augment.scale", why)?;
            }
        }
        self.positive("data.eval.crop", d.eval.crop.into())?;
        self.require(
            d.eval.short_side >= d.eval.crop,
            "data.eval.short_side",
            format!("{} is smaller than the crop, {}", d.eval.short_side, d.eval.crop),
        )
    }

    fn lanes(&self, job: &Job) -> Result<()> {
        let (lanes, batch) = (job.data.lanes, job.train.global_batch);
        self.positive("train.global_batch", batch.into())?;
        self.positive("data.lanes", lanes.into())?;
        self.require(
            batch.is_multiple_of(lanes),
            "data.lanes",
            format!(
                "train.global_batch = {batch} is not a multiple of data.lanes = {lanes}; the batch is dealt evenly to the lanes"
            ),
        )?;
        let most = job.cluster.workers.max(job.cluster.min_workers);
        self.require(
            most <= lanes,
            "cluster.workers",
            format!("{most} workers cannot share data.lanes = {lanes}; a worker owns at least one lane"),
        )
    }

    fn slowfast(&self, m: &SlowFast, frames: u32) -> Result<()> {
        let known = [18, 50, 101].contains(&m.depth);
        self.require(known, "model.depth", format!("{} must be 18, 50 or 101", m.depth))?;
        self.positive("model.alpha", m.alpha.into())?;
        self.positive("model.beta", m.beta.into())?;
        self.positive("model.width", m.width.into())?;
        self.require(
            m.width.is_multiple_of(m.beta),
            "model.width",
            format!("{} channels are not a multiple of model.beta = {}", m.width, m.beta),
        )?;
        let odd = m.fusion_kernel % 2 == 1;
        self.require(odd, "model.fusion_kernel", format!("{} must be odd", m.fusion_kernel))?;
        self.fraction("model.dropout", m.dropout)?;
        self.require(
            frames.is_multiple_of(m.alpha),
            "data.frames",
            format!("{frames} frames are not a multiple of model.alpha = {}", m.alpha),
        )
    }

    fn video_swin(&self, m: &VideoSwin, frames: u32) -> Result<()> {
        let (depths, heads) = (m.depths.len(), m.heads.len());
        self.require(
            depths == heads && depths > 0,
            "model.heads",
            format!("{heads} numbers for {depths} stages in model.depths; give one a stage"),
        )?;
        self.require(!m.depths.contains(&0), "model.depths", "a stage needs at least one block")?;
        self.positive("model.embed_dim", m.embed_dim.into())?;
        for (stage, heads) in m.heads.iter().enumerate() {
            let channels = u64::from(m.embed_dim) << stage;
            self.require(
                *heads > 0 && channels.is_multiple_of((*heads).into()),
                "model.heads",
                format!("stage {stage} has {channels} channels, which {heads} heads cannot share"),
            )?;
        }
        self.require(!m.patch.contains(&0), "model.patch", "every side must be greater than 0")?;
        self.require(!m.window.contains(&0), "model.window", "every side must be greater than 0")?;
        self.positive("model.mlp_ratio", m.mlp_ratio)?;
        self.fraction("model.dropout", m.dropout)?;
        self.fraction("model.drop_path", m.drop_path)?;
        self.require(
            frames >= m.patch[0],
            "data.frames",
            format!("{frames} frames are fewer than one patch of {}", m.patch[0]),
        )
    }

    fn train(&self, job: &Job) -> Result<()> {
        let (t, c) = (&job.train, &job.checkpoint);
        self.require(t.epochs > 0, "train.epochs", "0 must be greater than 0")?;
        self.require(t.max_steps != Some(0), "train.max_steps", "0 must be greater than 0")?;
        self.require(c.every_steps != Some(0), "checkpoint.every_steps", "0 must be greater than 0")?;
        self.require(c.keep > 0, "checkpoint.keep", "0 would keep no checkpoint; keep at least 1")
    }

    fn optimizer(&self, optimizer: &Optimizer) -> Result<()> {
        self.positive("optimizer.lr", optimizer.lr())?;
        match optimizer {
            Optimizer::Sgd(o) => {
                self.fraction("optimizer.momentum", o.momentum)?;
                let ok = !o.nesterov || o.momentum > 0.0;
                self.require(ok, "optimizer.nesterov", "it needs a momentum above 0")?;
                self.not_negative("optimizer.weight_decay", o.weight_decay)
            }
            Optimizer::Adamw(o) => {
                self.fraction("optimizer.betas", o.betas[0])?;
                self.fraction("optimizer.betas", o.betas[1])?;
                self.positive("optimizer.eps", o.eps)?;
                self.not_negative("optimizer.weight_decay", o.weight_decay)
            }
        }
    }

    fn schedule(&self, s: &Schedule, optimizer: &Optimizer, epochs: u64) -> Result<()> {
        let lr = optimizer.lr();
        self.not_negative("schedule.warmup_epochs", s.warmup_epochs)?;
        self.require(
            s.warmup_epochs < epochs as f64,
            "schedule.warmup_epochs",
            format!("{} must be fewer than train.epochs = {epochs}", s.warmup_epochs),
        )?;
        self.not_negative("schedule.warmup_start_lr", s.warmup_start_lr)?;
        self.not_negative("schedule.end_lr", s.end_lr)?;
        let ok = s.end_lr <= lr;
        self.require(ok, "schedule.end_lr", format!("{} is above optimizer.lr = {lr}", s.end_lr))?;
        if s.kind != ScheduleKind::Steps {
            let unused = s.steps.is_empty() && s.relative_lrs.is_empty();
            return self.require(unused, "schedule.steps", "it is only for kind = \"steps\"");
        }
        self.require(!s.steps.is_empty(), "schedule.steps", "kind = \"steps\" needs at least one")?;
        self.require(
            s.steps.len() == s.relative_lrs.len(),
            "schedule.relative_lrs",
            format!("{} rates for {} steps; give one a step", s.relative_lrs.len(), s.steps.len()),
        )?;
        let ascending = s.steps.is_sorted_by(|a, b| a < b) && s.steps[0] > 0.0;
        self.require(ascending, "schedule.steps", format!("{:?} must ascend from above 0", s.steps))?;
        s.relative_lrs.iter().try_for_each(|r| self.not_negative("schedule.relative_lrs", *r))
    }

    fn cluster(&self, job: &Job) -> Result<()> {
        let c = &job.cluster;
        self.positive("cluster.workers", c.workers.into())?;
        self.positive("cluster.min_workers", c.min_workers.into())?;
        self.require(
            c.min_workers <= c.workers,
            "cluster.min_workers",
            format!("{} is more than cluster.workers = {}", c.min_workers, c.workers),
        )?;
        let duration = |key: &str, value: Seconds| self.positive(key, value.0);
        duration("cluster.lost_after", c.lost_after)?;
        duration("cluster.stuck_after", c.stuck_after)?;
        duration("cluster.collective_timeout", c.collective_timeout)
    }
}
