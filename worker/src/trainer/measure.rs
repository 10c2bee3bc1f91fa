//! Between epochs: precise batch norm, and accuracy on the evaluation split.

use super::{generation::Generation, now};
use crate::{
    Error, Result, checkpoint::layout::Place, ema::Ema, evaluate, metrics::Tally, restore::Judge,
    session::Asked,
};
use collective::{ReduceOp, foreach_copy};
use configs::{BatchNorm, Ensemble};
use models::NormMode;
use proto::v1::{self, worker_message::Kind as Message};
use tch::{Kind, Tensor};

/// What a fresh batch norm's running statistics take from each batch.
pub(super) const MOMENTUM: f64 = 0.1;

/// How an evaluation ended.
enum Measured {
    /// The whole group's tally, and the ids of the clips that it lacks.
    Counted(Box<Tally>, Vec<String>),
    /// The dataset has no such split.
    Nothing,
    /// The generation is being left.
    GaveWay(Asked),
}

impl Generation<'_> {
    /// Whether the job wants to be measured after this epoch, or at its end.
    pub(super) fn measures(&self, ended: bool) -> bool {
        let every = self.job.config.train.eval_every_epochs;
        ended || (every != 0 && self.kept.position.epoch.is_multiple_of(every))
    }

    /// Accuracy, every rank on its share of the clips; with the averaged weights where the job keeps them. It gives
    /// way to a Leave, and returns what was asked for.
    pub(super) fn measure(&mut self) -> Result<Asked> {
        let began = now();
        let progress = self.session.progress().clone();
        let Place { epoch, step, .. } = self.kept.position;
        progress.at("evaluating", self.at.generation, epoch, step);
        // Taken out for the while: its guard must not keep the rest of the state from being changed.
        let ema = self.kept.state.ema.take();
        self.guard.remember()?;
        let measured = self.measure_with(ema.as_ref());
        self.kept.state.ema = ema;
        if matches!(measured, Err(_) | Ok(Measured::GaveWay(_))) {
            // It will be done again from the statistics that it began with.
            self.guard.undo()?;
            self.kept.state.model.set_norm_momentum(MOMENTUM);
        }
        let (tally, missing) = match measured? {
            Measured::Counted(tally, missing) => (tally, missing),
            Measured::Nothing => return Ok(Asked::default()),
            Measured::GaveWay(asked) => return Ok(asked),
        };
        if self.at.rank == 0 && tally.clips() > 0 {
            self.session.send(Message::Eval(v1::EvalReport {
                generation: self.at.generation,
                epoch,
                step,
                loss: tally.loss(),
                top1: tally.top1(),
                top5: tally.top5(),
                clips: tally.clips(),
                mean_average_precision: tally.ranking().and_then(|r| r.mean()),
                seconds: began.elapsed().as_secs_f64(),
                missing,
            }));
        }
        Ok(Asked::default())
    }

    fn measure_with(&mut self, ema: Option<&Ema>) -> Result<Measured> {
        let config = &self.job.config.train;
        let averaged = ema.map(Ema::swap_in).transpose()?;
        match config.precise_bn_batches {
            // Rank 0's running statistics are the ones that count.
            0 => self.group.broadcast_all(&self.kept.state.buffers(), 0)?,
            batches => self.precise_bn(batches)?,
        }
        let Some(stream) = self.job.feed().eval(&self.at)? else { return Ok(Measured::Nothing) };
        let progress = self.session.progress().clone();
        let (data, loss) = (&self.job.config.data, self.job.config.loss.kind);
        let split = evaluate::Split::new(&self.job.dataset, &data.eval_split, loss)?;
        let judge = Judge {
            model: &self.kept.state.model,
            normalise: &self.normalise,
            precision: config.precision,
            loss,
            ensemble: Ensemble::Mean,
            keep_views: false,
        };
        let (generation, mut asked) = (self.at.generation, Asked::default());
        let counted = evaluate::run(&judge, stream, &split, || {
            progress.tick();
            asked = self.session.asked(generation)?;
            match asked.leave {
                true => Err(Error::GenerationOver { generation, reason: "it is being left".into() }),
                false => Ok(()),
            }
        });
        drop(averaged);
        let counted = match counted {
            Err(_) if asked.leave => None,
            counted => Some(counted?),
        };
        let device = self.job.options.device.torch();
        let missing = counted.iter().flat_map(|(_, missing)| missing);
        for (_, why) in missing.clone() {
            self.session.log("warn", format!("the evaluation leaves out a clip: failed to {why}"));
        }
        let missing: Vec<u32> = missing.map(|(place, _)| *place).collect();
        let votes = [missing.len() as f64, f64::from(asked.leave), f64::from(asked.checkpoint)];
        progress.meets("sum of an evaluation");
        let votes = Tensor::from_slice(&votes).f_to_device(device)?;
        self.group.all_reduce(&votes, ReduceOp::Sum)?.wait()?;
        let votes = Vec::<f64>::try_from(&votes.f_to_device(tch::Device::Cpu)?)?;
        match counted {
            Some((tally, _)) if votes[1] == 0.0 => {
                let tally = tally.all_reduce(&self.group, device)?;
                let missing = self.places_of_all(&missing, votes[0] as usize)?;
                let id = |place: u32| split.clip(place as usize).clip_id.to_string();
                Ok(Measured::Counted(Box::new(tally), missing.into_iter().map(id).collect()))
            }
            _ => Ok(Measured::GaveWay(self.session.agreed(true, votes[2] > 0.0))),
        }
    }

    /// Replaces the running statistics by those of the training clips under the weights as they are: mean
    /// and variance over `batches` global batches, each rank on its share, weighted by clips (Wu and Johnson
    /// 2021, section 3; fvcore's `update_bn_stats`). The clips are those of the epoch's first steps.
    fn precise_bn(&mut self, batches: u64) -> Result<()> {
        let statistics: Vec<(String, Tensor)> = self
            .kept
            .state
            .model
            .tensors()
            .into_iter()
            .filter(|t| t.role == models::Role::Buffer)
            .map(|t| (t.name, t.tensor))
            .collect();
        let pairs: Vec<(&Tensor, &Tensor)> = statistics
            .iter()
            .filter_map(|(name, mean)| {
                let var = format!("{}running_var", name.strip_suffix("running_mean")?);
                Some((mean, &statistics.iter().find(|(n, _)| *n == var)?.1))
            })
            .collect();
        if pairs.is_empty() {
            return Ok(());
        }
        // Sums over the batches of clips x mean and clips x mean of squares, then the clips themselves.
        let zeros = |t: &Tensor| t.f_zeros_like().and_then(|t| t.f_to_kind(Kind::Double));
        let mut sums: Vec<(Tensor, Tensor)> =
            pairs.iter().map(|(mean, var)| Ok((zeros(mean)?, zeros(var)?))).collect::<Result<_>>()?;
        let feed = self.job.feed();
        // Of the shape that an evaluation shows, whatever the steps of multigrid training show.
        let plan = feed.plain_plan()?;
        let epoch = self.kept.position.epoch;
        let from = Place { epoch, step_in_epoch: 0, step: plan.first_step(epoch) };
        let batches = batches.min(plan.steps_per_epoch(epoch));
        let mut stream = feed.train(&plan, &self.at, from, from.step + batches)?;
        if let BatchNorm::SubBatch { clips } = self.job.config.train.batch_norm {
            self.kept.state.model.set_norm_mode(NormMode::SubBatch(clips.into()));
            self.shape.short = 1;
        }
        let mut clips = 0.0;
        self.kept.state.model.set_norm_momentum(1.0);
        while let Some(batch) = stream.next()? {
            self.session.progress().tick();
            self.session.check(self.at.generation)?;
            if batch.labels.is_empty() {
                continue;
            }
            {
                let _no_grad = tch::no_grad_guard();
                let _autocast = self.autocast()?;
                let _ = self.kept.state.model.forward(&self.normalise.tensor(&batch)?, true)?;
            }
            let n = batch.labels.len() as f64;
            clips += n;
            for ((mean, var), (means, squares)) in pairs.iter().zip(&mut sums) {
                let mean = mean.f_to_kind(Kind::Double)?;
                let _ = means.f_add_(&(&mean * n))?;
                let _ = squares.f_add_(&((&mean * &mean + var.f_to_kind(Kind::Double)?) * n))?;
            }
        }
        self.kept.state.model.set_norm_momentum(MOMENTUM);

        let device = self.job.options.device.torch();
        let mut flat: Vec<Tensor> =
            sums.iter().flat_map(|(a, b)| [a.shallow_clone(), b.shallow_clone()]).collect();
        flat.push(Tensor::from_slice(&[clips]).f_to_device(device)?);
        let sizes: Vec<i64> = flat.iter().map(|t| t.numel() as i64).collect();
        self.session.progress().meets("sum of batch statistics");
        let all = Tensor::f_cat(&flat, 0)?;
        self.group.all_reduce(&all, ReduceOp::Sum)?.wait()?;
        let parts = all.f_split_with_sizes(&sizes, 0)?;
        let clips = parts[parts.len() - 1].f_double_value(&[0])?.max(1.0);
        let (mut into, mut from) = (vec![], vec![]);
        for ((mean, var), sums) in pairs.iter().zip(parts.chunks(2)) {
            let m = &sums[0] / clips;
            into.extend([mean.shallow_clone(), var.shallow_clone()]);
            from.push(m.f_to_kind(mean.kind())?);
            from.push((&sums[1] / clips - &m * &m).f_to_kind(var.kind())?);
        }
        Ok(foreach_copy(&into, &from)?)
    }
}
