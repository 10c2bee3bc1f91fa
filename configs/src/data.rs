//! Which clips, and how a clip becomes a network's input.

use crate::{Bytes, Seconds};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// With `shuffle = "grouped"`: bytes of neighbouring clips that are held and shuffled together, over all workers.
    #[serde(default = "shuffle_window")]
    pub shuffle_window: Bytes,
    /// What an epoch shows of the clips.
    #[serde(default)]
    pub sampling: Sampling,
    /// Clips of an epoch, with `sampling = "class_balanced"` or a mixture; absent: as many as there are.
    #[serde(default)]
    pub epoch_clips: Option<u64>,
    /// Train on several datasets by weight instead of `url`, whose labels and evaluation split still count.
    #[serde(default)]
    pub mixture: Vec<MixturePart>,
    /// A text file of clip ids, one a line, that are left out of training: a location like `url`'s.
    #[serde(default)]
    pub quarantine: Option<String>,
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
    /// What becomes of a clip whose stored bytes are not what was written, also when they are fetched again.
    #[serde(default)]
    pub on_damage: OnDamage,
    /// How the dataset's store is asked for clips.
    #[serde(default)]
    pub requests: Requests,
    /// Fetched clips are kept on the node's own disk; absent: they are not.
    #[serde(default)]
    pub cache: Option<DataCache>,
    pub augment: Augment,
    /// One central view a clip, for the accuracy during training.
    pub eval: EvalCrop,
    /// What `marey eval` shows; absent: `eval`'s sizes in 10x3 views.
    #[serde(default)]
    pub test: Option<Test>,
    /// The dataset's published size: what `marey train --dry-run` plans with where the dataset cannot be
    /// opened. Training never looks at it.
    #[serde(default)]
    pub nominal: Option<Nominal>,
}

impl Data {
    /// The views of `marey eval`, where the command line asks for no others.
    pub fn test_views(&self) -> Test {
        self.test.clone().unwrap_or(Test {
            views: Views { clips: 10, crops: 3 },
            short_side: self.eval.short_side,
            crop: self.eval.crop,
            sampling: TestSampling::default(),
            ensemble: Ensemble::default(),
        })
    }
}

/// What becomes of a damaged clip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDamage {
    /// The job stops with an error that names it.
    #[default]
    Stop,
    /// Its step is taken without it, on every worker alike, and the run's metrics name it.
    Quarantine,
}

/// How a worker asks the dataset's store for clips.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Requests {
    /// Requests under way at most.
    pub at_once: usize,
    /// Time for a connection.
    pub connect: Seconds,
    /// Time until an answer begins.
    pub first_byte: Seconds,
    /// Time until an answer is complete.
    pub whole: Seconds,
    /// Times that a request is sent again after it failed.
    pub retries: u32,
    /// The first wait before that, and the longest; it doubles in between.
    pub backoff: [Seconds; 2],
    /// A request is sent a second time after this many times what all but a twentieth take.
    pub hedge_after: f64,
    /// Second copies at most, as a share of all requests; 0: none.
    pub hedge_share: f64,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            at_once: 64,
            connect: Seconds(5.0),
            first_byte: Seconds(10.0),
            whole: Seconds(60.0),
            retries: 8,
            backoff: [Seconds(0.025), Seconds(5.0)],
            hedge_after: 3.0,
            hedge_share: 0.1,
        }
    }
}

/// A cache on the node's own disk, shared by all its workers and jobs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataCache {
    /// A folder of its own, the same in every job of the node.
    pub folder: String,
    /// Bytes that its files never exceed, all processes together.
    pub limit: Bytes,
}

/// How the epoch's order is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shuffle {
    /// A true permutation inside each lane.
    #[default]
    Uniform,
    /// Neighbours in a file are read in one request and shuffled inside `shuffle_window`: for clips of some 10 KB.
    Grouped,
}

/// What an epoch shows of the clips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// Every clip once.
    #[default]
    Uniform,
    /// Every class equally often, within one clip; inside a class, every clip once before any twice.
    ClassBalanced,
}

/// A dataset of a mixture.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixturePart {
    pub url: String,
    /// Its share of an epoch's clips, relative to the other parts'. A part goes through its own clips once before
    /// any comes twice, however many an epoch takes.
    pub weight: f64,
    #[serde(default = "train_split")]
    pub split: String,
    /// Labels of this dataset and the names that they have in `data.url`'s. All others must have the same names.
    #[serde(default)]
    pub rename: BTreeMap<String, String>,
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
    /// Labels whose clips are never flipped, because they tell left from right.
    #[serde(default)]
    pub no_flip: Vec<String>,
    /// Times that each clip of a step is shown, every time drawn anew (Hoffer et al. 2020). The global
    /// batch counts clips; the loss is the mean over all that is shown.
    #[serde(default = "one")]
    pub repeats: u32,
    #[serde(default)]
    pub color_jitter: Option<ColorJitter>,
    #[serde(default)]
    pub rand_augment: Option<RandAugment>,
    #[serde(default)]
    pub random_erasing: Option<RandomErasing>,
}

/// Brightness, contrast and saturation, in a random order, each blended by a factor drawn from
/// 1 - x ..= 1 + x; the same for every frame of a clip (PySlowFast, `transform.py::color_jitter`).
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColorJitter {
    #[serde(default)]
    pub brightness: f64,
    #[serde(default)]
    pub contrast: f64,
    #[serde(default)]
    pub saturation: f64,
}

/// RandAugment (Cubuk et al. 2020) as timm and PySlowFast have it ("rand-m7-n4-mstd0.5-inc1"): the same
/// operations for every frame of a clip.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandAugment {
    /// Mean strength, 0..=10.
    pub magnitude: f64,
    /// Operations drawn for a clip.
    pub num_ops: u32,
    /// Standard deviation of the strength.
    #[serde(default = "half")]
    pub magnitude_std: f64,
    /// Probability that a drawn operation is applied.
    #[serde(default = "half")]
    pub prob: f64,
}

/// A box of every frame, the same for the whole clip, is filled with noise (Zhong et al. 2020; PySlowFast's
/// `random_erasing.py`, mode "pixel").
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomErasing {
    /// Probability that a clip is erased at all.
    pub prob: f64,
    /// Part of the frame that the box covers, least and most.
    #[serde(default = "erased_area")]
    pub area: [f64; 2],
    /// The box's height over its width, least and most.
    #[serde(default = "erased_aspect")]
    pub aspect: [f64; 2],
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

/// The views of `marey eval`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// Windows in time x crops in space, like "10x3".
    pub views: Views,
    /// The short side is resized to this, pixels.
    pub short_side: u32,
    /// Side of the square crop, pixels.
    pub crop: u32,
    #[serde(default)]
    pub sampling: TestSampling,
    #[serde(default)]
    pub ensemble: Ensemble,
}

/// How the scores of a clip's views become the clip's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ensemble {
    /// Their mean; PySlowFast's "sum".
    #[default]
    Mean,
    /// The largest of each class: for clips with several labels, which need not show at the same time.
    Max,
}

/// What a dataset was published to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nominal {
    /// Training clips.
    pub clips: u64,
    pub classes: u32,
}

/// Windows in time x crops in space of each clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Views {
    pub clips: u32,
    pub crops: u32,
}

/// Where the windows of a test lie in a clip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestSampling {
    /// `decoder.py::get_start_end_idx` and `temporal_sampling`: window i of n starts at i/n of the room that
    /// it leaves in the clip, frames are a truncated `linspace`; beyond the end the last frame is repeated.
    #[default]
    PySlowFast,
    /// `SampleFrames._get_test_clips` of version 1.x: window i of n starts at i/(n-1) of the room, frames at a
    /// plain stride; beyond the end the clip begins anew. (0.x: the middles of n equal parts of the room.)
    MmAction2,
}

impl std::str::FromStr for TestSampling {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "pyslowfast" => Ok(Self::PySlowFast),
            "mmaction2" => Ok(Self::MmAction2),
            _ => Err("write pyslowfast or mmaction2".into()),
        }
    }
}

impl std::fmt::Display for TestSampling {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::PySlowFast => "pyslowfast",
            Self::MmAction2 => "mmaction2",
        })
    }
}

impl std::str::FromStr for Views {
    type Err = String;

    /// "10x3": ten windows over the clip's time, each in three crops along its long side.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let pair = text.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match pair {
            Some((clips @ 1.., crops @ 1..)) => Ok(Self { clips, crops }),
            _ => Err("write clips x crops, like 10x3".into()),
        }
    }
}

impl std::fmt::Display for Views {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}x{}", self.clips, self.crops)
    }
}

impl<'de> Deserialize<'de> for Views {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(|why| serde::de::Error::custom(format!("{text:?} are no views; {why}")))
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
fn half() -> f64 {
    0.5
}
fn mean() -> [f64; 3] {
    [0.45; 3]
}
fn std() -> [f64; 3] {
    [0.225; 3]
}
fn shuffle_window() -> Bytes {
    Bytes(256 << 20)
}
fn prefetch() -> Bytes {
    Bytes(256 << 20)
}
fn erased_area() -> [f64; 2] {
    [0.02, 1.0 / 3.0]
}
fn erased_aspect() -> [f64; 2] {
    [0.3, 1.0 / 0.3]
}
