//! Multi-head attention inside windows, with a learned bias per head and relative position.

use super::{STD, window::Grid};
use crate::{
    Error, Result,
    layers::Linear,
    named::{Init, Scope},
};
use tch::{Kind, TchError, Tensor};

#[derive(Debug)]
pub(super) struct Attention {
    name: String,
    dim: i64,
    heads: i64,
    /// A row for each offset inside a full window, a column a head.
    table: Tensor,
    index: Tensor,
    qkv: Linear,
    proj: Linear,
}

impl Attention {
    /// `index`: [`super::window::relative_position_index`] of the full window.
    pub(super) fn new(at: &Scope, dim: i64, heads: i64, index: &Tensor) -> Result<Self> {
        let rows =
            index.f_max().and_then(|m| m.f_int64_value(&[])).map_err(Error::torch("read the index"))? + 1;
        let table =
            at.weight("relative_position_bias_table", &[rows, heads], Init::Normal { std: STD }, false)?;
        at.constant("relative_position_index", index, true);
        Ok(Self {
            name: at.path().into(),
            dim,
            heads,
            table,
            index: index.shallow_clone(),
            qkv: Linear::new(&at.sub("qkv"), [dim, 3 * dim], STD, true)?,
            proj: Linear::new(&at.sub("proj"), [dim, dim], STD, true)?,
        })
    }

    /// Tokens (B, T, H, W, C) attend to those of their window; `mask` is the grid's.
    pub(super) fn forward(&self, x: &Tensor, grid: &Grid, mask: Option<&Tensor>) -> Result<Tensor> {
        let layer = |e| Error::layer(&self.name, x, e);
        let windows = grid.cut(x).map_err(layer)?;
        let qkv = self.qkv.forward(&windows)?;
        let mixed = self.attend(&qkv, grid, mask).map_err(layer)?;
        grid.join(&self.proj.forward(&mixed)?).map_err(layer)
    }

    /// Multiply-adds on one clip: the projections of every token, padding included, and two products a window.
    pub(super) fn cost(&self, grid: &Grid) -> u64 {
        let (windows, n) = (grid.windows() as u64, grid.volume() as u64);
        let linear = self.qkv.cost(windows * n) + self.proj.cost(windows * n);
        linear + 2 * windows * n * n * self.dim as u64
    }

    fn attend(
        &self,
        qkv: &Tensor,
        grid: &Grid,
        mask: Option<&Tensor>,
    ) -> std::result::Result<Tensor, TchError> {
        let (rows, n, channels) = qkv.size3()?;
        let head_dim = channels / 3 / self.heads;
        let parts = qkv.f_view([rows, n, 3, self.heads, head_dim])?.f_permute([2i64, 0, 3, 1, 4])?;
        let (q, k, v) = (parts.f_select(0, 0)?, parts.f_select(0, 1)?, parts.f_select(0, 2)?);
        let q = q.f_mul_scalar((head_dim as f64).powf(-0.5))?;
        // In place: matmul's backward pass does not read its result.
        let mut scores = q.f_matmul(&k.f_transpose(-2, -1)?)?.f_add_(&self.bias(n)?)?;
        if let Some(mask) = mask {
            scores = scores
                .f_view([-1, grid.windows(), self.heads, n, n])?
                .f_add_(mask)?
                .f_view([-1, self.heads, n, n])?;
        }
        let weights = scores.f_softmax(-1, None::<Kind>)?;
        weights.f_matmul(&v)?.f_transpose(1, 2)?.f_reshape([rows, n, channels / 3])
    }

    /// The bias of a window of `n` tokens, (heads, n, n).
    fn bias(&self, n: i64) -> std::result::Result<Tensor, TchError> {
        let index = self.index.f_narrow(0, 0, n)?.f_narrow(1, 0, n)?.f_reshape([-1])?;
        self.table.f_index_select(0, &index)?.f_view([n, n, self.heads])?.f_permute([2i64, 0, 1])
    }
}
