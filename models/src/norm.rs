//! Batch normalisation over all but the channel axis, eps 1e-5, with the statistics of [`NormMode`].

use crate::{
    Error, Exchange, NormMode, Result,
    layers::Conv3d,
    named::{Init, Scope},
    pass::Pass,
};
use tch::{Kind, TchError, Tensor, no_grad};

const EPS: f64 = 1e-5;

/// All axes but the channels of (B, C, T, H, W).
const AXES: [i64; 4] = [0, 2, 3, 4];

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

    /// (B, C, T, H, W) to the same shape.
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        if pass.train && !matches!(pass.norm, NormMode::Frozen | NormMode::Sync(_)) {
            self.enough(x)?;
        }
        let layer = |e| Error::layer(&self.name, x, e);
        match &pass.norm {
            _ if !pass.train => self.normalise(x, Some((&self.mean, &self.var)), false, 0.0).map_err(layer),
            NormMode::Frozen => self.normalise(x, Some((&self.mean, &self.var)), false, 0.0).map_err(layer),
            NormMode::Local => {
                let running = (!pass.absent).then_some((&self.mean, &self.var));
                self.normalise(x, running, true, pass.momentum).map_err(layer)
            }
            NormMode::SubBatch(clips) => self.grouped(x, (*clips).max(1), pass).map_err(layer),
            NormMode::Sync(exchange) => self.synchronised(x, exchange.as_ref(), pass),
        }
    }

    fn normalise(
        &self,
        x: &Tensor,
        running: Option<(&Tensor, &Tensor)>,
        batch_statistics: bool,
        momentum: f64,
    ) -> std::result::Result<Tensor, TchError> {
        let (mean, var) = running.unzip();
        let (w, b) = (Some(&self.weight), Some(&self.bias));
        x.f_batch_norm(w, b, mean, var, batch_statistics, momentum, EPS, true)
    }

    /// Each group of `clips` by its own statistics. The running ones follow the whole batch's: the mean of the
    /// means, and the mean of the variances plus the variance of the means, as PySlowFast's `SubBatchNorm3d`
    /// aggregates (`slowfast/models/batchnorm_helper.py`); it does so once before evaluation, from a running
    /// pair a group, which groups that come and go with the batch cannot have.
    fn grouped(&self, x: &Tensor, clips: i64, pass: &Pass) -> std::result::Result<Tensor, TchError> {
        let batch = x.size5()?.0;
        let (mut parts, mut means, mut vars, mut shares) = (vec![], vec![], vec![], vec![]);
        for start in (0..batch).step_by(clips as usize) {
            let length = clips.min(batch - start);
            // With a momentum of 1, they become this group's own.
            let (mean, var) = (self.mean.f_zeros_like()?, self.var.f_zeros_like()?);
            parts.push(self.normalise(&x.f_narrow(0, start, length)?, Some((&mean, &var)), true, 1.0)?);
            means.push(mean);
            vars.push(var);
            shares.push(length as f64 / batch as f64);
        }
        if !pass.absent {
            let (means, vars) = (Tensor::f_stack(&means, 0)?, Tensor::f_stack(&vars, 0)?);
            let shares = Tensor::f_from_slice(&shares)?
                .f_to_kind(means.f_kind()?)?
                .f_to_device(means.device())?
                .f_unsqueeze(1)?;
            let average =
                |x: &Tensor| x.f_mul(&shares)?.f_sum_dim_intlist([0i64].as_slice(), false, None::<Kind>);
            let mean = average(&means)?;
            let var = average(&vars)?.f_add(&average(&means.f_sub(&mean)?.f_square()?)?)?;
            self.follow(&mean, &var, pass.momentum)?;
        }
        Tensor::f_cat(&parts, 0)
    }

    /// Mean and variance over all ranks, weighted by their true counts. Two sums are exchanged, the second of
    /// squares about the common mean: float32 would lose a variance that is small beside the mean.
    fn synchronised(&self, x: &Tensor, exchange: &dyn Exchange, pass: &Pass) -> Result<Tensor> {
        let layer = |e| Error::layer(&self.name, x, e);
        let present = if pass.absent { 0.0 } else { 1.0 };
        let (wide, sums) = self.sums(x, present).map_err(layer)?;
        let sums = exchange.sum(&sums)?;
        let (count, mean, centred, squares) = Self::centre(&wide, &sums, present).map_err(layer)?;
        let squares = exchange.sum(&squares)?;
        let finish = || {
            let var = squares.f_div(&count)?;
            let scale = var.f_add_scalar(EPS)?.f_rsqrt()?.f_mul(&self.weight)?;
            let y = centred.f_mul(&column(&scale)?)?.f_add_(&column(&self.bias)?)?;
            // The running variance is the unbiased one.
            let unbiased = squares.f_div(&count.f_sub_scalar(1.0)?.f_clamp_min(1.0)?)?;
            self.follow(&mean, &unbiased, pass.momentum)?;
            y.f_to_kind(x.f_kind()?)
        };
        finish().map_err(layer)
    }

    /// `x` in the statistics' kind; the sum of each channel and, behind them, the number of values of one.
    fn sums(&self, x: &Tensor, present: f64) -> std::result::Result<(Tensor, Tensor), TchError> {
        let wide = x.f_to_kind(self.mean.f_kind()?)?;
        let channels = x.size5()?.1;
        let count = (x.numel() as i64 / channels) as f64 * present;
        let count = Tensor::f_full([1], count, (wide.f_kind()?, wide.device()))?;
        // Times zero, and not left out: the graph, and so the backward exchanges, are every rank's.
        let sum = wide.f_sum_dim_intlist(AXES.as_slice(), false, None::<Kind>)?.f_mul_scalar(present)?;
        Ok((wide, Tensor::f_cat(&[sum, count], 0)?))
    }

    /// From the summed [`BatchNorm::sums`]: the count, the mean, `wide` about it, and each channel's squares.
    fn centre(
        wide: &Tensor,
        sums: &Tensor,
        present: f64,
    ) -> std::result::Result<(Tensor, Tensor, Tensor, Tensor), TchError> {
        let channels = wide.size5()?.1;
        let count = sums.f_narrow(0, channels, 1)?.f_detach()?.f_clamp_min(1.0)?;
        let mean = sums.f_narrow(0, 0, channels)?.f_div(&count)?;
        let centred = wide.f_sub(&column(&mean)?)?;
        let squares = centred.f_square()?.f_sum_dim_intlist(AXES.as_slice(), false, None::<Kind>)?;
        Ok((count, mean, centred, squares.f_mul_scalar(present)?))
    }

    /// Moves the running statistics towards a batch's.
    fn follow(&self, mean: &Tensor, var: &Tensor, momentum: f64) -> std::result::Result<(), TchError> {
        no_grad(|| {
            let _ = self.mean.shallow_clone().f_lerp_(&mean.f_detach()?, momentum)?;
            let _ = self.var.shallow_clone().f_lerp_(&var.f_detach()?, momentum)?;
            Ok(())
        })
    }

    /// One value has no variance, and would leave a running statistic that is not a number.
    fn enough(&self, x: &Tensor) -> Result<()> {
        let [b, _, t, h, w] = x.size()[..] else { return Ok(()) };
        if b * t * h * w > 1 {
            return Ok(());
        }
        Err(Error::Input {
            why: format!(
                "{} has one value a channel to take statistics from; train on more clips or larger ones",
                self.name
            ),
        })
    }
}

/// (C) to (1, C, 1, 1, 1).
fn column(x: &Tensor) -> std::result::Result<Tensor, TchError> {
    x.f_view([1, -1, 1, 1, 1])
}

/// A convolution and its batch norm.
#[derive(Debug)]
pub(crate) struct ConvNorm {
    pub(crate) conv: Conv3d,
    norm: BatchNorm,
}

impl ConvNorm {
    pub(crate) fn new(conv: Conv3d, norm: BatchNorm) -> Self {
        Self { conv, norm }
    }

    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, pass)
    }

    /// Followed by ReLU, in place: no backward pass of the norm reads its output.
    pub(crate) fn relu(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let mut y = self.forward(x, pass)?;
        y.f_relu_().map_err(|e| Error::layer(&self.norm.name, &y, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::named::Registry;
    use std::sync::{Arc, Mutex};
    use tch::Device;

    /// A group of one.
    #[derive(Debug, Default)]
    struct Alone(Mutex<Vec<Vec<f32>>>);

    impl Exchange for Alone {
        fn sum(&self, x: &Tensor) -> Result<Tensor> {
            self.0.lock().unwrap().push(Vec::try_from(x.detach().contiguous()).unwrap());
            Ok(x.shallow_clone())
        }
    }

    /// Output, gradients of input, weight and bias, and running statistics after a training pass in `mode`.
    fn train(mode: NormMode, absent: bool) -> Vec<Tensor> {
        tch::manual_seed(1);
        let registry = Registry::new(Device::Cpu);
        let norm = BatchNorm::new(&Scope::root(&registry), 3, 0.7).unwrap();
        // A mean of 100 beside a deviation of 1.
        let x = (Tensor::randn([2, 3, 4, 5, 5], (Kind::Float, Device::Cpu)) + 100.0).set_requires_grad(true);
        let slope = Tensor::randn(x.size(), (Kind::Float, Device::Cpu));
        let y = norm.forward(&x, &Pass { train: true, norm: mode, absent, ..Pass::default() }).unwrap();
        (&y * slope).sum(Kind::Float).backward();
        vec![y, x.grad(), norm.weight.grad(), norm.bias.grad(), norm.mean, norm.var]
    }

    #[test]
    fn a_group_of_one_equals_local_statistics_in_float32() {
        let exchange = Arc::new(Alone::default());
        let ours = train(NormMode::Sync(exchange.clone()), false);
        for (i, (a, b)) in ours.iter().zip(train(NormMode::Local, false)).enumerate() {
            let gap = (a - &b).abs().max().double_value(&[]) / b.abs().max().double_value(&[]);
            assert!(gap < 1e-5, "{i}: {gap:e}");
        }
        let calls = exchange.0.lock().unwrap();
        assert_eq!(calls.iter().map(Vec::len).collect::<Vec<_>>(), [4, 3]);
        assert_eq!(calls[0][3], 200.0, "values a channel");
    }

    #[test]
    fn an_absent_rank_brings_zeros() {
        let exchange = Arc::new(Alone::default());
        train(NormMode::Sync(exchange.clone()), true);
        assert!(exchange.0.lock().unwrap().iter().flatten().all(|&x| x == 0.0));
    }
}
