//! Sizes of networks that must fit together.

use super::Rules;
use crate::{NonLocal, ResNet3d, Result, SlowFast, VideoSwin};

impl Rules<'_> {
    pub(super) fn slowfast(&self, m: &SlowFast, frames: u32) -> Result<()> {
        let known = [18, 50, 101].contains(&m.depth);
        self.require(known, "model.depth", format!("{} must be 18, 50 or 101", m.depth))?;
        self.positive("model.alpha", m.alpha.into())?;
        self.positive("model.beta", m.beta.into())?;
        self.positive("model.width", m.width.into())?;
        self.require(
            m.width.is_multiple_of(m.beta),
            "model.width",
            format!("{} channels are not a multiple of model.beta = {}", m.width, m.beta),
        )?;
        let odd = m.fusion_kernel % 2 == 1;
        self.require(odd, "model.fusion_kernel", format!("{} must be odd", m.fusion_kernel))?;
        self.fraction("model.dropout", m.dropout)?;
        if let Some(blocks) = m.temporal_blocks {
            let ok = blocks.iter().zip(blocks_of(m.depth)).all(|(t, all)| *t <= all);
            let why =
                format!("{blocks:?} are more than the {:?} blocks of depth {}", blocks_of(m.depth), m.depth);
            self.require(ok, "model.temporal_blocks", why)?;
        }
        self.non_local(m.non_local.as_ref(), m.depth)?;
        self.require(
            frames.is_multiple_of(m.alpha),
            "data.frames",
            format!("{frames} frames are not a multiple of model.alpha = {}", m.alpha),
        )
    }

    pub(super) fn video_swin(&self, m: &VideoSwin, frames: u32) -> Result<()> {
        let (depths, heads) = (m.depths.len(), m.heads.len());
        self.require(
            depths == heads && depths > 0,
            "model.heads",
            format!("{heads} numbers for {depths} stages in model.depths; give one a stage"),
        )?;
        self.require(!m.depths.contains(&0), "model.depths", "a stage needs at least one block")?;
        self.positive("model.embed_dim", m.embed_dim.into())?;
        for (stage, heads) in m.heads.iter().enumerate() {
            let channels = u64::from(m.embed_dim) << stage;
            self.require(
                *heads > 0 && channels.is_multiple_of((*heads).into()),
                "model.heads",
                format!("stage {stage} has {channels} channels, which {heads} heads cannot share"),
            )?;
        }
        self.require(!m.patch.contains(&0), "model.patch", "every side must be greater than 0")?;
        self.require(!m.window.contains(&0), "model.window", "every side must be greater than 0")?;
        self.positive("model.mlp_ratio", m.mlp_ratio)?;
        self.fraction("model.dropout", m.dropout)?;
        self.fraction("model.drop_path", m.drop_path)?;
        self.require(
            frames >= m.patch[0],
            "data.frames",
            format!("{frames} frames are fewer than one patch of {}", m.patch[0]),
        )
    }

    pub(super) fn resnet3d(&self, m: &ResNet3d) -> Result<()> {
        let known = [18, 50, 101].contains(&m.depth);
        self.require(known, "model.depth", format!("{} must be 18, 50 or 101", m.depth))?;
        self.positive("model.width", m.width.into())?;
        self.fraction("model.dropout", m.dropout)?;
        self.non_local(m.non_local.as_ref(), m.depth)
    }

    fn non_local(&self, blocks: Option<&NonLocal>, depth: u32) -> Result<()> {
        let Some(n) = blocks else { return Ok(()) };
        self.require(!n.pool.contains(&0), "model.non_local.pool", "every side must be greater than 0")?;
        for ((stage, at), blocks) in (2..).zip(&n.locations).zip(blocks_of(depth)) {
            let ok = at.is_sorted_by(|a, b| a < b) && at.last().is_none_or(|&last| last < blocks);
            let why =
                format!("res{stage} has {blocks} blocks at depth {depth}; {at:?} must ascend below that");
            self.require(ok, "model.non_local.locations", why)?;
        }
        Ok(())
    }
}

/// Residual blocks of res2..res5.
fn blocks_of(depth: u32) -> [u32; 4] {
    match depth {
        18 => [2, 2, 2, 2],
        50 => [3, 4, 6, 3],
        _ => [3, 4, 23, 3],
    }
}
