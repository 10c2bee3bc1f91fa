//! The layers that the networks share. A layer that refuses its input names itself in the error.
//!
//! None of them forces a memory layout or a kind: channels-last inputs stay so, and autocast decides.

use crate::{
    Error, Result,
    named::{Init, Scope},
};
use tch::{Kind, Tensor};

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
        let fan_out = (outputs * kernel.iter().product::<i64>()) as f64;
        let init = Init::Normal { std: (2.0 / fan_out).sqrt() };
        let [t, h, w] = kernel;
        Ok(Self {
            name: at.path().into(),
            weight: at.weight("weight", &[outputs, inputs, t, h, w], init, true)?,
            bias: None,
            stride,
            padding: kernel.map(|k| k / 2),
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
}

/// Batch normalisation over all but the channel axis, eps 1e-5, momentum 0.1.
#[derive(Debug)]
pub(crate) struct BatchNorm {
    name: String,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
}

impl BatchNorm {
    /// `scale`: what the weight starts at.
    pub(crate) fn new(at: &Scope, channels: i64, scale: f64) -> Result<Self> {
        let norm = Self {
            name: at.path().into(),
            weight: at.weight("weight", &[channels], Init::Constant(scale), false)?,
            bias: at.weight("bias", &[channels], Init::Constant(0.0), false)?,
            mean: at.buffer("running_mean", &[channels], 0.0)?,
            var: at.buffer("running_var", &[channels], 1.0)?,
        };
        // PyTorch counts batches only to average without a momentum. We do not count: zero is what a
        // fresh module has, and the value changes nothing.
        let none =
            Tensor::f_zeros([0i64; 0], (Kind::Int64, at.device())).map_err(Error::torch("allocate"))?;
        at.constant("num_batches_tracked", &none, false);
        Ok(norm)
    }

    pub(crate) fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let (w, b) = (Some(&self.weight), Some(&self.bias));
        x.f_batch_norm(w, b, Some(&self.mean), Some(&self.var), train, 0.1, 1e-5, true)
            .map_err(|e| Error::layer(&self.name, x, e))
    }
}

/// A convolution without bias and its batch norm.
#[derive(Debug)]
pub(crate) struct ConvNorm {
    conv: Conv3d,
    norm: BatchNorm,
}

impl ConvNorm {
    pub(crate) fn new(conv: Conv3d, norm: BatchNorm) -> Self {
        Self { conv, norm }
    }

    pub(crate) fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, train)
    }

    /// Followed by ReLU, in place: the norm's backward pass needs its input, not its output.
    pub(crate) fn relu(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut y = self.forward(x, train)?;
        y.f_relu_().map_err(|e| Error::layer(&self.norm.name, &y, e))
    }
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
}
