//! The networks by name, as their references configure them, with the input that their published cost counts.

use crate::{Error, Model, Result};
use configs::{NonLocal, NonLocalKind, ResNet3d, ResNet3dKind, SlowFast, VideoSwin};

/// Classes of Kinetics-400, for which checkpoints and parameter counts are published.
pub const CLASSES: i64 = 400;

/// A network that has a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The reference's name where it has one.
    pub name: &'static str,
    config: fn() -> configs::Model,
    /// Frames of a clip; SlowFast's are the fast pathway's.
    pub frames: i64,
    /// Width in training.
    pub crop: i64,
    /// Width in testing, for which papers give the cost: SlowFast and its kin are tested fully convolutionally
    /// on 256 pixels.
    pub test_crop: i64,
    /// The package whose numbers it reproduces, or the code that it follows.
    pub reference: &'static str,
    /// A complete configuration in `configs/`.
    pub recipe: Option<&'static str>,
}

impl Preset {
    /// How the network is built.
    pub fn config(&self) -> configs::Model {
        (self.config)()
    }

    /// Trained values at 400 classes.
    pub fn parameters(&self) -> Result<usize> {
        Ok(self.outline()?.parameters())
    }

    /// Multiply-adds, in 1e9, of one test clip; see [`Model::gflops`].
    pub fn gflops(&self) -> Result<f64> {
        Ok(self.outline()?.gflops(self.frames, self.test_crop, self.test_crop))
    }

    fn outline(&self) -> Result<Model> {
        Model::outline(&self.config(), CLASSES, self.frames, self.crop)
    }
}

/// The configuration of the preset `name`.
pub fn presets(name: &str) -> Result<configs::Model> {
    match PRESETS.iter().find(|p| p.name == name) {
        Some(preset) => Ok(preset.config()),
        None => {
            let known: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
            Err(Error::Preset { name: name.into(), known: known.join(", ") })
        }
    }
}

/// Every named network.
pub const PRESETS: &[Preset] = &[
    slowfast("slowfast_4x16_r50", Some("slowfast_4x16_r50_k400.toml"), "PySlowFast", 32, || {
        slowfast_r50(8, 5)
    }),
    slowfast("slowfast_r50", Some("slowfast_8x8_r50_k400.toml"), PYTORCHVIDEO, 32, || slowfast_r50(4, 7)),
    slowfast("slowfast_r101", None, PYTORCHVIDEO, 32, || slowfast_r101(None, None)),
    slowfast("slowfast_r101_50_50", Some("slowfast_8x8_r101_k400.toml"), "PySlowFast", 32, || {
        slowfast_r101(FIFTY, None)
    }),
    slowfast("slowfast_16x8_r101", None, PYTORCHVIDEO, 64, || slowfast_r101(None, None)),
    slowfast("slowfast_16x8_r101_50_50", Some("slowfast_16x8_r101_k400.toml"), PYTORCHVIDEO, 64, || {
        slowfast_r101(FIFTY, None)
    }),
    slowfast("slowfast_16x8_r101_nl", Some("slowfast_16x8_r101_nl_k400.toml"), "PySlowFast", 64, || {
        let locations = [vec![], vec![], vec![6, 13, 20], vec![]];
        // Pooled over time too, as in PySlowFast's AVA configurations: 234 GFLOPs, the paper's figure.
        let pool = [2, 2, 2];
        slowfast_r101(FIFTY, Some(NonLocal { locations, kind: NonLocalKind::DotProduct, pool }))
    }),
    slowfast("slow_4x16_r50", Some("slow_4x16_r50_k400.toml"), "PySlowFast", 4, || {
        resnet_r50(ResNet3dKind::Slow, None)
    }),
    slowfast("slow_r50", Some("slow_8x8_r50_k400.toml"), PYTORCHVIDEO, 8, || {
        resnet_r50(ResNet3dKind::Slow, None)
    }),
    slowfast("i3d_r50", Some("i3d_8x8_r50_k400.toml"), PYTORCHVIDEO, 8, || {
        resnet_r50(ResNet3dKind::I3d, None)
    }),
    slowfast("i3d_nln_r50", Some("i3d_nl_8x8_r50_k400.toml"), "PySlowFast", 8, || {
        resnet_r50(ResNet3dKind::I3d, Some(five_blocks()))
    }),
    slowfast("c2d_r50", Some("c2d_8x8_r50_k400.toml"), PYTORCHVIDEO, 8, || {
        resnet_r50(ResNet3dKind::C2d, None)
    }),
    slowfast("c2d_nln_r50", Some("c2d_nl_8x8_r50_k400.toml"), "PySlowFast", 8, || {
        resnet_r50(ResNet3dKind::C2d, Some(five_blocks()))
    }),
    swin("swin3d_t", Some("swin3d_t_k400.toml"), TORCHVISION, 224, || video_swin(96, 6, [8, 7, 7], 0.1)),
    swin("swin3d_s", Some("swin3d_s_k400.toml"), TORCHVISION, 224, || video_swin(96, 18, [8, 7, 7], 0.1)),
    swin("swin3d_b", Some("swin3d_b_k400.toml"), TORCHVISION, 224, || video_swin(128, 18, [8, 7, 7], 0.1)),
    swin("swin3d_b_16x7x7", Some("swin3d_b_ssv2.toml"), "Video-Swin-Transformer", 224, || {
        video_swin(128, 18, [16, 7, 7], 0.4)
    }),
    swin("swin3d_l", Some("swin3d_l_22k_k400.toml"), "Video-Swin-Transformer", 224, || {
        video_swin(192, 18, [8, 7, 7], 0.4)
    }),
    swin("swin3d_l_384", Some("swin3d_l_384_22k_k400.toml"), "Video-Swin-Transformer", 384, || {
        video_swin(192, 18, [8, 12, 12], 0.4)
    }),
];

const PYTORCHVIDEO: &str = "pytorchvideo";
const TORCHVISION: &str = "torchvision";

/// The "101_50_50": a ResNet-101 that reaches over time in as many blocks as a ResNet-50.
const FIFTY: Option<[u32; 4]> = Some([3, 4, 6, 3]);

/// Trained on 224 pixels, tested on 256.
const fn slowfast(
    name: &'static str,
    recipe: Option<&'static str>,
    reference: &'static str,
    frames: i64,
    config: fn() -> configs::Model,
) -> Preset {
    Preset { name, config, frames, crop: 224, test_crop: 256, reference, recipe }
}

/// Trained and tested on 32 frames of the same size.
const fn swin(
    name: &'static str,
    recipe: Option<&'static str>,
    reference: &'static str,
    crop: i64,
    config: fn() -> configs::Model,
) -> Preset {
    Preset { name, config, frames: 32, crop, test_crop: crop, reference, recipe }
}

fn slowfast_r50(alpha: u32, fusion_kernel: u32) -> configs::Model {
    configs::Model::Slowfast(SlowFast { alpha, fusion_kernel, ..Default::default() })
}

fn slowfast_r101(temporal_blocks: Option<[u32; 4]>, non_local: Option<NonLocal>) -> configs::Model {
    configs::Model::Slowfast(SlowFast { depth: 101, temporal_blocks, non_local, ..Default::default() })
}

fn resnet_r50(kind: ResNet3dKind, non_local: Option<NonLocal>) -> configs::Model {
    configs::Model::Resnet3d(ResNet3d {
        kind,
        depth: 50,
        width: 64,
        dropout: 0.5,
        zero_init_last_norm: true,
        non_local,
    })
}

/// The five blocks of Wang et al. 2018: every other residual block of res3 and res4. PySlowFast's recipes
/// use the embedded Gaussian.
fn five_blocks() -> NonLocal {
    let locations = [vec![], vec![1, 3], vec![1, 3, 5], vec![]];
    NonLocal { locations, kind: NonLocalKind::EmbeddedGaussian, pool: [1, 2, 2] }
}

/// Heads have 32 channels.
fn video_swin(embed_dim: u32, middle: u32, window: [u32; 3], drop_path: f64) -> configs::Model {
    configs::Model::VideoSwin(VideoSwin {
        embed_dim,
        depths: vec![2, 2, middle, 2],
        heads: [1, 2, 4, 8].map(|n| n * embed_dim / 32).into(),
        window,
        drop_path,
        ..Default::default()
    })
}
