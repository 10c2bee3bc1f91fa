//! A worker's one stream to the coordinator: reports and beats upward, directives downward.
//!
//! The trainer thread is synchronous; two tasks on the runtime carry its messages.

use crate::{Error, Result};
use collective::{Aborter, Group};
use proto::v1::{
    self, CheckpointShard, Directive, Hello, WorkerMessage, coordinator_client::CoordinatorClient, directive,
    worker_message::Kind,
};
use std::{
    net::{ToSocketAddrs, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{self as std_mpsc, Receiver, RecvTimeoutError, Sender},
    },
    time::Duration,
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Beats leave this often, whether or not the trainer moves.
const BEAT: Duration = Duration::from_secs(1);

/// One rank's place in one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub generation: u64,
    pub rank: usize,
    pub world: usize,
    pub members: Vec<String>,
}

/// Where the trainer is: read by the beat task.
#[derive(Debug, Default)]
pub struct Progress {
    generation: AtomicU64,
    epoch: AtomicU64,
    step: AtomicU64,
    ticks: AtomicU64,
    phase: Mutex<&'static str>,
}

impl Progress {
    /// Notes a new phase or step; each call counts as progress.
    pub fn at(&self, phase: &'static str, generation: u64, epoch: u64, step: u64) {
        self.generation.store(generation, Ordering::Relaxed);
        self.epoch.store(epoch, Ordering::Relaxed);
        self.step.store(step, Ordering::Relaxed);
        *self.phase.lock().unwrap_or_else(|e| e.into_inner()) = phase;
        self.tick();
    }

    /// The trainer moved.
    pub fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    fn beat(&self) -> v1::Beat {
        v1::Beat {
            generation: self.generation.load(Ordering::Relaxed),
            epoch: self.epoch.load(Ordering::Relaxed),
            step: self.step.load(Ordering::Relaxed),
            phase: self.phase.lock().unwrap_or_else(|e| e.into_inner()).to_string(),
            progress: self.ticks.load(Ordering::Relaxed),
            ..Default::default()
        }
    }
}

/// Opens a channel to the coordinator with keep-alive, so that a dead peer or network is noticed.
pub async fn connect(address: &str) -> Result<Channel> {
    let url = if address.contains("://") { address.to_string() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(url)
        .map_err(|e| {
            Error::Usage(format!("understand the coordinator's address {address:?}: {e}; write host:port"))
        })?
        .connect_timeout(Duration::from_secs(10))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|e| Error::Coordinator { address: address.into(), why: chain(&e) })
}

/// What the worker needs to know before it can join.
pub async fn get_job(channel: Channel, address: &str) -> Result<v1::Job> {
    let request = v1::GetJobRequest { protocol_version: proto::PROTOCOL_VERSION };
    let job = CoordinatorClient::new(channel)
        .get_job(request)
        .await
        .map_err(|s| refusal(address, &s))?
        .into_inner();
    if job.protocol_version != proto::PROTOCOL_VERSION {
        return Err(Error::Rejected(format!(
            "the coordinator speaks protocol {}, this worker {}; run the same version of Marey on every host",
            job.protocol_version,
            proto::PROTOCOL_VERSION
        )));
    }
    Ok(job)
}

/// This host's address on the way to the coordinator: what the collectives listen on. No packet is sent.
pub fn local_address(coordinator: &str) -> Result<String> {
    let host = coordinator.split_once("://").map_or(coordinator, |(_, rest)| rest);
    let fail = |e: std::io::Error| Error::Coordinator { address: coordinator.into(), why: e.to_string() };
    let to = host.to_socket_addrs().map_err(fail)?.next();
    let to = to.ok_or_else(|| fail(std::io::Error::other("the name has no address")))?;
    let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(from).map_err(fail)?;
    socket.connect(to).map_err(fail)?;
    Ok(socket.local_addr().map_err(fail)?.ip().to_string())
}

/// The open stream.
pub struct Session {
    outgoing: mpsc::UnboundedSender<WorkerMessage>,
    incoming: Receiver<Result<directive::Kind>>,
    progress: Arc<Progress>,
    committed: Option<u64>,
    next: Option<Assignment>,
    group: Arc<Mutex<Option<Aborter>>>,
}

impl Session {
    /// Says hello and starts the two tasks.
    pub fn open(runtime: &Handle, channel: Channel, address: &str, hello: Hello) -> Result<Self> {
        let (outgoing, messages) = mpsc::unbounded_channel();
        let (to_trainer, incoming) = std_mpsc::channel();
        let progress = Arc::new(Progress::default());
        progress.at("joining", 0, 0, 0);
        // The receiver is alive: it was just made.
        let _ = outgoing.send(WorkerMessage { kind: Some(Kind::Hello(hello)) });
        let stream = runtime
            .block_on(CoordinatorClient::new(channel).session(UnboundedReceiverStream::new(messages)))
            .map_err(|s| refusal(address, &s))?
            .into_inner();
        let group = Arc::new(Mutex::new(None));
        runtime.spawn(read_directives(stream, to_trainer, address.to_string(), group.clone()));
        runtime.spawn(send_beats(outgoing.clone(), progress.clone()));
        Ok(Self { outgoing, incoming, progress, committed: None, next: None, group })
    }

    /// The group to abort when the coordinator stops the generation while the trainer waits inside a collective.
    pub fn watch_over(&self, group: &Group) {
        *self.group.lock().unwrap_or_else(|e| e.into_inner()) = Some(group.aborter());
    }

    /// Where the trainer says what it does.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Sends a report. A broken stream shows in the next directive.
    pub fn send(&self, kind: Kind) {
        let _ = self.outgoing.send(WorkerMessage { kind: Some(kind) });
    }

    /// Something a person should know.
    pub fn log(&self, level: &str, text: impl Into<String>) {
        let text = text.into();
        tracing::info!("{text}");
        self.send(Kind::Log(v1::Log { level: level.into(), text }));
    }

    /// Waits until the coordinator hung up or `patience` ran out: the last reports are through.
    pub fn flush(&mut self, patience: Duration) {
        while let Ok(Ok(_)) = self.incoming.recv_timeout(patience) {}
    }

    /// A sender for the upload task.
    pub fn shard_sender(&self) -> impl Fn(CheckpointShard) + Send + 'static {
        let outgoing = self.outgoing.clone();
        move |shard| {
            let _ = outgoing.send(WorkerMessage { kind: Some(Kind::Shard(shard)) });
        }
    }

    /// Waits for the next generation. `None`: the job is done.
    pub fn wait_assignment(&mut self) -> Result<Option<Assignment>> {
        loop {
            if let Some(a) = self.next.take() {
                return Ok(Some(a));
            }
            match self.receive(None) {
                Ok(None) => {}
                Ok(Some(ended)) => return ended.map(|()| None),
                Err(Error::GenerationOver { generation, reason }) => {
                    tracing::warn!("generation {generation} is over: {reason}");
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Between steps: an error if the coordinator ended this generation.
    pub fn check(&mut self, generation: u64) -> Result<()> {
        while let Some(ended) = self.receive(Some(Duration::ZERO))? {
            ended?;
        }
        match &self.next {
            Some(a) if a.generation > generation => {
                Err(Error::GenerationOver { generation, reason: "a newer one was assigned".into() })
            }
            _ => Ok(()),
        }
    }

    /// Waits until the manifest of `step` is written.
    pub fn wait_committed(&mut self, step: u64) -> Result<()> {
        while self.committed < Some(step) {
            if let Some(ended) = self.receive(None)? {
                return ended;
            }
        }
        Ok(())
    }

    /// Takes one directive. `Some(Ok)`: the job is done; `Some(Err)`: it failed; `None`: go on
    /// (with a zero timeout: also when there was none, and `Some` never loops).
    fn receive(&mut self, timeout: Option<Duration>) -> Result<Option<Result<()>>> {
        loop {
            let received = match timeout {
                Some(t) => self.incoming.recv_timeout(t),
                None => self.incoming.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Coordinator {
                        address: String::new(),
                        why: "the session is closed".into(),
                    });
                }
                Ok(Err(e)) => return Err(e),
                Ok(Ok(directive::Kind::Assigned(a))) => self.next = Some(assignment(a)?),
                Ok(Ok(directive::Kind::Committed(c))) => self.committed = self.committed.max(Some(c.step)),
                Ok(Ok(directive::Kind::Stop(s))) => {
                    return Err(Error::GenerationOver { generation: s.generation, reason: s.reason });
                }
                Ok(Ok(directive::Kind::Shutdown(s))) => {
                    return Ok(Some(if s.ok { Ok(()) } else { Err(Error::JobFailed(s.reason)) }));
                }
                Ok(Ok(directive::Kind::Welcome(_) | directive::Kind::Leave(_) | directive::Kind::CheckpointNow(_))) => {}
            }
            if timeout.is_none() {
                return Ok(None);
            }
        }
    }
}

fn assignment(a: v1::Assigned) -> Result<Assignment> {
    if a.rank >= a.world_size || a.members.len() != a.world_size as usize {
        return Err(Error::Rejected(format!(
            "the assignment of rank {} of {} makes no sense",
            a.rank, a.world_size
        )));
    }
    Ok(Assignment {
        generation: a.generation,
        rank: a.rank as usize,
        world: a.world_size as usize,
        members: a.members,
    })
}

async fn read_directives(
    mut stream: tonic::Streaming<Directive>,
    to_trainer: Sender<Result<directive::Kind>>,
    address: String,
    group: Arc<Mutex<Option<Aborter>>>,
) {
    loop {
        let item = match stream.message().await {
            Ok(Some(Directive { kind: Some(kind), .. })) => Ok(kind),
            Ok(Some(Directive { kind: None, .. })) => continue,
            Ok(None) => {
                Err(Error::Coordinator { address: address.clone(), why: "it closed the session".into() })
            }
            Err(s) => Err(refusal(&address, &s)),
        };
        let over = item.is_err();
        if over || matches!(item, Ok(directive::Kind::Stop(_))) {
            let aborter = group.lock().unwrap_or_else(|e| e.into_inner()).take();
            if let Some(Err(e)) = aborter.map(|a| a.abort()) {
                tracing::debug!("failed to {e}");
            }
        }
        if to_trainer.send(item).is_err() || over {
            return;
        }
    }
}

async fn send_beats(outgoing: mpsc::UnboundedSender<WorkerMessage>, progress: Arc<Progress>) {
    let mut every = tokio::time::interval(BEAT);
    loop {
        every.tick().await;
        if outgoing.send(WorkerMessage { kind: Some(Kind::Beat(progress.beat())) }).is_err() {
            return;
        }
    }
}

fn refusal(address: &str, s: &tonic::Status) -> Error {
    match s.code() {
        tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument | tonic::Code::PermissionDenied => {
            Error::Rejected(s.message().to_string())
        }
        _ => Error::Coordinator { address: address.into(), why: format!("{}: {}", s.code(), s.message()) },
    }
}

fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        text = format!("{text}: {s}");
        source = s.source();
    }
    text
}
