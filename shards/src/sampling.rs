//! Which frames of a clip a view shows, and which part of them: pure, and for training a function
//! of (seed, epoch, position) alone.
//!
//! Frame indices and crops follow PySlowFast (`datasets/decoder.py`, `datasets/transform.py`);
//! the resized crop follows torchvision's `RandomResizedCrop`.

use crate::format::ClipMeta;
use crate::random::Keyed;
use crate::{Error, Result};

/// The temporal window of a view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipSpec {
    /// Frames shown, T.
    pub frames: u32,
    /// Stored frames from one shown frame to the next.
    pub sampling_rate: u32,
    /// The frame rate `sampling_rate` supposes; absent: each clip's own.
    pub fps: Option<f64>,
    /// Each frame is replaced by the window's first: what a single frame can tell.
    pub single_frame: bool,
}

/// Which part of the frames is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum View {
    /// A random window, crop and flip.
    Train {
        /// Side of the square output, pixels.
        crop: u32,
        scale: Scale,
        /// Probability of a horizontal flip.
        flip: f64,
        seed: u64,
    },
    /// `clips` windows spread over the clip, each in `crops` crops spread along the long side.
    Eval {
        /// The short side is resized to this, pixels.
        short_side: u32,
        /// Side of the square output, pixels.
        crop: u32,
        clips: u32,
        crops: u32,
    },
}

/// How large a part of the frame a training crop covers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// The short side is resized to a size drawn from min..=max, then cropped.
    ShortSide { min: u32, max: u32 },
    /// A box of random area (parts of the frame's) and aspect ratio is resized to the crop.
    Resized { area: [f64; 2], aspect: [f64; 2] },
}

/// A part of the stored frame, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CropBox {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

/// One drawn view.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// T stored frames, never descending.
    pub frames: Vec<u32>,
    /// Resized to the square output.
    pub crop: CropBox,
    pub flip: bool,
}

impl ClipSpec {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A number out of its range.
    pub fn check(&self) -> Result<()> {
        if !(1..=4096).contains(&self.frames) {
            return usage(format!("frames is {}; it must be in 1..=4096", self.frames));
        }
        if !(1..=4096).contains(&self.sampling_rate) {
            return usage(format!("sampling_rate is {}; it must be in 1..=4096", self.sampling_rate));
        }
        if self.fps.is_some_and(|f| !(f.is_finite() && f > 0.0)) {
            return usage(format!("fps is {:?}; it must be above 0", self.fps));
        }
        Ok(())
    }

    /// Stored frames that the window covers.
    pub fn span(&self, clip: &ClipMeta) -> f64 {
        let ratio = self.fps.map_or(1.0, |target| clip.fps / target);
        f64::from(self.sampling_rate) * f64::from(self.frames) * ratio
    }

    /// Stored frame of each shown frame; `at` in [0, 1] is where the window starts between the
    /// first and the last possible start. Beyond its end the clip's last frame is repeated.
    pub fn frame_indices(&self, clip: &ClipMeta, at: f64) -> Vec<u32> {
        let last = f64::from(clip.num_frames.saturating_sub(1));
        let span = self.span(clip);
        let start = (f64::from(clip.num_frames) - span).max(0.0) * at;
        // A window shorter than one frame shows that frame again and again.
        let step = (span - 1.0).max(0.0) / f64::from(self.frames.max(2) - 1);
        let index = |i: u32| {
            let i = if self.single_frame { 0 } else { i };
            (start + step * f64::from(i)).clamp(0.0, last) as u32
        };
        (0..self.frames).map(index).collect()
    }
}

impl View {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A number out of its range, or a crop larger than the resized frame.
    pub fn check(&self) -> Result<()> {
        let (crop, short) = match *self {
            View::Train { crop, scale, flip, .. } => {
                if !(0.0..=1.0).contains(&flip) {
                    return usage(format!("flip is {flip}; it is a probability"));
                }
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
            View::Eval { short_side, crop, clips, crops } => {
                if !(1..=1000).contains(&clips) || !(1..=1000).contains(&crops) {
                    return usage(format!("the views are {clips}x{crops}; each must be in 1..=1000"));
                }
                (crop, short_side)
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

    /// Side of the square output, pixels.
    pub fn side(&self) -> u32 {
        match *self {
            View::Train { crop, .. } | View::Eval { crop, .. } => crop,
        }
    }

    /// Views of each clip.
    pub fn count(&self) -> u32 {
        match *self {
            View::Train { .. } => 1,
            View::Eval { clips, crops, .. } => clips * crops,
        }
    }

    /// The view of a clip at a place of an epoch. For training, `view` is ignored and all is drawn
    /// from (seed, epoch, position); for evaluation, the view's number alone decides: window
    /// `view / crops`, crop `view % crops`.
    pub fn draw(&self, spec: &ClipSpec, clip: &ClipMeta, epoch: u64, position: u64, view: u32) -> Draw {
        match *self {
            View::Train { crop, scale, flip, seed } => {
                let mut random = Keyed::new("sample", "", &[seed, epoch, position]);
                let frames = spec.frame_indices(clip, random.unit());
                let crop = match scale {
                    Scale::ShortSide { min, max } => short_side_crop(clip, crop, min, max, &mut random),
                    Scale::Resized { area, aspect } => resized_crop(clip, area, aspect, &mut random),
                };
                Draw { frames, crop, flip: random.unit() < flip }
            }
            View::Eval { short_side, crop, clips, crops } => {
                let at = spread(view / crops, clips);
                let along = if crops == 1 { 0.5 } else { f64::from(view % crops) / f64::from(crops - 1) };
                let frames = spec.frame_indices(clip, at);
                Draw { frames, crop: eval_crop(clip, short_side, crop, along), flip: false }
            }
        }
    }
}

/// Where window `i` of `n` starts: evenly from the first possible start; one alone in the centre.
fn spread(i: u32, n: u32) -> f64 {
    if n <= 1 { 0.5 } else { f64::from(i) / f64::from(n) }
}

/// The frame's size with its short side resized to `short`, and source pixels per resized pixel.
fn resized(clip: &ClipMeta, short: u32) -> ((u64, u64), (f64, f64)) {
    let (w, h, short) = (u64::from(clip.width), u64::from(clip.height), u64::from(short));
    let (rw, rh) = if w <= h { (short, h * short / w) } else { (w * short / h, short) };
    ((rw, rh), (w as f64 / rw as f64, h as f64 / rh as f64))
}

/// A crop of `side` resized pixels at (x, y) as a box of the stored frame, safe against rounding.
fn in_source(clip: &ClipMeta, (x, y): (u64, u64), side: u32, scale: (f64, f64)) -> CropBox {
    let (w, h) = (f64::from(clip.width), f64::from(clip.height));
    let (left, top) = ((x as f64 * scale.0).min(w), (y as f64 * scale.1).min(h));
    let width = within(left, f64::from(side) * scale.0, w);
    CropBox { left, top, width, height: within(top, f64::from(side) * scale.1, h) }
}

/// The extent, cut where it ends beyond the whole by a rounding error.
fn within(start: f64, extent: f64, whole: f64) -> f64 {
    let extent = extent.min(whole - start);
    if start + extent > whole { extent - whole * f64::EPSILON } else { extent }
}

fn short_side_crop(clip: &ClipMeta, side: u32, min: u32, max: u32, random: &mut Keyed) -> CropBox {
    let short = min + random.below(u64::from(max - min) + 1) as u32;
    let ((rw, rh), scale) = resized(clip, short);
    let x = random.below((rw - u64::from(side)) + 1);
    let y = random.below((rh - u64::from(side)) + 1);
    in_source(clip, (x, y), side, scale)
}

fn eval_crop(clip: &ClipMeta, short: u32, side: u32, along: f64) -> CropBox {
    let ((rw, rh), scale) = resized(clip, short);
    let (room_x, room_y) = (rw - u64::from(side), rh - u64::from(side));
    let place = |room: u64, part: f64| (room as f64 * part).ceil() as u64;
    let at = match rw >= rh {
        true => (place(room_x, along), place(room_y, 0.5)),
        false => (place(room_x, 0.5), place(room_y, along)),
    };
    in_source(clip, at, side, scale)
}

/// torchvision's `RandomResizedCrop.get_params`: ten tries, then the largest centred box.
fn resized_crop(clip: &ClipMeta, area: [f64; 2], aspect: [f64; 2], random: &mut Keyed) -> CropBox {
    let (w, h) = (f64::from(clip.width), f64::from(clip.height));
    for _ in 0..10 {
        let target = w * h * random.between(area[0], area[1]);
        let ratio = random.between(aspect[0].ln(), aspect[1].ln()).exp();
        let (cw, ch) = ((target * ratio).sqrt().round(), (target / ratio).sqrt().round());
        if cw >= 1.0 && ch >= 1.0 && cw <= w && ch <= h {
            let left = random.below((w - cw) as u64 + 1) as f64;
            let top = random.below((h - ch) as u64 + 1) as f64;
            return CropBox { left, top, width: cw, height: ch };
        }
    }
    let (cw, ch) = match w / h {
        r if r < aspect[0] => (w, (w / aspect[0]).round().clamp(1.0, h)),
        r if r > aspect[1] => ((h * aspect[1]).round().clamp(1.0, w), h),
        _ => (w, h),
    };
    CropBox { left: ((w - cw) / 2.0).floor(), top: ((h - ch) / 2.0).floor(), width: cw, height: ch }
}

fn usage(why: String) -> Result<()> {
    Err(Error::Usage(format!("sample clips: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::clip_meta;
    use proptest::prelude::*;

    const SPEC: ClipSpec = ClipSpec { frames: 8, sampling_rate: 2, fps: None, single_frame: false };

    proptest! {
        #[test]
        fn training_draws_stay_inside_and_depend_on_their_key_alone(
            n in 1u32..500, w in 1u32..700, h in 1u32..700, fps in 1.0f64..120.0,
            frames in 1u32..64, rate in 1u32..17, target in proptest::option::of(1.0f64..120.0),
            short in any::<bool>(), seed: u64, position in 0u64..1_000_000,
        ) {
            let clip = clip_meta(n, w, h, fps);
            let spec = ClipSpec { frames, sampling_rate: rate, fps: target, single_frame: false };
            let scale = match short {
                true => Scale::ShortSide { min: 32, max: 50 },
                false => Scale::Resized { area: [0.08, 1.0], aspect: [0.75, 4.0 / 3.0] },
            };
            let view = View::Train { crop: 32, scale, flip: 0.5, seed };
            view.check().unwrap();
            spec.check().unwrap();
            let draw = view.draw(&spec, &clip, 3, position, 0);
            prop_assert_eq!(draw.frames.len(), frames as usize);
            prop_assert!(draw.frames.iter().all(|&f| f < n));
            prop_assert!(draw.frames.is_sorted());
            let c = draw.crop;
            prop_assert!(c.left >= 0.0 && c.top >= 0.0 && c.width > 0.0 && c.height > 0.0);
            prop_assert!(c.left + c.width <= f64::from(w) && c.top + c.height <= f64::from(h), "{:?}", c);
            prop_assert_eq!(&draw, &view.draw(&spec, &clip, 3, position, 5));
        }

        #[test]
        fn evaluation_views_stay_inside(
            n in 1u32..300, w in 1u32..700, h in 1u32..700, clips in 1u32..12, crops in 1u32..5,
        ) {
            let clip = clip_meta(n, w, h, 30.0);
            let view = View::Eval { short_side: 40, crop: 32, clips, crops };
            for v in 0..view.count() {
                let draw = view.draw(&SPEC, &clip, 0, 0, v);
                let c = draw.crop;
                prop_assert!(draw.frames.iter().all(|&f| f < n) && !draw.flip);
                prop_assert!(c.left >= 0.0 && c.left + c.width <= f64::from(w), "{:?}", c);
                prop_assert!(c.top >= 0.0 && c.top + c.height <= f64::from(h), "{:?}", c);
            }
        }
    }

    #[test]
    fn frame_indices_are_those_of_pyslowfast() {
        // np.clip(np.linspace(s, s + 15, 8), 0, n - 1).astype(int), s = (100 - 16) * at
        let clip = clip_meta(100, 64, 64, 30.0);
        assert_eq!(SPEC.frame_indices(&clip, 0.0), [0, 2, 4, 6, 8, 10, 12, 15]);
        assert_eq!(SPEC.frame_indices(&clip, 1.0), [84, 86, 88, 90, 92, 94, 96, 99]);
        let half_rate = ClipSpec { fps: Some(15.0), ..SPEC };
        assert_eq!(half_rate.frame_indices(&clip, 0.0), [0, 4, 8, 13, 17, 22, 26, 31]);
        assert_eq!(SPEC.frame_indices(&clip_meta(3, 64, 64, 30.0), 0.7), [0, 2, 2, 2, 2, 2, 2, 2]);
        let one = ClipSpec { single_frame: true, ..SPEC };
        assert_eq!(one.frame_indices(&clip, 0.5), [42; 8]);
    }

    #[test]
    fn evaluation_crops_lie_left_centre_and_right() {
        let clip = clip_meta(100, 340, 256, 30.0);
        let view = View::Eval { short_side: 256, crop: 224, clips: 2, crops: 3 };
        let lefts: Vec<f64> = (0..3).map(|v| view.draw(&SPEC, &clip, 0, 0, v).crop.left).collect();
        assert_eq!(lefts, [0.0, 58.0, 116.0]);
        assert_eq!(view.draw(&SPEC, &clip, 0, 0, 0).crop.top, 16.0);
        assert_eq!(view.draw(&SPEC, &clip, 0, 0, 0).frames[0], 0);
        assert_eq!(view.draw(&SPEC, &clip, 0, 0, 3).frames[0], 42);
    }

    #[test]
    fn flips_come_at_their_rate_and_starts_spread() {
        let clip = clip_meta(100, 64, 64, 30.0);
        let view = View::Train { crop: 32, scale: Scale::ShortSide { min: 32, max: 40 }, flip: 0.3, seed: 1 };
        let draws: Vec<Draw> = (0..2000).map(|p| view.draw(&SPEC, &clip, 0, p, 0)).collect();
        let flips = draws.iter().filter(|d| d.flip).count();
        assert!((520..680).contains(&flips), "{flips}");
        let starts: std::collections::HashSet<u32> = draws.iter().map(|d| d.frames[0]).collect();
        assert_eq!(starts.len(), 84, "every start of 0..84");
        assert_ne!(draws[0], view.draw(&SPEC, &clip, 1, 0, 0), "another epoch");
    }

    #[test]
    fn impossible_numbers_are_refused_in_words() {
        let train =
            |scale| View::Train { crop: 64, scale, flip: 0.5, seed: 0 }.check().unwrap_err().to_string();
        assert!(train(Scale::ShortSide { min: 32, max: 40 }).contains("larger than the short side"));
        assert!(train(Scale::ShortSide { min: 80, max: 70 }).contains("no range"));
        assert!(train(Scale::Resized { area: [0.0, 1.0], aspect: [1.0, 1.0] }).contains("area"));
        assert!(train(Scale::Resized { area: [0.5, 1.0], aspect: [f64::NAN, 1.0] }).contains("aspect"));
        let eval = View::Eval { short_side: 64, crop: 64, clips: 0, crops: 1 };
        assert!(eval.check().unwrap_err().to_string().contains("0x1"));
        assert!(ClipSpec { frames: 0, ..SPEC }.check().is_err());
        assert!(ClipSpec { fps: Some(f64::INFINITY), ..SPEC }.check().is_err());
    }
}
