//! Clips that come as images: each JPEG is taken over byte for byte where it can be, anything else is
//! decoded, scaled and encoded anew.

use super::{
    Input, Options,
    builder::{ClipBuilder, NewClip, SAME_TIME, Stop, entry, outcome_entries},
    colour::Orientation,
    encode::FrameEncoder,
    scale::{Geometry, MAX_SIDE},
};
use crate::{
    format::{Codec, jpeg_length},
    ledger::{Action, LedgerEntry},
};
use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};
use std::{cmp::Ordering, io::Cursor, path::Path};
use turbojpeg::{Colorspace, Decompressor, PixelFormat};

/// Ingests a folder of images, in the natural order of their names, as one clip or several.
pub fn ingest_folder(
    input: &Input,
    options: &Options,
    source_fps: f64,
    first_piece: u32,
    emit: &mut dyn FnMut(NewClip) -> bool,
) -> Vec<LedgerEntry> {
    let all = match image_names(&input.path) {
        Ok(names) => names,
        Err(e) => return vec![entry(&input.source, Action::Skipped, "unreadable", e.to_string())],
    };
    // The first image at or after a time.
    let at = |time: f64| (((time - SAME_TIME) * source_fps).ceil().max(0.0) as usize).min(all.len());
    let (start, end) = input.cut.map_or((0, all.len()), |c| (at(c.start), c.end.map_or(all.len(), at)));
    let names = &all[start..end.max(start)];
    if names.is_empty() {
        let seconds = all.len() as f64 / source_fps;
        let detail = format!("its {} images end at {seconds:.2} s", all.len());
        return vec![entry(&input.source, Action::Skipped, "empty cut", detail)];
    }
    let mut read = |i: usize| std::fs::read(input.path.join(&names[i])).map_err(|e| e.to_string());
    let mut clips = ClipBuilder::new(input, options, first_piece, emit);
    let outcome = add_images(&mut clips, options, source_fps, names, &mut read);
    outcome_entries(&input.source, outcome, clips.pieces())
}

/// Adds images, called `names`, to `clips` at `source_fps`, resampled if asked. `read` gets one's bytes.
///
/// # Errors
/// The first image that cannot be used, by its name.
pub fn add_images<B: AsRef<[u8]>>(
    clips: &mut ClipBuilder,
    options: &Options,
    source_fps: f64,
    names: &[String],
    read: &mut dyn FnMut(usize) -> Result<B, String>,
) -> Result<Option<f64>, Stop> {
    let mut still = Still::new(options).map_err(|e| Stop::Failed("encoder", e))?;
    if names.is_empty() {
        return Err(Stop::Failed("no images", "it holds none".into()));
    }
    let rate = options.fps.unwrap_or(source_fps);
    // As with videos: each image takes the nearest tick and stays until the next one's.
    let tick = |i: usize| (i as f64 / source_fps * rate).round() as u64;
    for (i, name) in names.iter().enumerate() {
        let until = if i + 1 < names.len() { tick(i + 1) } else { tick(i + 1).max(tick(i) + 1) };
        let mut encoded = false;
        for slot in tick(i)..until {
            if !clips.begin(slot as f64 / rate, source_fps)? {
                continue;
            }
            if !encoded {
                let bytes = read(i).map_err(|e| Stop::Failed("unreadable image", format!("{name}: {e}")))?;
                still
                    .encode(bytes.as_ref())
                    .map_err(|(reason, why)| Stop::Failed(reason, format!("{name}: {why}")))?;
                encoded = true;
            }
            clips.push(&still.stored, still.stored_size)?;
        }
    }
    clips.close(source_fps, true)
}

/// The images of a folder in natural order: digits count as numbers.
///
/// # Errors
/// The folder cannot be read.
pub fn image_names(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder)? {
        let name = file?.file_name().to_string_lossy().into_owned();
        if is_image(&name) {
            names.push(name);
        }
    }
    names.sort_by(|a, b| natural(a, b));
    Ok(names)
}

/// True for names that end in .jpg, .jpeg or .png and are not hidden.
pub fn is_image(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, e)| e);
    !name.starts_with('.') && ["jpg", "jpeg", "png"].iter().any(|e| ending.eq_ignore_ascii_case(e))
}

/// Turns images of one clip, all of one size, into what the dataset stores.
struct Still<'a> {
    options: &'a Options,
    encoder: FrameEncoder,
    decoder: Decompressor,
    resizer: Resizer,
    /// Size of the clip's first image.
    size: Option<(u32, u32)>,
    stored_size: (u32, u32),
    rgb: Vec<u8>,
    scaled: Vec<u8>,
    stored: Vec<u8>,
}

type Refused = (&'static str, String);

impl<'a> Still<'a> {
    fn new(options: &'a Options) -> Result<Self, String> {
        Ok(Self {
            options,
            encoder: FrameEncoder::new(options.codec, options.quality)?,
            decoder: Decompressor::new().map_err(|e| format!("set up the JPEG decoder: {e}"))?,
            resizer: Resizer::new(),
            size: None,
            stored_size: (0, 0),
            rgb: Vec::new(),
            scaled: Vec::new(),
            stored: Vec::new(),
        })
    }

    /// Leaves the image's stored form in `stored`.
    fn encode(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let adopted = match bytes {
            [0xff, 0xd8, ..] => self.decode_jpeg(bytes)?,
            [0x89, b'P', b'N', b'G', ..] => {
                self.decode_png(bytes)?;
                None
            }
            [] => return Err(("damaged image", "it is empty".into())),
            _ => return Err(("damaged image", "it is neither a JPEG nor a PNG".into())),
        };
        let (width, height) = self.stored_size;
        self.stored.clear();
        if let Some(length) = adopted {
            self.stored.extend_from_slice(&bytes[..length]);
            return Ok(());
        }
        let rgb = if Some(self.stored_size) == self.size {
            &self.rgb
        } else {
            self.resize().map_err(|e| ("encoder", e))?;
            &self.scaled
        };
        let stored = self.encoder.encode(rgb, width, height).map_err(|e| ("encoder", e))?;
        self.stored.extend_from_slice(stored);
        Ok(())
    }

    /// Decodes in any case: damage must show now. The length to take over, where the bytes can be.
    fn decode_jpeg(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refused> {
        let damaged = |e: String| ("damaged image", e);
        let header = self.decoder.read_header(bytes).map_err(|e| damaged(e.to_string()))?;
        if matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK) {
            return Err(("CMYK image", "a CMYK JPEG has no one meaning in RGB".into()));
        }
        self.sized(header.width as u64, header.height as u64)?;
        self.rgb.resize(header.width * header.height * 3, 0);
        let image = turbojpeg::Image {
            pixels: &mut self.rgb[..],
            width: header.width,
            pitch: header.width * 3,
            height: header.height,
            format: PixelFormat::RGB,
        };
        self.decoder.decompress(bytes, image).map_err(|e| damaged(e.to_string()))?;
        let colour = matches!(header.colorspace, Colorspace::RGB | Colorspace::YCbCr);
        if self.options.codec != Codec::Jpeg || !colour || Some(self.stored_size) != self.size {
            return Ok(None);
        }
        // What follows the end marker would be taken for the next frame.
        let length = jpeg_length(bytes).map_err(damaged)?;
        Ok(is_baseline(&bytes[..length]).then_some(length))
    }

    fn decode_png(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let damaged = |e: png::DecodingError| ("damaged image", e.to_string());
        let mut decoder = png::Decoder::new(Cursor::new(bytes));
        decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
        let mut reader = decoder.read_info().map_err(damaged)?;
        let (width, height) = (reader.info().width, reader.info().height);
        self.sized(width.into(), height.into())?;
        let size = reader.output_buffer_size().ok_or(("damaged image", "its size overflows".to_string()))?;
        let mut pixels = vec![0; size];
        let info = reader.next_frame(&mut pixels).map_err(damaged)?;
        // Without what follows the pixels the file may still be cut off.
        reader.finish().map_err(damaged)?;
        let samples = info.color_type.samples();
        self.rgb.clear();
        self.rgb.reserve(width as usize * height as usize * 3);
        for pixel in pixels[..info.buffer_size()].chunks_exact(samples) {
            // Transparency is left out: what is stored is the colour beneath.
            match pixel {
                [v] | [v, _] => self.rgb.extend_from_slice(&[*v; 3]),
                more => self.rgb.extend_from_slice(&more[..3]),
            }
        }
        Ok(())
    }

    /// Checks an image's size before anything is allocated for it; the first decides for the clip.
    fn sized(&mut self, width: u64, height: u64) -> Result<(), Refused> {
        let most = u64::from(MAX_SIDE);
        if !(1..=most).contains(&width) || !(1..=most).contains(&height) {
            return Err(("too large", format!("it is {width}x{height}, beyond {MAX_SIDE}")));
        }
        let size = (width as u32, height as u32);
        match self.size {
            None => {
                let g = Geometry::new(size, 1.0, Orientation::default(), self.options.short_side);
                self.stored_size = g.map_err(|e| ("too large", e))?.size();
                self.size = Some(size);
                Ok(())
            }
            Some(first) if first == size => Ok(()),
            Some((w, h)) => {
                Err(("sizes differ", format!("it is {width}x{height}, the clip's first image {w}x{h}")))
            }
        }
    }

    fn resize(&mut self) -> Result<(), String> {
        let ((sw, sh), (w, h)) = (self.size.unwrap_or_default(), self.stored_size);
        self.scaled.resize(w as usize * h as usize * 3, 0);
        let failed = |e: String| format!("scale an image: {e}");
        let source = ImageRef::new(sw, sh, &self.rgb, PixelType::U8x3).map_err(|e| failed(e.to_string()))?;
        let mut target = Image::from_slice_u8(w, h, &mut self.scaled, PixelType::U8x3)
            .map_err(|e| failed(e.to_string()))?;
        let cubic = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
        self.resizer.resize(&source, &mut target, &cubic).map_err(|e| failed(e.to_string()))
    }
}

/// True for a baseline JPEG (SOF0) of three 8-bit components (ITU-T T.81, B.2.2).
fn is_baseline(jpeg: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = jpeg.get(at..at + 4).and_then(|b| b.first_chunk()) {
        match marker {
            0xff => at += 1,
            0xc0 => return jpeg.get(at + 4) == Some(&8) && jpeg.get(at + 9) == Some(&3),
            // Other frame headers: extended, progressive, lossless, arithmetic.
            0xc1..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf | 0xda => return false,
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}

/// Compares names with runs of digits taken as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    loop {
        match (x.first(), y.first()) {
            (Some(p), Some(q)) if p.is_ascii_digit() && q.is_ascii_digit() => {
                let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
                let ((n, rest_x), (m, rest_y)) = (x.split_at(digits(x)), y.split_at(digits(y)));
                let plain = |s: &[u8]| s.iter().position(|&c| c != b'0').unwrap_or(s.len());
                let (n, m) = (&n[plain(n)..], &m[plain(m)..]);
                match n.len().cmp(&m.len()).then_with(|| n.cmp(m)) {
                    Ordering::Equal => (x, y) = (rest_x, rest_y),
                    other => return other,
                }
            }
            (Some(p), Some(q)) if p == q => (x, y) = (&x[1..], &y[1..]),
            (Some(p), Some(q)) => return p.cmp(q),
            // Names that differ in leading zeros only still have one order.
            (None, None) => return a.cmp(b),
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::encode_jpeg;

    #[test]
    fn digits_count_as_numbers() {
        let mut names = ["img_10.jpg", "img_9.jpg", "img_010.jpg", "a.png", "img_2b.jpg", "img_2.jpg"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a.png", "img_2.jpg", "img_2b.jpg", "img_9.jpg", "img_010.jpg", "img_10.jpg"]);
        assert!(is_image("x.JPEG") && !is_image(".x.jpg") && !is_image("jpg"));
    }

    fn png(width: u32, height: u32, colour: png::ColorType, pixels: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(colour);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header().unwrap().write_image_data(pixels).unwrap();
        bytes
    }

    #[test]
    fn a_jpeg_that_fits_is_taken_over_and_others_are_made_anew() {
        let options = Options { short_side: 16, ..Options::default() };
        let jpeg = encode_jpeg(&[90; 20 * 16 * 3], 20, 16);
        let mut still = Still::new(&options).unwrap();
        let mut trailed = jpeg.clone();
        trailed.extend_from_slice(b"camera notes");
        still.encode(&trailed).unwrap();
        assert_eq!(still.stored, jpeg);
        // A PNG among them, grey.
        still.encode(&png(20, 16, png::ColorType::Grayscale, &[90; 320])).unwrap();
        let image = turbojpeg::decompress(&still.stored, PixelFormat::RGB).unwrap();
        assert!((image.width, image.height) == (20, 16) && image.pixels.iter().all(|v| v.abs_diff(90) <= 1));
        // Larger than asked: scaled.
        let mut still = Still::new(&options).unwrap();
        still.encode(&encode_jpeg(&[90; 40 * 32 * 3], 40, 32)).unwrap();
        assert_eq!(still.stored_size, (20, 16));
        assert_eq!(turbojpeg::read_header(&still.stored).unwrap().width, 20);
        // Raw: always decoded.
        let raw = Options { codec: Codec::Raw, ..options.clone() };
        let mut still = Still::new(&raw).unwrap();
        still.encode(&png(2, 1, png::ColorType::Rgba, &[1, 2, 3, 0, 4, 5, 6, 255])).unwrap();
        assert_eq!(still.stored, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_is_no_such_image_is_refused() {
        let options = Options::default();
        let refuse = |images: &[&[u8]]| {
            let mut still = Still::new(&options).unwrap();
            let (last, first) = images.split_last().unwrap();
            first.iter().for_each(|i| still.encode(i).unwrap());
            still.encode(last).unwrap_err()
        };
        let jpeg = encode_jpeg(&crate::testing::frame(1, 1, 64, 48), 64, 48);
        let small = encode_jpeg(&[90; 8 * 8 * 3], 8, 8);
        assert_eq!(refuse(&[b"GIF89a"]).0, "damaged image");
        assert_eq!(refuse(&[b""]).0, "damaged image");
        assert_eq!(refuse(&[&jpeg[..jpeg.len() / 2]]).0, "damaged image");
        let whole = png(3, 3, png::ColorType::Rgb, &[7; 27]);
        assert_eq!(refuse(&[&whole[..whole.len() - 20]]).0, "damaged image");
        let (reason, why) = refuse(&[&jpeg, &small]);
        assert!(reason == "sizes differ" && why.contains("8x8") && why.contains("64x48"), "{why}");
    }
}
