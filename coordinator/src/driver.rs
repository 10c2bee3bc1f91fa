//! One task owns the core: inputs, timer and signals in; directives, notices and store writes out.

use crate::{
    Error,
    core::{Action, Core, Directive, Event, ExitReport, Hello, Membership, Notice, Now, WorkerId},
    journal::Journal,
    keeper, metrics,
    store::KeyValue,
    watch::{Hub, Stamped},
    wire,
};
use futures::{Stream, StreamExt};
use proto::v1;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use storage::Location;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::DropGuard;

/// How often the core looks at its deadlines.
const TICK: Duration = Duration::from_millis(200);
/// How often the journal is looked at: does another coordinator lead?
const LOOK: Duration = Duration::from_secs(5);
/// Longest pause before a generation's record is tried again after the store failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Incidents that a status shows.
const INCIDENTS: usize = 100;
/// At the end, how long the store may take for what is still to be written.
const LAST_WRITES: Duration = Duration::from_secs(60);

/// Everything that reaches the driver.
pub enum Input {
    /// A session said Hello.
    Open {
        worker: WorkerId,
        hello: Hello,
        session: Session,
    },
    Event(Event),
    /// Where does the job stand?
    Status(oneshot::Sender<v1::JobStatus>),
    /// A person lets a worker go; answered with whether there is one of this name.
    Release {
        name: String,
        reason: String,
        found: oneshot::Sender<bool>,
    },
    Exited(ExitReport),
}

/// What a person or the system asks of the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End the job with a checkpoint; the second time, at once.
    Stop,
    /// Take a checkpoint at the next step boundary.
    Checkpoint,
}

/// The driver's end of a session: dropping it ends the session once all was sent.
pub struct Session {
    pub sender: mpsc::UnboundedSender<Outgoing>,
    /// Ends the task that reads the worker's messages.
    pub _reader: DropGuard,
}

/// What a session is sent.
pub enum Outgoing {
    Directive(Directive),
    /// The last: the session ends with this error.
    Reject(String),
}

/// How the job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub ok: bool,
    pub reason: String,
    /// Another coordinator leads the run now; this one has told its workers nothing.
    pub superseded: bool,
}

/// Owns the core and everything its actions touch.
pub struct Driver {
    pub core: Core,
    pub run: Location,
    pub journal: Arc<Mutex<Journal>>,
    pub hub: Arc<Hub>,
    pub store: Arc<KeyValue>,
    /// What the run was told before this start.
    pub history: metrics::History,
    /// Where the driver's own background work reports.
    pub loopback: mpsc::Sender<Input>,
}

impl Driver {
    /// Runs the job to its end.
    pub async fn run(
        self,
        mut inputs: mpsc::Receiver<Input>,
        signals: impl Stream<Item = Signal>,
    ) -> Outcome {
        let start = clock();
        let (notices, metrics) =
            channel_to(|rx| metrics::write(self.run.clone(), self.journal.clone(), self.history.clone(), rx));
        let (jobs, keeper) =
            channel_to(|rx| keeper::keep(self.run.clone(), self.journal.clone(), rx, self.loopback.clone()));
        let incidents = metrics::parse(&self.run, &self.history.incidents).unwrap_or_else(|e| {
            tracing::warn!("failed to {e}");
            vec![]
        });
        let incidents = incidents.iter().map(|s| wire::job_event(s.unix_ms, &s.notice)).collect();
        let mut hands = Hands { driver: &self, sessions: HashMap::new(), notices, jobs, incidents };
        let mut core = self.core.clone();
        let (mut tick, mut look) = (interval(TICK), interval(LOOK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut signals = std::pin::pin!(signals.fuse());
        let outcome = loop {
            let event = tokio::select! {
                // What workers have said comes before the look at who was silent.
                biased;
                Some(signal) = signals.next() => match signal {
                    Signal::Stop => Event::Terminate,
                    Signal::Checkpoint => Event::CheckpointNow,
                },
                Some(input) = inputs.recv() => match hands.input(&core, input, now_since(start)) {
                    Some(event) => event,
                    None => continue,
                },
                _ = tick.tick() => Event::Tick,
                _ = look.tick() => {
                    hands.verify();
                    continue;
                }
            };
            if let Event::Disconnected { worker, .. } = &event {
                hands.sessions.remove(worker);
            }
            let actions = core.handle(now_since(start), event);
            if let Some(outcome) = actions.into_iter().fold(None, |end, a| hands.perform(a).or(end)) {
                break outcome;
            }
        };
        // Sessions and watchers see the end once they have read what was sent.
        drop(hands);
        self.hub.close();
        for (what, task) in [("checkpoints", keeper), ("metrics", metrics)] {
            if timeout(LAST_WRITES, task).await.is_err() {
                tracing::warn!("gave up writing {what} after {} s", LAST_WRITES.as_secs());
            }
        }
        outcome
    }
}

/// What the core's actions are done with.
struct Hands<'a> {
    driver: &'a Driver,
    sessions: HashMap<WorkerId, Session>,
    notices: mpsc::UnboundedSender<Stamped>,
    jobs: mpsc::UnboundedSender<Action>,
    /// The last ones, for those who ask.
    incidents: VecDeque<v1::JobEvent>,
}

impl Hands<'_> {
    /// What an input is to the core; questions are answered here.
    fn input(&mut self, core: &Core, input: Input, now: Now) -> Option<Event> {
        match input {
            Input::Event(event) => Some(event),
            Input::Open { worker, hello, session } => {
                self.sessions.insert(worker, session);
                Some(Event::Hello { worker, hello })
            }
            Input::Status(reply) => {
                let url = self.driver.run.url().to_string();
                // Whoever asked may have gone.
                let _ = reply.send(wire::status(core.status(now), self.incidents.iter().cloned(), url));
                None
            }
            Input::Release { name, reason, found } => {
                let _ = found.send(core.knows(&name));
                Some(Event::Release { name, reason })
            }
            Input::Exited(report) => Some(Event::Exited(report)),
        }
    }

    fn perform(&mut self, action: Action) -> Option<Outcome> {
        let d = self.driver;
        match action {
            Action::Send { to, directive } => self.send(to, Outgoing::Directive(directive)),
            Action::Reject { to, why } => {
                self.send(to, Outgoing::Reject(why));
                self.sessions.remove(&to);
            }
            Action::Close { to } => {
                self.sessions.remove(&to);
            }
            Action::Record(membership) => {
                tokio::spawn(record(d.journal.clone(), d.loopback.clone(), membership));
            }
            // The keeper lives as long as this end of its channel.
            job @ (Action::Commit(_) | Action::Prune { .. }) => {
                let _ = self.jobs.send(job);
            }
            Action::DropKeys { generation, reason } => d.store.generation_over(generation.0, reason),
            Action::Publish(notice) => {
                announce(&notice);
                let stamped = Stamped { unix_ms: unix_ms(), notice };
                if let Notice::Incident(_) = &stamped.notice {
                    self.incidents.push_back(wire::job_event(stamped.unix_ms, &stamped.notice));
                    while self.incidents.len() > INCIDENTS {
                        self.incidents.pop_front();
                    }
                }
                d.hub.publish(stamped.clone());
                let _ = self.notices.send(stamped);
            }
            Action::Verify => self.verify(),
            Action::Exit { ok, reason } => return Some(Outcome { ok, reason, superseded: false }),
            Action::Resign { why } => {
                return Some(Outcome { ok: false, reason: why, superseded: true });
            }
        }
        None
    }

    /// Looks into the journal, in the background.
    fn verify(&self) {
        let (journal, loopback) = (self.driver.journal.clone(), self.driver.loopback.clone());
        tokio::spawn(async move {
            let looked = journal.lock().await.still_leads().await;
            match looked {
                Ok(()) => {}
                Err(e @ Error::Superseded { .. }) => report(&loopback, e).await,
                Err(e) => tracing::warn!("failed to {e}"),
            }
        });
    }

    /// A session that is gone is reported by its reader.
    fn send(&self, to: WorkerId, outgoing: Outgoing) {
        if let Some(session) = self.sessions.get(&to) {
            let _ = session.sender.send(outgoing);
        }
    }
}

/// Makes a generation durable, however long the store takes: without that nobody may hear of it.
async fn record(journal: Arc<Mutex<Journal>>, loopback: mpsc::Sender<Input>, membership: Membership) {
    let (at, mut pause) = (unix_ms(), Duration::from_secs(1));
    loop {
        let recorded = journal.lock().await.record(&membership, at).await;
        match recorded {
            Ok(()) => {
                let event = Event::Recorded { generation: membership.generation };
                let _ = loopback.send(Input::Event(event)).await;
                return;
            }
            Err(Error::Storage(e)) if e.is_passing() => {
                tracing::warn!("failed to {e}; trying again in {} s", pause.as_secs());
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
            Err(e) => return report(&loopback, e).await,
        }
    }
}

/// Tells the core that this coordinator cannot go on. The core may have ended: then nobody listens.
pub(crate) async fn report(loopback: &mpsc::Sender<Input>, e: Error) {
    let why = format!("failed to {e}");
    let event = match e {
        Error::Superseded { .. } => Event::Superseded { why },
        _ => Event::Fatal { error: why },
    };
    let _ = loopback.send(Input::Event(event)).await;
}

/// Spawns a task at the far end of a channel.
fn channel_to<T, F: Future<Output = ()> + Send + 'static>(
    task: impl FnOnce(mpsc::UnboundedReceiver<T>) -> F,
) -> (mpsc::UnboundedSender<T>, JoinHandle<()>) {
    let (tx, rx) = mpsc::unbounded_channel();
    (tx, tokio::spawn(task(rx)))
}

/// The coordinator's own log.
fn announce(notice: &Notice) {
    use crate::core::Level;
    match notice {
        Notice::Generation { generation, members } => {
            tracing::info!("generation {generation}: {} worker(s): {}", members.len(), members.join(", "));
        }
        Notice::Step(r) => tracing::debug!("step {} of {}: loss {:.4}", r.step, r.total_steps, r.loss),
        Notice::Eval(r) => {
            let (top1, top5) = (100.0 * r.top1, 100.0 * r.top5);
            let map = r.mean_average_precision.map_or(String::new(), |m| format!("mAP {:.1} %, ", 100.0 * m));
            tracing::info!("step {}: {map}top-1 {top1:.1} %, top-5 {top5:.1} % of {} clips", r.step, r.clips);
        }
        Notice::Checkpoint { step, bytes, manifest } => {
            tracing::info!("checkpoint of step {step}: {bytes} bytes, {manifest}");
        }
        Notice::Lost { reason, .. } => tracing::warn!("{reason}"),
        Notice::Log { level: Level::Info, text } => tracing::info!("{text}"),
        Notice::Log { level: Level::Warn, text } => tracing::warn!("{text}"),
        Notice::Log { level: Level::Error, text } => tracing::error!("{text}"),
        Notice::Ended { ok, reason } => tracing::info!(ok, "the job ended: {reason}"),
        Notice::Incident(i) => {
            let (what, generation, seconds) = (i.what.name(), i.generation, i.seconds);
            tracing::info!(
                "incident ({what}, generation {generation}, {seconds:.2} s): {} {}",
                i.worker,
                i.cause
            );
        }
        Notice::Beat { .. } => {}
    }
}

fn now_since(start: Instant) -> Now {
    Now(clock().saturating_duration_since(start))
}

#[allow(clippy::disallowed_methods)] // the driver is where the clock is read
fn clock() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods)] // as above
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
