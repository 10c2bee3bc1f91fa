//! What a forward pass keeps for the backward pass: an estimate from the network's shape alone.
//!
//! Counted are the outputs of convolutions and norms (of linear layers, attention and norms in Video Swin) that autograd
//! saves, as `torch.autograd.graph.saved_tensors_hooks` shows them for the reference networks. Not counted:
//! temporary buffers of single kernels, and what an allocator loses to fragmentation.

use configs::{Model, NonLocal, ResNet3d, ResNet3dKind, SlowFast, VideoSwin};

/// Bytes of one clip of `frames` frames of `side` x `side` pixels. `half`: under 16-bit autocast.
pub fn bytes(model: &Model, frames: u32, side: u32, half: bool) -> u64 {
    let (frames, side) = (u64::from(frames), u64::from(side));
    let wide = if half { 2 } else { 4 };
    let clip = frames * side * side * 3 * 4;
    match model {
        Model::Slowfast(m) => clip + slowfast(m, frames, side) * wide,
        Model::Resnet3d(m) => clip + resnet3d(m, frames, side) * wide,
        Model::VideoSwin(m) => clip + video_swin(m, frames, side, wide),
    }
}

/// One pathway on its way through the stages.
struct Pathway {
    /// Frames and side of the feature map, and its channels.
    frames: u64,
    side: u64,
    channels: u64,
    /// Values kept so far.
    kept: u64,
}

impl Pathway {
    /// After a stem of `channels` channels and its pooling.
    fn stem(frames: u64, side: u64, channels: u64) -> Self {
        let (conv, pool) = (side.div_ceil(2), side.div_ceil(4));
        // Convolution and norm; of the pooling its indices, which are 64-bit.
        let kept = frames * channels * (2 * conv * conv + 2 * pool * pool);
        Self { frames, side: pool, channels, kept }
    }

    fn places(&self) -> u64 {
        self.frames * self.side * self.side
    }

    /// `blocks` residual blocks of `inner` channels inside.
    fn stage(&mut self, depth: u32, stage: usize, inner: u64, non_local: Option<&NonLocal>) {
        let outputs = inner * if depth == 18 { 1 } else { 4 };
        for block in 0..blocks(depth)[stage] {
            let before = self.places();
            if block == 0 && stage > 0 {
                self.side = self.side.div_ceil(2);
            }
            let after = self.places();
            // Of each convolution its output and the norm's; the last norm's holds the sum.
            self.kept += match depth {
                18 => 2 * inner * after + 2 * outputs * after,
                _ => 2 * inner * (before + after) + 2 * outputs * after,
            };
            if self.channels != outputs || before != after {
                self.kept += outputs * after;
            }
            self.channels = outputs;
            if let Some(n) = non_local.filter(|n| n.locations[stage].contains(&block)) {
                self.non_local(n);
            }
        }
    }

    fn non_local(&mut self, n: &NonLocal) {
        let (places, channels) = (self.places(), self.channels);
        let keys = places / n.pool.iter().map(|&p| u64::from(p)).product::<u64>().max(1);
        self.kept +=
            places * channels / 2 * 2 + keys * channels / 2 * 2 + places * keys + 2 * places * channels;
    }
}

fn slowfast(m: &SlowFast, frames: u64, side: u64) -> u64 {
    let (width, beta) = (u64::from(m.width), u64::from(m.beta));
    let mut slow = Pathway::stem(frames / u64::from(m.alpha), side, width);
    let mut fast = Pathway::stem(frames, side, width / beta);
    for stage in 0..4 {
        // The lateral connection has twice the fast pathway's channels; then both are joined in a copy.
        let lateral = 2 * fast.channels;
        slow.kept += slow.places() * (2 * lateral + slow.channels + lateral);
        slow.channels += lateral;
        slow.stage(m.depth, stage, width << stage, m.non_local.as_ref());
        fast.stage(m.depth, stage, (width << stage) / beta, None);
    }
    slow.kept + fast.kept
}

fn resnet3d(m: &ResNet3d, frames: u64, side: u64) -> u64 {
    let width = u64::from(m.width);
    let mut path = Pathway::stem(frames, side, width);
    for stage in 0..4 {
        path.stage(m.depth, stage, width << stage, m.non_local.as_ref());
        if stage == 0 && m.kind != ResNet3dKind::Slow {
            // pytorchvideo's I3D and C2D pool pairs of frames after res2.
            path.frames = path.frames.div_ceil(2);
            path.kept += 2 * path.places() * path.channels;
        }
    }
    path.kept
}

/// Bytes, as norms stay in float32.
fn video_swin(m: &VideoSwin, frames: u64, side: u64, wide: u64) -> u64 {
    let div = |n: u64, by: u32| n.div_ceil(u64::from(by));
    let mut size = [div(frames, m.patch[0]), div(side, m.patch[1]), div(side, m.patch[2])];
    let mut channels = u64::from(m.embed_dim);
    let hidden = |channels: u64| (channels as f64 * m.mlp_ratio) as u64;
    let mut kept = 4 * 2 * size.iter().product::<u64>() * channels;
    for (stage, (&depth, &heads)) in m.depths.iter().zip(&m.heads).enumerate() {
        if stage > 0 {
            size = [size[0], size[1].div_ceil(2), size[2].div_ceil(2)];
            let tokens: u64 = size.iter().product();
            // Four neighbours side by side and their norm; then half as many channels.
            kept += 4 * 2 * tokens * 4 * channels;
            channels *= 2;
        }
        let window: Vec<u64> = size.iter().zip(m.window).map(|(&s, w)| s.min(w.into())).collect();
        // Each axis is padded to whole windows.
        let padded: u64 = size.iter().zip(&window).map(|(s, w)| s.div_ceil(*w) * w).product();
        let tokens: u64 = size.iter().product();
        let in_window: u64 = window.iter().product();
        // Both norms' inputs and the first sum are float32; inputs and outputs of the linear layers are not.
        let norms = 4 * 2 * tokens * channels;
        let linear =
            tokens * (channels + 2 * hidden(channels)) + padded * (channels + 3 * channels + 2 * channels);
        let attention = padded * in_window * u64::from(heads);
        kept += u64::from(depth) * (norms + wide * (linear + attention));
    }
    kept
}

fn blocks(depth: u32) -> [u32; 4] {
    match depth {
        18 => [2, 2, 2, 2],
        50 => [3, 4, 6, 3],
        _ => [3, 4, 23, 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use configs::Config;

    fn mib(recipe: &str, frames: u32, side: u32) -> f64 {
        let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs"));
        let config = Config::read(&folder.join(recipe), &[]).unwrap();
        bytes(&config.model, frames, side, false) as f64 / 1_048_576.0
    }

    /// Measured once on the reference networks, one clip of float32, in training:
    ///
    /// ```python
    /// seen = {}
    /// def pack(t):
    ///     s = t.untyped_storage()
    ///     if s.data_ptr() not in parameters: seen[s.data_ptr()] = (s.nbytes(), s)
    ///     return t
    /// with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): model(clip)
    /// sum(n for n, _ in seen.values()) / 2**20
    /// ```
    #[test]
    fn estimates_are_near_what_autograd_keeps() {
        for (recipe, frames, side, measured) in [
            ("slow_8x8_r50_k400.toml", 8, 224, 655.6),
            ("i3d_8x8_r50_k400.toml", 8, 224, 523.1),
            ("slowfast_8x8_r50_k400.toml", 32, 224, 1079.0),
            ("swin3d_t_k400.toml", 32, 224, 2571.8),
            ("swin3d_t_k400.toml", 16, 112, 325.1),
        ] {
            let estimate = mib(recipe, frames, side);
            assert!((estimate / measured - 1.0).abs() < 0.15, "{recipe}: {estimate:.1}, measured {measured}");
        }
    }
}
