//! The fields of a job, under the names the field uses. Units stand in the text ("30s", "256 MiB").

use crate::{Bytes, Seconds};
use serde::{Deserialize, Serialize};

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
    pub optimizer: Optimizer,
    #[serde(default)]
    pub schedule: Schedule,
    #[serde(default)]
    pub checkpoint: Checkpoint,
    #[serde(default)]
    pub cluster: Cluster,
}

/// Which clips, and how a clip becomes a network's input.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// The dataset's location: `s3://...`, `file://...` or a path.
    pub url: String,
    #[serde(default = "train_split")]
    pub train_split: String,
    #[serde(default = "eval_split")]
    pub eval_split: String,
    /// Shuffle lanes, a divisor of the global batch and the most workers the job can ever have.
    pub lanes: u32,
    #[serde(default)]
    pub shuffle: Shuffle,
    /// Leave out the last, short global batch of an epoch.
    #[serde(default)]
    pub drop_last: bool,
    /// Frames of a clip, T.
    pub frames: u32,
    /// Frames of the video from one sampled frame to the next, tau.
    #[serde(default = "one")]
    pub sampling_rate: u32,
    /// The frame rate that `sampling_rate` supposes; videos of another rate are rescaled to it. Absent: each video's own.
    #[serde(default)]
    pub fps: Option<f64>,
    #[serde(default = "mean")]
    pub mean: [f64; 3],
    #[serde(default = "std")]
    pub std: [f64; 3],
    /// Ceiling on the memory that prefetched batches may hold, per worker.
    #[serde(default = "prefetch")]
    pub prefetch: Bytes,
    /// Decode threads per worker; 0: the machine's cores shared among its workers.
    #[serde(default)]
    pub threads: usize,
    pub augment: Augment,
    pub eval: EvalCrop,
}

/// How the epoch's order is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shuffle {
    /// A true permutation inside each lane.
    #[default]
    Uniform,
}

/// Training augmentation: the same crop and flip for every frame of a clip.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augment {
    /// Side of the square crop, pixels.
    pub crop: u32,
    pub scale: Scale,
    /// Probability of a horizontal flip. 0 for labels that know left from right.
    #[serde(default)]
    pub flip: f64,
}

/// How large a part of the frame the crop covers.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Scale {
    /// The short side is resized to a size drawn uniformly from min..=max, then cropped (SlowFast).
    ShortSide { min: u32, max: u32 },
    /// A box of random area and aspect ratio is resized to the crop (Inception).
    Resized { area: [f64; 2], aspect: [f64; 2] },
}

/// Evaluation views: the short side is resized, then cropped.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalCrop {
    pub short_side: u32,
    pub crop: u32,
}

/// The network. The number of classes comes from the dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "arch")]
pub enum Model {
    Slowfast(SlowFast),
    VideoSwin(VideoSwin),
}

/// SlowFast (Feichtenhofer et al. 2019, section 3) on a ResNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowFast {
    /// 18, 50 or 101.
    #[serde(default = "fifty")]
    pub depth: u32,
    /// Fast frames per slow frame.
    #[serde(default = "four")]
    pub alpha: u32,
    /// The fast pathway has 1/beta of the slow one's channels; 8 in the paper.
    #[serde(default = "eight")]
    pub beta: u32,
    /// Channels of the slow pathway's stem.
    #[serde(default = "sixty_four")]
    pub width: u32,
    /// Temporal kernel of the lateral connections: 7 for 8x8 R50, else 5.
    #[serde(default = "five")]
    pub fusion_kernel: u32,
    #[serde(default = "half")]
    pub dropout: f64,
    /// The last batch norm of each residual block starts at zero.
    #[serde(default = "yes")]
    pub zero_init_last_norm: bool,
}

/// Video Swin (Liu et al. 2022, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoSwin {
    #[serde(default = "swin_embed")]
    pub embed_dim: u32,
    #[serde(default = "swin_depths")]
    pub depths: Vec<u32>,
    #[serde(default = "swin_heads")]
    pub heads: Vec<u32>,
    /// Patch, (t, h, w).
    #[serde(default = "swin_patch")]
    pub patch: [u32; 3],
    /// Attention window, (t, h, w) in patches.
    #[serde(default = "swin_window")]
    pub window: [u32; 3],
    #[serde(default = "mlp_ratio")]
    pub mlp_ratio: f64,
    #[serde(default)]
    pub dropout: f64,
    /// Largest drop-path rate; it grows linearly over all blocks.
    #[serde(default = "tenth")]
    pub drop_path: f64,
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
}

/// Arithmetic of forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    Fp32,
    /// bf16 autocast; weights and optimizer stay float32.
    Bf16,
}

/// The optimizer and its learning rate at the end of the warm-up.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Optimizer {
    Sgd(Sgd),
    Adamw(AdamW),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sgd {
    pub lr: f64,
    #[serde(default = "point_nine")]
    pub momentum: f64,
    #[serde(default = "yes")]
    pub nesterov: bool,
    /// Not applied to norms and biases.
    #[serde(default)]
    pub weight_decay: f64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamW {
    pub lr: f64,
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    #[serde(default = "eps")]
    pub eps: f64,
    /// Decoupled; not applied to norms and biases.
    #[serde(default)]
    pub weight_decay: f64,
}

/// Learning rate over fractional epochs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Linear warm-up from `warmup_start_lr` to the schedule's value at its end.
    #[serde(default)]
    pub warmup_epochs: f64,
    #[serde(default)]
    pub warmup_start_lr: f64,
    /// `cosine`: the rate at the end. `steps`: unused.
    #[serde(default)]
    pub end_lr: f64,
    /// `steps`: the epochs at which the rate changes.
    #[serde(default)]
    pub steps: Vec<f64>,
    /// `steps`: the rate after each of them, relative to the base rate.
    #[serde(default)]
    pub relative_lrs: Vec<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    #[default]
    Cosine,
    Steps,
    Constant,
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
    #[serde(default = "lost_after")]
    pub lost_after: Seconds,
    /// Beats go on but the trainer makes no progress for this long: lost.
    #[serde(default = "stuck_after")]
    pub stuck_after: Seconds,
    /// The longest a collective may take.
    #[serde(default = "collective_timeout")]
    pub collective_timeout: Seconds,
}

impl Optimizer {
    /// The base learning rate: the one at the end of the warm-up.
    pub fn lr(&self) -> f64 {
        match self {
            Optimizer::Sgd(o) => o.lr,
            Optimizer::Adamw(o) => o.lr,
        }
    }
}

fn train_split() -> String {
    "train".into()
}
fn eval_split() -> String {
    "val".into()
}
fn one() -> u32 {
    1
}
fn one_u64() -> u64 {
    1
}
fn four() -> u32 {
    4
}
fn five() -> u32 {
    5
}
fn eight() -> u32 {
    8
}
fn fifty() -> u32 {
    50
}
fn sixty_four() -> u32 {
    64
}
fn half() -> f64 {
    0.5
}
fn tenth() -> f64 {
    0.1
}
fn yes() -> bool {
    true
}
fn point_nine() -> f64 {
    0.9
}
fn betas() -> [f64; 2] {
    [0.9, 0.999]
}
fn eps() -> f64 {
    1e-8
}
fn mean() -> [f64; 3] {
    [0.45; 3]
}
fn std() -> [f64; 3] {
    [0.225; 3]
}
fn prefetch() -> Bytes {
    Bytes(256 << 20)
}
fn keep() -> usize {
    3
}
fn gather() -> Seconds {
    Seconds(30.0)
}
fn lost_after() -> Seconds {
    Seconds(10.0)
}
fn stuck_after() -> Seconds {
    Seconds(600.0)
}
fn collective_timeout() -> Seconds {
    Seconds(60.0)
}
fn swin_embed() -> u32 {
    96
}
fn swin_depths() -> Vec<u32> {
    vec![2, 2, 6, 2]
}
fn swin_heads() -> Vec<u32> {
    vec![3, 6, 12, 24]
}
fn swin_patch() -> [u32; 3] {
    [2, 4, 4]
}
fn swin_window() -> [u32; 3] {
    [8, 7, 7]
}
fn mlp_ratio() -> f64 {
    4.0
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            warmup_epochs: 0.0,
            warmup_start_lr: 0.0,
            end_lr: 0.0,
            steps: vec![],
            relative_lrs: vec![],
        }
    }
}
impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_steps: None, keep: keep() }
    }
}
impl Default for Cluster {
    fn default() -> Self {
        Self {
            workers: 1,
            min_workers: 1,
            gather: gather(),
            lost_after: lost_after(),
            stuck_after: stuck_after(),
            collective_timeout: collective_timeout(),
        }
    }
}
