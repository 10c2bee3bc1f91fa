//! What workers and their supervisors tell. Fields as in the contract.

use super::types::{Epoch, Generation, Rank, Step};
use serde::{Deserialize, Serialize};

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
    /// The generation that its trainer is in, and its rank there; 0: none.
    pub generation: Generation,
    pub rank: Rank,
    /// The newest coordinator that it has heard of.
    pub coordinator: Epoch,
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
    /// The collective that it is in, and its number in the generation; empty: none.
    pub collective: String,
    /// The clip over which it failed, where it did.
    pub clip: String,
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// How a supervisor's trainer ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExitReport {
    pub worker: String,
    pub node: String,
    pub device: String,
    /// Exit status, signal, out of memory: in words.
    pub cause: String,
    /// Of the trainer's log.
    pub last_lines: Vec<String>,
    /// The supervisor starts it again.
    pub restarts: bool,
}

impl Beat {
    /// Seconds that the rank worked on its last step, whoever it waited for; none before the first.
    pub fn own_seconds(&self) -> Option<f64> {
        (self.step_seconds > 0.0).then(|| (self.step_seconds - self.exchange_wait_seconds).max(0.0))
    }
}
