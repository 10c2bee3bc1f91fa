//! One optimizer step of one rank: its share of the global batch in one or more passes, the vote,
//! and the update.

use super::generation::{Generation, StepSummary};
use super::now;
use crate::{Error, Result, loss, mix, state::State};
use collective::{Autocast, ReduceOp, foreach_copy, foreach_mul, foreach_norm};
use configs::{BatchNorm, Config, Precision};
use shards::stream::Batch;
use std::{collections::BTreeSet, ops::Range};
use tch::{Kind, Tensor};

/// What lets a step be undone: the running statistics, which its forward passes change.
pub(super) struct Guard {
    buffers: Vec<Tensor>,
    before: Vec<Tensor>,
}

/// What this rank found in its part of a step.
#[derive(Default)]
struct Local {
    loss: f64,
    correct: f64,
    /// Places of the clips whose loss is not finite.
    bad: Vec<u32>,
}

impl Guard {
    pub(super) fn new(state: &State) -> Result<Self> {
        let buffers = state.buffers();
        let before = buffers.iter().map(|b| b.f_zeros_like()).collect::<std::result::Result<_, _>>()?;
        Ok(Self { buffers, before })
    }

    pub(super) fn remember(&mut self) -> Result<()> {
        Ok(foreach_copy(&self.before, &self.buffers)?)
    }

    pub(super) fn undo(&mut self) -> Result<()> {
        Ok(foreach_copy(&self.buffers, &self.before)?)
    }
}

impl Generation<'_> {
    /// Every rank takes the step, or every rank skips it; a step that breaks off leaves the state as it was.
    pub(super) fn step(&mut self, batch: &Batch, lr: f64) -> Result<StepSummary> {
        self.guard.remember()?;
        let (local, grads, mut summary) = match self.try_step(batch) {
            Ok(tried) => tried,
            Err(e) => {
                self.guard.undo()?;
                return Err(e);
            }
        };
        // The same numbers on every rank, so every rank decides alike.
        let scale = self.kept.state.scaler.as_ref().map_or(1.0, |s| s.scale());
        let overflow =
            self.kept.state.scaler.as_mut().is_some_and(|s| s.update(summary.grad_norm.is_finite()));
        if summary.skipped || overflow {
            summary.skipped = true;
            self.skip(&local, &summary, overflow)?;
            return Ok(summary);
        }
        self.kept.skipped = 0;
        let clip =
            self.job.config.train.clip_norm.map_or(1.0, |most| (most / (summary.grad_norm + 1e-6)).min(1.0));
        let factor = clip / scale * (batch.global_clips as f64 / summary.shown as f64);
        if factor != 1.0 {
            foreach_mul(&grads, factor)?;
        }
        self.kept.state.update(lr)?;
        Ok(summary)
    }

    /// All of a step that needs the other ranks.
    fn try_step(&mut self, batch: &Batch) -> Result<(Local, Vec<Tensor>, StepSummary)> {
        self.reducer.zero_grad()?;
        tch::manual_seed(step_seed(self.job.config.seed, self.kept.position.step, self.at.rank));
        let local = self.passes(batch)?;
        let grads = self.kept.state.gradients()?;
        let scale = self.kept.state.scaler.as_ref().map_or(1.0, |s| s.scale());
        let norm = foreach_norm(&grads)? / scale;

        let voted = now();
        let mut summary = self.vote(&local, norm, batch)?;
        summary.exchange = voted.elapsed() + self.reducer.exchange_wait()?;
        Ok((local, grads, summary))
    }

    /// Loss and hits summed over this rank's clips. Gradients are left as the mean over all that the
    /// global batch shows: sum / shown x world, which the reducer divides by world.
    fn passes(&mut self, batch: &Batch) -> Result<Local> {
        let shown = batch.labels.len();
        // Smaller clips: as much memory holds more of them.
        let most = self.job.config.train.micro_batch.map_or(usize::MAX, |n| (n * self.shape.batch) as usize);
        let mut parts: Vec<Range<usize>> = (0..shown)
            .step_by(most.min(shown.max(1)))
            .map(|a| a..shown.min(a.saturating_add(most)))
            .collect();
        if self.job.config.train.batch_norm == BatchNorm::Sync {
            // Statistics are exchanged in every pass: all ranks make as many as the fullest.
            let fullest = fullest_share(&self.job.config, self.at.world as u32) * self.shape.batch;
            parts.resize((fullest as usize).div_ceil(most).max(1), shown..shown);
        } else if parts.is_empty() {
            // The last batch of an epoch may leave nothing for this rank: it takes part with zeros.
            parts.push(0..0);
        }
        let mut local = Local::default();
        let last = parts.len() - 1;
        for (i, part) in parts.into_iter().enumerate() {
            if i == last {
                self.session.progress().meets("exchange of gradients");
            }
            match part.is_empty() {
                true => self.absent(i == last)?,
                false => self.pass(batch, i, part, i == last, &mut local)?,
            }
        }
        Ok(local)
    }

    /// Forward and backward of a part of the batch. Gradients add up; `exchange`: over the ranks too.
    fn pass(
        &mut self,
        batch: &Batch,
        number: usize,
        part: Range<usize>,
        exchange: bool,
        local: &mut Local,
    ) -> Result<()> {
        let config = &self.job.config;
        let device = self.job.options.device.torch();
        let targets =
            mix::targets(batch, part.clone(), self.kept.state.model.classes(), config.loss, device)?;
        let clips = self.normalise.part(batch, part.clone())?;
        let (clips, targets) = match &config.mix {
            // Each pass is mixed in its own way.
            Some(cfg) => {
                let key =
                    (config.seed, self.kept.position.step, ((number as u64) << 32) | self.at.rank as u64);
                mix::mix(&clips, &targets, cfg, key)?
            }
            None => (clips, targets),
        };
        let logits = self.forward(&clips, exchange)?;
        let each = loss::of_each_clip(&logits, &targets, config.loss.kind)?;
        let scale = self.at.world as f64 / batch.global_clips as f64
            * self.kept.state.scaler.as_ref().map_or(1.0, |s| s.scale());
        collective::backward(&(each.f_sum(Kind::Float)? * scale))?;

        let each =
            Vec::<f64>::try_from(&each.f_detach()?.f_to_kind(Kind::Double)?.f_to_device(tch::Device::Cpu)?)?;
        local.bad.extend(part.zip(&each).filter(|(_, l)| !l.is_finite()).map(|(i, _)| batch.clips[i]));
        local.loss += each.iter().sum::<f64>();
        local.correct += loss::hits(&logits, &targets)?;
        Ok(())
    }

    /// Logits (B, classes), float32. `exchange`: the backward pass that follows is the step's last, in
    /// which the reducer sends what has been added up.
    fn forward(&self, clips: &Tensor, exchange: bool) -> Result<Tensor> {
        let _autocast = self.autocast()?;
        let forward = || self.kept.state.model.forward(clips, true).map_err(Error::from);
        if exchange { self.reducer.try_forward(forward) } else { forward() }
    }

    pub(super) fn autocast(&self) -> Result<Option<Autocast>> {
        autocast(self.job.config.train.precision, self.job.options.device.torch())
    }

    /// A pass of zeros that gives every parameter a gradient of zero and moves no running statistic. Where
    /// batch norms exchange theirs, it takes part in every exchange with a count of zero.
    fn absent(&mut self, exchange: bool) -> Result<()> {
        let sync = self.job.config.train.batch_norm == BatchNorm::Sync;
        self.kept.state.model.set_absent(sync);
        let done = self.pass_of_zeros(sync, exchange);
        self.kept.state.model.set_absent(false);
        done
    }

    /// In evaluation mode, or as training does.
    pub(super) fn pass_of_zeros(&self, train: bool, exchange: bool) -> Result<()> {
        let clips = self.normalise.zeros(1)?;
        let logits = {
            let _autocast = self.autocast()?;
            let forward = || self.kept.state.model.forward(&clips, train).map_err(Error::from);
            if exchange { self.reducer.try_forward(forward) } else { forward() }?
        };
        Ok(collective::backward(&(logits.f_sum(Kind::Float)? * 0.0))?)
    }

    /// A few bytes over the group, the same answer on every rank: means over what was shown, whether any rank met a
    /// number that is not finite, and what any rank was asked for. The gradients are means over what was planned; damaged
    /// clips make that more than what was shown, which the norm is already that of.
    fn vote(&mut self, local: &Local, norm: f64, batch: &Batch) -> Result<StepSummary> {
        let device = self.job.options.device.torch();
        let bad = !local.loss.is_finite();
        // The norm is that of the same gradients everywhere, but its last bits may depend on a rank's threads.
        let missing: u32 = batch.missing.iter().map(|m| m.views).sum();
        let asked = self.session.asked(self.at.generation)?;
        let mine = [
            if bad { 0.0 } else { local.loss },
            local.correct,
            f64::from(bad),
            norm,
            f64::from(missing),
            f64::from(asked.leave),
            f64::from(asked.checkpoint),
        ];
        self.session.progress().meets("vote");
        let sums = Tensor::from_slice(&mine).f_to_device(device)?;
        self.group.all_reduce(&sums, ReduceOp::Sum)?.wait()?;
        let sums = Vec::<f64>::try_from(&sums.f_to_device(tch::Device::Cpu)?)?;
        let missing = sums[4] as usize;
        let shown = batch.global_clips - missing.min(batch.global_clips);
        let mut grad_norm = sums[3] / self.at.world as f64;
        if shown > 0 {
            grad_norm *= batch.global_clips as f64 / shown as f64;
        }
        let scaled = self.kept.state.scaler.is_some();
        Ok(StepSummary {
            // Without the share that is no number it would be another mean.
            loss: if sums[2] > 0.0 || shown == 0 { f64::NAN } else { sums[0] / shown as f64 },
            accuracy: if shown == 0 { f64::NAN } else { sums[1] / shown as f64 },
            grad_norm,
            skipped: sums[2] > 0.0 || (!grad_norm.is_finite() && !scaled) || shown == 0,
            shown,
            missing: if missing > 0 { self.missing(batch, missing)? } else { vec![] },
            exchange: std::time::Duration::ZERO,
            asked: self.session.agreed(sums[5] > 0.0, sums[6] > 0.0),
        })
    }

    /// The damaged clips of all ranks, which lack `views` views together. Every rank takes part.
    fn missing(&mut self, batch: &Batch, views: usize) -> Result<Vec<String>> {
        let step = self.kept.position.step + 1;
        for lost in &batch.missing {
            if self.kept.told.insert(lost.clip) {
                let text =
                    format!("step {step} and later ones are taken without a clip: failed to {}", lost.why);
                self.session.log("warn", text);
            }
        }
        let mine: Vec<u32> = batch.missing.iter().map(|lost| lost.clip).collect();
        let places = self.places_of_all(&mine, views)?;
        Ok(self.job.clip_ids(&places.into_iter().collect::<Vec<u32>>()))
    }

    /// The places in a split that any rank names; each names at most `most`. Every rank takes part.
    pub(super) fn places_of_all(&self, mine: &[u32], most: usize) -> Result<BTreeSet<u32>> {
        if most == 0 {
            return Ok(BTreeSet::new());
        }
        // A row for each rank: its places, counted from 1.
        let mut rows = vec![0.0; self.at.world * most];
        let row = rows[self.at.rank * most..].iter_mut().take(most);
        row.zip(mine).for_each(|(to, place)| *to = f64::from(*place) + 1.0);
        let all = Tensor::from_slice(&rows).f_to_device(self.job.options.device.torch())?;
        self.group.all_reduce(&all, ReduceOp::Sum)?.wait()?;
        let all = Vec::<f64>::try_from(&all.f_to_device(tch::Device::Cpu)?)?;
        Ok(all.iter().filter(|&&p| p > 0.0).map(|&p| p as u32 - 1).collect())
    }

    /// Leaves weights, optimizer and statistics as they were before the step; the step's clips are spent.
    fn skip(&mut self, local: &Local, summary: &StepSummary, overflow: bool) -> Result<()> {
        self.guard.undo()?;
        let step = self.kept.position.step + 1;
        if overflow && local.loss.is_finite() {
            // What a loss scaler lives by: it has halved its scale.
            return Ok(());
        }
        self.kept.skipped += 1;
        let clips = self.job.clip_ids(&local.bad);
        let why = match clips.is_empty() {
            _ if summary.shown == 0 => "all of its clips are damaged".into(),
            false => format!("the loss of {clips:?} is not a number"),
            true => format!("the norm of its gradients is {}", summary.grad_norm),
        };
        if self.kept.skipped > self.job.config.train.max_skipped_steps {
            return Err(Error::NonFinite { step, skipped: self.kept.skipped, why });
        }
        let of_all = summary.shown == 0 || !summary.grad_norm.is_finite();
        if !clips.is_empty() || (self.at.rank == 0 && of_all) {
            self.session.log("warn", format!("step {step} is skipped on every worker: {why}"));
        }
        Ok(())
    }
}

/// Clips that a full step of one global batch shows on the rank with most lanes.
pub(super) fn fullest_share(config: &Config, world: u32) -> u32 {
    let lanes = config.data.lanes.div_ceil(world);
    lanes * (config.train.global_batch / config.data.lanes) * config.data.augment.repeats
}

/// The arithmetic of forward passes while the guard lives.
pub fn autocast(precision: Precision, device: tch::Device) -> Result<Option<Autocast>> {
    Ok(match precision {
        Precision::Fp32 => None,
        Precision::Bf16 => Some(Autocast::bf16(device)?),
        Precision::Fp16 => Some(Autocast::fp16(device)?),
    })
}

/// Seeds dropout and drop-path: the same for the same step and rank, however often it is repeated.
fn step_seed(seed: u64, step: u64, rank: usize) -> i64 {
    let mut x =
        seed ^ step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (rank as u64).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ (x >> 31)) >> 1) as i64
}
