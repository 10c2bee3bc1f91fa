//! A worker's session with its coordinator: reports and beats upward, directives downward.
//!
//! The trainer is synchronous and holds a [`Session`]; a task on the runtime carries the messages.
//!
//! ```text
//! mod.rs       the trainer's side: what was said, and what is asked of it
//! link.rs      the task: one connection after the other
//! standing.rs  what is remembered between two connections
//! watch.rs     which group to abort when its generation ends
//! find.rs      channels, addresses, the run's journal
//! progress.rs  where the trainer is
//! ```

mod find;
mod link;
mod progress;
mod standing;
mod watch;

pub use find::{connect, get_job, is_training, leader, local_address};
pub use progress::{Progress, Timing};

use crate::{Error, Result};
use collective::Group;
use link::Link;
use proto::{
    Access, Connection,
    v1::{self, CheckpointShard, Hello, directive, worker_message::Kind},
};
use standing::Standing;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self as std_mpsc, Receiver, RecvTimeoutError},
    },
    time::Duration,
};
use storage::Location;
use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{UnboundedSender, unbounded_channel},
        watch as latest,
    },
};
use watch::Watch;

/// A trainer that waits for the coordinator's word is alive: it says so this often.
const TICK: Duration = Duration::from_secs(1);

/// One rank's place in one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub generation: u64,
    pub rank: usize,
    pub world: usize,
    pub members: Vec<String>,
    /// The newest committed checkpoint.
    pub committed: Option<Age>,
}

/// How new a state is: the generation that took its last step, or a checkpoint of it, and that step. A later
/// generation may have gone back in steps, and counts all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age {
    pub generation: u64,
    pub step: u64,
}

/// What the coordinator asks of a running generation, on top of the next step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Leave it together, after the step whose vote says so.
    pub leave: bool,
    /// Take a checkpoint at that boundary.
    pub checkpoint: bool,
}

/// Who opens a session, and where.
pub struct Opening {
    /// To a coordinator that has answered.
    pub channel: Connection,
    /// What every coordinator is shown, and asked for.
    pub access: Access,
    pub address: String,
    pub hello: Hello,
    pub run: Location,
    /// The run as the coordinator names it.
    pub run_url: String,
    /// How long to go on without a coordinator.
    pub grace: Duration,
    /// Raised by whoever in this process wants a checkpoint.
    pub checkpoint: Arc<AtomicBool>,
}

/// The trainer's side of the session.
pub struct Session {
    outgoing: UnboundedSender<Kind>,
    incoming: Receiver<Result<directive::Kind>>,
    progress: Arc<Progress>,
    watch: Arc<Watch>,
    channel: latest::Receiver<Connection>,
    committed: Option<u64>,
    next: Option<Assignment>,
    /// The newest generation that the coordinator has ended, and why.
    over: (u64, String),
    /// The coordinator has nothing more for this worker.
    done: bool,
    /// Another process is to take its place.
    replaced: bool,
    /// The generation that is to be left, and whether with a checkpoint.
    leave: Option<(u64, bool)>,
    checkpoint: Arc<AtomicBool>,
}

impl Session {
    /// Starts the task that says Hello, and again after every break.
    pub fn open(runtime: &Handle, opening: Opening) -> Self {
        let (outgoing, messages) = unbounded_channel();
        let (to_trainer, incoming) = std_mpsc::channel();
        let (progress, watch) = (Arc::new(Progress::default()), Arc::new(Watch::default()));
        progress.at("joining", 0, 0, 0);
        let (current, channel) = latest::channel(opening.channel);
        let link = Link {
            standing: Standing::new(opening.hello),
            address: opening.address,
            access: opening.access,
            run: opening.run,
            run_url: opening.run_url,
            grace: opening.grace,
            outgoing: messages,
            to_trainer,
            progress: progress.clone(),
            watch: watch.clone(),
            channel: current,
            welcomed: false,
        };
        runtime.spawn(link.run());
        Self {
            outgoing,
            incoming,
            progress,
            watch,
            channel,
            committed: None,
            next: None,
            over: Default::default(),
            done: false,
            replaced: false,
            leave: None,
            checkpoint: opening.checkpoint,
        }
    }

    /// The group to abort when the coordinator ends `generation` while the trainer waits inside a collective.
    pub fn watch_over(&self, generation: u64, group: &Group) {
        self.watch.set(generation, group);
    }

    /// Where the trainer says what it does.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// The channel to whichever coordinator was reached last.
    pub fn channel(&self) -> latest::Receiver<Connection> {
        self.channel.clone()
    }

    /// After the coordinator has let this worker go: whether another process is welcome in its place.
    pub fn is_replaced(&self) -> bool {
        self.replaced
    }

    /// Sends a report; it waits for the next connection where there is none.
    pub fn send(&self, kind: Kind) {
        // The task ends only after it has told the trainer so.
        let _ = self.outgoing.send(kind);
    }

    /// Where the trainer is at this moment, for what it says next.
    pub fn beat(&self) {
        self.send(Kind::Beat(self.progress.beat()));
    }

    /// For whoever reports beside the trainer.
    pub fn sender(&self) -> impl Fn(Kind) + Send + Sync + 'static {
        // Weak: the task shall see when the trainer has ended.
        let outgoing = self.outgoing.downgrade();
        move |kind| {
            if let Some(outgoing) = outgoing.upgrade() {
                let _ = outgoing.send(kind);
            }
        }
    }

    /// A sender for the upload task.
    pub fn shard_sender(&self) -> impl Fn(CheckpointShard) + Send + 'static {
        let send = self.sender();
        move |shard| send(Kind::Shard(shard))
    }

    /// Something a person should know.
    pub fn log(&self, level: &str, text: impl Into<String>) {
        let text = text.into();
        tracing::info!("{text}");
        self.send(Kind::Log(v1::Log { level: level.into(), text }));
    }

    /// Waits until the coordinator has ended the session or `patience` ran out: the last reports are through.
    pub fn flush(&mut self, patience: Duration) {
        while let Ok(Ok(heard)) = self.incoming.recv_timeout(patience) {
            if let directive::Kind::Shutdown(_) = heard {
                return;
            }
        }
    }

    /// Steps whose checkpoint is committed, up to this one.
    pub fn committed(&self) -> Option<u64> {
        self.committed
    }

    /// Waits for the next generation. `None`: the job is done, or this worker was let go.
    pub fn wait_assignment(&mut self) -> Result<Option<Assignment>> {
        loop {
            if let Some(a) = self.next.take() {
                return Ok(Some(a));
            }
            if self.done {
                return Ok(None);
            }
            self.receive(TICK)?;
            self.progress.tick();
        }
    }

    /// An error if the coordinator has ended this generation. Never waits.
    pub fn check(&mut self, generation: u64) -> Result<()> {
        while self.receive(Duration::ZERO)? {}
        let over = |reason: &str| Err(Error::GenerationOver { generation, reason: reason.into() });
        match &self.next {
            _ if self.done => over("this worker was let go"),
            _ if self.over.0 >= generation => over(&self.over.1),
            Some(a) if a.generation > generation => over("a newer one was assigned"),
            _ => Ok(()),
        }
    }

    /// What is asked of this generation; as [`Session::check`] besides.
    pub fn asked(&mut self, generation: u64) -> Result<Asked> {
        self.check(generation)?;
        let leave = self.leave.filter(|(of, _)| *of == generation);
        let checkpoint =
            self.checkpoint.load(Ordering::Relaxed) || leave.is_some_and(|(_, checkpoint)| checkpoint);
        Ok(Asked { leave: leave.is_some(), checkpoint })
    }

    /// The ranks have agreed on what was asked of any of them, and will do it at this boundary.
    pub fn agreed(&mut self, leave: bool, checkpoint: bool) -> Asked {
        if checkpoint {
            self.checkpoint.store(false, Ordering::Relaxed);
        }
        Asked { leave, checkpoint }
    }

    /// Waits until the manifest of `step` is written, or `generation` is over.
    pub fn wait_committed(&mut self, step: u64, generation: u64) -> Result<()> {
        while self.committed < Some(step) {
            self.check(generation)?;
            self.receive(TICK)?;
            self.progress.tick();
        }
        Ok(())
    }

    /// Takes one directive, if one comes within `patience`; says whether one did.
    fn receive(&mut self, patience: Duration) -> Result<bool> {
        use directive::Kind::*;
        match self.incoming.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::Coordinator {
                    address: String::new(),
                    why: "the session is closed".into(),
                });
            }
            Ok(heard) => match heard? {
                Assigned(a) => self.next = Some(assignment(a)?),
                Committed(c) => self.committed = self.committed.max(Some(c.step)),
                Stop(s) => {
                    tracing::warn!("generation {} is over: {}", s.generation, s.reason);
                    // An assignment that was not taken up yet is void.
                    self.next.take_if(|a| a.generation <= s.generation);
                    self.over = (s.generation.max(self.over.0), s.reason);
                }
                Leave(l) => {
                    tracing::info!("leaving generation {} at the next step: {}", l.generation, l.reason);
                    let before = self.leave.is_some_and(|(of, checkpoint)| of == l.generation && checkpoint);
                    self.leave = Some((l.generation, l.checkpoint || before));
                }
                CheckpointNow(_) => self.checkpoint.store(true, Ordering::Relaxed),
                Shutdown(s) if s.ok => {
                    tracing::info!("the coordinator lets this worker go: {}", s.reason);
                    (self.done, self.replaced) = (true, s.restart);
                }
                Shutdown(s) => return Err(Error::Dismissed { reason: s.reason, again: s.restart }),
                Welcome(_) => {}
            },
        }
        Ok(true)
    }
}

fn assignment(a: v1::Assigned) -> Result<Assignment> {
    if a.rank >= a.world_size || a.members.len() != a.world_size as usize {
        return Err(Error::Rejected(format!(
            "the assignment of rank {} of {} makes no sense",
            a.rank, a.world_size
        )));
    }
    let committed = Age { generation: a.committed_generation, step: a.committed_step };
    Ok(Assignment {
        committed: Some(committed).filter(|c| c.generation > 0),
        generation: a.generation,
        rank: a.rank as usize,
        world: a.world_size as usize,
        members: a.members,
    })
}
