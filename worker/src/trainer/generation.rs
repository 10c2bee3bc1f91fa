//! One rank in one generation: the training loop.

use super::{Job, now, step::Guard};
use crate::{
    Error, Result,
    batch::Normalise,
    checkpoint::{
        layout::{Header, Place},
        save,
        shared::Shared,
    },
    device::Device,
    ema::Ema,
    feed, schedule,
    session::{Assignment, Session},
    state::State,
    store_client::StoreOverGrpc,
    weights::init,
};
use collective::{Backend, Group, RankSum, Reducer, ReducerOptions, Store};
use configs::{BatchNorm, Stage, StepShape};
use models::{Exchange, NormMode, Recompute};
use proto::v1::{self, worker_message::Kind as Message};
use shards::stream::{Batch, Stats};
use storage::Bandwidth;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tch::Tensor;
use tokio::task::JoinHandle;

/// The state of the loop.
pub(super) struct Generation<'a> {
    pub(super) job: &'a Job,
    pub(super) session: &'a mut Session,
    pub(super) at: Assignment,
    pub(super) group: Group,
    pub(super) reducer: Reducer,
    pub(super) state: State,
    pub(super) position: Place,
    pub(super) normalise: Normalise,
    pub(super) guard: Guard,
    /// What the step shows.
    pub(super) shape: StepShape,
    stages: Vec<Stage>,
    upload: Option<JoinHandle<Result<()>>>,
    /// The last step that this generation wrote a checkpoint of.
    saved: Option<u64>,
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
    /// How long the step waited for the other ranks after its own backward pass.
    pub(super) exchange: Duration,
}

impl<'a> Generation<'a> {
    /// Builds the group and restores the newest state.
    pub(super) fn enter(job: &'a Job, session: &'a mut Session, at: Assignment) -> Result<Self> {
        let progress = session.progress().clone();
        progress.at("joining", at.generation, 0, 0);
        let timeout = job.config.cluster.collective_timeout.duration();
        let keys = StoreOverGrpc::new(job.channel.clone(), job.runtime.handle().clone(), timeout);
        let store = Store::new(Arc::new(keys), timeout)?;
        let backend = match job.options.device {
            Device::Cpu(_) => Backend::Gloo { host: &job.host },
            Device::Cuda(i) => Backend::Nccl { device: i as i32 },
        };
        let group = Group::new(&store, &format!("g{}/", at.generation), at.rank, at.world, backend, timeout)?;

        session.watch_over(&group);
        progress.at("loading", at.generation, 0, 0);
        let device = job.options.device.torch();
        let mut state = State::new(&job.config, &job.dataset.manifest.labels, device)?;
        let position = restore(job, session, &at, &group, &mut state)?;
        state.model.set_norm_mode(norm_mode(job.config.train.batch_norm, &group));
        if job.config.train.checkpoint_activations {
            state.model.set_recompute(Some(Arc::new(ComputedAgain)));
        }
        let params: Vec<Tensor> = state.parameters();
        let reducer = Reducer::new(&params, &group, ReducerOptions::default())?;
        let guard = Guard::new(&state)?;
        let normalise = Normalise::new(&job.config, device);
        let stages = job.config.stages();
        let shape = stages[0].base();
        let (upload, saved) = (None, None);
        let mut generation = Self {
            job,
            session,
            at,
            group,
            reducer,
            state,
            position,
            normalise,
            guard,
            shape,
            stages,
            upload,
            saved,
        };
        generation.warm_up()?;
        Ok(generation)
    }

    /// Trains to the end of the job.
    pub(super) fn train(&mut self) -> Result<()> {
        let (config, at) = (&self.job.config, self.at.clone());
        let feed = self.job.feed();
        let plan = self.job.set.plan.clone();
        let total = feed.total_steps(&plan);
        let mut batches = feed.train(&plan, &at, self.position, total)?;
        self.announce();
        while self.position.step < total {
            let began = now();
            self.session.check(at.generation)?;
            self.session.progress().at("training", at.generation, self.position.epoch, self.position.step);
            let batch = batches.next()?.ok_or_else(|| self.job.short_epoch(self.position))?;

            let Place { epoch, step_in_epoch, .. } = self.position;
            let per_epoch = plan.steps_per_epoch(epoch);
            let lr = schedule::lr_of_step(config, feed::fraction(&plan, epoch, step_in_epoch));
            self.take_shape();
            let summary = self.step(&batch, lr)?;
            self.position.advance(per_epoch);
            self.record(&batch);

            self.report(&batch, &summary, lr, (per_epoch, total), began);
            batches.recycle(batch);
            let ended = self.position.step == total;
            if self.position.step_in_epoch == 0 || ended {
                self.tell_reads(&batches.stats());
                if let Some(found) = batches.cache_stats() {
                    tracing::info!("the node's cache since this worker's start: {found}");
                }
                self.measure(ended)?;
            }
            if ended || self.position.is_due(&config.checkpoint) {
                self.checkpoint()?;
            }
        }
        self.finish(total)
    }

    /// The reducer lays its buckets out anew after its first backward pass. Doing that before the
    /// first step gives every step of every generation the same order of additions, so that a
    /// resumed run has the same bits as one that was never stopped.
    fn warm_up(&mut self) -> Result<()> {
        self.session.progress().at("joining", self.at.generation, self.position.epoch, self.position.step);
        self.reducer.zero_grad()?;
        self.pass_of_zeros(false, true)
    }

    /// Which clips this rank's part of a step showed, for those who count (`RUST_LOG=info,clips=debug`).
    fn record(&self, batch: &Batch) {
        if tracing::enabled!(target: "clips", tracing::Level::DEBUG) {
            let (rank, step, epoch) = (self.at.rank, self.position.step, batch.epoch);
            let ids = self.job.clip_ids(&batch.clips).join(" ");
            tracing::debug!(target: "clips", "rank {rank}, epoch {epoch}, step {step}, clips: {ids}");
        }
    }

    /// The shape of the step to come. The groups of sub-batch norm grow with the short cycle's batch, as
    /// PySlowFast's do, whose number stays that of the long cycle; the log says when the long cycle moves on.
    fn take_shape(&mut self) {
        let Place { epoch, step_in_epoch, .. } = self.position;
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
            self.state.model.set_norm_mode(NormMode::SubBatch((clips * shape.short).into()));
        }
        self.shape = shape;
    }

    /// What the log should say once: a rate that is not the configuration's own.
    fn announce(&self) {
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

    fn report(
        &self,
        batch: &Batch,
        of: &StepSummary,
        lr: f64,
        (per_epoch, total): (u64, u64),
        began: Instant,
    ) {
        if self.at.rank != 0 {
            return;
        }
        self.session.send(Message::Step(v1::StepReport {
            generation: self.at.generation,
            epoch: batch.epoch,
            step: self.position.step,
            step_in_epoch: batch.step + 1,
            steps_per_epoch: per_epoch,
            total_steps: total,
            loss: of.loss,
            accuracy: of.accuracy,
            lr,
            clips: of.shown as u64,
            step_seconds: began.elapsed().as_secs_f64(),
            data_wait_seconds: batch.waited.as_secs_f64(),
            exchange_wait_seconds: of.exchange.as_secs_f64(),
            peak_memory_bytes: peak_memory().unwrap_or(0),
            grad_norm: of.grad_norm,
            skipped: of.skipped,
            missing: of.missing.clone(),
        }));
    }

    /// Copies this rank's share at the step boundary; the upload runs behind the next steps.
    fn checkpoint(&mut self) -> Result<()> {
        self.wait_upload()?;
        self.session.progress().at("saving", self.at.generation, self.position.epoch, self.position.step);
        let (job, at) = (self.job, &self.at);
        let labels = &job.dataset.manifest.labels;
        let header = Header::new(
            &job.config,
            labels,
            &job.dataset.digest,
            self.position,
            at.world as u32,
            at.generation,
        )?
        .with_plan(job.set.plan.spec().identity());
        let began = now();
        let snapshot = save::snapshot(self.state.entries(), header, at.rank as u32)?;
        let (megabytes, took) = (snapshot.bytes() as f64 / 1e6, began.elapsed().as_secs_f64() * 1e3);
        tracing::info!("checkpoint of step {}: {megabytes:.1} MB copied in {took:.1} ms", self.position.step);
        self.saved = Some(self.position.step);
        let limit = job.config.checkpoint.bandwidth.map(|b| Bandwidth::new(b.0));
        let (run, send) = (self.job.run.clone(), self.session.shard_sender());
        self.upload = Some(self.job.runtime.spawn(async move {
            send(snapshot.upload(&run, limit.as_ref()).await?);
            Ok(())
        }));
        Ok(())
    }

    fn wait_upload(&mut self) -> Result<()> {
        match self.upload.take() {
            Some(upload) => self
                .job
                .runtime
                .block_on(upload)
                .map_err(|e| Error::JobFailed(format!("an upload broke off: {e}")))?,
            None => Ok(()),
        }
    }

    fn finish(&mut self, total: u64) -> Result<()> {
        self.wait_upload()?;
        if let Some(step) = self.saved {
            self.session.wait_committed(step)?;
        }
        self.session.progress().at("waiting", self.at.generation, self.position.epoch, total);
        self.session.send(Message::Finished(v1::Finished { generation: self.at.generation, step: total }));
        Ok(())
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

/// Activation checkpointing by libtorch's autograd.
#[derive(Debug)]
struct ComputedAgain;

impl Recompute for ComputedAgain {
    fn run(&self, block: Arc<models::BlockFn>, x: &Tensor) -> models::Result<Tensor> {
        let again = Arc::new(move |x: &Tensor| block(x).map_err(|e| e.to_string()));
        collective::recompute(again, x)
            .map_err(|e| models::Error::Lent { why: e.to_string(), peer: e.is_peer() })
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

/// The ranks read the newest whole checkpoint together; or rank 0 the weights that a new run starts from, which
/// the others get from it.
fn restore(job: &Job, session: &Session, at: &Assignment, group: &Group, state: &mut State) -> Result<Place> {
    agree_on_plan(job, group)?;
    let progress = session.progress().clone();
    let (runtime, device) = (job.runtime.handle(), job.options.device.torch());
    let shared = Shared { run: &job.run, group, device, runtime, tick: &|| progress.tick() };
    if let Some(loaded) = shared.newest(|text| session.log("warn", text))? {
        let read = loaded.read_bytes;
        let position = state.load(&job.config, &job.dataset, &job.set.plan, loaded)?;
        if at.rank == 0 {
            let text = format!("resumed from the checkpoint of step {}, {read} bytes of it read by rank 0", position.step);
            session.log("info", text);
        }
        return Ok(position);
    }
    if let (0, Some(url)) = (at.rank, &job.config.train.init) {
        let (labels, log) = (&job.dataset.manifest.labels, |level: &str, text| session.log(level, text));
        job.runtime.block_on(init::start(url, &job.config, labels, &mut state.model, log))?;
        state.ema.as_ref().map_or(Ok(()), Ema::restart)?;
    }
    state.broadcast(group)?;
    Ok(Place::default())
}

/// Every rank must have read the same lists of clips: a quarantine list can change between two readings.
fn agree_on_plan(job: &Job, group: &Group) -> Result<()> {
    let digest = storage::sha256_hex(format!("{:?}", job.set.plan.spec().identity()).as_bytes());
    let mine: Vec<i64> = digest.bytes().map(i64::from).collect();
    let theirs = Tensor::from_slice(&mine).f_to_device(job.options.device.torch())?;
    group.broadcast(&theirs, 0)?.wait()?;
    match Vec::<i64>::try_from(&theirs.f_to_device(tch::Device::Cpu)?)? == mine {
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
