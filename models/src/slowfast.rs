//! SlowFast networks (Feichtenhofer et al. 2019) under pytorchvideo's names.
//!
//! A slow pathway sees T/alpha frames with many channels, a fast one all T frames with 1/beta of the channels;
//! after the stem, res2, res3 and res4 the fast features join the slow ones through a time-strided convolution.

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
use tch::{Kind, Tensor};

/// Channels that a lateral connection makes of each of the fast pathway's.
const FUSION_RATIO: i64 = 2;

/// Temporal kernels of res2..res5, slow and fast (table 1 of the paper).
const TEMPORAL: [[i64; 4]; 2] = [[1, 1, 3, 3], [3, 3, 3, 3]];

/// The network.
#[derive(Debug)]
pub(crate) struct SlowFast {
    alpha: i64,
    stem: [ConvNorm; 2],
    /// After the stem and after each stage but the last.
    lateral: Vec<ConvNorm>,
    stages: Vec<[Stage; 2]>,
    head: Head,
}

impl SlowFast {
    /// Builds the layers. `frames` and `crop` are the training size, by which the head pools; any other multiple
    /// of alpha and any other size run as well.
    pub(crate) fn new(
        at: &Scope,
        cfg: &configs::SlowFast,
        classes: i64,
        [frames, crop]: [i64; 2],
    ) -> Result<Self> {
        check(cfg, frames)?;
        let (alpha, beta) = (i64::from(cfg.alpha), i64::from(cfg.beta));
        let width = i64::from(cfg.width);
        let (kind, depths) = resnet::depths(cfg.depth)?;
        let lateral_at = |block: usize, fast: i64| -> Result<ConvNorm> {
            let at = at.sub(format_args!("blocks.{block}.multipathway_fusion"));
            let kernel = [i64::from(cfg.fusion_kernel), 1, 1];
            let channels = [fast, fast * FUSION_RATIO];
            let conv = Conv3d::same(&at.sub("conv_fast_to_slow"), channels, kernel, [alpha, 1, 1])?;
            Ok(ConvNorm::new(conv, BatchNorm::new(&at.sub("norm"), channels[1], 1.0)?))
        };
        let stem_at = |pathway: usize, channels: i64, temporal: i64| -> Result<ConvNorm> {
            let at = at.sub(format_args!("blocks.0.multipathway_blocks.{pathway}"));
            let conv = Conv3d::same(&at.sub("conv"), [3, channels], [temporal, 7, 7], [1, 2, 2])?;
            Ok(ConvNorm::new(conv, BatchNorm::new(&at.sub("norm"), channels, 1.0)?))
        };
        let stem = [stem_at(0, width, 1)?, stem_at(1, width / beta, 5)?];
        let mut lateral = vec![lateral_at(0, width / beta)?];
        let mut stages = vec![];
        let (mut slow_in, mut fast_in) = (width, width / beta);
        for (i, &blocks) in depths.iter().enumerate() {
            let stage_at = |pathway: usize, inputs: i64, inner: i64| {
                let at = at.sub(format_args!("blocks.{}.multipathway_blocks.{pathway}", i + 1));
                let reaching = cfg.temporal_blocks.map_or(blocks, |t| t[i] as usize);
                let temporal =
                    (0..blocks).map(|j| if j < reaching { TEMPORAL[pathway][i] } else { 1 }).collect();
                let stride = if i == 0 { 1 } else { 2 };
                let zero_last = cfg.zero_init_last_norm;
                // In the slow pathway alone.
                let non_local = cfg.non_local.as_ref().filter(|_| pathway == 0);
                let non_local = non_local.map(|n| (n, n.locations[i].as_slice()));
                let spec = StageSpec { kind, inputs, inner, temporal, stride, zero_last, non_local };
                Stage::new(&at, spec)
            };
            let inner = width << i;
            stages.push([
                stage_at(0, slow_in + fast_in * FUSION_RATIO, inner)?,
                stage_at(1, fast_in, inner / beta)?,
            ]);
            slow_in = inner * kind.expansion();
            fast_in = slow_in / beta;
            if i + 1 < depths.len() {
                lateral.push(lateral_at(i + 1, fast_in)?);
            }
        }
        let pools = vec![Pool::new(frames / alpha, crop, 1), Pool::new(frames, crop, alpha)];
        let head = Head::new(&at.sub("blocks.6"), pools, cfg.dropout, slow_in + fast_in, classes)?;
        Ok(Self { alpha, stem, lateral, stages, head })
    }

    fn run(&self, slow: &Tensor, fast: &Tensor, pass: &Pass) -> Result<Tensor> {
        let mut slow = stem_pool(&self.stem[0].relu(slow, pass)?)?;
        let mut fast = stem_pool(&self.stem[1].relu(fast, pass)?)?;
        for (i, [slow_stage, fast_stage]) in self.stages.iter().enumerate() {
            let joined = self.lateral[i].relu(&fast, pass)?;
            slow = Tensor::f_cat(&[&slow, &joined], 1)
                .map_err(|e| Error::layer(&format!("blocks.{i}.multipathway_fusion"), &slow, e))?;
            slow = slow_stage.forward(slow, pass)?;
            fast = fast_stage.forward(fast, pass)?;
        }
        self.head.forward(&[slow, fast], pass)
    }
}

impl Network for SlowFast {
    fn forward(&self, inputs: &[Tensor], pass: &Pass) -> Result<Tensor> {
        match inputs {
            [slow, fast] => self.run(slow, fast, pass),
            [clip] => self.run(&slow_frames(clip, self.alpha)?, clip, pass),
            _ => Err(Error::Input {
                why: format!("SlowFast takes a slow and a fast pathway, not {} inputs", inputs.len()),
            }),
        }
    }

    fn cost(&self, [t, h, w]: [i64; 3]) -> u64 {
        let mut total = 0;
        let mut add = |(cost, size): (u64, [i64; 3])| {
            total += cost;
            size
        };
        let mut slow = stem_pooled(add(self.stem[0].conv.cost([t / self.alpha, h, w])));
        let mut fast = stem_pooled(add(self.stem[1].conv.cost([t, h, w])));
        for ([slow_stage, fast_stage], lateral) in self.stages.iter().zip(&self.lateral) {
            add(lateral.conv.cost(fast));
            slow = add(slow_stage.cost(slow));
            fast = add(fast_stage.cost(fast));
        }
        total + self.head.cost(slow)
    }
}

/// The slow pathway's frames of a (B, 3, T, H, W) clip: `linspace(0, T-1, T/alpha)`, truncated.
fn slow_frames(clip: &Tensor, alpha: i64) -> Result<Tensor> {
    let frames = clip.size().get(2).copied().unwrap_or(0);
    if frames == 0 || frames % alpha != 0 {
        return Err(Error::Input { why: format!("{frames} frames are not a multiple of alpha = {alpha}") });
    }
    let select = || {
        // The reference's own arithmetic, float32 rounding included.
        let index = Tensor::f_linspace(0, frames - 1, frames / alpha, (Kind::Float, clip.device()))?
            .f_to_kind(Kind::Int64)?;
        if clip.is_contiguous() {
            return clip.f_index_select(2, &index);
        }
        // index_select returns plain layout: select in channels-last order to keep that one.
        clip.f_permute([0i64, 2, 3, 4, 1])?.f_index_select(1, &index)?.f_permute([0i64, 4, 1, 2, 3])
    };
    select().map_err(|e| Error::layer("slow frames", clip, e))
}

fn check(cfg: &configs::SlowFast, frames: i64) -> Result<()> {
    if cfg.alpha == 0 || frames % i64::from(cfg.alpha) != 0 {
        return Err(Error::config("alpha", format!("{frames} frames are not a multiple of {}", cfg.alpha)));
    }
    if cfg.beta == 0 || cfg.width == 0 || !cfg.width.is_multiple_of(cfg.beta) {
        return Err(Error::config("beta", format!("{} does not divide the width, {}", cfg.beta, cfg.width)));
    }
    if cfg.fusion_kernel.is_multiple_of(2) {
        return Err(Error::config(
            "fusion_kernel",
            format!("{} is even; an even kernel changes the number of frames", cfg.fusion_kernel),
        ));
    }
    let (_, blocks) = resnet::depths(cfg.depth)?;
    if let Some(temporal) = cfg.temporal_blocks
        && temporal.iter().zip(blocks).any(|(&t, all)| t as usize > all)
    {
        let why = format!("{temporal:?} are more than the {blocks:?} blocks of depth {}", cfg.depth);
        return Err(Error::config("temporal_blocks", why));
    }
    if !(0.0..1.0).contains(&cfg.dropout) {
        return Err(Error::config("dropout", format!("{} is not in 0..1", cfg.dropout)));
    }
    Ok(())
}
