//! A batch of decoded frames becomes a network's input: bytes over the bus, arithmetic on the device.

use crate::Result;
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
    /// Replace every frame of a clip by its first.
    pub single_frame: bool,
}

impl Normalise {
    /// As the job says.
    pub fn new(job: &configs::Job) -> Self {
        Self {
            mean: job.data.mean,
            std: job.data.std,
            channels_last: job.train.channels_last,
            single_frame: job.train.single_frame,
        }
    }

    /// RGB bytes (B, T, H, W, 3) -> float32 (B, 3, T, H, W) on `device`.
    ///
    /// The result is a permuted view of (B, T, H, W, 3), which is channels_last_3d, or a contiguous
    /// copy where `channels_last` is off. The values do not depend on the layout.
    pub fn clip(&self, frames: &[u8], shape: [usize; 5], device: Device) -> Result<Tensor> {
        let [b, t, h, w, c] = shape.map(|n| n as i64);
        if frames.len() != shape.iter().product::<usize>() || c != 3 {
            return Err(tch::TchError::Shape(format!(
                "{} bytes of frames are not a batch of shape (B, T, H, W, C) = {shape:?} with three channels",
                frames.len()
            ))
            .into());
        }
        let mut bytes = Tensor::f_from_data_size(frames, &[b, t, h, w * c], Kind::Uint8)?.f_to_device(device)?;
        if self.single_frame {
            bytes = bytes.f_narrow(1, 0, 1)?.f_expand([b, t, h, w * c], false)?.f_contiguous()?;
        }
        // Scale and shift are rows as wide as the frame: an innermost dimension of only three would
        // keep the loops from being vectorised.
        let mut x = bytes.f_to_kind(Kind::Float)?;
        let (scale, shift) = self.rows(w, device)?;
        let _ = x.f_mul_(&scale)?;
        let _ = x.f_add_(&shift)?;
        let x = x.f_view([b, t, h, w, c])?.f_permute([0, 4, 1, 2, 3])?;
        Ok(if self.channels_last { x } else { x.f_contiguous()? })
    }

    /// x * scale + shift, each repeated over a row of `width` pixels.
    fn rows(&self, width: i64, device: Device) -> Result<(Tensor, Tensor)> {
        let row = |of: fn(f64, f64) -> f64| -> Result<Tensor> {
            let rgb: Vec<f32> = (0..3).map(|i| of(self.mean[i], self.std[i]) as f32).collect();
            Ok(Tensor::f_from_slice(&rgb)?.f_repeat([width])?.f_to_device(device)?)
        };
        Ok((row(|_, s| 1.0 / (255.0 * s))?, row(|m, s| -m / s)?))
    }
}

/// Labels as an int64 tensor (B).
pub fn labels(labels: &[i64], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(labels)?.f_to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 5] = [2, 3, 4, 5, 3];

    fn frames() -> Vec<u8> {
        (0..360u32).map(|i| (i * 37 % 256) as u8).collect()
    }

    fn normalise(channels_last: bool) -> Normalise {
        Normalise { mean: [0.45, 0.4, 0.3], std: [0.225, 0.2, 0.25], channels_last, single_frame: false }
    }

    #[test]
    fn equals_the_formula_in_either_layout() {
        let (f, n) = (frames(), normalise(true));
        let last = n.clip(&f, SHAPE, Device::Cpu).unwrap();
        let plain = normalise(false).clip(&f, SHAPE, Device::Cpu).unwrap();
        assert_eq!(last.size(), [2, 3, 3, 4, 5]);
        assert!(plain.is_contiguous() && !last.is_contiguous());
        assert_eq!(last.stride(), [180, 1, 60, 15, 3]);
        assert!(last.equal(&plain));
        for (b, c, t, h, w) in [(0, 0, 0, 0, 0), (1, 2, 2, 3, 4), (0, 1, 1, 2, 3), (1, 0, 2, 0, 1)] {
            let byte = f[(((b * 3 + t) * 4 + h) * 5 + w) * 3 + c];
            let want = (f64::from(byte) / 255.0 - n.mean[c]) / n.std[c];
            let got = last.double_value(&[b as i64, c as i64, t as i64, h as i64, w as i64]);
            assert!((got - want).abs() < 1e-6, "{got} is not {want}");
        }
    }

    #[test]
    fn a_single_frame_is_repeated() {
        let n = Normalise { single_frame: true, ..normalise(true) };
        let x = n.clip(&frames(), SHAPE, Device::Cpu).unwrap();
        let all = normalise(true).clip(&frames(), SHAPE, Device::Cpu).unwrap();
        for t in 0..3 {
            assert!(x.select(2, t).equal(&all.select(2, 0)));
        }
        assert_eq!(x.stride(), all.stride());
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        assert!(normalise(true).clip(&frames()[1..], SHAPE, Device::Cpu).is_err());
    }
}
