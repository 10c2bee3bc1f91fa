//! Residual stages over space and time: basic blocks (depth 18) and bottlenecks (50, 101).
//!
//! He et al. 2016, with the temporal kernel of each stage's first convolution given by the caller, as in
//! SlowFast's table 1. Names are pytorchvideo's: `res_blocks.{i}.branch2.conv_a` and so on; a non-local block that
//! follows residual block i is `non_local.{i}`.

use crate::{
    Error, Result,
    layers::Conv3d,
    named::Scope,
    non_local::NonLocal,
    norm::{BatchNorm, ConvNorm},
    pass::Pass,
};
use tch::Tensor;

/// Which residual block a depth uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// T x 3 x 3, then 1 x 3 x 3.
    Basic,
    /// T x 1 x 1, 1 x 3 x 3, then 1 x 1 x 1 to four times the channels.
    Bottleneck,
}

impl Kind {
    /// Output channels over inner channels.
    pub(crate) fn expansion(self) -> i64 {
        match self {
            Kind::Basic => 1,
            Kind::Bottleneck => 4,
        }
    }
}

/// Blocks of each of the four stages.
pub(crate) fn depths(depth: u32) -> Result<(Kind, [usize; 4])> {
    match depth {
        18 => Ok((Kind::Basic, [2, 2, 2, 2])),
        50 => Ok((Kind::Bottleneck, [3, 4, 6, 3])),
        101 => Ok((Kind::Bottleneck, [3, 4, 23, 3])),
        _ => Err(Error::config("depth", format!("{depth} is not a ResNet here; use 18, 50 or 101"))),
    }
}

/// What one pathway's stage looks like.
#[derive(Clone, Debug)]
pub(crate) struct StageSpec<'a> {
    pub(crate) kind: Kind,
    pub(crate) inputs: i64,
    /// Channels inside a block; it leaves `inner * kind.expansion()`.
    pub(crate) inner: i64,
    /// Temporal size of each block's first kernel; as many as there are blocks.
    pub(crate) temporal: Vec<i64>,
    /// Spatial stride of the first block.
    pub(crate) stride: i64,
    /// The last norm of each block starts at zero.
    pub(crate) zero_last: bool,
    /// Non-local blocks, and after which residual blocks.
    pub(crate) non_local: Option<(&'a configs::NonLocal, &'a [u32])>,
}

/// A row of residual blocks, of which only the first strides, some followed by a non-local block.
#[derive(Debug)]
pub(crate) struct Stage {
    blocks: Vec<(Block, Option<NonLocal>)>,
}

impl Stage {
    pub(crate) fn new(at: &Scope, spec: StageSpec) -> Result<Self> {
        let outputs = spec.inner * spec.kind.expansion();
        let (cfg, follows) = spec.non_local.unzip();
        let follows = follows.unwrap_or_default();
        let count = spec.temporal.len();
        if let Some(beyond) = follows.iter().find(|&&i| i as usize >= count) {
            let why = format!("there is no block {beyond} in {}, which has {count}", at.path());
            return Err(Error::config("non_local.locations", why));
        }
        let blocks = spec.temporal.iter().enumerate().map(|(i, &temporal)| {
            let first = i == 0;
            let inputs = if first { spec.inputs } else { outputs };
            let stride = if first { spec.stride } else { 1 };
            let block = Block::new(&at.sub(format_args!("res_blocks.{i}")), &spec, temporal, inputs, stride)?;
            let non_local = cfg
                .filter(|_| follows.contains(&(i as u32)))
                .map(|cfg| NonLocal::new(&at.sub(format_args!("non_local.{i}")), cfg, outputs))
                .transpose()?;
            Ok((block, non_local))
        });
        Ok(Self { blocks: blocks.collect::<Result<_>>()? })
    }

    pub(crate) fn forward(&self, x: Tensor, pass: &Pass) -> Result<Tensor> {
        self.blocks.iter().try_fold(x, |x, (block, non_local)| {
            let x = block.forward(&x, pass)?;
            match non_local {
                Some(non_local) => non_local.forward(&x, pass),
                None => Ok(x),
            }
        })
    }

    /// Multiply-adds on one clip's features of size (T, H, W), and the size that comes out.
    pub(crate) fn cost(&self, size: [i64; 3]) -> (u64, [i64; 3]) {
        self.blocks.iter().fold((0, size), |(sum, size), (block, non_local)| {
            let (cost, size) = block.cost(size);
            (sum + cost + non_local.as_ref().map_or(0, |n| n.cost(size)), size)
        })
    }
}

#[derive(Debug)]
struct Block {
    name: String,
    shortcut: Option<ConvNorm>,
    branch: Vec<ConvNorm>,
}

impl Block {
    fn new(at: &Scope, spec: &StageSpec, t: i64, inputs: i64, stride: i64) -> Result<Self> {
        let inner = spec.inner;
        let outputs = inner * spec.kind.expansion();
        let shortcut = (inputs != outputs || stride != 1)
            .then(|| -> Result<_> {
                let channels = [inputs, outputs];
                let conv = Conv3d::same(&at.sub("branch1_conv"), channels, [1; 3], [1, stride, stride])?;
                Ok(ConvNorm::new(conv, BatchNorm::new(&at.sub("branch1_norm"), outputs, 1.0)?))
            })
            .transpose()?;
        // (letter, channels, kernel, spatial stride)
        let convs: &[(&str, [i64; 2], [i64; 3], i64)] = match spec.kind {
            Kind::Basic => {
                &[("a", [inputs, inner], [t, 3, 3], stride), ("b", [inner, outputs], [1, 3, 3], 1)]
            }
            Kind::Bottleneck => &[
                ("a", [inputs, inner], [t, 1, 1], 1),
                ("b", [inner, inner], [1, 3, 3], stride),
                ("c", [inner, outputs], [1, 1, 1], 1),
            ],
        };
        let branch = convs.iter().enumerate().map(|(i, &(letter, channels, kernel, s))| {
            let zero = spec.zero_last && i + 1 == convs.len();
            let conv = at.sub(format_args!("branch2.conv_{letter}"));
            let norm = at.sub(format_args!("branch2.norm_{letter}"));
            let conv = Conv3d::same(&conv, channels, kernel, [1, s, s])?;
            Ok(ConvNorm::new(conv, BatchNorm::new(&norm, channels[1], if zero { 0.0 } else { 1.0 })?))
        });
        Ok(Self { name: at.path().into(), shortcut, branch: branch.collect::<Result<_>>()? })
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (last, first) =
            self.branch.split_last().ok_or_else(|| Error::config("depth", "a block has no layers"))?;
        let inner = first.iter().try_fold(x.shallow_clone(), |x, layer| layer.relu(&x, pass))?;
        let mut y = last.forward(&inner, pass)?;
        let short = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, pass)?,
            None => x.shallow_clone(),
        };
        // In place: no backward pass reads the norm's output.
        y.f_add_(&short).and_then(|mut y| y.f_relu_()).map_err(|e| Error::layer(&self.name, x, e))
    }

    fn cost(&self, size: [i64; 3]) -> (u64, [i64; 3]) {
        let shortcut = self.shortcut.as_ref().map_or(0, |s| s.conv.cost(size).0);
        self.branch.iter().fold((shortcut, size), |(sum, size), layer| {
            let (cost, size) = layer.conv.cost(size);
            (sum + cost, size)
        })
    }
}

/// The stem's pooling in space: 3 x 3 at stride 2.
pub(crate) fn stem_pool(x: &Tensor) -> Result<Tensor> {
    x.f_max_pool3d([1i64, 3, 3], [1i64, 2, 2], [0i64, 1, 1], [1i64; 3], false)
        .map_err(|e| Error::layer("blocks.0.pool", x, e))
}

/// The size after [`stem_pool`].
pub(crate) fn stem_pooled([t, h, w]: [i64; 3]) -> [i64; 3] {
    [t, (h + 1) / 2, (w + 1) / 2]
}
