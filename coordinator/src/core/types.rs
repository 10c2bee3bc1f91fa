//! The vocabulary of the core: ids, what workers report, what the core decides.
//!
//! Nothing here knows the wire: `crate::wire` converts at the edge.

use super::retention::{Retention, Scores};
use serde::Serialize;
use std::{fmt, time::Duration};

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
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
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
    /// One session of one worker: a worker that comes back gets another.
    WorkerId(u64)
);

impl Generation {
    /// The one after.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// How a worker introduces itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    pub protocol_version: u32,
    /// Unique name: host-pid-device.
    pub name: String,
    /// The host; empty where the worker does not say.
    pub node: String,
    pub device: String,
    pub config_digest: String,
    pub dataset_digest: String,
}

/// A sign of life.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Beat {
    pub generation: Generation,
    pub epoch: u64,
    pub step: Step,
    pub phase: String,
    /// Grows whenever the trainer moves.
    pub progress: u64,
    /// Of this rank's last step: all of it, and what of it was spent waiting.
    pub step_seconds: f64,
    pub data_wait_seconds: f64,
    pub exchange_wait_seconds: f64,
}

/// One optimizer step, told by rank 0. Fields as in the contract.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StepReport {
    pub generation: Generation,
    pub epoch: u64,
    pub step: Step,
    pub steps_per_epoch: u64,
    pub total_steps: u64,
    pub loss: f64,
    pub accuracy: f64,
    pub lr: f64,
    pub clips: u64,
    pub step_seconds: f64,
    pub data_wait_seconds: f64,
    pub exchange_wait_seconds: f64,
    pub peak_memory_bytes: u64,
    pub grad_norm: f64,
    pub skipped: bool,
    pub step_in_epoch: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// One evaluation, told by rank 0. Fields as in the contract.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EvalReport {
    pub generation: Generation,
    pub epoch: u64,
    pub step: Step,
    pub loss: f64,
    pub top1: f64,
    pub top5: f64,
    pub clips: u64,
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_average_precision: Option<f64>,
    pub missing: u64,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointFile {
    /// Relative to the step's folder.
    pub key: String,
    pub bytes: u64,
    pub sha256: String,
}

/// What one rank has uploaded of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    pub generation: Generation,
    pub step: Step,
    pub rank: Rank,
    pub world_size: u32,
    /// Folder below the step's, the same on every rank.
    pub attempt: String,
    pub files: Vec<CheckpointFile>,
    /// From rank 0: the head of the manifest.
    pub header_json: String,
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
    /// The coordinator cannot go on: superseded, or its run location is gone.
    Fatal {
        error: String,
    },
    /// A person or the system asked the coordinator to stop.
    Terminate,
    /// Time passed.
    Tick,
}

/// What a worker is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Directive {
    Welcome { name: String },
    Assigned { generation: Generation, rank: Rank, members: Vec<String> },
    Stop { generation: Generation, reason: String },
    Committed { step: Step },
    Shutdown { ok: bool, reason: String },
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
    Record {
        generation: Generation,
        members: Vec<String>,
    },
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
    /// Delete these steps' folders, manifest first; then everything below `checkpoints/` that is
    /// older than `newest` and belongs to no manifest.
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
    /// The job is over: the process ends.
    Exit {
        ok: bool,
        reason: String,
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
    /// The plan's lanes: more workers than this have nothing to do.
    pub max_workers: u32,
    pub gather: Duration,
    pub beat_timeout: Duration,
    pub step_timeout: Duration,
    pub collective_timeout: Duration,
    /// Which checkpoints stay.
    pub retention: Retention,
}
