//! Stored runs to pixels: decodes the part of each needed frame that its crops show, resizes them straight into the
//! batch buffer and augments them there; a frame that is shown whole is decoded there at once. Decoders, resizers
//! and scratch memory are kept per thread.

use crate::format::{Clip, Codec, RUN_FRAMES, run_frames, split_run};
use crate::jpeg::{Decoder, Region};
use crate::reader::{Runs, fetch_bytes};
use crate::sampling::{CropBox, Cut};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use std::cell::RefCell;
use std::ops::Range;

/// A run that could not be decoded, and why in words.
#[derive(Debug, PartialEq, Eq)]
pub struct BadRun {
    pub run: u32,
    pub why: String,
}

/// Shows the stored `frames` of a clip through every cut; neighbours that are the same frame are
/// decoded once.
///
/// `out` is (cuts, frames, height, width, 3), RGB, and `size` is (width, height). Resizing is bilinear with antialiasing, as Pillow's.
///
/// # Errors
/// Names the run whose bytes are not the frames that the index promises.
pub fn decode(
    codec: Codec,
    clip: Clip<'_>,
    runs: &Runs,
    frames: &[u32],
    cuts: &[Cut],
    size: (u32, u32),
    out: &mut [u8],
) -> Result<(), BadRun> {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|scratch| scratch.decode(codec, clip, runs, frames, cuts, size, out))
}

/// True where a view's pixels are the very bytes of whole stored runs.
pub fn is_as_stored(codec: Codec, clip: Clip<'_>, frames: &[u32], cuts: &[Cut], size: (u32, u32)) -> bool {
    let (Some(&first), Some(&last)) = (frames.first(), frames.last()) else { return false };
    let runs = first % RUN_FRAMES == 0 && ((last + 1) % RUN_FRAMES == 0 || last + 1 == clip.num_frames);
    let bytes = frames.len() as u64 * u64::from(clip.width) * u64::from(clip.height) * 3;
    let plain = |cut: &Cut| !cut.flip && cut.ops.is_empty() && cut.erase.is_none();
    codec == Codec::Raw
        && runs
        && fetch_bytes(clip, frames) == bytes
        && frames.windows(2).all(|pair| pair[0] + 1 == pair[1])
        && matches!(cuts, [cut] if plain(cut) && shows_all(cut, clip, size))
}

#[derive(Default)]
struct Scratch {
    jpeg: Option<Decoder>,
    resizer: Resizer,
    pixels: Vec<u8>,
    spare: Vec<u8>,
}

impl Scratch {
    #[expect(clippy::too_many_arguments, reason = "the method behind decode()")]
    fn decode(
        &mut self,
        codec: Codec,
        clip: Clip<'_>,
        runs: &Runs,
        frames: &[u32],
        cuts: &[Cut],
        size: (u32, u32),
        out: &mut [u8],
    ) -> Result<(), BadRun> {
        let image = size.0 as usize * size.1 as usize * 3;
        let whole = matches!(cuts, [cut] if shows_all(cut, clip, size));
        let frame_size = (clip.width, clip.height);
        let shown = region(cuts, frame_size, size);
        let mut split: (u32, Vec<Range<usize>>) = (u32::MAX, Vec::new());
        for (t, &frame) in frames.iter().enumerate() {
            let run = frame / RUN_FRAMES;
            let at = |cut: usize, t: usize| (cut * frames.len() + t) * image;
            if t > 0 && frames[t - 1] == frame {
                for cut in 0..cuts.len() {
                    out.copy_within(at(cut, t - 1)..at(cut, t), at(cut, t));
                }
                continue;
            }
            let bad = |why| BadRun { run, why };
            let bytes = runs.get(run).ok_or_else(|| bad("it was not fetched".into()))?;
            if split.0 != run {
                let count = run_frames(clip.num_frames, run);
                split = (run, split_run(codec, bytes, count, clip.width, clip.height).map_err(bad)?);
            }
            let place = split.1.get((frame % RUN_FRAMES) as usize).cloned();
            let stored = &bytes[place.ok_or_else(|| bad(format!("it has no frame {frame}")))?];
            if whole && codec == Codec::Raw {
                let target = &mut out[at(0, t)..][..image];
                target.copy_from_slice(stored);
                self.finish(&cuts[0], size.0, target);
                continue;
            }
            let mut part = Region::whole(frame_size);
            if codec == Codec::Jpeg {
                let bad = |e| bad(format!("frame {frame}: {e}"));
                let decoder = match &mut self.jpeg {
                    Some(decoder) => decoder,
                    empty => empty.insert(Decoder::new().map_err(bad)?),
                };
                if whole {
                    let target = &mut out[at(0, t)..][..image];
                    decoder.decode_whole(stored, frame_size, target).map_err(bad)?;
                    self.finish(&cuts[0], size.0, target);
                    continue;
                }
                part = decoder.decode(stored, frame_size, shown, &mut self.pixels).map_err(bad)?;
            }
            for (i, cut) in cuts.iter().enumerate() {
                let pixels = match codec {
                    Codec::Raw => stored,
                    Codec::Jpeg => &self.pixels,
                };
                let source = ImageRef::new(part.width, part.height, pixels, PixelType::U8x3);
                let source = source.map_err(|e| bad(e.to_string()))?;
                let target = &mut out[at(i, t)..][..image];
                resize(&mut self.resizer, &source, (cut.crop, part), size, target).map_err(bad)?;
                self.finish(cut, size.0, target);
            }
        }
        for (cut, clip) in cuts.iter().zip(out.chunks_exact_mut(frames.len() * image)) {
            if let Some(erase) = &cut.erase {
                erase.fill(clip, size.0);
            }
        }
        Ok(())
    }

    /// What follows on cropping and resizing; `width` is the frame's.
    fn finish(&mut self, cut: &Cut, width: u32, frame: &mut [u8]) {
        if cut.flip {
            let (pixels, _) = frame.as_chunks_mut::<3>();
            pixels.chunks_exact_mut(width as usize).for_each(<[[u8; 3]]>::reverse);
        }
        for op in &cut.ops {
            op.apply(frame, width, &mut self.spare);
        }
    }
}

/// True where the cut's crop is the stored frame, pixel for pixel.
fn shows_all(cut: &Cut, clip: Clip<'_>, size: (u32, u32)) -> bool {
    let (width, height) = (clip.width.into(), clip.height.into());
    size == (clip.width, clip.height) && cut.crop == CropBox { left: 0.0, top: 0.0, width, height }
}

/// What resizing the crops to `size` looks at: all of them, and as far beyond as the filter reaches.
fn region(cuts: &[Cut], frame: (u32, u32), size: (u32, u32)) -> Region {
    let span = |whole: u32, to: u32, extent: fn(&CropBox) -> (f64, f64)| {
        let (mut low, mut high) = (f64::from(whole), 0.0_f64);
        for (start, length) in cuts.iter().map(|cut| extent(&cut.crop)) {
            // The triangle's half width, in stored pixels.
            let reach = (length / f64::from(to)).max(1.0) + 1.0;
            low = low.min(start - reach);
            high = high.max(start + length + reach);
        }
        let low = low.max(0.0).floor() as u32;
        (low, (high.ceil() as u32).min(whole).saturating_sub(low))
    };
    let (left, width) = span(frame.0, size.0, |c| (c.left, c.width));
    let (top, height) = span(frame.1, size.1, |c| (c.top, c.height));
    Region { left, top, width, height }
}

/// Resizes a crop of the frame, of which `source` is a part.
fn resize(
    resizer: &mut Resizer,
    source: &ImageRef,
    (crop, part): (CropBox, Region),
    (width, height): (u32, u32),
    target: &mut [u8],
) -> Result<(), String> {
    let (left, top) = (crop.left - f64::from(part.left), crop.top - f64::from(part.top));
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .crop(left, top, crop.width, crop.height)
        .use_alpha(false);
    let mut image =
        Image::from_slice_u8(width, height, target, PixelType::U8x3).map_err(|e| e.to_string())?;
    resizer.resize(source, &mut image, &options).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A crop of a part of the frame is the crop of the whole frame, but for the rounding of the filter's weights.
        #[test]
        fn a_crop_of_a_part_is_that_of_the_whole(
            width in 20_u32..120, height in 20_u32..120, side in 4_u32..80,
            at in prop::array::uniform4(0.0..1.0_f64), pixel in any::<u32>(),
        ) {
            let pixels: Vec<u8> =
                (0..width * height * 3).map(|i| ((i ^ pixel).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let extent = |whole: u32, part: f64| (f64::from(whole) * part).max(2.0);
            let (w, h) = (extent(width, at[2]), extent(height, at[3]));
            let crop =
                CropBox { left: (f64::from(width) - w) * at[0], top: (f64::from(height) - h) * at[1], width: w, height: h };
            let cut = Cut { crop, flip: false, ops: vec![], erase: None };
            let part = region(std::slice::from_ref(&cut), (width, height), (side, side));
            let row = |y: u32| &pixels[((part.top + y) * width + part.left) as usize * 3..][..part.width as usize * 3];
            let inside: Vec<u8> = (0..part.height).flat_map(row).copied().collect();
            let resized = |pixels: &[u8], part: Region| {
                let source = ImageRef::new(part.width, part.height, pixels, PixelType::U8x3).unwrap();
                let mut out = vec![0; (side * side * 3) as usize];
                resize(&mut Resizer::new(), &source, (crop, part), (side, side), &mut out).unwrap();
                out
            };
            let (whole, inside) = (resized(&pixels, Region::whole((width, height))), resized(&inside, part));
            let furthest = whole.iter().zip(&inside).map(|(a, b)| a.abs_diff(*b)).max();
            prop_assert!(furthest <= Some(1), "{:?} in {:?}", furthest, part);
        }
    }
}
