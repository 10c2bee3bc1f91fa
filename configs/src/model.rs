//! The networks and their sizes.

use serde::{Deserialize, Serialize};

/// The network. The number of classes comes from the dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "arch")]
pub enum Model {
    Slowfast(SlowFast),
    Resnet3d(ResNet3d),
    VideoSwin(VideoSwin),
}

/// SlowFast (Feichtenhofer et al. 2019, section 3) on a ResNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlowFast {
    /// 18, 50 or 101.
    pub depth: u32,
    /// Fast frames per slow frame.
    pub alpha: u32,
    /// The fast pathway has 1/beta of the slow one's channels; 8 in the paper.
    pub beta: u32,
    /// Channels of the slow pathway's stem.
    pub width: u32,
    /// Temporal kernel of the lateral connections: 7 for 8x8 R50, else 5.
    pub fusion_kernel: u32,
    pub dropout: f64,
    /// The last batch norm of each residual block starts at zero.
    pub zero_init_last_norm: bool,
    /// Blocks of each of res2..res5 whose first kernel reaches over time where the stage's does, counted from
    /// its beginning; the rest see one frame. Absent: all. [3, 4, 6, 3] on depth 101 is the "101_50_50".
    pub temporal_blocks: Option<[u32; 4]>,
    /// Non-local blocks in the slow pathway.
    pub non_local: Option<NonLocal>,
}

impl Default for SlowFast {
    fn default() -> Self {
        Self {
            depth: 50,
            alpha: 4,
            beta: 8,
            width: 64,
            fusion_kernel: 5,
            dropout: 0.5,
            zero_init_last_norm: true,
            temporal_blocks: None,
            non_local: None,
        }
    }
}

/// A ResNet with one pathway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNet3d {
    pub kind: ResNet3dKind,
    /// 18, 50 or 101.
    #[serde(default = "fifty")]
    pub depth: u32,
    /// Channels of the stem.
    #[serde(default = "sixty_four")]
    pub width: u32,
    #[serde(default = "half")]
    pub dropout: f64,
    /// The last batch norm of each residual block starts at zero.
    #[serde(default = "yes")]
    pub zero_init_last_norm: bool,
    #[serde(default)]
    pub non_local: Option<NonLocal>,
}

/// Where kernels reach over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResNet3dKind {
    /// SlowFast's slow pathway alone: stem 1x7x7, time only in res4 and res5.
    Slow,
    /// Inflated (Carreira and Zisserman 2017; Wang et al. 2018): stem 5x7x7, time in every other block.
    I3d,
    /// No kernel reaches over time: frames meet in pooling alone.
    C2d,
}

/// Non-local blocks (Wang et al. 2018), each after a residual block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NonLocal {
    /// For each of res2..res5 the residual blocks that one follows, counted from 0. The paper's 5 blocks on
    /// ResNet-50: [[], [1, 3], [1, 3, 5], []]; its 10: every block of res3 and res4.
    pub locations: [Vec<u32>; 4],
    #[serde(default)]
    pub kind: NonLocalKind,
    /// Max-pooling of keys and values over (t, h, w).
    #[serde(default = "non_local_pool")]
    pub pool: [u32; 3],
}

/// How two places are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonLocalKind {
    /// Divided by the number of places.
    #[default]
    DotProduct,
    /// Softmax of the scaled product: the embedded Gaussian.
    EmbeddedGaussian,
}

/// Video Swin (Liu et al. 2022, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VideoSwin {
    pub embed_dim: u32,
    pub depths: Vec<u32>,
    pub heads: Vec<u32>,
    /// Patch, (t, h, w).
    pub patch: [u32; 3],
    /// Attention window, (t, h, w) in patches.
    pub window: [u32; 3],
    pub mlp_ratio: f64,
    pub dropout: f64,
    /// Largest drop-path rate; it grows linearly over all blocks.
    pub drop_path: f64,
}

impl Default for VideoSwin {
    fn default() -> Self {
        Self {
            embed_dim: 96,
            depths: vec![2, 2, 6, 2],
            heads: vec![3, 6, 12, 24],
            patch: [2, 4, 4],
            window: [8, 7, 7],
            mlp_ratio: 4.0,
            dropout: 0.0,
            drop_path: 0.1,
        }
    }
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
fn yes() -> bool {
    true
}
fn non_local_pool() -> [u32; 3] {
    [1, 2, 2]
}
