//! The loop, the loss, the optimizer and its schedule, the cluster.

use super::Rules;
use crate::{BatchNorm, Job, LossKind, Optimizer, Result, Schedule, ScheduleKind, Seconds};

impl Rules<'_> {
    pub(super) fn train(&self, job: &Job) -> Result<()> {
        let (t, c) = (&job.train, &job.checkpoint);
        self.require(t.epochs > 0, "train.epochs", "0 must be greater than 0")?;
        self.require(t.max_steps != Some(0), "train.max_steps", "0 must be greater than 0")?;
        self.require(c.every_steps != Some(0), "checkpoint.every_steps", "0 must be greater than 0")?;
        self.require(c.keep > 0, "checkpoint.keep", "0 would keep no checkpoint; keep at least 1")?;
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
        duration("cluster.lost_after", c.lost_after)?;
        duration("cluster.stuck_after", c.stuck_after)?;
        duration("cluster.collective_timeout", c.collective_timeout)
    }
}
