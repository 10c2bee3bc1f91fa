//! Stored runs to pixels: decodes each needed frame, resizes its crops straight into the batch buffer and
//! augments them there; a frame that is shown whole is decoded there at once. Decoders, resizers and scratch
//! memory are kept per thread.

use crate::format::{Clip, Codec, RUN_FRAMES, run_frames, split_run};
use crate::reader::{Runs, fetch_bytes};
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
        size: (u32, u32),
        out: &mut [u8],
    ) -> Result<(), BadRun> {
        let image = size.0 as usize * size.1 as usize * 3;
        let whole = matches!(cuts, [cut] if shows_all(cut, clip, size));
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
            if codec == Codec::Jpeg {
                let bad = |e| bad(format!("frame {frame}: {e}"));
                let decoder = open_jpeg(&mut self.jpeg, stored, clip).map_err(bad)?;
                if whole {
                    let target = &mut out[at(0, t)..][..image];
                    decode_jpeg(decoder, stored, clip, target).map_err(bad)?;
                    self.finish(&cuts[0], size.0, target);
                    continue;
                }
                self.pixels.resize(clip.width as usize * clip.height as usize * 3, 0);
                decode_jpeg(decoder, stored, clip, &mut self.pixels).map_err(bad)?;
            }
            for (i, cut) in cuts.iter().enumerate() {
                let pixels = match codec {
                    Codec::Raw => stored,
                    Codec::Jpeg => &self.pixels,
                };
                let source = ImageRef::new(clip.width, clip.height, pixels, PixelType::U8x3);
                let source = source.map_err(|e| bad(e.to_string()))?;
                let target = &mut out[at(i, t)..][..image];
                resize(&mut self.resizer, &source, cut, size, target).map_err(bad)?;
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

/// The decoder, once the header says that the frame has the clip's size.
fn open_jpeg<'a>(
    decoder: &'a mut Option<Decompressor>,
    jpeg: &[u8],
    clip: Clip<'_>,
) -> Result<&'a mut Decompressor, String> {
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
    Ok(decoder)
}

fn decode_jpeg(
    decoder: &mut Decompressor,
    jpeg: &[u8],
    clip: Clip<'_>,
    pixels: &mut [u8],
) -> Result<(), String> {
    let (width, height) = (clip.width as usize, clip.height as usize);
    let image = turbojpeg::Image { pixels, width, pitch: width * 3, height, format: PixelFormat::RGB };
    decoder.decompress(jpeg, image).map_err(|e| e.to_string())
}

fn resize(
    resizer: &mut Resizer,
    source: &ImageRef,
    cut: &Cut,
    (width, height): (u32, u32),
    target: &mut [u8],
) -> Result<(), String> {
    let crop = cut.crop;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .crop(crop.left, crop.top, crop.width, crop.height)
        .use_alpha(false);
    let mut image =
        Image::from_slice_u8(width, height, target, PixelType::U8x3).map_err(|e| e.to_string())?;
    resizer.resize(source, &mut image, &options).map_err(|e| e.to_string())
}
