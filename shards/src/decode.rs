//! Stored runs to pixels: decodes each needed frame, resizes its crops straight into the batch buffer and
//! augments them there. Decoders, resizers and scratch memory are kept per thread.

use crate::format::{Clip, Codec, RUN_FRAMES, run_frames, split_run};
use crate::reader::Runs;
use crate::sampling::{CropBox, Cut};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use std::cell::RefCell;
use std::ops::Range;
use turbojpeg::{Decompressor, PixelFormat};

/// A run that could not be decoded, and why in words.
#[derive(Debug, PartialEq, Eq)]
pub struct BadRun {
    pub run: u32,
    pub why: String,
}

/// Shows the stored `frames` of a clip through every cut; neighbours that are the same frame are
/// decoded once.
///
/// `out` is (cuts, frames, side, side, 3), RGB. Resizing is bilinear with antialiasing, as Pillow's.
///
/// # Errors
/// Names the run whose bytes are not the frames that the index promises.
pub fn decode(
    codec: Codec,
    clip: Clip<'_>,
    runs: &Runs,
    frames: &[u32],
    cuts: &[Cut],
    side: u32,
    out: &mut [u8],
) -> Result<(), BadRun> {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|scratch| scratch.decode(codec, clip, runs, frames, cuts, side, out))
}

#[derive(Default)]
struct Scratch {
    jpeg: Option<Decompressor>,
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
        side: u32,
        out: &mut [u8],
    ) -> Result<(), BadRun> {
        let image = side as usize * side as usize * 3;
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
            let pixels = match codec {
                Codec::Raw => stored,
                Codec::Jpeg => decode_jpeg(&mut self.jpeg, &mut self.pixels, stored, clip)
                    .map_err(|e| bad(format!("frame {frame}: {e}")))?,
            };
            let source = ImageRef::new(clip.width, clip.height, pixels, PixelType::U8x3);
            let source = source.map_err(|e| bad(e.to_string()))?;
            for (i, cut) in cuts.iter().enumerate() {
                let target = &mut out[at(i, t)..][..image];
                resize(&mut self.resizer, &source, cut, side, target).map_err(bad)?;
                for op in &cut.ops {
                    op.apply(target, side, &mut self.spare);
                }
            }
        }
        for (cut, clip) in cuts.iter().zip(out.chunks_exact_mut(frames.len() * image)) {
            if let Some(erase) = &cut.erase {
                erase.fill(clip, side);
            }
        }
        Ok(())
    }
}

fn decode_jpeg<'a>(
    decoder: &mut Option<Decompressor>,
    pixels: &'a mut Vec<u8>,
    jpeg: &[u8],
    clip: Clip<'_>,
) -> Result<&'a [u8], String> {
    let decoder = match decoder {
        Some(decoder) => decoder,
        empty => empty.insert(Decompressor::new().map_err(|e| e.to_string())?),
    };
    let header = decoder.read_header(jpeg).map_err(|e| e.to_string())?;
    let (width, height) = (clip.width as usize, clip.height as usize);
    // Before anything is allocated for it.
    if (header.width, header.height) != (width, height) {
        return Err(format!("the JPEG is {}x{}, not {width}x{height}", header.width, header.height));
    }
    pixels.resize(width * height * 3, 0);
    let image = turbojpeg::Image {
        pixels: &mut pixels[..],
        width,
        pitch: width * 3,
        height,
        format: PixelFormat::RGB,
    };
    decoder.decompress(jpeg, image).map_err(|e| e.to_string())?;
    Ok(pixels)
}

fn resize(
    resizer: &mut Resizer,
    source: &ImageRef,
    cut: &Cut,
    side: u32,
    target: &mut [u8],
) -> Result<(), String> {
    let CropBox { left, top, width, height } = cut.crop;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .crop(left, top, width, height)
        .use_alpha(false);
    let mut image = Image::from_slice_u8(side, side, target, PixelType::U8x3).map_err(|e| e.to_string())?;
    resizer.resize(source, &mut image, &options).map_err(|e| e.to_string())?;
    if cut.flip {
        let (pixels, _) = target.as_chunks_mut::<3>();
        pixels.chunks_exact_mut(side as usize).for_each(<[[u8; 3]]>::reverse);
    }
    Ok(())
}
