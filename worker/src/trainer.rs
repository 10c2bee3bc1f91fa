//! The training loop of one rank, and what leads up to it.
//!
//! [`run`] joins the job and trains in one generation after the other; [`Generation::train`] is
//! the loop itself: next batch, forward and backward, vote, step, report.

use crate::{
    Error, Result,
    batch::Normalise,
    checkpoint::{
        layout::{Header, Place},
        load, save,
    },
    device::Device,
    evaluate,
    feed::Feed,
    restore::Judge,
    schedule,
    session::{self, Assignment, Session},
    state::State,
    store_client::StoreOverGrpc,
};
use collective::{Autocast, Backend, Group, ReduceOp, Reducer, ReducerOptions, Store};
use configs::{Config, Ensemble, Precision};
use proto::v1::{self, worker_message::Kind as Message};
use shards::{format::Dataset, stream::Batch};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use storage::Location;
use tch::{Kind, Tensor};
use tokio::{runtime::Runtime, task::JoinHandle};
use tonic::transport::Channel;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct TrainerOptions {
    pub coordinator: String,
    pub device: Device,
    /// Compute threads; also decode threads where the job names none.
    pub threads: usize,
    /// The configuration this host believes in, if it was given one.
    pub config: Option<Config>,
}

/// Everything that outlives a generation.
struct Job {
    config: Config,
    dataset: Arc<Dataset>,
    run: Location,
    channel: Channel,
    runtime: Runtime,
    options: TrainerOptions,
    host: String,
}

/// Joins the job and trains until the coordinator says that it is done.
pub fn run(options: TrainerOptions) -> Result<()> {
    collective::init()?;
    collective::keep_pages();
    tch::set_num_threads(options.threads as i32);
    let (job, mut session) = join(options)?;
    while let Some(assignment) = session.wait_assignment()? {
        let generation = assignment.generation;
        match train_generation(&job, &mut session, assignment) {
            Ok(()) => {}
            Err(e) => {
                let step = session.progress().step();
                let fatal = !e.is_rejoin();
                session.send(Message::Failed(v1::StepFailed {
                    generation,
                    step,
                    error: e.to_string(),
                    fatal,
                }));
                if fatal {
                    session.flush(Duration::from_secs(2));
                    return Err(e);
                }
                tracing::warn!("step {step} of generation {generation} is given up: failed to {e}");
                session.progress().at("waiting", generation, 0, step);
            }
        }
    }
    Ok(())
}

impl Job {
    fn feed(&self) -> Feed<'_> {
        let threads = self.options.threads;
        Feed { config: &self.config, dataset: &self.dataset, runtime: self.runtime.handle(), threads }
    }

    /// The names of a batch's clips.
    fn clip_ids(&self, batch: &Batch) -> Vec<String> {
        let split = self.dataset.clips_of(&self.config.data.train_split).unwrap_or_default();
        let name = |place: &u32| split.get(*place as usize).map(|c| self.dataset.clip(*c).clip_id.clone());
        batch.clips.iter().filter_map(name).collect()
    }

    fn short_epoch(&self, at: Place) -> Error {
        Error::JobFailed(format!("the stream of clips ended before step {}", at.step + 1))
    }
}

fn join(options: TrainerOptions) -> Result<(Job, Session)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    let address = options.coordinator.clone();
    let (channel, job) = runtime.block_on(async {
        let channel = session::connect(&address).await?;
        let job = session::get_job(channel.clone(), &address).await?;
        Ok::<_, Error>((channel, job))
    })?;
    let config = Config::parse("the coordinator's configuration", &job.config_toml, &[])?;
    let dataset =
        Arc::new(runtime.block_on(async {
            Dataset::open(&Location::parse(&config.data.url)?).await.map_err(Error::from)
        })?);
    let hello = v1::Hello {
        protocol_version: proto::PROTOCOL_VERSION,
        worker: worker_name(options.device),
        device: options.device.to_string(),
        config_digest: options.config.as_ref().unwrap_or(&config).digest(),
        dataset_digest: dataset.digest.clone(),
    };
    let session = Session::open(runtime.handle(), channel.clone(), &address, hello)?;
    let host = session::local_address(&address)?;
    let run = Location::parse(&job.run_url)?;
    Ok((Job { config, dataset, run, channel, runtime, options, host }, session))
}

/// Builds the group, restores the newest state and trains to the end of the job.
fn train_generation(job: &Job, session: &mut Session, at: Assignment) -> Result<()> {
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
    let params: Vec<Tensor> = state.parameters();
    let reducer = Reducer::new(&params, &group, ReducerOptions::default())?;
    let mut generation = Generation {
        job,
        session,
        at,
        group,
        reducer,
        state,
        position,
        upload: None,
        saved: None,
        normalise: Normalise::new(&job.config, device),
    };
    generation.warm_up()?;
    generation.train()
}

/// Rank 0 reads the newest whole checkpoint; the group gets position and tensors from it.
fn restore(job: &Job, session: &Session, at: &Assignment, group: &Group, state: &mut State) -> Result<Place> {
    let mut position = Place::default();
    if at.rank == 0 {
        let loaded = job.runtime.block_on(load::load_best(&job.run, |text| session.log("warn", text)))?;
        if let Some(loaded) = loaded {
            position = state.load(&job.config, &job.dataset, loaded)?;
            session.log("info", format!("resumed from the checkpoint of step {}", position.step));
        }
    }
    position.broadcast(group, job.options.device.torch())?;
    state.broadcast(group)?;
    Ok(position)
}

/// One rank in one generation.
struct Generation<'a> {
    job: &'a Job,
    session: &'a mut Session,
    at: Assignment,
    group: Group,
    reducer: Reducer,
    state: State,
    position: Place,
    upload: Option<JoinHandle<Result<()>>>,
    /// The last step that this generation wrote a checkpoint of.
    saved: Option<u64>,
    normalise: Normalise,
}

/// What one step's vote adds up over the ranks.
struct StepTotals {
    loss: f64,
    correct: f64,
}

impl Generation<'_> {
    fn train(&mut self) -> Result<()> {
        let (config, at) = (&self.job.config, self.at.clone());
        let feed = self.job.feed();
        let plan = feed.plan()?;
        let (per_epoch, total) = (plan.steps_per_epoch(), feed.total_steps(&plan));
        let mut batches = feed.train(&plan, &at, self.position, total)?;
        while self.position.step < total {
            let began = now();
            self.session.check(at.generation)?;
            self.session.progress().at("training", at.generation, self.position.epoch, self.position.step);
            let batch = batches.next()?.ok_or_else(|| self.job.short_epoch(self.position))?;

            self.reducer.zero_grad()?;
            tch::manual_seed(step_seed(config.seed, self.position.step, at.rank));
            let (loss, correct) = self.forward_backward(&batch)?;
            let voted = now();
            let totals = self.vote(&batch, loss, correct)?;
            let exchange = voted.elapsed();
            let fraction = self.position.step as f64 / per_epoch as f64;
            let lr =
                schedule::lr(&config.schedule, config.optimizer.lr(), config.train.epochs as f64, fraction);
            self.state.optimizer.step(lr)?;
            self.position.advance(per_epoch);

            self.report(&batch, &totals, lr, per_epoch, total, began, exchange);
            let ended = self.position.step == total;
            if self.position.step_in_epoch == 0 || ended {
                self.evaluate(ended)?;
            }
            if ended || self.position.is_due(&config.checkpoint) {
                self.checkpoint()?;
            }
        }
        self.finish(total)
    }

    /// The loss summed over this rank's clips, and how many it got right. Gradients are left as
    /// the mean over the global batch: sum / global clips x world, which the reducer divides by world.
    fn forward_backward(&self, batch: &Batch) -> Result<(f64, f64)> {
        let local = batch.labels.len();
        let scale = self.at.world as f64 / batch.global_clips as f64;
        if local == 0 {
            // The last batch of an epoch may leave nothing for this rank: it takes part with zeros.
            self.zero_backward()?;
            return Ok((0.0, 0.0));
        }
        let device = self.job.options.device.torch();
        let clips = self.normalise.tensor(batch)?;
        let labels = Tensor::from_slice(&batch.labels).f_to_device(device)?;
        let logits = self.forward(&clips, true)?.f_to_kind(Kind::Float)?;
        let loss = logits.f_cross_entropy_loss::<Tensor>(&labels, None, tch::Reduction::Sum, -100, 0.0)?;
        collective::backward(&(&loss * scale))?;
        let correct = logits.f_argmax(1, false)?.f_eq_tensor(&labels)?.f_sum(Kind::Float)?;
        Ok((loss.f_double_value(&[])?, correct.f_double_value(&[])?))
    }

    fn forward(&self, clips: &Tensor, train: bool) -> Result<Tensor> {
        let device = self.job.options.device.torch();
        let _autocast = match self.job.config.train.precision {
            Precision::Bf16 => Some(Autocast::bf16(device)?),
            Precision::Fp32 | Precision::Fp16 => None,
        };
        self.reducer.try_forward(|| self.state.model.forward(clips, train).map_err(Error::from))
    }

    /// A backward pass whose gradients are all zero. In eval mode, so that no running statistic moves.
    fn zero_backward(&self) -> Result<()> {
        let clips = self.normalise.zeros(1)?;
        let logits = self.forward(&clips, false)?;
        Ok(collective::backward(&(logits.f_to_kind(Kind::Float)?.f_sum(Kind::Float)? * 0.0))?)
    }

    /// The reducer lays its buckets out anew after its first backward pass. Doing that before the
    /// first step gives every step of every generation the same order of additions, so that a
    /// resumed run has the same bits as one that was never stopped.
    fn warm_up(&mut self) -> Result<()> {
        self.session.progress().at("joining", self.at.generation, self.position.epoch, self.position.step);
        self.reducer.zero_grad()?;
        self.zero_backward()
    }

    /// A few bytes over the group: the step counts only if every rank has a finite loss.
    fn vote(&self, batch: &Batch, loss: f64, correct: f64) -> Result<StepTotals> {
        let device = self.job.options.device.torch();
        let bad = if loss.is_finite() { 0.0 } else { 1.0 };
        let sums =
            Tensor::from_slice(&[if bad == 0.0 { loss } else { 0.0 }, correct, bad]).f_to_device(device)?;
        self.group.all_reduce(&sums, ReduceOp::Sum)?.wait()?;
        let sums = Vec::<f64>::try_from(&sums.f_to_device(tch::Device::Cpu)?)?;
        if sums[2] > 0.0 {
            return Err(Error::NonFinite {
                step: self.position.step + 1,
                loss,
                clips: self.job.clip_ids(batch),
            });
        }
        let n = batch.global_clips as f64;
        Ok(StepTotals { loss: sums[0] / n, correct: sums[1] / n })
    }

    #[allow(clippy::too_many_arguments)]
    fn report(
        &self,
        batch: &Batch,
        totals: &StepTotals,
        lr: f64,
        per_epoch: u64,
        total: u64,
        began: Instant,
        exchange: Duration,
    ) {
        if self.at.rank != 0 {
            return;
        }
        self.session.send(Message::Step(v1::StepReport {
            generation: self.at.generation,
            epoch: batch.epoch,
            step: self.position.step,
            steps_per_epoch: per_epoch,
            total_steps: total,
            loss: totals.loss,
            accuracy: totals.correct,
            lr,
            clips: batch.global_clips as u64,
            step_seconds: began.elapsed().as_secs_f64(),
            data_wait_seconds: batch.waited.as_secs_f64(),
            exchange_wait_seconds: exchange.as_secs_f64(),
            peak_memory_bytes: peak_memory().unwrap_or(0),
        }));
    }

    /// Validation accuracy, every rank on its share of the clips, with rank 0's running statistics.
    fn evaluate(&mut self, ended: bool) -> Result<()> {
        let every = self.job.config.train.eval_every_epochs;
        if !ended && (every == 0 || !self.position.epoch.is_multiple_of(every)) {
            return Ok(());
        }
        let began = now();
        let progress = self.session.progress().clone();
        progress.at("evaluating", self.at.generation, self.position.epoch, self.position.step);
        self.group.broadcast_all(&self.state.buffers(), 0)?;
        let Some(stream) = self.job.feed().eval(&self.at)? else { return Ok(()) };
        let (config, dataset) = (&self.job.config, &self.job.dataset);
        let split = evaluate::Split::new(dataset, &config.data.eval_split, config.loss.kind)?;
        let judge = Judge {
            model: &self.state.model,
            normalise: &self.normalise,
            precision: config.train.precision,
            loss: config.loss.kind,
            ensemble: Ensemble::Mean,
            keep_views: false,
        };
        let tally = evaluate::run(&judge, stream, &split, || progress.tick())?;
        let tally = tally.all_reduce(&self.group, self.job.options.device.torch())?;
        if self.at.rank == 0 && tally.clips() > 0 {
            self.session.send(Message::Eval(v1::EvalReport {
                generation: self.at.generation,
                epoch: self.position.epoch,
                step: self.position.step,
                loss: tally.loss(),
                top1: tally.top1(),
                top5: tally.top5(),
                clips: tally.clips(),
                mean_average_precision: tally.ranking().and_then(|r| r.mean()),
                seconds: began.elapsed().as_secs_f64(),
            }));
        }
        Ok(())
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
        )?;
        let snapshot =
            save::snapshot(&self.state.model, &self.state.optimizer.state(), header, at.rank as u32)?;
        self.saved = Some(self.position.step);
        let (run, send) = (self.job.run.clone(), self.session.shard_sender());
        self.upload = Some(self.job.runtime.spawn(async move {
            send(snapshot.upload(&run).await?);
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

/// Seeds dropout and drop-path: the same for the same step and rank, however often it is repeated.
fn step_seed(seed: u64, step: u64, rank: usize) -> i64 {
    let mut x =
        seed ^ step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (rank as u64).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ (x >> 31)) >> 1) as i64
}

/// Unique in the job, and telling: host-pid-device.
fn worker_name(device: Device) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}-{}-{device}", std::process::id())
}

/// The most resident memory this process ever had, bytes; Linux only.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|k| k * 1024)
}

/// The one reader of the clock here: for reports only.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}
