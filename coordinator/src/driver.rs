//! One task owns the core: inputs, timer and signals in; directives, notices and store writes out.

use crate::{
    core::{Action, Core, Directive, Event, Hello, Notice, Now, WorkerId},
    journal::Journal,
    manifest, metrics,
    store::KeyValue,
    watch::{Hub, Stamped},
};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use storage::Location;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::DropGuard;

/// How often the core looks at its deadlines.
const TICK: Duration = Duration::from_millis(200);
/// Pauses before a checkpoint is tried again after the store failed.
const RETRY: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(15)];
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
}

/// Owns the core and everything its actions touch.
pub struct Driver {
    pub core: Core,
    pub run: Location,
    pub journal: Arc<Mutex<Journal>>,
    pub hub: Arc<Hub>,
    pub store: Arc<KeyValue>,
    /// Where the driver's own background work reports.
    pub loopback: mpsc::Sender<Input>,
}

impl Driver {
    /// Runs the job to its end. `stop` asks for an early one.
    pub async fn run(self, mut inputs: mpsc::Receiver<Input>, stop: impl Future<Output = ()>) -> Outcome {
        let start = clock();
        let (notices, metrics) = channel_to(|rx| metrics::write(self.run.clone(), rx));
        let (jobs, keeper) = channel_to(|rx| {
            keep_checkpoints(self.run.clone(), self.journal.clone(), rx, self.loopback.clone())
        });
        let mut hands = Hands { driver: &self, sessions: HashMap::new(), notices, jobs };
        let mut core = self.core.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = std::pin::pin!(stop);
        let mut stopping = false;
        let outcome = loop {
            let event = tokio::select! {
                // What workers have said comes before the look at who was silent.
                biased;
                () = &mut stop, if !stopping => {
                    stopping = true;
                    Event::Terminate
                }
                Some(input) = inputs.recv() => match input {
                    Input::Event(event) => event,
                    Input::Open { worker, hello, session } => {
                        hands.sessions.insert(worker, session);
                        Event::Hello { worker, hello }
                    }
                },
                _ = tick.tick() => Event::Tick,
            };
            if let Event::Disconnected { worker, .. } = &event {
                hands.sessions.remove(worker);
            }
            let now = Now(clock().saturating_duration_since(start));
            let actions = core.handle(now, event);
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
}

impl Hands<'_> {
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
            Action::Record { generation, members } => {
                let (journal, loopback) = (d.journal.clone(), d.loopback.clone());
                tokio::spawn(async move {
                    let event = match journal.lock().await.record(generation, members, unix_ms()).await {
                        Ok(()) => Event::Recorded { generation },
                        Err(e) => Event::Fatal { error: format!("failed to {e}") },
                    };
                    let _ = loopback.send(Input::Event(event)).await;
                });
            }
            // The keeper lives as long as this end of its channel.
            job @ (Action::Commit(_) | Action::Prune { .. }) => {
                let _ = self.jobs.send(job);
            }
            Action::DropKeys { generation, reason } => d.store.generation_over(generation.0, reason),
            Action::Publish(notice) => {
                announce(&notice);
                let stamped = Stamped { unix_ms: unix_ms(), notice };
                d.hub.publish(stamped.clone());
                let _ = self.notices.send(stamped);
            }
            Action::Exit { ok, reason } => return Some(Outcome { ok, reason }),
        }
        None
    }

    /// A session that is gone is reported by its reader.
    fn send(&self, to: WorkerId, outgoing: Outgoing) {
        if let Some(session) = self.sessions.get(&to) {
            let _ = session.sender.send(outgoing);
        }
    }
}

/// Commits and prunes, one after the other, so that a sweep never meets a commit half done.
async fn keep_checkpoints(
    run: Location,
    journal: Arc<Mutex<Journal>>,
    mut jobs: mpsc::UnboundedReceiver<Action>,
    loopback: mpsc::Sender<Input>,
) {
    while let Some(job) = jobs.recv().await {
        // Only the leader of the run may write or delete.
        if let Err(e) = journal.lock().await.still_leads().await {
            let event = Event::Fatal { error: format!("failed to {e}") };
            let _ = loopback.send(Input::Event(event)).await;
            continue;
        }
        match job {
            Action::Commit(whole) => {
                let step = whole.step;
                let mut retries = RETRY.iter();
                let event = loop {
                    match manifest::commit(&run, &whole).await {
                        Ok(w) => break Event::Committed { step, bytes: w.bytes, manifest: w.url },
                        Err(crate::Error::Storage(e)) if !e.is_usage() => match retries.next() {
                            Some(pause) => {
                                tracing::warn!("failed to {e}; trying again in {} s", pause.as_secs());
                                tokio::time::sleep(*pause).await;
                            }
                            None => break Event::CommitFailed { step, error: format!("failed to {e}") },
                        },
                        Err(e) => break Event::CommitFailed { step, error: format!("failed to {e}") },
                    }
                };
                let _ = loopback.send(Input::Event(event)).await;
            }
            Action::Prune { delete, newest } => {
                // Old checkpoints that stay cost space, not correctness.
                if let Err(e) = manifest::prune(&run, &delete, newest).await {
                    tracing::warn!("failed to delete old checkpoints: failed to {e}");
                }
            }
            _ => {}
        }
    }
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
        Notice::Beat { .. } => {}
    }
}

#[allow(clippy::disallowed_methods)] // the driver is where the clock is read
fn clock() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods)] // as above
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
