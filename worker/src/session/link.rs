//! The task that carries a session's messages: over one connection after the other, to whichever coordinator leads
//! the run.
//!
//! A broken connection ends nothing: the trainer goes on stepping while this task looks for the coordinator, at its
//! last address and at the one that the run's journal names, until `cluster.coordinator_grace` is over.

use super::{
    find::{self, refusal},
    progress::Progress,
    standing::Standing,
    watch::Watch,
};
use crate::{Error, Result};
use proto::{
    Access, Connection,
    v1::{Directive, WorkerMessage, coordinator_client::CoordinatorClient, directive, worker_message::Kind},
};
use std::{
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};
use storage::Location;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Beats leave this often, whether or not the trainer moves.
const BEAT: Duration = Duration::from_secs(1);
/// A coordinator that is there answers a first call within this.
const ANSWER: Duration = Duration::from_secs(5);
/// Pauses between attempts to find the coordinator again grow from the first to the last.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// The journal is asked for another address this often.
const LOOK: Duration = Duration::from_secs(3);
/// A trainer that is told to end and does not is stuck where nothing reaches it.
const LAST_BREATH: Duration = Duration::from_secs(30);

/// All that the task owns.
pub(super) struct Link {
    pub standing: Standing,
    /// Where the coordinator was reached last.
    pub address: String,
    pub access: Access,
    pub run: Location,
    /// The run as the coordinator names it: another job may be served at the old address by now.
    pub run_url: String,
    pub grace: Duration,
    pub outgoing: mpsc::UnboundedReceiver<Kind>,
    pub to_trainer: Sender<Result<directive::Kind>>,
    pub progress: Arc<Progress>,
    pub watch: Arc<Watch>,
    /// The channel for the other services.
    pub channel: watch::Sender<Connection>,
    /// A coordinator has accepted this worker before.
    pub welcomed: bool,
}

/// Why a connection is used no longer.
enum End {
    /// Worth another one.
    Broken(String),
    /// The coordinator or the trainer has ended the session.
    Over,
}

impl Link {
    /// Carries messages until the session is over.
    pub(super) async fn run(mut self) {
        let mut channel = self.channel.borrow().clone();
        // Since when no coordinator was heard.
        let mut silent: Option<Instant> = None;
        loop {
            let why = match self.talk(channel, &mut silent).await {
                End::Over => return,
                End::Broken(why) => why,
            };
            let since = *silent.get_or_insert_with(now);
            tracing::warn!(
                "the connection to the coordinator at {} broke: {why}; looking for it for {:.0} s \
                 (cluster.coordinator_grace), training goes on",
                self.address,
                self.grace.as_secs_f64()
            );
            match self.find(since, why).await {
                Ok(found) => {
                    self.channel.send_replace(found.clone());
                    channel = found;
                }
                Err(e) => return self.fail(e),
            }
        }
    }

    /// One connection, from Hello to its end.
    async fn talk(&mut self, channel: Connection, silent: &mut Option<Instant>) -> End {
        let (messages, receiver) = mpsc::unbounded_channel();
        let say = |kind: Kind| drop(messages.send(WorkerMessage { kind: Some(kind) }));
        for message in self.standing.opening() {
            drop(messages.send(message));
        }
        let mut client = CoordinatorClient::new(channel);
        let opened = timeout(ANSWER, client.session(UnboundedReceiverStream::new(receiver))).await;
        let mut directives = match opened {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => return self.refused(&status),
            Err(_) => return End::Broken(format!("no answer within {} s", ANSWER.as_secs())),
        };
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                said = self.outgoing.recv() => match said {
                    Some(kind) => {
                        self.standing.says(&kind);
                        say(kind);
                    }
                    // The trainer has ended.
                    None => return End::Over,
                },
                _ = beat.tick() => say(Kind::Beat(self.progress.beat())),
                heard = directives.message() => match heard {
                    Ok(Some(directive)) => {
                        if self.hear(directive, silent) {
                            self.last_breath().await;
                            return End::Over;
                        }
                    }
                    Ok(None) => return End::Broken("it closed the session".into()),
                    Err(status) => return self.refused(&status),
                },
            }
        }
    }

    /// Obeys a directive. True: it was the last.
    fn hear(&mut self, directive: Directive, silent: &mut Option<Instant>) -> bool {
        let epoch = directive.coordinator;
        let Some(kind) = self.standing.hears(directive) else {
            let newest = self.standing.epoch();
            tracing::warn!("coordinator {epoch} is not obeyed: number {newest} has taken the run over");
            return false;
        };
        match &kind {
            directive::Kind::Welcome(_) => {
                if silent.take().is_some() {
                    tracing::info!("the coordinator is at {} again", self.address);
                }
                self.welcomed = true;
            }
            directive::Kind::Stop(s) => self.watch.over(s.generation),
            directive::Kind::Assigned(a) => self.watch.over(a.generation.saturating_sub(1)),
            directive::Kind::Shutdown(_) => self.watch.over(u64::MAX),
            directive::Kind::Committed(_) | directive::Kind::Leave(_) | directive::Kind::CheckpointNow(_) => {
            }
        }
        let last = matches!(kind, directive::Kind::Shutdown(_));
        self.to_trainer.send(Ok(kind)).is_err() || last
    }

    /// A refusal ends the session; anything else is worth another attempt.
    fn refused(&mut self, status: &tonic::Status) -> End {
        match refusal(&self.address, status) {
            Error::Rejected(why) => {
                // The same worker was good enough before: it is the job that has changed.
                let e = if self.welcomed { Error::SentAway(why) } else { Error::Rejected(why) };
                self.fail(e);
                End::Over
            }
            e => End::Broken(e.to_string()),
        }
    }

    /// Waits for a coordinator of this run.
    async fn find(&mut self, since: Instant, mut why: String) -> Result<Connection> {
        let [mut pause, longest] = PAUSES;
        let mut looked: Option<Instant> = None;
        loop {
            if self.outgoing.is_closed() && self.outgoing.is_empty() {
                return Err(Error::Coordinator { address: self.address.clone(), why });
            }
            let mut addresses = vec![self.address.clone()];
            if looked.is_none_or(|at| at.elapsed() >= LOOK) {
                looked = Some(now());
                match timeout(ANSWER, find::leader(&self.run)).await {
                    Ok(Ok(Some(address))) if address != self.address => addresses.push(address),
                    Ok(Err(e)) => tracing::debug!("failed to look for the coordinator: failed to {e}"),
                    _ => {}
                }
            }
            for address in addresses {
                match self.reach(&address).await {
                    Ok(channel) => {
                        self.address = address;
                        return Ok(channel);
                    }
                    Err(e) => why = e.to_string(),
                }
            }
            if since.elapsed() >= self.grace {
                return Err(Error::Alone { seconds: self.grace.as_secs_f64(), why });
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// A channel to a coordinator that serves this run.
    async fn reach(&self, address: &str) -> Result<Connection> {
        let other = |why: String| Error::Coordinator { address: address.into(), why };
        let attempt = async {
            let channel = find::connect(address, &self.access).await?;
            let job = find::get_job(channel.clone(), address).await?;
            match job.run_url == self.run_url {
                true => Ok(channel),
                false => Err(other(format!("it serves the run {}", job.run_url))),
            }
        };
        match timeout(ANSWER, attempt).await {
            Ok(reached) => reached,
            Err(_) => Err(other(format!("no answer within {} s", ANSWER.as_secs()))),
        }
    }

    /// The session is over without the coordinator's word: whoever waits in a collective must hear of it.
    fn fail(&self, e: Error) {
        self.watch.over(u64::MAX);
        // A trainer that has ended needs no word.
        let _ = self.to_trainer.send(Err(e));
    }

    /// After the last directive: a trainer that is stuck would hold its device for ever.
    async fn last_breath(&mut self) {
        let ended = async { while self.outgoing.recv().await.is_some() {} };
        if timeout(LAST_BREATH, ended).await.is_err() {
            eprintln!(
                "error: failed to end within {} s of being told to: the trainer is stuck; it is ended by force",
                LAST_BREATH.as_secs()
            );
            collective::exit_now(1);
        }
    }
}

#[allow(clippy::disallowed_methods)] // a driver: deadlines only
fn now() -> Instant {
    Instant::now()
}
