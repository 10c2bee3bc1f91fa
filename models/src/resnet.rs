//! Residual stages over space and time: basic blocks (depth 18) and bottlenecks (50, 101).
//!
//! He et al. 2016, with the temporal kernel of each stage's first convolution given by the caller, as in
//! SlowFast's table 1. Names are pytorchvideo's: `res_blocks.{i}.branch2.conv_a` and so on.

use crate::{
    Error, Result,
    layers::{BatchNorm, Conv3d, ConvNorm},
    named::Scope,
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageSpec {
    pub(crate) kind: Kind,
    pub(crate) blocks: usize,
    pub(crate) inputs: i64,
    /// Channels inside a block; it leaves `inner * kind.expansion()`.
    pub(crate) inner: i64,
    /// Temporal size of each block's first kernel.
    pub(crate) temporal: i64,
    /// Spatial stride of the first block.
    pub(crate) stride: i64,
    /// The last norm of each block starts at zero.
    pub(crate) zero_last: bool,
}

/// A row of residual blocks; only the first strides.
#[derive(Debug)]
pub(crate) struct Stage {
    blocks: Vec<Block>,
}

impl Stage {
    pub(crate) fn new(at: &Scope, spec: StageSpec) -> Result<Self> {
        let outputs = spec.inner * spec.kind.expansion();
        let blocks = (0..spec.blocks).map(|i| {
            let first = i == 0;
            let inputs = if first { spec.inputs } else { outputs };
            let stride = if first { spec.stride } else { 1 };
            Block::new(&at.sub(format_args!("res_blocks.{i}")), &spec, inputs, stride)
        });
        Ok(Self { blocks: blocks.collect::<Result<_>>()? })
    }

    pub(crate) fn forward(&self, x: Tensor, train: bool) -> Result<Tensor> {
        self.blocks.iter().try_fold(x, |x, block| block.forward(&x, train))
    }
}

#[derive(Debug)]
struct Block {
    name: String,
    shortcut: Option<ConvNorm>,
    branch: Vec<ConvNorm>,
}

impl Block {
    fn new(at: &Scope, spec: &StageSpec, inputs: i64, stride: i64) -> Result<Self> {
        let (inner, t) = (spec.inner, spec.temporal);
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

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let (last, first) =
            self.branch.split_last().ok_or_else(|| Error::config("depth", "a block has no layers"))?;
        let inner = first.iter().try_fold(x.shallow_clone(), |x, layer| layer.relu(&x, train))?;
        let mut y = last.forward(&inner, train)?;
        let short = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, train)?,
            None => x.shallow_clone(),
        };
        // In place: no backward pass reads the norm's output.
        y.f_add_(&short).and_then(|mut y| y.f_relu_()).map_err(|e| Error::layer(&self.name, x, e))
    }
}
