//! The ResNets' head: pooling in windows of the training size, dropout, a projection at each place.
//!
//! On clips of the training size a window covers everything; on larger ones, as in testing, the network is fully
//! convolutional: windows overlap at stride 1 and each place gives its own logits
//! (`pytorchvideo/models/head.py`, `create_res_basic_head`; PySlowFast's `head_helper.py`, `ResNetBasicHead`).

use crate::{
    Error, Result,
    layers::{Linear, volume},
    named::Scope,
    pass::Pass,
};
use tch::{Kind, TchError, Tensor};

/// How much height and width shrink from the clip to the last features.
const REDUCTION: i64 = 32;

#[derive(Debug)]
pub(crate) struct Head {
    pools: Vec<Pool>,
    dropout: f64,
    proj: Linear,
}

/// How one pathway's features are pooled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    /// (T, H, W); cut to the features' size where those are smaller.
    window: [i64; 3],
    /// Frames from one window to the next.
    stride: i64,
}

impl Pool {
    /// For a pathway that leaves `frames` frames of a training clip `crop` pixels wide. `stride` is 1, and alpha
    /// on a fast pathway, whose windows then begin where the slow one's do.
    pub(crate) fn new(frames: i64, crop: i64, stride: i64) -> Self {
        // Each of the network's five halvings rounds up.
        let side = (crop + REDUCTION - 1) / REDUCTION;
        Self { window: [frames, side, side], stride }
    }

    fn places(&self, size: [i64; 3]) -> [i64; 3] {
        let stride = [self.stride, 1, 1];
        [0, 1, 2].map(|a| (size[a] - self.window[a].min(size[a])) / stride[a] + 1)
    }

    /// (B, C, T, H, W) to the means (B, C, places...).
    fn forward(&self, x: &Tensor) -> std::result::Result<Tensor, TchError> {
        let (_, _, t, h, w) = x.size5()?;
        let size = [t, h, w];
        let [wt, wh, ww] = [0, 1, 2].map(|a| self.window[a].min(size[a]));
        if [wt, wh, ww] == size {
            return x.f_mean_dim([2i64, 3, 4].as_slice(), true, None::<Kind>);
        }
        x.f_unfold(2, wt, self.stride)?.f_unfold(3, wh, 1)?.f_unfold(4, ww, 1)?.f_mean_dim(
            [5i64, 6, 7].as_slice(),
            false,
            None::<Kind>,
        )
    }
}

impl Head {
    /// `inputs`: channels of all pathways together.
    pub(crate) fn new(at: &Scope, pools: Vec<Pool>, dropout: f64, inputs: i64, classes: i64) -> Result<Self> {
        Ok(Self { pools, dropout, proj: Linear::new(&at.sub("proj"), [inputs, classes], 0.01, true)? })
    }

    /// Each pathway's (B, C, T, H, W) to logits (B, places, classes).
    pub(crate) fn forward(&self, pathways: &[Tensor], pass: &Pass) -> Result<Tensor> {
        let gather = || {
            let pooled = self.pools.iter().zip(pathways).map(|(pool, x)| pool.forward(x));
            let x = Tensor::f_cat(&pooled.collect::<std::result::Result<Vec<_>, _>>()?, 1)?;
            x.f_flatten(2, -1)?.f_transpose(1, 2)?.f_dropout(self.dropout, pass.train)
        };
        let features = gather().map_err(|e| Error::layer("head", &pathways[0], e))?;
        self.proj.forward(&features)
    }

    /// Multiply-adds on one clip whose first pathway ends with features of `size`.
    pub(crate) fn cost(&self, size: [i64; 3]) -> u64 {
        self.pools.first().map_or(0, |pool| self.proj.cost(volume(pool.places(size))))
    }
}
