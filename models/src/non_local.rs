//! Non-local blocks (Wang et al. 2018, section 3): every place looks at all places of the clip.
//!
//! y = x + BN(W_out sum_j f(x_i, x_j) g(x_j)), with f of 1x1x1 projections of half the channels, and keys and values
//! max-pooled, as in PySlowFast's `slowfast/models/nonlocal_helper.py`, whose names the tensors bear.

use crate::{
    Error, Result,
    layers::{Conv3d, volume},
    named::Scope,
    norm::BatchNorm,
    pass::Pass,
};
use configs::NonLocalKind;
use tch::{Kind, TchError, Tensor};

#[derive(Debug)]
pub(crate) struct NonLocal {
    name: String,
    kind: NonLocalKind,
    pool: [i64; 3],
    inner: i64,
    theta: Conv3d,
    phi: Conv3d,
    g: Conv3d,
    out: Conv3d,
    norm: BatchNorm,
}

impl NonLocal {
    pub(crate) fn new(at: &Scope, cfg: &configs::NonLocal, channels: i64) -> Result<Self> {
        if cfg.pool.contains(&0) {
            return Err(Error::config("non_local.pool", format!("{:?} has a side of 0", cfg.pool)));
        }
        let inner = channels / 2;
        Ok(Self {
            name: at.path().into(),
            kind: cfg.kind,
            pool: cfg.pool.map(i64::from),
            inner,
            theta: Conv3d::point(&at.sub("conv_theta"), [channels, inner])?,
            phi: Conv3d::point(&at.sub("conv_phi"), [channels, inner])?,
            g: Conv3d::point(&at.sub("conv_g"), [channels, inner])?,
            out: Conv3d::point(&at.sub("conv_out"), [inner, channels])?,
            // At zero, so that a block put into a trained network changes nothing at first.
            norm: BatchNorm::new(&at.sub("norm"), channels, 0.0)?,
        })
    }

    /// (B, C, T, H, W) to the same shape.
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let layer = |e| Error::layer(&self.name, x, e);
        let pooled = self.pooled(x).map_err(layer)?;
        let (theta, phi, g) = (self.theta.forward(x)?, self.phi.forward(&pooled)?, self.g.forward(&pooled)?);
        let mixed = self.attend(&theta, &phi, &g).map_err(layer)?;
        let y = self.norm.forward(&self.out.forward(&mixed)?, pass)?;
        x.f_add(&y).map_err(layer)
    }

    fn pooled(&self, x: &Tensor) -> std::result::Result<Tensor, TchError> {
        let (_, _, t, h, w) = x.size5()?;
        match self.window([t, h, w]) {
            [1, 1, 1] => Ok(x.shallow_clone()),
            window => x.f_max_pool3d(window, window, [0i64; 3], [1i64; 3], false),
        }
    }

    /// Features shorter than the pooling are pooled whole.
    fn window(&self, size: [i64; 3]) -> [i64; 3] {
        [0, 1, 2].map(|a| self.pool[a].min(size[a]))
    }

    fn attend(&self, theta: &Tensor, phi: &Tensor, g: &Tensor) -> std::result::Result<Tensor, TchError> {
        let flat = |x: &Tensor| x.f_flatten(2, -1);
        let affinity = flat(theta)?.f_transpose(1, 2)?.f_matmul(&flat(phi)?)?;
        let affinity = match self.kind {
            NonLocalKind::DotProduct => {
                let places = affinity.size3()?.2 as f64;
                affinity.f_div_scalar(places)?
            }
            NonLocalKind::EmbeddedGaussian => {
                affinity.f_mul_scalar((self.inner as f64).powf(-0.5))?.f_softmax(-1, None::<Kind>)?
            }
        };
        flat(g)?.f_matmul(&affinity.f_transpose(1, 2)?)?.f_reshape(theta.size())
    }

    /// Multiply-adds on one clip's features of size (T, H, W).
    pub(crate) fn cost(&self, size: [i64; 3]) -> u64 {
        let window = self.window(size);
        let pooled = [0, 1, 2].map(|a| size[a] / window[a].max(1));
        let products = 2 * volume(size) * volume(pooled) * self.inner as u64;
        let at = |conv: &Conv3d, size| conv.cost(size).0;
        at(&self.theta, size) + at(&self.phi, pooled) + at(&self.g, pooled) + at(&self.out, size) + products
    }
}
