//! The layers that the networks share. A layer that refuses its input names itself in the error.
//!
//! None of them forces a memory layout or a kind: channels-last inputs stay so, and autocast decides.

use crate::{
    Error, Result,
    named::{Init, Scope},
};
use tch::Tensor;

/// 3D convolution.
#[derive(Debug)]
pub(crate) struct Conv3d {
    name: String,
    weight: Tensor,
    bias: Option<Tensor>,
    stride: [i64; 3],
    padding: [i64; 3],
}

impl Conv3d {
    /// As in the ResNets: no bias, padded by half of the kernel, normal by fan-out (He et al. 2015).
    pub(crate) fn same(
        at: &Scope,
        [inputs, outputs]: [i64; 2],
        kernel: [i64; 3],
        stride: [i64; 3],
    ) -> Result<Self> {
        let [t, h, w] = kernel;
        Ok(Self {
            name: at.path().into(),
            weight: at.weight("weight", &[outputs, inputs, t, h, w], by_fan_out(outputs, kernel), true)?,
            bias: None,
            stride,
            padding: kernel.map(|k| k / 2),
        })
    }

    /// 1 x 1 x 1 with a bias that starts at zero; normal by fan-out.
    pub(crate) fn point(at: &Scope, [inputs, outputs]: [i64; 2]) -> Result<Self> {
        let shape = [outputs, inputs, 1, 1, 1];
        Ok(Self {
            name: at.path().into(),
            weight: at.weight("weight", &shape, by_fan_out(outputs, [1; 3]), true)?,
            bias: Some(at.weight("bias", &[outputs], Init::Constant(0.0), false)?),
            stride: [1; 3],
            padding: [0; 3],
        })
    }

    /// As a patch embedding: stride = kernel, no padding, a bias; PyTorch's own start.
    pub(crate) fn patches(at: &Scope, [inputs, outputs]: [i64; 2], patch: [i64; 3]) -> Result<Self> {
        let fan_in = (inputs * patch.iter().product::<i64>()) as f64;
        let init = Init::Uniform { bound: fan_in.sqrt().recip() };
        let [t, h, w] = patch;
        Ok(Self {
            name: at.path().into(),
            weight: at.weight("weight", &[outputs, inputs, t, h, w], init, true)?,
            bias: Some(at.weight("bias", &[outputs], init, false)?),
            stride: patch,
            padding: [0; 3],
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.f_conv3d(&self.weight, self.bias.as_ref(), self.stride, self.padding, [1i64; 3], 1)
            .map_err(|e| Error::layer(&self.name, x, e))
    }

    /// Multiply-adds on one clip's features of size (T, H, W), and the size that comes out.
    pub(crate) fn cost(&self, size: [i64; 3]) -> (u64, [i64; 3]) {
        let kernel = self.weight.size();
        let out = [0, 1, 2].map(|a| (size[a] + 2 * self.padding[a] - kernel[a + 2]) / self.stride[a] + 1);
        (self.weight.numel() as u64 * volume(out), out)
    }
}

/// Normal, so that the variance of what goes out is that of what comes in (He et al. 2015).
fn by_fan_out(outputs: i64, kernel: [i64; 3]) -> Init {
    let fan_out = (outputs * kernel.iter().product::<i64>()) as f64;
    Init::Normal { std: (2.0 / fan_out).sqrt() }
}

/// Places in (T, H, W).
pub(crate) fn volume(size: [i64; 3]) -> u64 {
    size.iter().product::<i64>().max(0) as u64
}

/// Layer normalisation over the last axis, eps 1e-5.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    name: String,
    channels: i64,
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub(crate) fn new(at: &Scope, channels: i64) -> Result<Self> {
        Ok(Self {
            name: at.path().into(),
            channels,
            weight: at.weight("weight", &[channels], Init::Constant(1.0), false)?,
            bias: at.weight("bias", &[channels], Init::Constant(0.0), false)?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.f_layer_norm([self.channels], Some(&self.weight), Some(&self.bias), 1e-5, true)
            .map_err(|e| Error::layer(&self.name, x, e))
    }
}

/// A fully connected layer.
#[derive(Debug)]
pub(crate) struct Linear {
    name: String,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Weights normal with `std`; the bias starts at zero.
    pub(crate) fn new(at: &Scope, [inputs, outputs]: [i64; 2], std: f64, bias: bool) -> Result<Self> {
        let weight = at.weight("weight", &[outputs, inputs], Init::Normal { std }, true)?;
        let bias = match bias {
            true => Some(at.weight("bias", &[outputs], Init::Constant(0.0), false)?),
            false => None,
        };
        Ok(Self { name: at.path().into(), weight, bias })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.f_linear(&self.weight, self.bias.as_ref()).map_err(|e| Error::layer(&self.name, x, e))
    }

    /// Multiply-adds for so many rows.
    pub(crate) fn cost(&self, rows: u64) -> u64 {
        self.weight.numel() as u64 * rows
    }
}
