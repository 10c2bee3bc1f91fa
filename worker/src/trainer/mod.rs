//! The training loop of one rank, and what leads up to it.
//!
//! ```text
//! mod.rs         joins the job and trains in one generation after the other
//! kept.rs        what outlives a generation, and how the ranks of a new one agree on it
//! rehearse.rs    what a newcomer does before the others have to wait for it
//! meet.rs        the group of a generation
//! generation.rs  the loop itself: next batch, step, report, evaluate, checkpoint
//! save.rs        checkpoints: copied between two steps, uploaded behind the next
//! step.rs        one step: forward and backward passes, vote, clip, update
//! measure.rs     between steps: precise batch norm, validation accuracy
//! signals.rs     SIGTERM and SIGUSR1
//! ```

mod generation;
mod kept;
mod measure;
mod meet;
mod rehearse;
mod save;
mod signals;
mod step;

use crate::{
    Error, Result,
    checkpoint::{Local, layout::Place},
    device::Device,
    error::Cost,
    feed::{Feed, open_cache},
    session::{self, Assignment, Opening, Session},
    state::State,
};
use configs::Config;
use generation::Generation;
use kept::Kept;
use models::Recompute;
use proto::{
    Access, Connection,
    v1::{self, worker_message::Kind as Message},
};
use rehearse::rehearse;
use shards::{cache::Cache, format::Dataset, stream::Stream, trainset::TrainSet};
use signals::Signals;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
pub use step::autocast;
use storage::Location;
use tch::Tensor;
use tokio::runtime::Runtime;

/// Pauses between attempts to reach a coordinator that answered this trainer's supervisor before.
const AGAIN: Duration = Duration::from_secs(1);
/// A trainer that fails waits so long for the coordinator to have heard why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct TrainerOptions {
    pub coordinator: String,
    /// What this worker shows to the coordinator, and asks of it.
    pub access: Access,
    pub device: Device,
    /// Compute threads; also decode threads where the job names none.
    pub threads: usize,
    /// The configuration this host believes in, if it was given one.
    pub config: Option<Config>,
    /// Where the run's coordinators leave their addresses, and how long to look for one of them; absent: the address
    /// above must answer at once.
    pub look: Option<(Location, Duration)>,
}

/// What is the same in every generation.
struct Job {
    config: Config,
    dataset: Arc<Dataset>,
    set: TrainSet,
    cache: Option<Arc<Cache>>,
    run: Location,
    /// This node's copies of checkpoints.
    local: Option<Local>,
    runtime: Runtime,
    options: TrainerOptions,
    host: String,
}

/// Joins the job and trains until the coordinator says that it is done, or lets this worker go. True: another process
/// is welcome in its place.
pub fn run(options: TrainerOptions) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    let signals = Signals::catch(runtime.handle())?;
    collective::init()?;
    collective::keep_pages();
    tch::set_num_threads(options.threads as i32);
    let (job, mut session, mut kept) = join(options, runtime, &signals)?;
    generations(&job, &mut session, &mut kept).map_err(Error::of_trainer)?;
    Ok(session.is_replaced())
}

/// One generation after the other.
fn generations(job: &Job, session: &mut Session, kept: &mut Kept) -> Result<()> {
    while let Some(assignment) = session.wait_assignment()? {
        let generation = assignment.generation;
        match Generation::enter(job, session, kept, assignment).and_then(|mut g| g.train()) {
            Ok(()) => {}
            Err(e) if e.cost() == Cost::Generation => {
                let step = kept.position.step;
                kept.break_off(session);
                tracing::warn!("step {} of generation {generation} is given up: failed to {e}", step + 1);
                // Where the coordinator has ended the generation it needs no word of that.
                if !matches!(e, Error::GenerationOver { .. }) {
                    let error = e.to_string();
                    session.beat();
                    let failed = v1::StepFailed { generation, step, error, ..Default::default() };
                    session.send(Message::Failed(failed));
                }
                session.progress().at("waiting", generation, kept.position.epoch, step);
            }
            Err(e) => {
                let (step, error, fatal) = (kept.position.step, e.to_string(), e.cost() == Cost::Job);
                session.progress().failed_over(e.clip().unwrap_or_default());
                session.beat();
                session.send(Message::Failed(v1::StepFailed { generation, step, error, fatal, ends: true }));
                session.flush(LAST_WORDS);
                return Err(e);
            }
        }
    }
    Ok(())
}

impl Job {
    fn feed(&self) -> Feed<'_> {
        Feed {
            config: &self.config,
            dataset: &self.dataset,
            set: &self.set,
            runtime: self.runtime.handle(),
            threads: self.options.threads,
            cache: self.cache.clone(),
        }
    }

    /// This rank's training batches from a position to the end of the job.
    fn batches(&self, at: &Assignment, from: Place) -> Result<Stream> {
        let (feed, plan) = (self.feed(), &self.set.plan);
        feed.train(plan, at, from, feed.total_steps(plan))
    }

    /// The names of training clips, by their places inside the split.
    fn clip_ids(&self, places: &[u32]) -> Vec<String> {
        self.set.clip_ids(places)
    }

    fn short_epoch(&self, at: Place) -> Error {
        Error::JobFailed(format!("the stream of clips ended before step {}", at.step + 1))
    }
}

/// All that takes long is done before the Hello: whoever is training waits for nothing but the group.
fn join(options: TrainerOptions, runtime: Runtime, signals: &Signals) -> Result<(Job, Session, Kept)> {
    let (address, channel, job) = runtime.block_on(reach(&options))?;
    let config = Config::parse("the coordinator's configuration", &job.config_toml, &[])?;
    let dataset =
        Arc::new(runtime.block_on(async {
            Dataset::open(&Location::parse(&config.data.url)?).await.map_err(Error::from)
        })?);
    let set = runtime.block_on(TrainSet::open(&config, &dataset))?;
    if let Device::Cuda(_) = options.device {
        collective::load_cuda()?;
    }
    let device = options.device.torch();
    let fresh = || {
        let mut state = State::new(&config, &dataset.manifest.labels, device)?;
        if config.train.checkpoint_activations {
            state.model.set_recompute(Some(Arc::new(ComputedAgain)));
        }
        Ok::<_, Error>(state)
    };
    if runtime.block_on(session::is_training(channel.clone())) {
        rehearse(&config, &fresh()?.model, device)?;
    }
    let state = fresh()?;
    let host = session::local_address(&address)?;
    let run = Location::parse(&job.run_url)?;
    let local = match &config.checkpoint.local {
        Some(copies) => Some(runtime.block_on(Local::of_run(copies, &run, &job.run_url))?),
        None => None,
    };
    let cache = open_cache(&config, &dataset);
    let hello = v1::Hello {
        protocol_version: proto::PROTOCOL_VERSION,
        worker: worker_name(options.device),
        node: host_name(),
        device: options.device.to_string(),
        config_digest: options.config.as_ref().unwrap_or(&config).digest(),
        dataset_digest: dataset.digest.clone(),
        ..Default::default()
    };
    let opening = Opening {
        channel,
        access: options.access.clone(),
        address,
        hello,
        run: run.clone(),
        run_url: job.run_url,
        grace: config.cluster.coordinator_grace.duration(),
        checkpoint: signals.checkpoint.clone(),
    };
    let session = Session::open(runtime.handle(), opening);
    signals.ask_by(session.sender());
    let job = Job { config, dataset, set, cache, run, local, runtime, options, host };
    Ok((job, session, Kept::new(state)))
}

/// The coordinator's address, a channel to it, and its job.
async fn reach(options: &TrainerOptions) -> Result<(String, Connection, v1::Job)> {
    let reach_at = async |address: String| {
        let channel = session::connect(&address, &options.access).await?;
        let job = session::get_job(channel.clone(), &address).await?;
        Ok::<_, Error>((address, channel, job))
    };
    let began = now();
    loop {
        let failed = match reach_at(options.coordinator.clone()).await {
            Err(e @ Error::Coordinator { .. }) => e,
            reached => return reached,
        };
        let Some((run, patience)) = &options.look else { return Err(failed) };
        // It may have moved.
        if let Ok(Some(address)) = session::leader(run).await
            && let Ok(reached) = reach_at(address).await
        {
            return Ok(reached);
        }
        if began.elapsed() >= *patience {
            return Err(Error::Alone { seconds: patience.as_secs_f64(), why: failed.to_string() });
        }
        tokio::time::sleep(AGAIN).await;
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

/// Unique in the job, and telling: host-pid-device.
fn worker_name(device: Device) -> String {
    format!("{}-{}-{device}", host_name(), std::process::id())
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The one reader of the clock here: for reports only.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}
