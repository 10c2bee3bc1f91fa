//! Video Swin (Liu et al. 2022) under torchvision's names: patch embedding, stages of shifted-window blocks
//! with patch merging between them, a linear head on the mean of all tokens. Tokens are (B, T, H, W, C).

mod attention;
mod block;
mod window;

use crate::{
    Error, Result,
    layers::{Conv3d, LayerNorm, Linear, volume},
    model::Network,
    named::Scope,
    pass::Pass,
};
use block::Block;
use tch::{Kind, Tensor};
use window::{Grid, relative_position_index};

/// Standard deviation of fresh linear weights and bias tables.
const STD: f64 = 0.02;

/// The network.
#[derive(Debug)]
pub(crate) struct Swin {
    patch: [i64; 3],
    window: [i64; 3],
    embed: Conv3d,
    embed_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
    dropout: f64,
    head: Linear,
}

#[derive(Debug)]
struct Stage {
    blocks: Vec<Block>,
    merge: Option<Merge>,
}

impl Swin {
    pub(crate) fn new(at: &Scope, cfg: &configs::VideoSwin, classes: i64) -> Result<Self> {
        check(cfg)?;
        let (patch, window) = (cfg.patch.map(i64::from), cfg.window.map(i64::from));
        let embed_dim = i64::from(cfg.embed_dim);
        let embed = Conv3d::patches(&at.sub("patch_embed.proj"), [3, embed_dim], patch)?;
        let embed_norm = LayerNorm::new(&at.sub("patch_embed.norm"), embed_dim)?;
        let index = relative_position_index(window, at.device())?;
        let total: u32 = cfg.depths.iter().sum();
        let mut stages: Vec<Stage> = vec![];
        let (mut dim, mut before) = (embed_dim, 0);
        for (i, (&depth, &heads)) in cfg.depths.iter().zip(&cfg.heads).enumerate() {
            let blocks = (0..depth).map(|j| {
                // Drop-path grows linearly from 0 at the first block to its full rate at the last.
                let rate = cfg.drop_path * f64::from(before + j) / f64::from(total.max(2) - 1);
                let at = at.sub(format_args!("features.{}.{j}", 2 * i));
                let hidden = (dim as f64 * cfg.mlp_ratio) as i64;
                Block::new(&at, [dim, hidden], i64::from(heads), &index, j % 2 == 1, rate)
            });
            let blocks = blocks.collect::<Result<_>>()?;
            let last = i + 1 == cfg.depths.len();
            let merge = (!last)
                .then(|| Merge::new(&at.sub(format_args!("features.{}", 2 * i + 1)), dim))
                .transpose()?;
            stages.push(Stage { blocks, merge });
            before += depth;
            dim = if last { dim } else { 2 * dim };
        }
        let norm = LayerNorm::new(&at.sub("norm"), dim)?;
        let head = Linear::new(&at.sub("head"), [dim, classes], STD, true)?;
        Ok(Self { patch, window, embed, embed_norm, stages, norm, dropout: cfg.dropout, head })
    }
}

impl Network for Swin {
    fn forward(&self, inputs: &[Tensor], pass: &Pass) -> Result<Tensor> {
        let [clip] = inputs else {
            return Err(Error::Input {
                why: format!("the network takes one clip, not {} inputs", inputs.len()),
            });
        };
        let layer = |e| Error::layer("patch_embed", clip, e);
        let (_, _, t, h, w) = clip.size5().map_err(layer)?;
        let [pt, ph, pw] = [(t, 0), (h, 1), (w, 2)].map(|(n, axis)| missing(n, self.patch[axis]));
        let padded = match [pt, ph, pw] {
            [0, 0, 0] => clip.shallow_clone(),
            _ => clip.f_constant_pad_nd([0, pw, 0, ph, 0, pt]).map_err(layer)?,
        };
        let tokens = self.embed.forward(&padded)?.f_permute([0i64, 2, 3, 4, 1]).map_err(layer)?;
        let mut x = self.embed_norm.forward(&tokens)?;
        for stage in &self.stages {
            x = stage.forward(x, self.window, pass)?;
        }
        let x = self.norm.forward(&x)?;
        let mean = x
            .f_mean_dim([1i64, 2, 3].as_slice(), false, None::<Kind>)
            .and_then(|m| m.f_dropout(self.dropout, pass.train)?.f_unsqueeze(1))
            .map_err(|e| Error::layer("avgpool", &x, e))?;
        self.head.forward(&mean)
    }

    fn cost(&self, size: [i64; 3]) -> u64 {
        let padded = [0, 1, 2].map(|a| size[a] + missing(size[a], self.patch[a]));
        let (embed, size) = self.embed.cost(padded);
        let (stages, _) = self.stages.iter().fold((0, size), |(sum, size), stage| {
            let (cost, size) = stage.cost(size, self.window);
            (sum + cost, size)
        });
        embed + stages + self.head.cost(1)
    }
}

impl Stage {
    fn forward(&self, mut x: Tensor, window: [i64; 3], pass: &Pass) -> Result<Tensor> {
        let (_, t, h, w, _) = x.size5().map_err(|e| Error::layer("features", &x, e))?;
        let still = Grid::new([t, h, w], window, false);
        let shifted = Grid::new([t, h, w], window, true);
        // The shifted blocks of a stage share one mask.
        let mask = match self.blocks.iter().any(|b| b.shifted) {
            true => shifted.mask(x.device())?,
            false => None,
        };
        for block in &self.blocks {
            x = match block.shifted {
                true => block.forward(&x, &shifted, mask.as_ref(), pass)?,
                false => block.forward(&x, &still, None, pass)?,
            };
        }
        match &self.merge {
            Some(merge) => merge.forward(&x),
            None => Ok(x),
        }
    }

    /// Multiply-adds on one clip's tokens (T, H, W), and the size that comes out.
    fn cost(&self, size: [i64; 3], window: [i64; 3]) -> (u64, [i64; 3]) {
        let tokens = volume(size);
        let cost = |b: &Block| b.cost(tokens, &Grid::new(size, window, b.shifted));
        let blocks: u64 = self.blocks.iter().map(cost).sum();
        match &self.merge {
            None => (blocks, size),
            Some(merge) => {
                let [t, h, w] = size;
                let merged = [t, (h + 1) / 2, (w + 1) / 2];
                (blocks + merge.reduction.cost(volume(merged)), merged)
            }
        }
    }
}

/// Joins 2 x 2 neighbours in space into one token of twice the channels.
#[derive(Debug)]
struct Merge {
    name: String,
    norm: LayerNorm,
    reduction: Linear,
}

impl Merge {
    fn new(at: &Scope, dim: i64) -> Result<Self> {
        let reduction = Linear::new(&at.sub("reduction"), [4 * dim, 2 * dim], STD, false)?;
        let norm = LayerNorm::new(&at.sub("norm"), 4 * dim)?;
        Ok(Self { name: at.path().into(), norm, reduction })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let join = || {
            let (_, _, h, w, _) = x.size5()?;
            let even = match (h % 2, w % 2) {
                (0, 0) => x.shallow_clone(),
                (odd_h, odd_w) => x.f_constant_pad_nd([0, 0, 0, odd_w, 0, odd_h])?,
            };
            let every_other = |dh, dw| even.f_slice(2, dh, None, 2)?.f_slice(3, dw, None, 2);
            let parts = [every_other(0, 0)?, every_other(1, 0)?, every_other(0, 1)?, every_other(1, 1)?];
            Tensor::f_cat(&parts, -1)
        };
        let joined = join().map_err(|e| Error::layer(&self.name, x, e))?;
        self.reduction.forward(&self.norm.forward(&joined)?)
    }
}

/// How far `n` is from the next multiple of `unit`.
fn missing(n: i64, unit: i64) -> i64 {
    (unit - n % unit) % unit
}

fn check(cfg: &configs::VideoSwin) -> Result<()> {
    if cfg.depths.is_empty() || cfg.depths.len() != cfg.heads.len() {
        return Err(Error::config(
            "heads",
            format!("{} stages in depths but {} in heads", cfg.depths.len(), cfg.heads.len()),
        ));
    }
    if cfg.patch.contains(&0) || cfg.window.contains(&0) {
        return Err(Error::config("window", "a patch or window axis of length 0"));
    }
    for (i, &heads) in cfg.heads.iter().enumerate() {
        let dim = u64::from(cfg.embed_dim) << i;
        if heads == 0 || dim == 0 || dim % u64::from(heads) != 0 {
            return Err(Error::config(
                "heads",
                format!("{heads} heads cannot share the {dim} channels of stage {i}"),
            ));
        }
    }
    if !(0.0..1.0).contains(&cfg.drop_path) || !(0.0..1.0).contains(&cfg.dropout) {
        return Err(Error::config(
            "drop_path",
            format!("dropout {} and drop_path {} must be in 0..1", cfg.dropout, cfg.drop_path),
        ));
    }
    if cfg.mlp_ratio * f64::from(cfg.embed_dim) < 1.0 {
        return Err(Error::config("mlp_ratio", format!("{} leaves the MLP empty", cfg.mlp_ratio)));
    }
    Ok(())
}
