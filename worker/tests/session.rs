//! A worker's session against a coordinator played by the test: what survives a broken connection.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use proto::Access;
use proto::v1::{
    self,
    coordinator_server::{Coordinator, CoordinatorServer},
    directive::Kind as Down,
    worker_message::Kind as Up,
};
use std::{
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use storage::Location;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{TcpListenerStream, UnboundedReceiverStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use worker::{
    Error,
    session::{self, Asked, Opening, Session},
};

/// Longer than anything here takes; only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);

/// One connection of the worker.
struct Conversation {
    said: Streaming<v1::WorkerMessage>,
    answer: UnboundedSender<Result<v1::Directive, Status>>,
}

impl Conversation {
    fn say(&self, epoch: u64, kind: Down) {
        self.answer.send(Ok(v1::Directive { kind: Some(kind), coordinator: epoch })).unwrap();
    }

    /// The next message that is no beat.
    async fn hear(&mut self) -> Up {
        loop {
            let message = timeout(LONG, self.said.message()).await.unwrap().unwrap().unwrap();
            match message.kind.unwrap() {
                Up::Beat(_) => {}
                kind => return kind,
            }
        }
    }

    async fn hello(&mut self) -> v1::Hello {
        let Up::Hello(hello) = self.hear().await else { panic!("no Hello") };
        hello
    }
}

/// A coordinator that hands each conversation to the test.
struct Played {
    address: String,
    conversations: UnboundedReceiver<Conversation>,
    task: JoinHandle<()>,
    /// What it says of the job.
    state: Arc<Mutex<&'static str>>,
}

struct Service {
    run_url: String,
    to_test: Mutex<UnboundedSender<Conversation>>,
    state: Arc<Mutex<&'static str>>,
}

impl Played {
    async fn start(run_url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (to_test, conversations) = mpsc::unbounded_channel();
        let state = Arc::new(Mutex::new("running"));
        let service = Service { run_url: run_url.into(), to_test: Mutex::new(to_test), state: state.clone() };
        let server = Server::builder().add_service(CoordinatorServer::new(service));
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { address, conversations, task, state }
    }

    async fn next(&mut self) -> Conversation {
        timeout(LONG, self.conversations.recv()).await.unwrap().unwrap()
    }
}

#[tonic::async_trait]
impl Coordinator for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::Directive, Status>> + Send>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::JobEvent, Status>> + Send>>;

    async fn get_job(&self, _: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let protocol_version = proto::PROTOCOL_VERSION;
        Ok(Response::new(v1::Job { protocol_version, run_url: self.run_url.clone(), ..Default::default() }))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (answer, answers) = mpsc::unbounded_channel();
        let conversation = Conversation { said: request.into_inner(), answer };
        self.to_test.lock().unwrap().send(conversation).unwrap();
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers).map(|a| a))))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("nobody watches"))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::JobStatus>, Status> {
        let state = self.state.lock().unwrap().to_string();
        Ok(Response::new(v1::JobStatus { state, ..Default::default() }))
    }

    async fn release(&self, _: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseReply>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn report_exit(&self, _: Request<v1::ExitReport>) -> Result<Response<v1::ExitReply>, Status> {
        Err(Status::unimplemented("nobody ends"))
    }
}

/// A session with a played coordinator of the run in `dir`.
fn open(runtime: &Runtime, dir: &Path, grace: Duration) -> (Played, Conversation, Session) {
    let url = dir.to_str().unwrap();
    let mut played = runtime.block_on(Played::start(url));
    let opening = Opening {
        channel: runtime.block_on(session::connect(&played.address, &Access::default())).unwrap(),
        access: Access::default(),
        address: played.address.clone(),
        hello: v1::Hello { worker: "w".into(), ..Default::default() },
        run: Location::parse(url).unwrap(),
        run_url: url.into(),
        grace,
        checkpoint: Default::default(),
    };
    let session = Session::open(runtime.handle(), opening);
    let mut first = runtime.block_on(played.next());
    let hello = runtime.block_on(first.hello());
    assert_eq!((hello.generation, hello.coordinator), (0, 0));
    (played, first, session)
}

fn assigned(generation: u64) -> Down {
    let members = vec!["v".into(), "w".into()];
    Down::Assigned(v1::Assigned { generation, rank: 1, world_size: 2, members, ..Default::default() })
}

fn stop(generation: u64) -> Down {
    Down::Stop(v1::Stop { generation, reason: "v is lost".into() })
}

#[test]
fn what_a_broken_connection_lost_is_said_again() {
    let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let (mut played, mut first, mut session) = open(&runtime, dir.path(), LONG);
    first.say(5, Down::Welcome(v1::Welcome { worker: "w".into() }));
    first.say(5, assigned(3));
    let at = session.wait_assignment().unwrap().unwrap();
    assert_eq!((at.generation, at.rank, at.world), (3, 1, 2));
    session.shard_sender()(v1::CheckpointShard { step: 7, ..Default::default() });
    session.send(Up::Left(v1::Left { generation: 3, step: 7 }));
    runtime.block_on(async {
        assert!(matches!(first.hear().await, Up::Shard(_)));
        assert!(matches!(first.hear().await, Up::Left(_)));
    });
    drop(first);

    let mut second = runtime.block_on(played.next());
    runtime.block_on(async {
        let hello = second.hello().await;
        assert_eq!((hello.generation, hello.rank, hello.coordinator), (3, 1, 5));
        assert!(matches!(second.hear().await, Up::Shard(s) if s.step == 7));
        assert!(matches!(second.hear().await, Up::Left(_)));
    });
    // The coordinator before must not be able to stop what goes on under this one.
    second.say(4, stop(3));
    second.say(5, Down::Leave(v1::Leave { generation: 3, reason: "x joins".into(), checkpoint: true }));
    second.say(5, Down::Committed(v1::Committed { step: 7 }));
    session.wait_committed(7, 3).unwrap();
    assert_eq!(session.asked(3).unwrap(), Asked { leave: true, checkpoint: true });
    assert_eq!(session.asked(4).unwrap(), Asked::default(), "another generation was meant");
    second.say(5, stop(3));
    second.say(5, assigned(4));
    assert_eq!(session.wait_assignment().unwrap().unwrap().generation, 4);
    assert!(matches!(session.check(3), Err(Error::GenerationOver { generation: 3, .. })));
    session.check(4).unwrap();
    let shutdown = v1::Shutdown { ok: true, reason: "it is slow".into(), restart: true };
    second.say(5, Down::Shutdown(shutdown));
    assert!(session.wait_assignment().unwrap().is_none());
    assert!(session.is_replaced());
}

#[test]
fn a_newcomer_hears_whether_others_train_already() {
    let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    runtime.block_on(async {
        let played = Played::start(dir.path().to_str().unwrap()).await;
        let channel = session::connect(&played.address, &Access::default()).await.unwrap();
        for (state, training) in
            [("running", true), ("leaving", true), ("starting", false), ("waiting", false)]
        {
            *played.state.lock().unwrap() = state;
            assert_eq!(session::is_training(channel.clone()).await, training, "{state}");
        }
    });
}

#[test]
fn one_that_was_given_up_hears_whether_it_may_come_again() {
    for restart in [true, false] {
        let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
        let (_played, first, mut session) = open(&runtime, dir.path(), LONG);
        first.say(1, Down::Shutdown(v1::Shutdown { ok: false, reason: "no beat".into(), restart }));
        let e = session.wait_assignment().unwrap_err();
        assert!(matches!(&e, Error::Dismissed { again, .. } if *again == restart), "{e}");
    }
}

#[test]
fn the_journal_leads_to_a_coordinator_elsewhere() {
    let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let (mut played, first, mut session) = open(&runtime, dir.path(), LONG);
    first.say(1, assigned(1));
    session.wait_assignment().unwrap().unwrap();
    let mut other = runtime.block_on(Played::start(dir.path().to_str().unwrap()));
    let entry = format!(r#"{{"kind":"claim","address":"{}"}}"#, other.address);
    let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let put = run.put("coordinator/journal/0000000002.json", entry.into_bytes());
    runtime.block_on(put).unwrap();
    played.task.abort();
    played.conversations.close();
    drop(first);
    let mut second = runtime.block_on(other.next());
    assert_eq!(runtime.block_on(second.hello()).generation, 1);
    second.say(2, stop(1));
    second.say(2, assigned(2));
    assert_eq!(session.wait_assignment().unwrap().unwrap().generation, 2);
}

#[test]
fn another_run_s_coordinator_is_none_and_patience_ends() {
    let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let (played, first, mut session) = open(&runtime, dir.path(), Duration::from_millis(500));
    first.say(1, assigned(1));
    session.wait_assignment().unwrap().unwrap();
    let mut other = runtime.block_on(Played::start("s3://elsewhere"));
    let entry = format!(r#"{{"kind":"claim","address":"{}"}}"#, other.address);
    let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let put = run.put("coordinator/journal/0000000002.json", entry.into_bytes());
    runtime.block_on(put).unwrap();
    played.task.abort();
    drop((played.conversations, first));
    let e = session.wait_assignment().unwrap_err();
    assert!(matches!(e, Error::Alone { .. }), "{e}");
    assert!(e.to_string().contains("cluster.coordinator_grace"), "{e}");
    assert!(other.conversations.try_recv().is_err());
}
