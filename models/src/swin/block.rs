//! A transformer block: windowed attention and an MLP, each normalised before and added after, with drop-path.

use super::{attention::Attention, window::Grid};
use crate::{
    Error, Result,
    layers::{LayerNorm, Linear},
    named::Scope,
    pass::Pass,
};
use tch::{TchError, Tensor};

#[derive(Debug)]
pub(super) struct Block {
    name: String,
    /// Uses the shifted grid.
    pub(super) shifted: bool,
    drop_path: f64,
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    mlp: [Linear; 2],
}

impl Block {
    pub(super) fn new(
        at: &Scope,
        [dim, hidden]: [i64; 2],
        heads: i64,
        index: &Tensor,
        shifted: bool,
        drop_path: f64,
    ) -> Result<Self> {
        Ok(Self {
            name: at.path().into(),
            shifted,
            drop_path,
            norm1: LayerNorm::new(&at.sub("norm1"), dim)?,
            attention: Attention::new(&at.sub("attn"), dim, heads, index)?,
            norm2: LayerNorm::new(&at.sub("norm2"), dim)?,
            mlp: [
                Linear::new(&at.sub("mlp.0"), [dim, hidden], super::STD, true)?,
                Linear::new(&at.sub("mlp.3"), [hidden, dim], super::STD, true)?,
            ],
        })
    }

    /// Tokens (B, T, H, W, C) to tokens of the same shape.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        grid: &Grid,
        mask: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Tensor> {
        let mixed = self.attention.forward(&self.norm1.forward(x)?, grid, mask)?;
        let x = self.add(x, &mixed, pass)?;
        let hidden = self.mlp[0].forward(&self.norm2.forward(&x)?)?;
        let hidden = hidden.f_gelu("none").map_err(|e| Error::layer(&self.name, &hidden, e))?;
        self.add(&x, &self.mlp[1].forward(&hidden)?, pass)
    }

    /// Multiply-adds of the linear layers and the attention's products, the latter over padded windows.
    pub(super) fn cost(&self, tokens: u64, grid: &Grid) -> u64 {
        self.attention.cost(grid) + self.mlp.iter().map(|l| l.cost(tokens)).sum::<u64>()
    }

    fn add(&self, x: &Tensor, branch: &Tensor, pass: &Pass) -> Result<Tensor> {
        let rate = if pass.train { self.drop_path } else { 0.0 };
        drop_path(branch, rate).and_then(|b| x.f_add(&b)).map_err(|e| Error::layer(&self.name, branch, e))
    }
}

/// Zeroes the whole branch of a sample with probability `rate` and scales the others up (stochastic depth).
fn drop_path(branch: &Tensor, rate: f64) -> std::result::Result<Tensor, TchError> {
    if rate == 0.0 {
        return Ok(branch.shallow_clone());
    }
    let mut shape = vec![1; branch.dim()];
    shape[0] = branch.size()[0];
    let keep = 1.0 - rate;
    let noise = Tensor::f_empty(&shape, (branch.f_kind()?, branch.device()))?
        .f_bernoulli_float_(keep)?
        .f_div_scalar(keep)?;
    branch.f_mul(&noise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn drop_path_drops_whole_samples_and_keeps_the_mean() {
        tch::manual_seed(3);
        let x = Tensor::ones([4000, 2, 3], (Kind::Float, Device::Cpu));
        let y = drop_path(&x, 0.25).unwrap();
        let per_sample = y.flatten(1, -1);
        assert!(
            per_sample.std_dim(1, false, false).max().double_value(&[]) == 0.0,
            "a sample is dropped whole"
        );
        assert!((y.mean(Kind::Float).double_value(&[]) - 1.0).abs() < 0.05);
        assert!((y.max().double_value(&[]) - 1.0 / 0.75).abs() < 1e-6);
    }
}
