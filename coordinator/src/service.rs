//! The gRPC services: turns calls into inputs of the driver, and its answers into replies.

use crate::{
    core::{Epoch, Event, WorkerId},
    driver::{Input, Outgoing, Session},
    store::{KeyValue, StoreError},
    watch::Hub,
    wire,
};
use futures::{Stream, StreamExt};
use proto::v1;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{broadcast::error::RecvError, mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Both services; cheap to clone.
#[derive(Clone)]
pub struct Service {
    pub job: Arc<v1::Job>,
    pub epoch: Epoch,
    pub inputs: mpsc::Sender<Input>,
    pub hub: Arc<Hub>,
    pub store: Arc<KeyValue>,
    /// The next session's number.
    pub sessions: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl v1::coordinator_server::Coordinator for Service {
    type SessionStream = BoxStream<v1::Directive>;
    type WatchStream = BoxStream<v1::JobEvent>;

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let theirs = request.into_inner().protocol_version;
        if theirs != proto::PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "the caller speaks protocol version {theirs}, the coordinator {}; install the same release on both",
                proto::PROTOCOL_VERSION
            )));
        }
        Ok(Response::new((*self.job).clone()))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let worker = WorkerId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let (sender, directives) = mpsc::unbounded_channel();
        tokio::spawn(read_session(worker, request.into_inner(), sender, self.inputs.clone()));
        let epoch = self.epoch;
        let replies = UnboundedReceiverStream::new(directives).map(move |outgoing| match outgoing {
            Outgoing::Directive(d) => Ok(wire::directive(epoch, d)),
            Outgoing::Reject(why) => Err(Status::failed_precondition(why)),
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (known, live) = self.hub.subscribe();
        let live = futures::stream::unfold(live, |live| async move {
            let mut live = live?;
            loop {
                match live.recv().await {
                    Ok(stamped) => return Some((stamped, Some(live))),
                    // Fallen behind: the newest states are still to come.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        let all = futures::stream::iter(known).chain(live);
        Ok(Response::new(Box::pin(all.map(|s| Ok(wire::job_event(s.unix_ms, &s.notice))))))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::JobStatus>, Status> {
        let (reply, status) = oneshot::channel();
        self.give(Input::Status(reply)).await?;
        Ok(Response::new(status.await.map_err(|_| over())?))
    }

    async fn release(&self, r: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseReply>, Status> {
        let v1::ReleaseRequest { worker, reason } = r.into_inner();
        let (found, answer) = oneshot::channel();
        self.give(Input::Release { name: worker.clone(), reason, found }).await?;
        match answer.await {
            Ok(true) => Ok(Response::new(v1::ReleaseReply {})),
            Ok(false) => Err(Status::not_found(format!("there is no worker {worker} in this job"))),
            Err(_) => Err(over()),
        }
    }

    async fn report_exit(&self, r: Request<v1::ExitReport>) -> Result<Response<v1::ExitReply>, Status> {
        self.give(Input::Exited(wire::exit(r.into_inner()))).await?;
        Ok(Response::new(v1::ExitReply {}))
    }
}

impl Service {
    async fn give(&self, input: Input) -> Result<(), Status> {
        self.inputs.send(input).await.map_err(|_| over())
    }
}

fn over() -> Status {
    Status::unavailable("the job has ended")
}

/// Hands one worker's messages to the driver until its stream ends.
async fn read_session(
    worker: WorkerId,
    mut messages: Streaming<v1::WorkerMessage>,
    sender: mpsc::UnboundedSender<Outgoing>,
    inputs: mpsc::Sender<Input>,
) {
    let hello = match messages.message().await {
        Ok(Some(v1::WorkerMessage { kind: Some(v1::worker_message::Kind::Hello(h)) })) => wire::hello(h),
        Ok(Some(_)) => {
            let _ = sender.send(Outgoing::Reject("the first message of a session must be a Hello".into()));
            return;
        }
        // Gone before it said anything.
        Ok(None) | Err(_) => return,
    };
    let closed = CancellationToken::new();
    let session = Session { sender, _reader: closed.clone().drop_guard() };
    if inputs.send(Input::Open { worker, hello, session }).await.is_err() {
        return;
    }
    let why = loop {
        let message = tokio::select! {
            // The driver let it go: a worker that talks on must not keep the connection open.
            () = closed.cancelled() => return,
            message = messages.message() => message,
        };
        match message {
            Ok(Some(message)) => {
                if let Some(event) = wire::event(worker, message)
                    && inputs.send(Input::Event(event)).await.is_err()
                {
                    return;
                }
            }
            Ok(None) => break "it closed its session".to_string(),
            Err(status) => break format!("its connection broke ({})", status.message()),
        }
    };
    let _ = inputs.send(Input::Event(Event::Disconnected { worker, why })).await;
}

#[tonic::async_trait]
impl v1::store_server::Store for Service {
    async fn set(&self, r: Request<v1::SetRequest>) -> Result<Response<v1::SetReply>, Status> {
        let r = r.into_inner();
        self.store.set(&r.key, r.value).map_err(status)?;
        Ok(Response::new(v1::SetReply {}))
    }

    async fn compare_set(
        &self,
        r: Request<v1::CompareSetRequest>,
    ) -> Result<Response<v1::ValueReply>, Status> {
        let r = r.into_inner();
        let value = self.store.compare_set(&r.key, r.expected, r.desired).map_err(status)?;
        Ok(Response::new(v1::ValueReply { value }))
    }

    async fn get(&self, r: Request<v1::GetRequest>) -> Result<Response<v1::ValueReply>, Status> {
        let r = r.into_inner();
        let value = self.store.get(&r.key, Duration::from_millis(r.timeout_ms)).await.map_err(status)?;
        Ok(Response::new(v1::ValueReply { value }))
    }

    async fn add(&self, r: Request<v1::AddRequest>) -> Result<Response<v1::AddReply>, Status> {
        let r = r.into_inner();
        let value = self.store.add(&r.key, r.amount).map_err(status)?;
        Ok(Response::new(v1::AddReply { value }))
    }

    async fn wait(&self, r: Request<v1::WaitRequest>) -> Result<Response<v1::WaitReply>, Status> {
        let r = r.into_inner();
        self.store.wait(&r.keys, Duration::from_millis(r.timeout_ms)).await.map_err(status)?;
        Ok(Response::new(v1::WaitReply {}))
    }

    async fn check(&self, r: Request<v1::CheckRequest>) -> Result<Response<v1::CheckReply>, Status> {
        let all_present = self.store.check(&r.into_inner().keys).map_err(status)?;
        Ok(Response::new(v1::CheckReply { all_present }))
    }

    async fn delete(&self, r: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteReply>, Status> {
        let deleted = self.store.delete(&r.into_inner().key).map_err(status)?;
        Ok(Response::new(v1::DeleteReply { deleted }))
    }

    async fn num_keys(&self, _: Request<v1::NumKeysRequest>) -> Result<Response<v1::NumKeysReply>, Status> {
        Ok(Response::new(v1::NumKeysReply { count: self.store.num_keys() }))
    }
}

fn status(e: StoreError) -> Status {
    let text = format!("failed to {e}");
    match e {
        StoreError::BadKey(_) | StoreError::NotANumber(_) => Status::invalid_argument(text),
        StoreError::Timeout { .. } => Status::deadline_exceeded(text),
        StoreError::Over { .. } => Status::aborted(text),
    }
}
