//! The vocabulary of the core: ids, what workers report, what the core decides.
//!
//! Nothing here knows the wire: `crate::wire` converts at the edge.

use super::{
    incident::Incident,
    reports::*,
    retention::{Kept, Retention, Scores},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

/// Time since the coordinator started, by a monotonic clock the core never reads itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub Duration);

impl Now {
    /// Time passed since `earlier`; zero where that lies ahead.
    pub fn since(self, earlier: Now) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
id!(
    /// A membership with ranks. Numbered without gaps for as long as the run exists; the first is 1.
    Generation(u64)
);
id!(
    /// Place in a generation, from 0.
    Rank(u32)
);
id!(
    /// Optimizer steps done since the start of the job.
    Step(u64)
);
id!(
    /// One coordinator's time in office: the number of the journal entry by which it claimed the run.
    Epoch(u64)
);
id!(
    /// One session of one worker: a worker that comes back gets another.
    WorkerId(u64)
);

impl Generation {
    /// The one after.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warn,
    Error,
}

/// Everything that can happen to the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// First message of a session.
    Hello {
        worker: WorkerId,
        hello: Hello,
    },
    Beat {
        worker: WorkerId,
        beat: Beat,
    },
    Step {
        worker: WorkerId,
        report: StepReport,
    },
    Eval {
        worker: WorkerId,
        report: EvalReport,
    },
    Shard {
        worker: WorkerId,
        shard: Shard,
    },
    Log {
        worker: WorkerId,
        level: Level,
        text: String,
    },
    /// The worker's collective failed and it waits for an assignment; or, if `fatal`, no worker
    /// could go on from here.
    StepFailed {
        worker: WorkerId,
        generation: Generation,
        step: Step,
        error: String,
        fatal: bool,
    },
    /// Nothing is left to do for this rank.
    Finished {
        worker: WorkerId,
        generation: Generation,
        step: Step,
    },
    /// The worker asks to be let go at the next step boundary.
    Leaving {
        worker: WorkerId,
        reason: String,
    },
    /// The worker has left the generation at a step boundary.
    Left {
        worker: WorkerId,
        generation: Generation,
        step: Step,
    },
    /// A person asks that the worker of this name be let go.
    Release {
        name: String,
        reason: String,
    },
    /// A supervisor tells how a trainer ended.
    Exited(ExitReport),
    /// The session's stream ended.
    Disconnected {
        worker: WorkerId,
        why: String,
    },
    /// The journal holds this generation durably.
    Recorded {
        generation: Generation,
    },
    /// The manifest of this step is written.
    Committed {
        step: Step,
        bytes: u64,
        manifest: String,
    },
    /// The manifest could not be written, after all retries.
    CommitFailed {
        step: Step,
        error: String,
    },
    /// Another coordinator leads the run: this one decides nothing more.
    Superseded {
        why: String,
    },
    /// The coordinator cannot go on: its run location is gone.
    Fatal {
        error: String,
    },
    /// A person or the system asked the job to stop; the second time: at once.
    Terminate,
    /// A person asked for a checkpoint at the next step boundary.
    CheckpointNow,
    /// Time passed.
    Tick,
}

/// What a worker is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Directive {
    Welcome {
        name: String,
    },
    Assigned {
        generation: Generation,
        rank: Rank,
        members: Arc<[String]>,
        /// The newest committed checkpoint.
        committed: Option<(Generation, Step)>,
    },
    Stop {
        generation: Generation,
        reason: String,
    },
    Leave {
        generation: Generation,
        reason: String,
        checkpoint: bool,
    },
    CheckpointNow,
    Committed {
        step: Step,
    },
    Shutdown {
        ok: bool,
        reason: String,
    },
}

/// What those who watch the job are told, and what the metrics files hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Notice {
    Generation { generation: Generation, members: Vec<String> },
    Step(StepReport),
    Eval(EvalReport),
    Checkpoint { step: Step, bytes: u64, manifest: String },
    Lost { worker: String, rank: Rank, step: Step, reason: String },
    Log { level: Level, text: String },
    Ended { ok: bool, reason: String },
    Beat { worker: String, rank: Rank, beat: Beat },
    Incident(Incident),
}

/// Who is in a generation, as the journal keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    pub generation: Generation,
    /// By rank.
    pub names: Arc<[String]>,
    /// Their hosts, by rank.
    pub nodes: Vec<String>,
    /// The host of each chair, vacant ones included (see `seating`).
    pub chairs: Vec<String>,
}

/// What a coordinator finds when it takes a run.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub epoch: Epoch,
    /// The newest recorded generation; the default: there is none.
    pub last: Membership,
    /// The steps that have a manifest, with the attempt that it names.
    pub committed: BTreeMap<Step, Kept>,
}

/// A checkpoint of which every rank's part is there.
#[derive(Clone, Debug, PartialEq)]
pub struct WholeCheckpoint {
    pub generation: Generation,
    pub step: Step,
    pub attempt: String,
    /// In the order of ranks.
    pub files: Vec<CheckpointFile>,
    pub header_json: String,
    /// Of the evaluation at this step, if there was one.
    pub scores: Scores,
    /// A manifest of this step exists, and the generation did not start from it: it was refused.
    pub replaces: bool,
}

/// What the driver must do. In order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the generation durable, then answer with [`Event::Recorded`].
    Record(Membership),
    Send {
        to: WorkerId,
        directive: Directive,
    },
    /// Refuse a newcomer and close its session.
    Reject {
        to: WorkerId,
        why: String,
    },
    /// Close the session after what was sent.
    Close {
        to: WorkerId,
    },
    /// Write the manifest, then answer with [`Event::Committed`] or [`Event::CommitFailed`].
    Commit(WholeCheckpoint),
    /// Delete these steps' folders, manifest first; then everything below `checkpoints/` of steps before
    /// `newest` that belongs to no manifest.
    Prune {
        delete: Vec<Step>,
        newest: Step,
    },
    /// The generation's keys of the c10d store are void; its waiters are told why.
    DropKeys {
        generation: Generation,
        reason: String,
    },
    Publish(Notice),
    /// Look into the journal whether this coordinator still leads; if not, answer with [`Event::Superseded`].
    Verify,
    /// The job is over: the process ends.
    Exit {
        ok: bool,
        reason: String,
    },
    /// Another coordinator leads: close the sessions without a word, and end.
    Resign {
        why: String,
    },
}

/// What the core must know of the job.
#[derive(Clone, Debug)]
pub struct Settings {
    pub protocol_version: u32,
    pub config_digest: String,
    pub dataset_digest: String,
    /// Workers to wait for at the start, for at most `gather` after the first came.
    pub workers: u32,
    pub min_workers: u32,
    /// More workers than this stand by.
    pub max_workers: u32,
    pub gather: Duration,
    pub beat_timeout: Duration,
    pub step_timeout: Duration,
    pub collective_timeout: Duration,
    /// A newcomer waits this long for others before room is made for it.
    pub join_window: Duration,
    /// A job that is told to stop has this long for its checkpoint.
    pub stop_grace: Duration,
    /// A rank whose own time is this many times the median's is a straggler.
    pub straggler_factor: Option<f64>,
    pub replace_stragglers: bool,
    /// Which checkpoints stay.
    pub retention: Retention,
}
