//! What a view of a clip shows: which frames, which part of them, and how it is augmented. Pure; for
//! training a function of (seed, epoch, position, repeat) alone.
//!
//! ```text
//! windows.rs   frames: where a window lies in time
//! crops.rs     boxes: what part of the frame is shown
//! shape.rs     both in the smaller shapes of multigrid training
//! ```

mod crops;
mod shape;
mod windows;

pub use crops::CropBox;
pub use windows::{ClipSpec, TestSampling};

use crate::augment::{Augment, Erase, Op};
use crate::format::Clip;
use crate::random::Keyed;
use crate::{Error, Result};
use crops::{eval_crop, resized_crop, short_side_crop};

/// Which part of the frames is shown.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a stream has one")]
pub enum View {
    /// A random window, crop and flip.
    Train {
        /// Side of the square output, pixels.
        crop: u32,
        scale: Scale,
        /// Probability of a horizontal flip.
        flip: f64,
        seed: u64,
        /// Times that a clip is shown in its step, every time drawn anew.
        repeats: u32,
        augment: Augment,
    },
    /// `clips` windows spread over the clip, each in `crops` crops spread along the long side.
    Eval {
        /// The short side is resized to this, pixels.
        short_side: u32,
        /// Side of the square output, pixels.
        crop: u32,
        clips: u32,
        crops: u32,
        sampling: TestSampling,
    },
    /// The stored frames as they are; for clips that are all of this size, pixels.
    Whole { width: u32, height: u32 },
}

/// How large a part of the frame a training crop covers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// The short side is resized to a size drawn from min..=max, then cropped.
    ShortSide { min: u32, max: u32 },
    /// A box of random area (parts of the frame's) and aspect ratio is resized to the crop.
    Resized { area: [f64; 2], aspect: [f64; 2] },
}

/// One drawn view: all that is random in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// T stored frames. They never descend, but for an evaluation that begins a short clip anew.
    pub frames: Vec<u32>,
    pub cut: Cut,
}

/// What every frame of a view goes through, in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// Resized to the square output.
    pub crop: CropBox,
    pub flip: bool,
    pub ops: Vec<Op>,
    pub erase: Option<Erase>,
}

impl View {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A number out of its range, or a crop larger than the resized frame.
    pub fn check(&self) -> Result<()> {
        let (crop, short) = match *self {
            View::Train { crop, scale, flip, repeats, ref augment, .. } => {
                if !(0.0..=1.0).contains(&flip) {
                    return usage(format!("flip is {flip}; it is a probability"));
                }
                if !(1..=100).contains(&repeats) {
                    return usage(format!("repeats is {repeats}; it must be in 1..=100"));
                }
                augment.check()?;
                match scale {
                    Scale::ShortSide { min, max } if min > max || max > 16_384 => {
                        return usage(format!(
                            "the short side is drawn from {min}..={max}, which is no range"
                        ));
                    }
                    Scale::ShortSide { min, .. } => (crop, min),
                    Scale::Resized { area: [a, b], aspect: [c, d] } => {
                        if !(a > 0.0 && a <= b && b <= 1.0) {
                            return usage(format!("the crop's area is {a}..{b}; it must be within 0..1"));
                        }
                        if !(c > 0.0 && c <= d && d.is_finite()) {
                            return usage(format!("the crop's aspect is {c}..{d}, which is no range"));
                        }
                        (crop, crop)
                    }
                }
            }
            View::Eval { short_side, crop, clips, crops, .. } => {
                if !(1..=1000).contains(&clips) || !(1..=1000).contains(&crops) {
                    return usage(format!("the views are {clips}x{crops}; each must be in 1..=1000"));
                }
                (crop, short_side)
            }
            View::Whole { width, height } => {
                if !(1..=16_384).contains(&width) || !(1..=16_384).contains(&height) {
                    return usage(format!(
                        "the frames are {width}x{height} pixels; each must be in 1..=16384"
                    ));
                }
                return Ok(());
            }
        };
        if !(1..=4096).contains(&crop) || short > 16_384 {
            return usage(format!(
                "the crop is {crop} and the short side {short} pixels; crop must be in 1..=4096"
            ));
        }
        if short < crop {
            return usage(format!("the crop of {crop} pixels is larger than the short side of {short}"));
        }
        Ok(())
    }

    /// Width and height of the output, pixels.
    pub fn size(&self) -> (u32, u32) {
        match *self {
            View::Train { crop, .. } | View::Eval { crop, .. } => (crop, crop),
            View::Whole { width, height } => (width, height),
        }
    }

    /// Views of each clip.
    pub fn count(&self) -> u32 {
        match *self {
            View::Train { repeats, .. } => repeats,
            View::Eval { clips, crops, .. } => clips * crops,
            View::Whole { .. } => 1,
        }
    }

    /// View number `view` of a clip at a place of an epoch. For training it is the number of the repeat,
    /// and all is drawn from (seed, epoch, position, view); for evaluation the number alone
    /// decides: window `view / crops`, crop `view % crops`.
    pub fn draw(&self, spec: &ClipSpec, clip: Clip<'_>, epoch: u64, position: u64, view: u32) -> Draw {
        match *self {
            View::Train { crop: side, scale, flip, seed, ref augment, .. } => {
                let key = [seed, epoch, position, u64::from(view)];
                // The first showing is the one that a job without repeats has.
                let mut random = Keyed::new("sample", "", if view == 0 { &key[..3] } else { &key });
                let frames = spec.frame_indices(clip, random.unit());
                let crop = match scale {
                    Scale::ShortSide { min, max } => short_side_crop(clip, side, min, max, &mut random),
                    Scale::Resized { area, aspect } => resized_crop(clip, area, aspect, &mut random),
                };
                let flip = random.unit() < flip && augment.may_flip(clip);
                let (ops, erase) = augment.draw(side, &key);
                Draw { frames, cut: Cut { crop, flip, ops, erase } }
            }
            View::Eval { short_side, crop: side, clips, crops, sampling } => {
                let frames = spec.test_indices(clip, sampling, view / crops, clips);
                let along = if crops == 1 { 0.5 } else { f64::from(view % crops) / f64::from(crops - 1) };
                let crop = eval_crop(clip, short_side, side, along);
                Draw { frames, cut: Cut { crop, flip: false, ops: Vec::new(), erase: None } }
            }
            View::Whole { width, height } => {
                let (width, height) = (width.into(), height.into());
                let crop = CropBox { left: 0.0, top: 0.0, width, height };
                let frames = spec.frame_indices(clip, 0.0);
                Draw { frames, cut: Cut { crop, flip: false, ops: Vec::new(), erase: None } }
            }
        }
    }
}

/// The error of a number that cannot be.
pub(crate) fn usage(why: String) -> Result<()> {
    Err(Error::Usage(format!("sample clips: {why}")))
}

#[cfg(test)]
mod tests;
