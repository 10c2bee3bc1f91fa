//! ResNets with one pathway under pytorchvideo's names (`pytorchvideo/models/hub/resnet.py`): SlowFast's slow
//! pathway alone, I3D (Carreira and Zisserman 2017, as inflated by Wang et al. 2018) and C2D.

use crate::{
    Error, Result,
    head::{Head, Pool},
    layers::Conv3d,
    model::Network,
    named::Scope,
    norm::{BatchNorm, ConvNorm},
    pass::Pass,
    resnet::{self, Stage, StageSpec, stem_pool, stem_pooled},
};
use configs::ResNet3dKind;
use tch::Tensor;

/// The network.
#[derive(Debug)]
pub(crate) struct ResNet3d {
    stem: ConvNorm,
    stages: Vec<Stage>,
    /// Halves the frames after res2.
    halves: bool,
    head: Head,
}

impl ResNet3d {
    /// Builds the layers. `frames` and `crop` are the training size, by which the head pools.
    pub(crate) fn new(
        at: &Scope,
        cfg: &configs::ResNet3d,
        classes: i64,
        [frames, crop]: [i64; 2],
    ) -> Result<Self> {
        let halves = cfg.kind != ResNet3dKind::Slow;
        check(cfg, frames, halves)?;
        let width = i64::from(cfg.width);
        let (kind, depths) = resnet::depths(cfg.depth)?;
        let stem = {
            let at = at.sub("blocks.0");
            let temporal = if cfg.kind == ResNet3dKind::I3d { 5 } else { 1 };
            let conv = Conv3d::same(&at.sub("conv"), [3, width], [temporal, 7, 7], [1, 2, 2])?;
            ConvNorm::new(conv, BatchNorm::new(&at.sub("norm"), width, 1.0)?)
        };
        let mut stages = vec![];
        let mut inputs = width;
        for (i, &blocks) in depths.iter().enumerate() {
            // The pooling in time is a module of its own, and takes a number.
            let at = at.sub(format_args!("blocks.{}", if halves && i > 0 { i + 2 } else { i + 1 }));
            let inner = width << i;
            let spec = StageSpec {
                kind,
                inputs,
                inner,
                temporal: (0..blocks).map(|block| temporal(cfg.kind, i, block)).collect(),
                stride: if i == 0 { 1 } else { 2 },
                zero_last: cfg.zero_init_last_norm,
                non_local: cfg.non_local.as_ref().map(|n| (n, n.locations[i].as_slice())),
            };
            stages.push(Stage::new(&at, spec)?);
            inputs = inner * kind.expansion();
        }
        let pool = Pool::new(if halves { frames / 2 } else { frames }, crop, 1);
        let at = at.sub(if halves { "blocks.6" } else { "blocks.5" });
        let head = Head::new(&at, vec![pool], cfg.dropout, inputs, classes)?;
        Ok(Self { stem, stages, halves, head })
    }
}

impl Network for ResNet3d {
    fn forward(&self, inputs: &[Tensor], pass: &Pass) -> Result<Tensor> {
        let [clip] = inputs else {
            return Err(Error::Input {
                why: format!("the network takes one clip, not {} inputs", inputs.len()),
            });
        };
        if self.halves && clip.size().get(2).is_none_or(|&t| t < 2) {
            return Err(Error::Input { why: "the network halves the frames: give it 2 or more".into() });
        }
        let mut x = stem_pool(&self.stem.relu(clip, pass)?)?;
        for (i, stage) in self.stages.iter().enumerate() {
            x = stage.forward(x, pass)?;
            if self.halves && i == 0 {
                x = x
                    .f_max_pool3d([2i64, 1, 1], [2i64, 1, 1], [0i64; 3], [1i64; 3], false)
                    .map_err(|e| Error::layer("blocks.2", &x, e))?;
            }
        }
        self.head.forward(&[x], pass)
    }

    fn cost(&self, size: [i64; 3]) -> u64 {
        let (mut total, size) = self.stem.conv.cost(size);
        let mut size = stem_pooled(size);
        for (i, stage) in self.stages.iter().enumerate() {
            let (cost, [t, h, w]) = stage.cost(size);
            total += cost;
            size = if self.halves && i == 0 { [t / 2, h, w] } else { [t, h, w] };
        }
        total + self.head.cost(size)
    }
}

/// Temporal size of the first kernel of a block of res2..res5 (`stage` 0..3).
fn temporal(kind: ResNet3dKind, stage: usize, block: usize) -> i64 {
    let reaches = match kind {
        ResNet3dKind::C2d => false,
        ResNet3dKind::Slow => stage >= 2,
        // Every block of res2, every other one from then on; in res5 the odd ones.
        ResNet3dKind::I3d => stage == 0 || block % 2 == usize::from(stage == 3),
    };
    if reaches { 3 } else { 1 }
}

fn check(cfg: &configs::ResNet3d, frames: i64, halves: bool) -> Result<()> {
    if cfg.width == 0 {
        return Err(Error::config("width", "0 channels"));
    }
    if halves && frames < 2 {
        return Err(Error::config("kind", format!("{frames} frames cannot be halved")));
    }
    if !(0.0..1.0).contains(&cfg.dropout) {
        return Err(Error::config("dropout", format!("{} is not in 0..1", cfg.dropout)));
    }
    Ok(())
}
