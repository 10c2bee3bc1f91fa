//! A job under the names the field uses. Units stand in the text ("30s", "256 MiB").

use crate::{Bytes, Data, Model, Multigrid, Optimizer, Schedule, Seconds};
use serde::Deserialize;

/// A whole training job.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Seeds weights, shuffling and augmentation.
    #[serde(default)]
    pub seed: u64,
    pub data: Data,
    pub model: Model,
    pub train: Train,
    #[serde(default)]
    pub loss: Loss,
    #[serde(default)]
    pub mix: Option<Mix>,
    pub optimizer: Optimizer,
    #[serde(default)]
    pub schedule: Schedule,
    #[serde(default)]
    pub checkpoint: Checkpoint,
    #[serde(default)]
    pub cluster: Cluster,
}

/// The loop.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    pub epochs: u64,
    /// Clips of one optimizer step over all workers.
    pub global_batch: u32,
    /// Stop after this many steps even inside an epoch.
    #[serde(default)]
    pub max_steps: Option<u64>,
    #[serde(default)]
    pub precision: Precision,
    /// Memory format of activations and convolution weights: channels_last_3d.
    #[serde(default = "yes")]
    pub channels_last: bool,
    /// Evaluate after every n epochs; 0: only at the end.
    #[serde(default = "one_u64")]
    pub eval_every_epochs: u64,
    /// Each frame of the clip is replaced by its first: what a single frame can tell.
    #[serde(default)]
    pub single_frame: bool,
    /// The run or checkpoint whose weights a new run starts from (see `marey import`); its optimizer state
    /// and position are left there. A classifier of another size starts fresh.
    #[serde(default)]
    pub init: Option<String>,
    /// Clips of one forward and backward pass of a worker; its share of the global batch is taken in as many
    /// passes as that needs (gradient accumulation). Absent: in one.
    #[serde(default)]
    pub micro_batch: Option<u32>,
    /// Gradients are scaled down where their norm over all parameters is above this.
    #[serde(default)]
    pub clip_norm: Option<f64>,
    /// Keep an exponential moving average of the weights and measure accuracy with it.
    #[serde(default)]
    pub ema: Option<Ema>,
    /// What batch norms take their statistics from.
    #[serde(default)]
    pub batch_norm: BatchNorm,
    /// Before an evaluation, running statistics are measured anew over this many global batches
    /// (PySlowFast's precise BN); 0: not.
    #[serde(default)]
    pub precise_bn_batches: u64,
    /// A step whose loss or gradient is not finite is skipped on every worker; after more than this many in
    /// a row the job stops.
    #[serde(default = "skipped")]
    pub max_skipped_steps: u64,
    /// Keep only each block's input for the backward pass and compute the rest again: slower, less memory.
    #[serde(default)]
    pub checkpoint_activations: bool,
    /// Multigrid training: smaller clips in larger batches first. `epochs` and the schedule's steps stay those
    /// of a plain job and are stretched.
    #[serde(default)]
    pub multigrid: Option<Multigrid>,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    #[serde(default)]
    pub kind: LossKind,
    /// `cross_entropy`: this part of the target is spread evenly over all classes.
    #[serde(default)]
    pub label_smoothing: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    #[default]
    CrossEntropy,
    /// Binary cross-entropy of each class on its own: for clips with any number of labels (Charades).
    Bce,
}

/// Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) of each worker's clips, on the device; both
/// given: one of them at a time.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// Of the Beta distribution that the share is drawn from; 0: no mixup.
    #[serde(default)]
    pub mixup_alpha: f64,
    /// 0: no cutmix.
    #[serde(default)]
    pub cutmix_alpha: f64,
    /// Probability that a batch is mixed at all.
    #[serde(default = "one_f64")]
    pub prob: f64,
    /// Probability of cutmix, where both are given.
    #[serde(default = "half")]
    pub switch_prob: f64,
}

/// An exponential moving average of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ema {
    /// The part of the average that a step keeps, like 0.9999.
    pub decay: f64,
}

/// What batch norms take their statistics from while training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum BatchNorm {
    /// All clips of the worker's pass.
    #[default]
    Local,
    /// Groups of `clips` clips of the worker's pass, as PySlowFast's BN over 8 clips a GPU.
    SubBatch { clips: u32 },
    /// All clips of the global batch (of the pass), however unevenly they are shared out.
    Sync,
    /// The running statistics, which stay as they are; scale and shift are still trained.
    Frozen,
}

/// Arithmetic of forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    Fp32,
    /// bf16 autocast; weights and optimizer stay float32.
    Bf16,
    /// fp16 autocast with a loss scaler; on CUDA only.
    Fp16,
}

/// When a checkpoint is written and which are kept. One is always written at the end.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Every n steps; absent: at the end of each epoch.
    #[serde(default)]
    pub every_steps: Option<u64>,
    /// The newest k are kept.
    #[serde(default = "keep")]
    pub keep: usize,
    /// Besides those, every checkpoint whose step is a multiple of this.
    #[serde(default)]
    pub keep_every: Option<u64>,
    /// Besides those, the one with the best validation figure so far.
    #[serde(default)]
    pub keep_best: Option<Metric>,
    /// Bytes a second that each worker's upload may take; absent: as fast as it goes.
    #[serde(default)]
    pub bandwidth: Option<Bytes>,
    /// A copy on a disk of each node, written before the upload and read instead of the store at a start; absent:
    /// none.
    #[serde(default)]
    pub local: Option<LocalCopies>,
}

/// Copies of checkpoints on the nodes' own disks.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalCopies {
    /// The same on every node; jobs may share it.
    pub folder: String,
    /// The newest so many stay, of each run.
    #[serde(default = "keep_local")]
    pub keep: usize,
}

/// A figure of the evaluation; more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Part of the clips whose likeliest class is right.
    Top1,
    /// Mean average precision, where clips bear several labels.
    Map,
}

/// Who takes part.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Workers to wait for at the start, up to `gather`.
    #[serde(default = "one")]
    pub workers: u32,
    /// Fewer than this and the job waits.
    #[serde(default = "one")]
    pub min_workers: u32,
    /// How long to wait for `workers` before starting with at least `min_workers`.
    #[serde(default = "gather")]
    pub gather: Seconds,
    /// Without a beat, or with beats but no progress, for this long: lost.
    #[serde(default = "beat_timeout")]
    pub beat_timeout: Seconds,
    /// Beats go on but the trainer makes no progress for this long: lost.
    #[serde(default = "step_timeout")]
    pub step_timeout: Seconds,
    /// The longest a collective may take.
    #[serde(default = "collective_timeout")]
    pub collective_timeout: Seconds,
    /// More workers than this wait at the door; absent: `data.lanes`.
    #[serde(default)]
    pub max_workers: Option<u32>,
    /// A newcomer waits this long for others to come along before the running generation makes room for it.
    #[serde(default = "join_window")]
    pub join_window: Seconds,
    /// How long workers go on without their coordinator before they give up.
    #[serde(default = "coordinator_grace")]
    pub coordinator_grace: Seconds,
    /// How long a job that is told to stop may take to commit its checkpoint.
    #[serde(default = "stop_grace")]
    pub stop_grace: Seconds,
    /// A rank is reported when its own part of a step takes this many times the median rank's; absent: never.
    #[serde(default = "straggler_factor")]
    pub straggler_factor: Option<f64>,
    /// A reported straggler is let go, if enough others are there or its supervisor starts it again.
    #[serde(default)]
    pub replace_stragglers: bool,
    /// A trainer that dies so often in a row without finishing a step is not started again.
    #[serde(default = "restarts")]
    pub restarts: u32,
}

fn one() -> u32 {
    1
}
fn one_u64() -> u64 {
    1
}
fn one_f64() -> f64 {
    1.0
}
fn half() -> f64 {
    0.5
}
fn skipped() -> u64 {
    10
}
fn yes() -> bool {
    true
}
fn keep() -> usize {
    3
}
fn keep_local() -> usize {
    2
}
fn gather() -> Seconds {
    Seconds(30.0)
}
fn beat_timeout() -> Seconds {
    Seconds(10.0)
}
fn step_timeout() -> Seconds {
    Seconds(600.0)
}
fn collective_timeout() -> Seconds {
    Seconds(60.0)
}
fn join_window() -> Seconds {
    Seconds(2.0)
}
fn coordinator_grace() -> Seconds {
    Seconds(600.0)
}
fn stop_grace() -> Seconds {
    Seconds(30.0)
}
fn straggler_factor() -> Option<f64> {
    Some(2.0)
}
fn restarts() -> u32 {
    3
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            every_steps: None,
            keep: keep(),
            keep_every: None,
            keep_best: None,
            bandwidth: None,
            local: None,
        }
    }
}
impl Default for Cluster {
    fn default() -> Self {
        Self {
            workers: 1,
            min_workers: 1,
            gather: gather(),
            beat_timeout: beat_timeout(),
            step_timeout: step_timeout(),
            collective_timeout: collective_timeout(),
            max_workers: None,
            join_window: join_window(),
            coordinator_grace: coordinator_grace(),
            stop_grace: stop_grace(),
            straggler_factor: straggler_factor(),
            replace_stragglers: false,
            restarts: restarts(),
        }
    }
}
