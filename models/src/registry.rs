//! The networks by name, as their references configure them.

use crate::{Error, Result};
use configs::{Model, SlowFast, VideoSwin};

/// Names that [`presets`] knows.
pub const PRESETS: [&str; 5] = ["slowfast_r50", "slowfast_r101", "swin3d_t", "swin3d_s", "swin3d_b"];

/// The configuration of a reference network: pytorchvideo's `slowfast_r50` (8x8) and `slowfast_r101`,
/// torchvision's `swin3d_t`, `swin3d_s` and `swin3d_b`. Their checkpoints have 400 classes.
pub fn presets(name: &str) -> Result<Model> {
    let slowfast = |depth, fusion_kernel| {
        Model::Slowfast(SlowFast {
            depth,
            alpha: 4,
            beta: 8,
            width: 64,
            fusion_kernel,
            dropout: 0.5,
            zero_init_last_norm: true,
            temporal_blocks: None,
            non_local: None,
        })
    };
    let swin = |embed_dim, middle, heads: [u32; 4], drop_path| {
        Model::VideoSwin(VideoSwin {
            embed_dim,
            depths: vec![2, 2, middle, 2],
            heads: heads.into(),
            patch: [2, 4, 4],
            window: [8, 7, 7],
            mlp_ratio: 4.0,
            dropout: 0.0,
            drop_path,
        })
    };
    Ok(match name {
        "slowfast_r50" => slowfast(50, 7),
        "slowfast_r101" => slowfast(101, 5),
        "swin3d_t" => swin(96, 6, [3, 6, 12, 24], 0.1),
        "swin3d_s" => swin(96, 18, [3, 6, 12, 24], 0.1),
        "swin3d_b" => swin(128, 18, [4, 8, 16, 32], 0.1),
        _ => return Err(Error::Preset { name: name.into(), known: PRESETS.join(", ") }),
    })
}
