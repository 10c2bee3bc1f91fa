//! libtorch's fused optimizer kernels, which tch does not export: one pass over memory for all
//! parameters, in place, the same bits every time.
//!
//! Lists run in parallel. Parameters are dense and of one device; state has the type, shape and
//! strides of its parameter (`zeros_like` makes it so); a gradient in another layout is copied.

use crate::{Error, Result, ffi::shim, tensor::pointers};
use tch::Tensor;

/// One step of `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Counted from 1.
    pub step: i64,
    pub lr: f64,
    pub betas: [f64; 2],
    pub weight_decay: f64,
    pub eps: f64,
}

/// One step of `torch.optim.SGD` (dampening 0).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub nesterov: bool,
}

/// Updates `params`, `exp_avgs` and `exp_avg_sqs` in place. The states start as zeros.
pub fn fused_adamw(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    o: AdamW,
) -> Result<()> {
    // Safety: the pointers live as long as the lists.
    unsafe {
        shim::fused_adamw(
            &pointers(params),
            &pointers(grads),
            &pointers(exp_avgs),
            &pointers(exp_avg_sqs),
            o.step as f64,
            o.lr,
            o.betas[0],
            o.betas[1],
            o.weight_decay,
            o.eps,
        )
    }
    .map_err(|e| Error::of_shim(format!("take AdamW's step {}", o.step), e))
}

/// Updates `params` and `momenta` in place. The momenta start as zeros; without momentum the list
/// is empty.
pub fn fused_sgd(params: &[Tensor], grads: &[Tensor], momenta: &[Tensor], o: Sgd) -> Result<()> {
    let (params, grads, momenta) = (pointers(params), pointers(grads), pointers(momenta));
    // Safety: the pointers live as long as the lists.
    unsafe { shim::fused_sgd(&params, &grads, &momenta, o.lr, o.momentum, o.weight_decay, o.nesterov) }
        .map_err(|e| Error::of_shim("take a step of SGD", e))
}
