//! One rank in one generation: the training loop.

use super::{
    Job,
    kept::{Claim, Kept, Owed, broadcast},
    measure::MOMENTUM,
    meet::meet,
    now,
    step::Guard,
};
use crate::{
    Error, Result,
    batch::Normalise,
    checkpoint::{
        layout::Place,
        load::{Loaded, Read},
        shared::Shared,
    },
    ema::Ema,
    feed, schedule,
    session::{Age, Asked, Assignment, Session, Timing},
    state::State,
    supervise,
    weights::init,
};
use collective::{Group, RankSum, Reducer, ReducerOptions};
use configs::{BatchNorm, Stage, StepShape};
use models::{Exchange, NormMode};
use proto::v1::{self, worker_message::Kind as Message};
use shards::stream::{Batch, Stats, Stream};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tch::Tensor;

/// The state of the loop, which goes with the group; what outlives it is [`Kept`].
pub(super) struct Generation<'a> {
    pub(super) job: &'a Job,
    pub(super) session: &'a mut Session,
    pub(super) kept: &'a mut Kept,
    pub(super) at: Assignment,
    // Before the group, which it works on: fields are dropped in this order.
    pub(super) reducer: Reducer,
    pub(super) group: Group,
    pub(super) normalise: Normalise,
    pub(super) guard: Guard,
    /// What the step shows.
    pub(super) shape: StepShape,
    stages: Vec<Stage>,
    /// From the position on.
    batches: Stream,
}

/// What rank 0 reports of one step.
pub(super) struct StepSummary {
    /// Means over what the global batch shows.
    pub(super) loss: f64,
    pub(super) accuracy: f64,
    /// Of all gradients, before clipping.
    pub(super) grad_norm: f64,
    /// The weights were left as they were.
    pub(super) skipped: bool,
    /// What the global batch shows: what was planned less the damaged clips.
    pub(super) shown: usize,
    /// Damaged clips that the step was taken without, of all ranks.
    pub(super) missing: Vec<String>,
    /// How long the step waited for the other ranks.
    pub(super) exchange: Duration,
    /// By any rank, of all.
    pub(super) asked: Asked,
}

impl<'a> Generation<'a> {
    /// Builds the group, and agrees with it on the state to go on from.
    pub(super) fn enter(
        job: &'a Job,
        session: &'a mut Session,
        kept: &'a mut Kept,
        at: Assignment,
    ) -> Result<Self> {
        let progress = session.progress().clone();
        progress.at("joining", at.generation, kept.position.epoch, kept.position.step);
        // A survivor goes on where it stands, as a rule: its clips are read while the ranks meet.
        let ahead = kept.begun.then(|| job.batches(&at, kept.position).map(|s| (kept.position, s)));
        let ahead = ahead.transpose()?;
        let (group, mine) = meet(job, session, &at, || kept.claim())?;
        progress.at("loading", at.generation, kept.position.epoch, kept.position.step);
        progress.meets("agreement on the state");
        let entered = agree(job, session, kept, mine, &at, &group).and_then(|()| {
            let batches = match ahead.filter(|(place, _)| *place == kept.position) {
                Some((_, batches)) => batches,
                None => job.batches(&at, kept.position)?,
            };
            let mode = norm_mode(job.config.train.batch_norm, &group);
            kept.state.model.set_norm_mode(mode);
            let (parameters, options) = (kept.state.parameters(), ReducerOptions::default());
            let reducer = match &kept.buckets {
                Some(buckets) => Reducer::laid_out(&parameters, &group, options, buckets)?,
                None => Reducer::new(&parameters, &group, options)?,
            };
            Ok((batches, reducer, Guard::new(&kept.state)?))
        });
        let (batches, reducer, guard) = match entered {
            Ok(entered) => entered,
            Err(e) => {
                // Dropping a group waits for what is in flight.
                let _ = group.abort();
                kept.state.model.set_norm_mode(NormMode::Local);
                return Err(e);
            }
        };
        let normalise = Normalise::new(&job.config, job.options.device.torch());
        let stages = job.config.stages();
        let shape = stages[0].base();
        Ok(Self { job, session, kept, at, reducer, group, normalise, guard, shape, stages, batches })
    }

    /// Trains until the job is done or the generation is left or breaks off.
    pub(super) fn train(&mut self) -> Result<()> {
        let trained = self.warm_up().and_then(|()| self.steps());
        if trained.is_err() {
            let _ = self.group.abort();
        }
        trained
    }

    fn steps(&mut self) -> Result<()> {
        let (config, at) = (&self.job.config, self.at.clone());
        let plan = self.job.set.plan.clone();
        let total = self.job.feed().total_steps(&plan);
        self.announce();
        let asked = self.boundary()?;
        if asked.leave {
            return self.leave(asked.checkpoint);
        }
        while self.kept.position.step < total {
            let began = now();
            let Place { epoch, step_in_epoch, step } = self.kept.position;
            self.session.check(at.generation)?;
            self.session.progress().at("training", at.generation, epoch, step);
            let batch = self.batches.next()?.ok_or_else(|| self.job.short_epoch(self.kept.position))?;

            let per_epoch = plan.steps_per_epoch(epoch);
            let lr = schedule::lr_of_step(config, feed::fraction(&plan, epoch, step_in_epoch));
            self.take_shape();
            self.record(&batch);
            let summary = self.step(&batch, lr)?;
            self.kept.position.advance(per_epoch);
            self.kept.generation = at.generation;

            let place = self.kept.position;
            let ended = place.step == total;
            let epoch_ended = place.step_in_epoch == 0 || ended;
            self.kept.owed = Owed {
                measure: epoch_ended && self.measures(ended),
                checkpoint: ended || place.is_due(&config.checkpoint) || summary.asked.checkpoint,
            };
            self.report(&batch, &summary, lr, (per_epoch, total), began);
            self.batches.recycle(batch);
            if epoch_ended {
                self.tell_reads(&self.batches.stats());
                if let Some(found) = self.batches.cache_stats() {
                    tracing::info!("the node's cache since this worker's start: {found}");
                }
            }
            let asked = self.boundary()?;
            if asked.leave || (summary.asked.leave && !ended) {
                return self.leave(asked.checkpoint || summary.asked.checkpoint);
            }
        }
        self.finish(total)
    }

    /// Does what is owed at this step boundary. An evaluation that gives way to a Leave stays owed, and what was asked
    /// for meanwhile is returned.
    fn boundary(&mut self) -> Result<Asked> {
        let mut asked = Asked::default();
        if self.kept.owed.measure {
            asked = self.measure()?;
            self.kept.owed.measure = asked.leave;
            self.kept.owed.checkpoint |= asked.checkpoint;
        }
        if self.kept.owed.checkpoint {
            self.checkpoint()?;
            self.kept.owed.checkpoint = false;
        }
        Ok(asked)
    }

    /// A reducer lays its buckets out in the order in which its first backward pass finds the gradients. Doing that
    /// before the first step, and once, gives every step of every generation the same order of additions, so that a
    /// resumed run has the same bits as one that was never stopped.
    fn warm_up(&mut self) -> Result<()> {
        if self.kept.buckets.is_some() {
            return Ok(());
        }
        let Place { epoch, step, .. } = self.kept.position;
        self.session.progress().at("joining", self.at.generation, epoch, step);
        self.session.progress().meets("exchange of gradients");
        self.reducer.zero_grad()?;
        self.pass_of_zeros(false, true)?;
        self.kept.buckets = Some(self.reducer.lay_out()?);
        Ok(())
    }

    /// Which clips this rank's part of a step is about to show, for those who count (`RUST_LOG=info,clips=debug`).
    /// Where a step is repeated, the newest generation that began it counts.
    fn record(&self, batch: &Batch) {
        if tracing::enabled!(target: "clips", tracing::Level::DEBUG) {
            let (generation, rank) = (self.at.generation, self.at.rank);
            let (step, epoch) = (self.kept.position.step + 1, batch.epoch);
            let ids = self.job.clip_ids(&batch.clips).join(" ");
            tracing::debug!(
                target: "clips",
                "generation {generation}, rank {rank}, epoch {epoch}, step {step}, clips: {ids}"
            );
        }
    }

    /// The shape of the step to come. The groups of sub-batch norm grow with the short cycle's batch, as
    /// PySlowFast's do, whose number stays that of the long cycle; the log says when the long cycle moves on.
    fn take_shape(&mut self) {
        let Place { epoch, step_in_epoch, .. } = self.kept.position;
        let at = self.stages.partition_point(|s| s.end <= epoch).min(self.stages.len() - 1);
        let stage = &self.stages[at];
        let shape = stage.cycle[(step_in_epoch % stage.cycle.len() as u64) as usize];
        let train = &self.job.config.train;
        if train.multigrid.is_some() && self.at.rank == 0 && step_in_epoch == 0 {
            let begun = at.checked_sub(1).map_or(0, |before| self.stages[before].end);
            if epoch == begun {
                let StepShape { batch, frames, crop, .. } = stage.base();
                let clips = batch * train.global_batch;
                let text = format!(
                    "multigrid: from epoch {epoch} to {}, {clips} clips of {frames} frames of {crop} pixels",
                    stage.end
                );
                self.session.log("info", text);
            }
        }
        if let (BatchNorm::SubBatch { clips }, true) = (train.batch_norm, shape.short != self.shape.short) {
            self.kept.state.model.set_norm_mode(NormMode::SubBatch((clips * shape.short).into()));
        }
        self.shape = shape;
    }

    /// What the log should say: a rate that is not the configuration's own. And the last steps of a generation that
    /// broke off, whose rank 0 may be gone without having reported them; the coordinator knows which are news.
    fn announce(&mut self) {
        let reports = std::mem::take(&mut self.kept.reports);
        if std::mem::take(&mut self.kept.broke) && self.kept.tells {
            reports.into_iter().for_each(|report| self.session.send(Message::Step(report)));
        }
        let optimizer = &self.job.config.optimizer;
        let batch = self.job.config.train.global_batch;
        if self.at.rank == 0 {
            self.job.set.notes.iter().for_each(|note| self.session.log("info", note.clone()));
        }
        if let (0, Some(reference)) = (self.at.rank, optimizer.reference_batch().filter(|r| *r != batch)) {
            let (given, used) = (optimizer.lr(), optimizer.lr() * schedule::batch_scale(&self.job.config));
            self.session.log(
                "info",
                format!(
                    "the learning rate of {given:e} for {reference} clips a step is scaled to {used:e} for {batch}"
                ),
            );
        }
    }

    /// What was read so far in this generation, prefetched clips included.
    fn tell_reads(&self, stats: &Stats) {
        match self.at.rank {
            0 => self.session.log("info", format!("rank 0 has read {stats}")),
            rank => tracing::info!("rank {rank} has read {stats}"),
        }
    }

    /// Rank 0 sends the report of a step; the others keep it.
    fn report(
        &mut self,
        batch: &Batch,
        of: &StepSummary,
        lr: f64,
        (per_epoch, total): (u64, u64),
        began: Instant,
    ) {
        let (step, data_wait, exchange_wait) = (began.elapsed(), batch.waited, of.exchange);
        self.session.progress().took(Timing { step, data_wait, exchange_wait });
        if !self.kept.stepped {
            self.kept.stepped = true;
            // Read by the supervisor.
            println!("{}", supervise::STEPPED);
        }
        let report = v1::StepReport {
            generation: self.at.generation,
            epoch: batch.epoch,
            step: self.kept.position.step,
            step_in_epoch: batch.step + 1,
            steps_per_epoch: per_epoch,
            total_steps: total,
            loss: of.loss,
            accuracy: of.accuracy,
            lr,
            clips: of.shown as u64,
            step_seconds: step.as_secs_f64(),
            data_wait_seconds: data_wait.as_secs_f64(),
            exchange_wait_seconds: exchange_wait.as_secs_f64(),
            peak_memory_bytes: peak_memory().unwrap_or(0),
            grad_norm: of.grad_norm,
            skipped: of.skipped,
            missing: of.missing.clone(),
        };
        match self.at.rank {
            0 => self.session.send(Message::Step(report)),
            _ => self.kept.remember(report),
        }
    }

    /// All leave after the same step; each keeps what it has. `committed`: not before the checkpoint is.
    fn leave(&mut self, committed: bool) -> Result<()> {
        let Place { epoch, step, .. } = self.kept.position;
        if committed {
            self.wait_saved()?;
        }
        // Nobody hangs up while another still reads the vote; who dies here is missed later.
        self.session.progress().meets("last barrier");
        let _ = self.group.barrier();
        self.session.progress().at("waiting", self.at.generation, epoch, step);
        self.session.send(Message::Left(v1::Left { generation: self.at.generation, step }));
        Ok(())
    }

    fn finish(&mut self, total: u64) -> Result<()> {
        self.wait_saved()?;
        self.session.progress().at("waiting", self.at.generation, self.kept.position.epoch, total);
        self.session.send(Message::Finished(v1::Finished { generation: self.at.generation, step: total }));
        Ok(())
    }
}

impl Drop for Generation<'_> {
    /// What an unfinished pass may have left in the model, and all that holds on to the group.
    fn drop(&mut self) {
        let model = &mut self.kept.state.model;
        model.set_norm_mode(NormMode::Local);
        model.set_norm_momentum(MOMENTUM);
        model.set_absent(false);
        if let Err(e) = self.reducer.zero_grad() {
            tracing::debug!("failed to {e}");
        }
    }
}

/// The configuration's choice in a network's terms.
fn norm_mode(choice: BatchNorm, group: &Group) -> NormMode {
    match choice {
        BatchNorm::Local => NormMode::Local,
        BatchNorm::SubBatch { clips } => NormMode::SubBatch(clips.into()),
        BatchNorm::Sync => NormMode::Sync(Arc::new(OverRanks(RankSum::new(group)))),
        BatchNorm::Frozen => NormMode::Frozen,
    }
}

/// What synchronised batch norms exchange goes over the group of the generation.
#[derive(Debug)]
struct OverRanks(RankSum);

impl Exchange for OverRanks {
    fn sum(&self, x: &Tensor) -> models::Result<Tensor> {
        self.0.sum(x).map_err(|e| models::Error::Lent { why: e.to_string(), peer: e.is_peer() })
    }
}

/// The state that the whole group goes on from: what its members have in memory, unless a newer one is in a
/// checkpoint; or else the weights that a new run starts from.
fn agree(
    job: &Job,
    session: &Session,
    kept: &mut Kept,
    mine: Claim,
    at: &Assignment,
    group: &Group,
) -> Result<()> {
    let newcomer = !kept.begun;
    if kept.agree(job, mine, at.committed, at, group)? {
        return agree_on_plan(job, group).map_err(|e| match e {
            Error::Usage(why) if newcomer => Error::Misfit(why),
            e => e,
        });
    }
    agree_on_plan(job, group)?;
    let loaded = newest(job, session, at, group)?;
    // The newest may be damaged, and the one before it older than what the ranks have.
    let age = loaded.as_ref().map(|l| Age { generation: l.header.generation, step: l.header.place().step });
    if kept.agree(job, mine, age, at, group)? {
        return Ok(());
    }
    // Until all of it is here there is none.
    (kept.broke, kept.begun, kept.saved, kept.skipped, kept.buckets) = (false, false, None, 0, None);
    (kept.position, kept.owed, kept.generation) = restore(job, session, at, group, &mut kept.state, loaded)?;
    kept.begun = true;
    Ok(())
}

/// The newest whole checkpoint, which the ranks read together.
fn newest(job: &Job, session: &Session, at: &Assignment, group: &Group) -> Result<Option<Loaded>> {
    let progress = session.progress();
    let shared = Shared {
        run: &job.run,
        local: job.local.as_ref(),
        generation: at.generation,
        group,
        device: job.options.device.torch(),
        runtime: job.runtime.handle(),
        tick: &|| progress.tick(),
    };
    shared.newest(|text| session.log("warn", text))
}

/// Takes over the checkpoint; or rank 0 the weights that a new run starts from, which the others get from it. With the
/// position, what is to be done there before the next step, and the generation that had come there.
fn restore(
    job: &Job,
    session: &Session,
    at: &Assignment,
    group: &Group,
    state: &mut State,
    loaded: Option<Loaded>,
) -> Result<(Place, Owed, u64)> {
    if let Some(loaded) = loaded {
        let (Read { store, local }, committed, url) = (loaded.read, loaded.committed, loaded.url.clone());
        let owed = Owed { measure: loaded.header.evaluation_owed, checkpoint: !committed };
        let generation = loaded.header.generation;
        let place = state.load(&job.config, &job.dataset, &job.set.plan, loaded)?;
        let (rank, world, step) = (at.rank, at.world, place.step);
        tracing::info!(
            "rank {rank} of {world} read {store} bytes of the checkpoint from the store and {local} from its node's copy"
        );
        match (rank, committed) {
            (0, true) => session.log("info", format!("resumed from the checkpoint of step {step}")),
            (0, false) => session.log(
                "info",
                format!("resumed from the copy of step {step} in {url}, which was not committed; it is now"),
            ),
            _ => {}
        }
        return Ok((place, owed, generation));
    }
    if let (0, Some(url)) = (at.rank, &job.config.train.init) {
        let (labels, log) = (&job.dataset.manifest.labels, |level: &str, text| session.log(level, text));
        job.runtime.block_on(init::start(url, &job.config, labels, &mut state.model, log))?;
        state.ema.as_ref().map_or(Ok(()), Ema::restart)?;
    }
    state.broadcast(group, 0, false)?;
    Ok(Default::default())
}

/// Every rank must have read the same lists of clips: a quarantine list can change between two readings.
fn agree_on_plan(job: &Job, group: &Group) -> Result<()> {
    let digest = storage::sha256_hex(format!("{:?}", job.set.plan.spec().identity()).as_bytes());
    match broadcast(digest.as_bytes(), 0, group, job)? == digest.as_bytes() {
        true => Ok(()),
        false => Err(Error::Usage(
            "train with the other workers: this one read another list of clips; a file named by data.quarantine or a dataset of data.mixture was changed while they started, so start them again"
                .into(),
        )),
    }
}

/// The most resident memory this process ever had, bytes; Linux only.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|k| k * 1024)
}
