//! Training augmentation beyond crop and flip: what is drawn for a clip, purely, and how its pixels change.
//!
//! ```text
//! ops.rs      what each operation does to a frame: tables, blends, sharpening
//! affine.rs   rotation, shear and translation
//! erase.rs    random erasing
//! ```
//!
//! Everything acts on the cropped, resized and mirrored frames, and is the same for all frames of a clip:
//! RandAugment, then colour jitter, then erasing. PySlowFast runs RandAugment on the whole frame, before it is cropped;
//! timm after that, as here: fewer pixels, and a frame needs no second copy.

mod affine;
mod erase;
mod ops;

pub use erase::{Erase, Erasing};
pub use ops::Op;

use crate::Result;
use crate::format::Clip;
use crate::random::Keyed;
use crate::sampling::usage;

/// What a training view goes through beside crop and flip.
#[derive(Clone, Debug, PartialEq)]
pub struct Augment {
    /// Ids of the labels whose clips are never mirrored.
    pub no_flip: Vec<i32>,
    pub color_jitter: Option<ColorJitter>,
    pub rand_augment: Option<RandAugment>,
    pub erasing: Option<Erasing>,
}

/// Each is blended by a factor drawn from 1 - x ..= 1 + x, in a random order (PySlowFast,
/// `datasets/transform.py::color_jitter`; clamped to the bytes' range, as torchvision's `adjust_*`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColorJitter {
    pub brightness: f64,
    pub contrast: f64,
    pub saturation: f64,
}

/// RandAugment with operations that grow with the magnitude ("rand-m7-n4-mstd0.5-inc1" in timm's
/// `data/auto_augment.py` and PySlowFast's `datasets/rand_augment.py`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandAugment {
    /// Mean strength, 0..=10.
    pub magnitude: f64,
    /// Its standard deviation.
    pub magnitude_std: f64,
    /// Operations drawn for a clip, any of them again and again.
    pub num_ops: u32,
    /// Probability that a drawn operation is applied.
    pub prob: f64,
}

impl Augment {
    /// Nothing beside crop and flip.
    pub const NONE: Self =
        Self { no_flip: Vec::new(), color_jitter: None, rand_augment: None, erasing: None };

    /// Checks the numbers.
    ///
    /// # Errors
    /// A number out of its range.
    pub fn check(&self) -> Result<()> {
        if let Some(j) = self.color_jitter
            && ![j.brightness, j.contrast, j.saturation].iter().all(|x| (0.0..=1.0).contains(x))
        {
            return usage(format!("the colour jitter is {j:?}; each must lie between 0 and 1"));
        }
        if let Some(r) = self.rand_augment {
            let ok = (0.0..=10.0).contains(&r.magnitude)
                && (r.magnitude_std.is_finite() && r.magnitude_std >= 0.0)
                && (0.0..=1.0).contains(&r.prob)
                && r.num_ops <= 100;
            if !ok {
                return usage(format!(
                    "RandAugment is {r:?}; magnitude must lie between 0 and 10, prob between 0 and 1, num_ops be at most 100"
                ));
            }
        }
        self.erasing.map_or(Ok(()), |e| e.check())
    }

    /// False for a clip with a label that tells left from right.
    pub fn may_flip(&self, clip: Clip<'_>) -> bool {
        !clip.label.iter().chain(clip.labels).any(|label| self.no_flip.contains(label))
    }

    /// The operations and the erased box of the view with that key. Each part has its own generator:
    /// to switch one off changes nothing of the others.
    pub fn draw(&self, side: u32, key: &[u64]) -> (Vec<Op>, Option<Erase>) {
        let mut ops = Vec::new();
        if let Some(rand_augment) = self.rand_augment {
            rand_augment.draw(&mut Keyed::new("rand augment", "", key), &mut ops);
        }
        if let Some(jitter) = self.color_jitter {
            jitter.draw(&mut Keyed::new("color jitter", "", key), &mut ops);
        }
        let erase = self.erasing.and_then(|e| e.draw(side, &mut Keyed::new("random erasing", "", key)));
        (ops, erase)
    }
}

impl ColorJitter {
    fn draw(&self, random: &mut Keyed, ops: &mut Vec<Op>) {
        let mut draw = |reach: f64, op: fn(f64) -> Op| {
            let factor = random.between(1.0 - reach, 1.0 + reach);
            (reach > 0.0).then(|| op(factor))
        };
        let drawn = [
            draw(self.brightness, Op::Brightness),
            draw(self.contrast, Op::Contrast),
            draw(self.saturation, Op::Color),
        ];
        let mut jitter: Vec<Op> = drawn.into_iter().flatten().collect();
        random.shuffle(&mut jitter);
        ops.append(&mut jitter);
    }
}

impl RandAugment {
    fn draw(&self, random: &mut Keyed, ops: &mut Vec<Op>) {
        for _ in 0..self.num_ops {
            let kind = random.below(Op::KINDS);
            let applied = random.unit() < self.prob;
            let level = self.magnitude + self.magnitude_std * random.normals()[0];
            let sign = if random.unit() < 0.5 { -1.0 } else { 1.0 };
            if applied {
                ops.push(Op::increasing(kind, level.clamp(0.0, 10.0), sign));
            }
        }
    }
}

#[cfg(test)]
mod tests;
