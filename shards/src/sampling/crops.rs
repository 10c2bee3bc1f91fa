//! Which part of the stored frame a view shows. Pure.
//!
//! Short-side crops follow PySlowFast's `datasets/transform.py` (`random_short_side_scale_jitter`,
//! `uniform_crop`); the resized crop follows torchvision's `RandomResizedCrop`.

use crate::format::Clip;
use crate::random::Keyed;

/// A part of the stored frame, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CropBox {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

/// A crop anywhere in the frame whose short side was resized to a size drawn from min..=max.
pub(super) fn short_side_crop(clip: Clip<'_>, side: u32, min: u32, max: u32, random: &mut Keyed) -> CropBox {
    let short = min + random.below(u64::from(max - min) + 1) as u32;
    let ((rw, rh), scale) = resized(clip, short);
    let x = random.below((rw - u64::from(side)) + 1);
    let y = random.below((rh - u64::from(side)) + 1);
    in_source(clip, (x, y), side, scale)
}

/// The crop at the part `along` of the long side (0: left or top), centred on the short one.
pub(super) fn eval_crop(clip: Clip<'_>, short: u32, side: u32, along: f64) -> CropBox {
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
pub(super) fn resized_crop(clip: Clip<'_>, area: [f64; 2], aspect: [f64; 2], random: &mut Keyed) -> CropBox {
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

/// The frame's size with its short side resized to `short`, and source pixels per resized pixel.
fn resized(clip: Clip<'_>, short: u32) -> ((u64, u64), (f64, f64)) {
    let (w, h, short) = (u64::from(clip.width), u64::from(clip.height), u64::from(short));
    let (rw, rh) = if w <= h { (short, h * short / w) } else { (w * short / h, short) };
    ((rw, rh), (w as f64 / rw as f64, h as f64 / rh as f64))
}

/// A crop of `side` resized pixels at (x, y) as a box of the stored frame, safe against rounding.
fn in_source(clip: Clip<'_>, (x, y): (u64, u64), side: u32, scale: (f64, f64)) -> CropBox {
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
