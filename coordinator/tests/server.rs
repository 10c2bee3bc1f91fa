//! The real server on a free port, with real clients playing workers; run and dataset on disk.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use configs::Config;
use coordinator::{Error, Options, Outcome, Server, Signal};
use proto::{
    Access, Connection,
    v1::{
        self, coordinator_client::CoordinatorClient, directive::Kind as Down, store_client::StoreClient,
        worker_message::Kind as Up,
    },
};
use std::{net::SocketAddr, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming};

/// Longer than anything here takes; only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);

/// A folder with a dataset (of which the coordinator reads only dataset.json) and a run.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::write(dir.path().join("data/dataset.json"), r#"{"format":"marey-clips"}"#).unwrap();
        Self { dir }
    }

    fn run(&self) -> std::path::PathBuf {
        self.dir.path().join("run")
    }

    fn options(&self, overrides: &[&str]) -> Options {
        let mut all = vec![format!("data.url={}", self.dir.path().join("data").display())];
        all.extend(["cluster.gather=\"2s\"", "cluster.workers=2"].map(String::from));
        all.extend(overrides.iter().map(|o| o.to_string()));
        Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            run: self.run().display().to_string(),
            config: Config::parse("job.toml", include_str!("job.toml"), &all).unwrap(),
            access: Access::default(),
            insecure: false,
            single_writer: false,
            advertise: None,
            take_over: false,
        }
    }

    async fn start(&self, overrides: &[&str]) -> Running {
        Self::start_with(self.options(overrides)).await
    }

    async fn start_with(options: Options) -> Running {
        let server = Server::bind(options).await.unwrap();
        let address = server.address();
        let (signals, caught) = mpsc::unbounded_channel();
        let task = tokio::spawn(server.run(UnboundedReceiverStream::new(caught)));
        Running { address, task, signals }
    }

    fn text(&self, key: &str) -> String {
        std::fs::read_to_string(self.run().join(key)).unwrap()
    }
}

struct Running {
    address: SocketAddr,
    task: JoinHandle<coordinator::Result<Outcome>>,
    signals: mpsc::UnboundedSender<Signal>,
}

impl Running {
    fn channel(&self) -> Connection {
        Access::default().connection(&self.address.to_string()).unwrap()
    }

    /// At once, without a checkpoint.
    async fn stop(self) -> Outcome {
        self.signals.send(Signal::Stop).unwrap();
        let _ = self.signals.send(Signal::Stop);
        timeout(LONG, self.task).await.unwrap().unwrap().unwrap()
    }

    async fn end(self) -> Outcome {
        timeout(LONG, self.task).await.unwrap().unwrap().unwrap()
    }
}

/// One end of a session.
struct Worker {
    up: mpsc::UnboundedSender<v1::WorkerMessage>,
    down: Streaming<v1::Directive>,
}

impl Worker {
    async fn open(job: &Running, hello: v1::Hello) -> Self {
        let (up, messages) = mpsc::unbounded_channel();
        up.send(v1::WorkerMessage { kind: Some(Up::Hello(hello)) }).unwrap();
        let stream = UnboundedReceiverStream::new(messages);
        let down = CoordinatorClient::new(job.channel()).session(stream).await.unwrap().into_inner();
        Self { up, down }
    }

    async fn join(job: &Running, name: &str) -> Self {
        let mut worker = Self::open(job, hello(job, name).await).await;
        assert!(matches!(worker.next().await, Down::Welcome(w) if w.worker == name));
        worker
    }

    fn send(&self, kind: Up) {
        self.up.send(v1::WorkerMessage { kind: Some(kind) }).unwrap();
    }

    async fn next(&mut self) -> Down {
        timeout(LONG, self.down.message()).await.unwrap().unwrap().expect("a directive").kind.unwrap()
    }

    async fn assigned(&mut self) -> (u64, u32, Vec<String>) {
        match self.next().await {
            Down::Assigned(a) => {
                assert_eq!(a.world_size as usize, a.members.len());
                (a.generation, a.rank, a.members)
            }
            other => panic!("expected an assignment, got {other:?}"),
        }
    }

    fn step(&self, generation: u64, step: u64) {
        let report = v1::StepReport { generation, step, total_steps: 9, loss: 1.5, ..Default::default() };
        self.send(Up::Step(report));
    }

    fn finished(&self, generation: u64) {
        self.send(Up::Finished(v1::Finished { generation, step: 9 }));
    }
}

async fn hello(job: &Running, name: &str) -> v1::Hello {
    let request = v1::GetJobRequest { protocol_version: proto::PROTOCOL_VERSION };
    let job = CoordinatorClient::new(job.channel()).get_job(request).await.unwrap().into_inner();
    assert!(job.config_toml.contains("[model]"));
    v1::Hello {
        protocol_version: proto::PROTOCOL_VERSION,
        worker: name.into(),
        node: String::new(),
        device: "cpu:0".into(),
        config_digest: job.config_digest,
        dataset_digest: job.dataset_digest,
        ..Default::default()
    }
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| s.to_string()).collect()
}

#[tokio::test]
async fn the_rest_go_on_when_a_stream_breaks() {
    let place = Place::new();
    let job = place.start(&[]).await;
    let mut events =
        CoordinatorClient::new(job.channel()).watch(v1::WatchRequest {}).await.unwrap().into_inner();
    let mut a = Worker::join(&job, "a").await;
    let mut b = Worker::join(&job, "b").await;
    assert_eq!(a.assigned().await, (1, 0, names(&["a", "b"])));
    assert_eq!(b.assigned().await, (1, 1, names(&["a", "b"])));
    a.step(1, 1);
    a.step(1, 2);
    // The report must be there before the loss, so that the loss can name its step.
    loop {
        let event = timeout(LONG, events.message()).await.unwrap().unwrap().unwrap();
        if matches!(event.kind, Some(v1::job_event::Kind::Step(s)) if s.step == 2) {
            break;
        }
    }
    drop(b);
    match a.next().await {
        Down::Stop(stop) => {
            assert_eq!(stop.generation, 1);
            assert!(stop.reason.contains("lost worker b (rank 1) at step 2"), "{}", stop.reason);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(a.assigned().await, (2, 0, names(&["a"])));

    // Someone who watches only now learns where the job stands.
    let mut late =
        CoordinatorClient::new(job.channel()).watch(v1::WatchRequest {}).await.unwrap().into_inner();
    let first = timeout(LONG, late.message()).await.unwrap().unwrap().unwrap();
    assert!(matches!(first.kind, Some(v1::job_event::Kind::Generation(g)) if g.generation == 2));

    a.finished(2);
    assert!(matches!(a.next().await, Down::Shutdown(s) if s.ok));
    let outcome = job.end().await;
    assert_eq!(
        outcome,
        Outcome { ok: true, reason: "1 worker finished at step 9".into(), superseded: false }
    );
    let mut last = None;
    while let Some(event) = timeout(LONG, late.message()).await.unwrap().unwrap() {
        last = event.kind;
    }
    assert!(matches!(last, Some(v1::job_event::Kind::Ended(e)) if e.ok));

    let metrics = place.text("metrics/generation-000001.jsonl");
    let kinds: Vec<String> = metrics
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["kind"].as_str().unwrap().into())
        .collect();
    assert_eq!(kinds.iter().filter(|k| *k == "step").count(), 2);
    assert!(kinds.contains(&"lost".to_string()), "{kinds:?}");
    assert!(place.text("metrics/generation-000002.jsonl").contains(r#""kind":"ended""#));
}

#[tokio::test]
async fn the_store_blocks_until_set_and_ends_with_its_generation() {
    let place = Place::new();
    let job = place.start(&[]).await;
    let mut a = Worker::join(&job, "a").await;
    let b = Worker::join(&job, "b").await;
    a.assigned().await;
    let mut store = StoreClient::new(job.channel());
    let get = |key: &str, timeout_ms| {
        let mut store = StoreClient::new(job.channel());
        let request = v1::GetRequest { key: key.into(), timeout_ms };
        tokio::spawn(async move { store.get(request).await })
    };
    let waiting = get("g1/rendezvous", 30_000);
    let set = v1::SetRequest { key: "g1/rendezvous".into(), value: b"here".to_vec() };
    store.set(set).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().value, b"here");
    let add = v1::AddRequest { key: "g1/count".into(), amount: 3 };
    assert_eq!(store.add(add).await.unwrap().into_inner().value, 3);

    let keys = names(&["g1/rendezvous", "g1/missing"]);
    let e = store.wait(v1::WaitRequest { keys, timeout_ms: 20 }).await.unwrap_err();
    assert_eq!(e.code(), Code::DeadlineExceeded);
    assert!(e.message().contains("g1/missing"), "{e}");

    let waiting = get("g1/never", 30_000);
    drop(b);
    let e = waiting.await.unwrap().unwrap_err();
    assert_eq!(e.code(), Code::Aborted);
    assert!(e.message().contains("lost worker b"), "{e}");
    assert!(job.stop().await.ok, "nothing was done yet");
}

#[tokio::test]
async fn a_worker_with_another_configuration_is_refused() {
    let place = Place::new();
    let job = place.start(&[]).await;
    let mut stranger = hello(&job, "stranger").await;
    let ours = std::mem::replace(&mut stranger.config_digest, "0123".into());
    let mut worker = Worker::open(&job, stranger).await;
    let e = timeout(LONG, worker.down.message()).await.unwrap().unwrap_err();
    assert_eq!(e.code(), Code::FailedPrecondition);
    assert!(e.message().contains("0123") && e.message().contains(&ours), "{e}");
    let e = CoordinatorClient::new(job.channel())
        .get_job(v1::GetJobRequest { protocol_version: 99 })
        .await
        .unwrap_err();
    assert_eq!(e.code(), Code::FailedPrecondition);
    job.stop().await;
}

#[tokio::test]
async fn a_checkpoint_exists_only_when_every_rank_has_written_its_part() {
    let place = Place::new();
    let job = place.start(&[]).await;
    let mut workers = [Worker::join(&job, "a").await, Worker::join(&job, "b").await];
    for w in &mut workers {
        w.assigned().await;
    }
    let folder = place.run().join("checkpoints/step-000000005");
    let manifest = folder.join("manifest.json");
    std::fs::create_dir_all(folder.join("g1")).unwrap();
    let part = |rank: u32| {
        let key = format!("g1/model-{rank}-of-2.safetensors");
        std::fs::write(folder.join(&key), [rank as u8; 8]).unwrap();
        Up::Shard(v1::CheckpointShard {
            generation: 1,
            step: 5,
            rank,
            world_size: 2,
            attempt: "g1".into(),
            files: vec![v1::CheckpointFile { key, bytes: 8, sha256: "ab".into() }],
            header_json: if rank == 0 { r#"{"format":"marey-checkpoint"}"#.into() } else { String::new() },
        })
    };
    workers[0].send(part(0));
    workers[0].step(1, 5);
    // Reports are handled in order: once the step is seen, the part has been.
    let mut events =
        CoordinatorClient::new(job.channel()).watch(v1::WatchRequest {}).await.unwrap().into_inner();
    loop {
        let event = timeout(LONG, events.message()).await.unwrap().unwrap().unwrap();
        if matches!(event.kind, Some(v1::job_event::Kind::Step(_))) {
            break;
        }
    }
    assert!(!manifest.exists());
    workers[1].send(part(1));
    for w in &mut workers {
        assert!(matches!(w.next().await, Down::Committed(c) if c.step == 5));
    }
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    assert_eq!(json["format"], "marey-checkpoint");
    assert_eq!(json["files"].as_array().unwrap().len(), 2);
    workers.iter().for_each(|w| w.finished(1));
    assert!(job.end().await.ok);
}

#[tokio::test]
async fn generations_go_on_after_a_restart() {
    let place = Place::new();
    let job = place.start(&["cluster.workers=1"]).await;
    let mut a = Worker::join(&job, "a").await;
    assert_eq!(a.assigned().await.0, 1);
    job.stop().await;
    assert!(matches!(a.next().await, Down::Leave(l) if l.checkpoint));
    assert!(matches!(a.next().await, Down::Shutdown(s) if !s.ok));

    let job = place.start(&["cluster.workers=1", "train.epochs=2"]).await;
    let mut a = Worker::join(&job, "a").await;
    assert_eq!(a.assigned().await.0, 2);
    assert!(place.text("config.toml").contains("epochs = 2"));
    // A second coordinator of the run is refused while the first answers.
    let options = || place.options(&["cluster.workers=1", "train.epochs=2"]);
    let e = Server::bind(options()).await.map(|_| ()).unwrap_err();
    assert!(e.is_usage() && e.to_string().contains(&job.address.to_string()), "{e}");
    // Told to, it leads; the first finds out before it writes, and says nothing to its workers.
    let second = Place::start_with(Options { take_over: true, ..options() }).await;
    let b = Worker::join(&second, "b").await;
    let mut c = Worker::open(&job, v1::Hello { coordinator: 99, ..hello(&job, "c").await }).await;
    assert!(timeout(LONG, c.down.message()).await.unwrap().unwrap().is_none(), "closed without a word");
    let outcome = job.end().await;
    assert!(outcome.superseded && outcome.reason.contains("another coordinator"), "{outcome:?}");
    assert!(timeout(LONG, a.down.message()).await.unwrap().is_ok_and(|d| d.is_none()));
    drop(b);
    second.stop().await;
}

#[tokio::test]
async fn workers_go_on_under_a_restarted_coordinator() {
    let place = Place::new();
    let job = place.start(&[]).await;
    let mut workers = [Worker::join(&job, "a").await, Worker::join(&job, "b").await];
    for w in &mut workers {
        w.assigned().await;
    }
    workers[0].step(1, 7);
    // Its process is gone from one moment to the next.
    job.task.abort();
    let _ = job.task.await;
    let job = place.start(&[]).await;
    let mut back = vec![];
    for (rank, name) in [(0, "a"), (1, "b")] {
        let hello = v1::Hello { generation: 1, rank, coordinator: 1, ..hello(&job, name).await };
        let mut worker = Worker::open(&job, hello).await;
        let welcome = timeout(LONG, worker.down.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(welcome.coordinator, 3, "after a claim and a generation");
        assert!(matches!(welcome.kind, Some(Down::Welcome(_))));
        back.push(worker);
    }
    let mut client = CoordinatorClient::new(job.channel());
    let status = client.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.coordinator, status.generation, status.state.as_str()), (3, 1, "starting"));
    let ranks: Vec<_> = status.members.iter().map(|m| (m.worker.as_str(), m.rank)).collect();
    assert_eq!(ranks, [("a", Some(0)), ("b", Some(1))]);

    // One is let go by request; the other goes on alone.
    let release = |worker: &str| v1::ReleaseRequest { worker: worker.into(), reason: "repairs".into() };
    let e = client.release(release("x")).await.unwrap_err();
    assert!(e.code() == Code::NotFound && e.message().contains("x"), "{e}");
    client.release(release("b")).await.unwrap();
    for w in &mut back {
        assert!(matches!(w.next().await, Down::Leave(l) if l.generation == 1 && !l.checkpoint));
        w.send(Up::Left(v1::Left { generation: 1, step: 8 }));
    }
    assert!(matches!(back[1].next().await, Down::Shutdown(s) if s.ok && s.reason == "repairs"));
    assert_eq!(back[0].assigned().await, (2, 0, names(&["a"])));

    // Told to stop, the job ends well once the checkpoint is there.
    job.signals.send(Signal::Checkpoint).unwrap();
    assert!(matches!(back[0].next().await, Down::CheckpointNow(_)));
    back[0].step(2, 9);
    job.signals.send(Signal::Stop).unwrap();
    assert!(matches!(back[0].next().await, Down::Leave(l) if l.checkpoint));
    let folder = place.run().join("checkpoints/step-000000010/g2");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("model-1-of-1.safetensors"), [1; 8]).unwrap();
    let file =
        v1::CheckpointFile { key: "g2/model-1-of-1.safetensors".into(), bytes: 8, sha256: "ab".into() };
    back[0].send(Up::Shard(v1::CheckpointShard {
        generation: 2,
        step: 10,
        world_size: 1,
        attempt: "g2".into(),
        files: vec![file],
        header_json: "{}".into(),
        ..Default::default()
    }));
    assert!(matches!(back[0].next().await, Down::Committed(c) if c.step == 10));
    back[0].send(Up::Left(v1::Left { generation: 2, step: 10 }));
    assert!(matches!(back[0].next().await, Down::Shutdown(s) if s.ok));
    let outcome = job.end().await;
    assert!(outcome.ok && outcome.reason.contains("stopped at step 10"), "{outcome:?}");
    let incidents = place.text("metrics/incidents.jsonl");
    let kinds: Vec<String> = incidents
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["incident"].as_str().unwrap().into())
        .collect();
    assert_eq!(kinds, ["coordinator", "left"], "{incidents}");
}

#[tokio::test]
async fn what_is_wrong_is_said_before_anything_starts() {
    let place = Place::new();
    let bind = async |options| Server::bind(options).await.map(|_| ()).unwrap_err();

    let mut options = place.options(&[]);
    options.listen = "0.0.0.0:0".parse().unwrap();
    assert!(matches!(bind(options).await, Error::Insecure { .. }));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = place.options(&[]);
    options.listen = taken.local_addr().unwrap();
    let e = bind(options).await;
    assert!(e.is_usage() && e.to_string().contains(&taken.local_addr().unwrap().to_string()), "{e}");

    place.start(&[]).await.stop().await;
    let e = bind(place.options(&["optimizer.lr=9"])).await;
    assert!(e.is_usage() && e.to_string().contains("optimizer.lr"), "{e}");

    std::fs::write(place.dir.path().join("data/dataset.json"), "{}").unwrap();
    assert!(matches!(bind(place.options(&[])).await, Error::OtherDataset { .. }));
    std::fs::remove_file(Path::new(place.dir.path()).join("data/dataset.json")).unwrap();
    let e = bind(place.options(&[])).await;
    assert!(e.is_usage() && e.to_string().contains("marey ingest"), "{e}");
}
