//! A batch of decoded frames becomes a network's input: bytes over the bus, arithmetic on the device.

use crate::Result;
use shards::stream::Batch;
use tch::{Device, Kind, Tensor};

/// How bytes become floats: `(x / 255 - mean) / std` for each colour channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalise {
    /// Means of red, green, blue, in 0..=1.
    pub mean: [f64; 3],
    /// Standard deviations of red, green, blue.
    pub std: [f64; 3],
    /// Keep the channels innermost in memory (channels_last_3d), which is how frames arrive.
    pub channels_last: bool,
    /// Where the floats are made.
    pub device: Device,
    /// (T, H, W) of a training clip.
    clip: [i64; 3],
}

impl Normalise {
    /// As the job says.
    pub fn new(job: &configs::Job, device: Device) -> Self {
        let side = i64::from(job.data.augment.crop);
        Self {
            mean: job.data.mean,
            std: job.data.std,
            channels_last: job.train.channels_last,
            device,
            clip: [i64::from(job.data.frames), side, side],
        }
    }

    /// The batch's frames as [`Normalise::frames`] makes them.
    pub fn tensor(&self, batch: &Batch) -> Result<Tensor> {
        self.frames(&batch.frames, batch.shape)
    }

    /// Likewise for a range of the batch's views.
    pub fn part(&self, batch: &Batch, views: std::ops::Range<usize>) -> Result<Tensor> {
        let a_view: usize = batch.shape[1..].iter().product();
        let mut shape = batch.shape;
        shape[0] = views.len();
        let bytes = batch.frames.get(views.start * a_view..views.end * a_view).unwrap_or_default();
        self.frames(bytes, shape)
    }

    /// `n` training clips of zeros (mean grey) in the layout of [`Normalise::tensor`].
    pub fn zeros(&self, n: i64) -> Result<Tensor> {
        let [t, h, w] = self.clip;
        let x = Tensor::f_zeros([n, t, h, w, 3], (Kind::Float, self.device))?;
        self.layout(&x)
    }

    /// RGB bytes (B, T, H, W, 3) -> float32 (B, 3, T, H, W) on the device.
    ///
    /// The result is a permuted view of (B, T, H, W, 3), which is channels_last_3d, or a contiguous
    /// copy where `channels_last` is off. The values do not depend on the layout.
    pub fn frames(&self, frames: &[u8], shape: [usize; 5]) -> Result<Tensor> {
        let [b, t, h, w, c] = shape.map(|n| n as i64);
        if frames.len() != shape.iter().product::<usize>() || c != 3 {
            return Err(tch::TchError::Shape(format!(
                "{} bytes of frames are not a batch of shape (B, T, H, W, C) = {shape:?} with three channels",
                frames.len()
            ))
            .into());
        }
        let rows = [b, t, h, w * c];
        let bytes = Tensor::f_from_data_size(frames, &rows, Kind::Uint8)?.f_to_device(self.device)?;
        // Scale and shift are rows as wide as the frame: an innermost dimension of only three would
        // keep the loops from being vectorised.
        let mut x = bytes.f_to_kind(Kind::Float)?;
        let _ = x.f_mul_(&self.row(w, |_, s| 1.0 / (255.0 * s))?)?;
        let _ = x.f_add_(&self.row(w, |m, s| -m / s)?)?;
        self.layout(&x.f_view([b, t, h, w, c])?)
    }

    /// (B, T, H, W, C) -> (B, C, T, H, W), a view where the channels stay innermost.
    fn layout(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.f_permute([0, 4, 1, 2, 3])?;
        Ok(if self.channels_last { x } else { x.f_contiguous()? })
    }

    /// A function of each channel's mean and deviation, repeated over a row of `width` pixels.
    fn row(&self, width: i64, of: fn(f64, f64) -> f64) -> Result<Tensor> {
        let rgb: Vec<f32> = self.mean.iter().zip(&self.std).map(|(&m, &s)| of(m, s) as f32).collect();
        Ok(Tensor::f_from_slice(&rgb)?.f_repeat([width])?.f_to_device(self.device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 5] = [2, 3, 4, 5, 3];

    fn frames() -> Vec<u8> {
        (0..360u32).map(|i| (i * 37 % 256) as u8).collect()
    }

    fn normalise(channels_last: bool) -> Normalise {
        Normalise {
            mean: [0.45, 0.4, 0.3],
            std: [0.225, 0.2, 0.25],
            channels_last,
            device: Device::Cpu,
            clip: [3, 4, 5],
        }
    }

    #[test]
    fn equals_the_formula_in_either_layout() {
        let (f, n) = (frames(), normalise(true));
        let last = n.frames(&f, SHAPE).unwrap();
        let plain = normalise(false).frames(&f, SHAPE).unwrap();
        assert_eq!(last.size(), [2, 3, 3, 4, 5]);
        assert!(plain.is_contiguous() && !last.is_contiguous());
        assert_eq!(last.stride(), [180, 1, 60, 15, 3]);
        assert!(last.equal(&plain));
        assert_eq!(n.zeros(2).unwrap().stride(), last.stride());
        for (b, c, t, h, w) in [(0, 0, 0, 0, 0), (1, 2, 2, 3, 4), (0, 1, 1, 2, 3), (1, 0, 2, 0, 1)] {
            let byte = f[(((b * 3 + t) * 4 + h) * 5 + w) * 3 + c];
            let want = (f64::from(byte) / 255.0 - n.mean[c]) / n.std[c];
            let got = last.double_value(&[b as i64, c as i64, t as i64, h as i64, w as i64]);
            assert!((got - want).abs() < 1e-6, "{got} is not {want}");
        }
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        assert!(normalise(true).frames(&frames()[1..], SHAPE).is_err());
    }
}
