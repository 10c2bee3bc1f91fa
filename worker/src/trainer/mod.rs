//! The training loop of one rank, and what leads up to it.
//!
//! ```text
//! mod.rs         joins the job and trains in one generation after the other
//! generation.rs  the loop itself: next batch, step, report, evaluate, checkpoint
//! step.rs        one step: forward and backward passes, vote, clip, update
//! measure.rs     between steps: precise batch norm, validation accuracy
//! ```

mod generation;
mod measure;
mod step;

use crate::{
    Error, Result,
    checkpoint::layout::Place,
    device::Device,
    feed::{Feed, open_cache},
    session::{self, Session},
    trainset::TrainSet,
};
use configs::Config;
use generation::Generation;
use proto::v1::{self, worker_message::Kind as Message};
use shards::{cache::Cache, format::Dataset};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
pub use step::autocast;
use storage::Location;
use tokio::runtime::Runtime;
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
    set: TrainSet,
    cache: Option<Arc<Cache>>,
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
        match Generation::enter(&job, &mut session, assignment).and_then(|mut g| g.train()) {
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
        Feed {
            config: &self.config,
            dataset: &self.dataset,
            set: &self.set,
            runtime: self.runtime.handle(),
            threads: self.options.threads,
            cache: self.cache.clone(),
        }
    }

    /// The names of training clips, by their places inside the split.
    fn clip_ids(&self, places: &[u32]) -> Vec<String> {
        self.set.clip_ids(places)
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
    let set = runtime.block_on(TrainSet::open(&config, &dataset))?;
    let hello = v1::Hello {
        protocol_version: proto::PROTOCOL_VERSION,
        worker: worker_name(options.device),
        node: host_name(),
        device: options.device.to_string(),
        config_digest: options.config.as_ref().unwrap_or(&config).digest(),
        dataset_digest: dataset.digest.clone(),
        ..Default::default()
    };
    let session = Session::open(runtime.handle(), channel.clone(), &address, hello)?;
    let host = session::local_address(&address)?;
    let run = Location::parse(&job.run_url)?;
    let cache = open_cache(&config, &dataset);
    Ok((Job { config, dataset, set, cache, run, channel, runtime, options, host }, session))
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
