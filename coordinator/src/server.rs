//! Puts the coordinator together: port, run location, services, driver.

use crate::{
    Error, Outcome, Result, connections,
    core::{Core, Found, Retention, Settings},
    driver::{Driver, Signal, unix_ms},
    journal::{self, Claimant, Journal},
    manifest, metrics, run,
    security::{self, Gate},
    service::Service,
    store::KeyValue,
    watch::Hub,
};
use configs::Config;
use futures::Stream;
use proto::{Access, LARGEST_MESSAGE, v1};
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use storage::Location;
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Code, service::interceptor::InterceptedService};

/// Inputs that may wait for the driver before sessions are slowed down.
const INPUTS: usize = 1024;
/// Calls under way on one connection: a worker's session, and its group's waits for keys.
const MOST_CALLS: u32 = 256;
/// How long a coordinator that leads already may take to say so.
const ANSWER: Duration = Duration::from_secs(5);
/// How long connections may stay open after the job has ended.
const GOODBYE: Duration = Duration::from_secs(5);

/// What the command line gives.
#[derive(Debug)]
pub struct Options {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Location of checkpoints, journal and metrics.
    pub run: String,
    pub config: Config,
    /// What callers must show, and what this end shows.
    pub access: Access,
    /// Serve off loopback without encryption, or to anybody.
    pub insecure: bool,
    /// Use a store without put-if-absent: nobody else ever coordinates this run.
    pub single_writer: bool,
    /// Where workers reach this coordinator, `host:port`; absent: the listening address.
    pub advertise: Option<String>,
    /// Lead the run although another coordinator does.
    pub take_over: bool,
}

/// A coordinator whose port is open and whose run is claimed.
pub struct Server {
    address: SocketAddr,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    gate: Gate,
    service: Service,
    driver: Driver,
    inputs: mpsc::Receiver<crate::driver::Input>,
    /// A connection over which nothing comes for so long is closed: not before its worker counts as lost.
    silence: Duration,
}

impl Server {
    /// Checks everything that can be wrong before a worker is involved, then opens the port and
    /// claims the run, in this order: a second coordinator on an occupied port must not take the
    /// run from the first.
    pub async fn bind(options: Options) -> Result<Self> {
        let Options { listen, run, config, access, insecure, single_writer, advertise, take_over } = options;
        security::check(listen, &access, insecure)?;
        let tls = security::tls(&access)?;
        let run = Location::parse(&run)?;
        let dataset_digest = run::dataset_digest(&config.data.url).await?;
        let listener = TcpListener::bind(listen).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => Error::Occupied { address: listen },
            _ => Error::Listen { address: listen, source },
        })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address: listen, source })?;
        let me = Claimant {
            leader: leader_name(address),
            address: advertise.unwrap_or_else(|| address.to_string()),
            dataset_digest: dataset_digest.clone(),
            dataset_url: config.data.url.clone(),
        };
        let run = run::probe(run, &me.leader, single_writer).await?;
        if !take_over {
            refuse_if_led(&run, &me.address, &access).await?;
        }
        run::settle_config(&run, &config).await?;
        let (journal, last) = Journal::claim(&run, me, unix_ms()).await?;
        let committed = manifest::committed(&run).await?;
        let history = metrics::history(&run, last.generation).await?;
        tracing::info!(
            run = run.url(),
            "coordinator {}: generation {} was the last; {} checkpoint(s)",
            journal.epoch(),
            last.generation,
            committed.len()
        );

        let settings = Settings {
            protocol_version: proto::PROTOCOL_VERSION,
            config_digest: config.digest(),
            dataset_digest: dataset_digest.clone(),
            workers: config.cluster.workers,
            min_workers: config.cluster.min_workers.max(1),
            max_workers: config.cluster.max_workers.unwrap_or(config.data.lanes),
            gather: config.cluster.gather.duration(),
            beat_timeout: config.cluster.beat_timeout.duration(),
            step_timeout: config.cluster.step_timeout.duration(),
            collective_timeout: config.cluster.collective_timeout.duration(),
            join_window: config.cluster.join_window.duration(),
            stop_grace: config.cluster.stop_grace.duration(),
            straggler_factor: config.cluster.straggler_factor,
            replace_stragglers: config.cluster.replace_stragglers,
            retention: Retention {
                keep: config.checkpoint.keep,
                keep_every: config.checkpoint.keep_every,
                keep_best: config.checkpoint.keep_best,
            },
        };
        let silence = proto::KEEPALIVE_TIMEOUT.max(settings.beat_timeout);
        let job = v1::Job {
            protocol_version: proto::PROTOCOL_VERSION,
            config_toml: config.text().into(),
            config_digest: config.digest(),
            dataset_digest,
            run_url: run.url().into(),
        };
        let (sender, inputs) = mpsc::channel(INPUTS);
        let (hub, store) = (Arc::new(Hub::new()), Arc::new(KeyValue::default()));
        let service = Service {
            job: Arc::new(job),
            epoch: journal.epoch(),
            inputs: sender.clone(),
            hub: hub.clone(),
            store: store.clone(),
            sessions: Arc::new(AtomicU64::new(1)),
        };
        let driver = Driver {
            core: Core::new(settings, Found { epoch: journal.epoch(), last, committed }),
            run,
            journal: Arc::new(Mutex::new(journal)),
            hub,
            store,
            history,
            loopback: sender,
        };
        Ok(Self { address, listener, tls, gate: Gate::new(&access), service, driver, inputs, silence })
    }

    /// The address in use, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the job ends.
    pub async fn run(self, signals: impl Stream<Item = Signal>) -> Result<Outcome> {
        let Self { address, listener, tls, gate, service, driver, inputs, silence } = self;
        let closing = CancellationToken::new();
        let incoming = ReceiverStream::new(connections::open(listener, tls));
        let coordinator = v1::coordinator_server::CoordinatorServer::new(service.clone())
            .max_decoding_message_size(LARGEST_MESSAGE)
            .max_encoding_message_size(LARGEST_MESSAGE);
        let store = v1::store_server::StoreServer::new(service).max_decoding_message_size(LARGEST_MESSAGE);
        // Whoever drops this future ends the server with it.
        let mut serving = AbortOnDropHandle::new(tokio::spawn(
            tonic::transport::Server::builder()
                .http2_keepalive_interval(Some(proto::KEEPALIVE_EVERY))
                .http2_keepalive_timeout(Some(silence))
                .max_concurrent_streams(Some(MOST_CALLS))
                .add_service(InterceptedService::new(coordinator, gate.clone()))
                .add_service(InterceptedService::new(store, gate))
                .serve_with_incoming_shutdown(incoming, closing.clone().cancelled_owned()),
        ));
        let outcome = tokio::select! {
            outcome = driver.run(inputs, signals) => outcome,
            // The listener does not end by itself unless it failed.
            ended = &mut serving => {
                return match ended {
                    Ok(Err(source)) => Err(Error::Serve { address, source }),
                    _ => Ok(Outcome { ok: false, reason: "the server stopped".into(), superseded: false }),
                };
            }
        };
        closing.cancel();
        if tokio::time::timeout(GOODBYE, &mut serving).await.is_err() {
            serving.abort();
        }
        Ok(outcome)
    }
}

/// An error if the coordinator that wrote last is alive and still leads this run.
async fn refuse_if_led(run: &Location, mine: &str, access: &Access) -> Result<()> {
    // Nobody else can be where this one listens, or where a name leads that is now its own.
    let Some(leader) = journal::leader(run).await?.filter(|l| l.address != mine) else { return Ok(()) };
    let Ok(connection) = access.connection(&leader.address) else { return Ok(()) };
    let request = v1::GetJobRequest { protocol_version: proto::PROTOCOL_VERSION };
    let mut client = v1::coordinator_client::CoordinatorClient::new(connection);
    let led = match tokio::time::timeout(ANSWER, client.get_job(request)).await {
        Ok(Ok(job)) => job.get_ref().run_url == run.url(),
        // Alive, with another token: perhaps this run's.
        Ok(Err(status)) => status.code() == Code::Unauthenticated,
        Err(_) => false,
    };
    if led { Err(Error::Led { url: run.url().into(), address: leader.address }) } else { Ok(()) }
}

/// Unlike any other coordinator's, also one on the same machine and port.
fn leader_name(address: SocketAddr) -> String {
    let seed = format!("{address} {} {}", std::process::id(), unix_ms());
    storage::sha256_hex(seed.as_bytes())[..16].to_string()
}
