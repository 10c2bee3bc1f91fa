//! The loop, the loss, the optimizer and its schedule, the cluster.

use super::Rules;
use crate::{BatchNorm, Job, LossKind, Model, Optimizer, Result, Schedule, ScheduleKind, Seconds};

impl Rules<'_> {
    pub(super) fn train(&self, job: &Job) -> Result<()> {
        let (t, c) = (&job.train, &job.checkpoint);
        self.require(t.epochs > 0, "train.epochs", "0 must be greater than 0")?;
        self.require(t.max_steps != Some(0), "train.max_steps", "0 must be greater than 0")?;
        self.require(c.every_steps != Some(0), "checkpoint.every_steps", "0 must be greater than 0")?;
        self.require(c.keep > 0, "checkpoint.keep", "0 would keep no checkpoint; keep at least 1")?;
        self.require(c.keep_every != Some(0), "checkpoint.keep_every", "0 must be greater than 0")?;
        if let Some(local) = &c.local {
            self.require(!local.folder.is_empty(), "checkpoint.local.folder", "it is empty; name a folder")?;
            let why = "0 would keep no copy; keep at least 1, or leave checkpoint.local out";
            self.require(local.keep > 0, "checkpoint.local.keep", why)?;
        }
        self.require(t.micro_batch != Some(0), "train.micro_batch", "0 must be greater than 0")?;
        if let Some(norm) = t.clip_norm {
            self.positive("train.clip_norm", norm)?;
        }
        if let Some(ema) = t.ema {
            self.fraction("train.ema.decay", ema.decay)?;
        }
        if let BatchNorm::SubBatch { clips } = t.batch_norm {
            self.positive("train.batch_norm.clips", clips.into())?;
        }
        self.loss(job)
    }

    pub(super) fn multigrid(&self, job: &Job) -> Result<()> {
        let Some(m) = &job.train.multigrid else { return Ok(()) };
        let at = |key: &str| format!("train.multigrid.{key}");
        self.positive(&at("epoch_factor"), m.epoch_factor)?;
        self.require(m.short_cycle || m.long_cycle, &at("long_cycle"), "neither cycle is on; leave it out")?;
        let part = |key: &str, f: f64| {
            self.require(f > 0.0 && f <= 1.0, &at(key), format!("{f} must be above 0 and at most 1"))
        };
        m.short_cycle_factors.iter().try_for_each(|f| part("short_cycle_factors", *f))?;
        m.long_cycle_factors.iter().flatten().try_for_each(|f| part("long_cycle_factors", *f))?;
        self.require(
            m.long_cycle_factors.last() == Some(&[1.0, 1.0]),
            &at("long_cycle_factors"),
            "the last must be [1.0, 1.0], the shape of the evaluation",
        )?;
        if let (true, ScheduleKind::Steps, Some(last)) =
            (m.long_cycle, job.schedule.kind, job.schedule.steps.last())
        {
            let ok = *last < job.train.epochs as f64;
            self.require(ok, "schedule.steps", format!("{last} must be fewer than train.epochs"))?;
        }
        let stages = job.stages();
        let some = stages.last().is_some_and(|s| s.end > 0);
        self.require(some, &at("epoch_factor"), format!("{} leaves no epoch", m.epoch_factor))?;
        for shape in stages.iter().flat_map(|s| &s.cycle) {
            self.require(
                shape.frames > 0 && shape.crop > 0,
                &at("long_cycle_factors"),
                format!("a shape has {} frames of {} pixels", shape.frames, shape.crop),
            )?;
            match &job.model {
                Model::Slowfast(s) => self.require(
                    shape.frames.is_multiple_of(s.alpha),
                    &at("long_cycle_factors"),
                    format!("{} frames are not a multiple of model.alpha = {}", shape.frames, s.alpha),
                )?,
                Model::VideoSwin(s) => self.require(
                    shape.frames >= s.patch[0],
                    &at("long_cycle_factors"),
                    format!("{} frames are fewer than one patch of {}", shape.frames, s.patch[0]),
                )?,
                Model::Resnet3d(_) => {}
            }
            self.require(
                shape.batch.checked_mul(job.train.global_batch).is_some(),
                &at("long_cycle_factors"),
                format!("{} global batches in a step are too many", shape.batch),
            )?;
        }
        Ok(())
    }

    fn loss(&self, job: &Job) -> Result<()> {
        let l = job.loss;
        self.fraction("loss.label_smoothing", l.label_smoothing)?;
        let ok = l.kind == LossKind::CrossEntropy || l.label_smoothing == 0.0;
        self.require(ok, "loss.label_smoothing", "it is for kind = \"cross_entropy\"")?;
        let Some(m) = job.mix else { return Ok(()) };
        self.not_negative("mix.mixup_alpha", m.mixup_alpha)?;
        self.not_negative("mix.cutmix_alpha", m.cutmix_alpha)?;
        let some = m.mixup_alpha > 0.0 || m.cutmix_alpha > 0.0;
        self.require(some, "mix.mixup_alpha", "neither it nor cutmix_alpha is above 0; leave [mix] out")?;
        for (key, p) in [("mix.prob", m.prob), ("mix.switch_prob", m.switch_prob)] {
            self.require((0.0..=1.0).contains(&p), key, format!("{p} must lie between 0 and 1"))?;
        }
        Ok(())
    }

    pub(super) fn optimizer(&self, optimizer: &Optimizer) -> Result<()> {
        self.positive("optimizer.lr", optimizer.lr())?;
        let none = optimizer.reference_batch() != Some(0);
        self.require(none, "optimizer.reference_batch", "0 must be greater than 0")?;
        let groups = optimizer.groups();
        self.not_negative("optimizer.groups.backbone", groups.backbone)?;
        self.positive("optimizer.groups.layer_decay", groups.layer_decay)?;
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

    pub(super) fn schedule(&self, s: &Schedule, optimizer: &Optimizer, epochs: u64) -> Result<()> {
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

    pub(super) fn cluster(&self, job: &Job) -> Result<()> {
        let c = &job.cluster;
        self.positive("cluster.workers", c.workers.into())?;
        self.positive("cluster.min_workers", c.min_workers.into())?;
        self.require(
            c.min_workers <= c.workers,
            "cluster.min_workers",
            format!("{} is more than cluster.workers = {}", c.min_workers, c.workers),
        )?;
        let duration = |key: &str, value: Seconds| self.positive(key, value.0);
        duration("cluster.beat_timeout", c.beat_timeout)?;
        duration("cluster.step_timeout", c.step_timeout)?;
        duration("cluster.collective_timeout", c.collective_timeout)?;
        duration("cluster.coordinator_grace", c.coordinator_grace)?;
        duration("cluster.stop_grace", c.stop_grace)?;
        self.not_negative("cluster.join_window", c.join_window.0)?;
        if let Some(most) = c.max_workers {
            self.require(
                most >= c.workers,
                "cluster.max_workers",
                format!("{most} is less than cluster.workers = {}", c.workers),
            )?;
            self.require(
                most <= job.data.lanes,
                "cluster.max_workers",
                format!("{most} is more than data.lanes = {}", job.data.lanes),
            )?;
        }
        let factor = c.straggler_factor.unwrap_or(2.0);
        self.require(factor > 1.0, "cluster.straggler_factor", format!("{factor} must be more than 1"))
    }
}
