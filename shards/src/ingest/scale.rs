//! Decoded pictures to RGB of the dataset's size: FFmpeg's scaler, then [`colour`](super::colour).

use super::colour::{Matrix, Orientation, Planes, Samples, to_rgb};
use ffmpeg_next::{
    Rational,
    color::{Range, Space},
    format::Pixel,
    frame,
    software::scaling::{Context, Flags},
};

/// Longest side that a stored frame may have, in pixels.
pub const MAX_SIDE: u32 = 16_384;

/// Size of a clip's frames, before and after they are turned upright.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    scaled: (u32, u32),
    pub orientation: Orientation,
}

impl Geometry {
    /// Squares the pixels (by the width), then brings the short side down to `short_side`, keeping the
    /// aspect ratio. Smaller pictures stay as they are: scaling them up would only cost bytes.
    ///
    /// # Errors
    /// A size of zero, or a side beyond what a dataset may hold.
    pub fn new(
        (width, height): (u32, u32),
        pixel_aspect: f64,
        orientation: Orientation,
        short_side: u32,
    ) -> Result<Self, String> {
        if width == 0 || height == 0 {
            return Err(format!("its pictures are {width}x{height}"));
        }
        let (w, h) = (f64::from(width) * pixel_aspect, f64::from(height));
        let factor = (f64::from(short_side) / w.min(h)).min(1.0);
        let side = |x: f64| (x * factor).round().max(1.0);
        let (w, h) = (side(w), side(h));
        if w.max(h) > f64::from(MAX_SIDE) {
            return Err(format!("its pictures would be {w}x{h}, beyond {MAX_SIDE}"));
        }
        Ok(Self { scaled: (w as u32, h as u32), orientation })
    }

    /// Width and height as stored.
    pub fn size(&self) -> (u32, u32) {
        self.orientation.turned(self.scaled.0, self.scaled.1)
    }
}

/// Width of a pixel by its height: the container's word counts before the picture's, as FFmpeg's own
/// players have it; 1 where neither says anything sane.
pub fn pixel_aspect(container: Rational, picture: Rational) -> f64 {
    let sane = |r: Rational| {
        let (n, d) = (r.numerator(), r.denominator());
        let ratio = f64::from(n) / f64::from(d);
        (n > 0 && d > 0 && (0.1..=10.0).contains(&ratio)).then_some(ratio)
    };
    sane(container).or(sane(picture)).unwrap_or(1.0)
}

/// Converts pictures of one video. It adapts where format, size or colour change on the way.
#[derive(Default)]
pub struct Converter {
    current: Option<Scaler>,
}

/// What a scaler depends on.
#[derive(Clone, Copy, PartialEq)]
struct Key {
    format: Pixel,
    size: (u32, u32),
    space: Space,
    range: Range,
    scaled: (u32, u32),
}

struct Scaler {
    key: Key,
    context: Context,
    kind: Kind,
    scaled: frame::Video,
}

#[derive(Clone, Copy)]
enum Kind {
    Yuv(Matrix),
    Grey(Matrix),
    Rgb,
}

impl Converter {
    /// Writes `picture` as upright RGB8 of `geometry`'s size into `out`.
    ///
    /// # Errors
    /// A pixel format that FFmpeg cannot scale.
    pub fn convert(
        &mut self,
        picture: &frame::Video,
        geometry: &Geometry,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let key = Key {
            format: picture.format(),
            size: (picture.width(), picture.height()),
            space: picture.color_space(),
            range: picture.color_range(),
            scaled: geometry.scaled,
        };
        let scaler = match &mut self.current {
            Some(s) if s.key == key => s,
            other => other.insert(Scaler::new(key)?),
        };
        scaler
            .context
            .run(picture, &mut scaler.scaled)
            .map_err(|e| format!("its pictures cannot be scaled: {e}"))?;
        let f = &scaler.scaled;
        if f.planes() == 0 {
            return Err("its pictures cannot be scaled: out of memory".into());
        }
        let samples = match scaler.kind {
            Kind::Yuv(m) if f.planes() >= 3 && f.stride(1) == f.stride(0) && f.stride(2) == f.stride(0) => {
                Samples::Yuv([f.data(0), f.data(1), f.data(2)], m)
            }
            Kind::Yuv(_) => return Err("its pictures cannot be scaled: planes differ".into()),
            Kind::Grey(m) => Samples::Grey(f.data(0), m),
            Kind::Rgb => Samples::Rgb(f.data(0)),
        };
        let (width, height) = (key.scaled.0 as usize, key.scaled.1 as usize);
        to_rgb(&Planes { width, height, stride: f.stride(0), samples }, geometry.orientation, out)
    }
}

impl Scaler {
    fn new(key: Key) -> Result<Self, String> {
        let name = key.format.descriptor().map(|d| d.name()).unwrap_or("unknown");
        let full = key.range == Range::JPEG || name.starts_with("yuvj");
        let (format, kind) = if is_rgb(name) {
            (Pixel::RGB24, Kind::Rgb)
        } else if name.starts_with("gray") || name.starts_with("ya") {
            // Grey counts as full range unless it says otherwise, FFmpeg's own rule.
            (Pixel::GRAY8, Kind::Grey(matrix(key.space, key.range != Range::MPEG)))
        } else if name.starts_with("yuvj") {
            // The scaler takes this family for full range, and keeps it so only into its own kind.
            (Pixel::YUVJ444P, Kind::Yuv(matrix(key.space, true)))
        } else {
            (Pixel::YUV444P, Kind::Yuv(matrix(key.space, full)))
        };
        let flags = Flags::BICUBIC | Flags::ACCURATE_RND | Flags::FULL_CHR_H_INP;
        let ((w, h), (sw, sh)) = (key.size, key.scaled);
        let context = Context::get(key.format, w, h, format, sw, sh, flags)
            .map_err(|e| format!("its pixel format {name} at {w}x{h} cannot be scaled: {e}"))?;
        Ok(Self { key, context, kind, scaled: frame::Video::empty() })
    }
}

fn is_rgb(name: &str) -> bool {
    const FAMILIES: [&str; 12] =
        ["rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr", "x2rgb", "x2bgr", "xyz", "pal8", "bayer"];
    FAMILIES.iter().any(|f| name.starts_with(f)) || name.starts_with("mono")
}

/// Videos that do not say count as BT.601, FFmpeg's own rule.
fn matrix(space: Space, full_range: bool) -> Matrix {
    let (kr, kb) = match space {
        Space::BT709 => (0.2126, 0.0722),
        Space::FCC => (0.30, 0.11),
        Space::SMPTE240M => (0.212, 0.087),
        Space::BT2020NCL | Space::BT2020CL => (0.2627, 0.0593),
        Space::YCGCO => return Matrix::ycgco(full_range),
        _ => (0.299, 0.114),
    };
    Matrix::from_weights(kr, kb, full_range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(w: u32, h: u32, aspect: f64, transpose: bool, short: u32) -> (u32, u32) {
        let o = Orientation { transpose, ..Default::default() };
        Geometry::new((w, h), aspect, o, short).unwrap().size()
    }

    #[test]
    fn keeps_the_aspect_ratio_at_the_short_side() {
        assert_eq!(size(1920, 1080, 1.0, false, 256), (455, 256));
        assert_eq!(size(1920, 1080, 1.0, true, 256), (256, 455));
        assert_eq!(size(1080, 1920, 1.0, false, 256), (256, 455));
        // Smaller than asked: as it is.
        assert_eq!(size(176, 144, 1.0, false, 256), (176, 144));
        // Anamorphic PAL widescreen.
        assert_eq!(size(720, 576, 64.0 / 45.0, false, 256), (455, 256));
        assert!(Geometry::new((0, 5), 1.0, Orientation::default(), 256).is_err());
        assert!(Geometry::new((100_000, 16), 1.0, Orientation::default(), 256).is_err());
    }

    #[test]
    fn absurd_pixel_aspects_count_as_square() {
        let none = Rational::new(0, 1);
        assert_eq!(pixel_aspect(none, Rational::new(4, 3)), 4.0 / 3.0);
        assert_eq!(pixel_aspect(Rational::new(3, 2), Rational::new(4, 3)), 1.5);
        for (n, d) in [(0, 1), (1, 0), (0, 0), (-4, 3), (1000, 1)] {
            assert_eq!(pixel_aspect(none, Rational::new(n, d)), 1.0);
        }
    }

    #[test]
    fn limited_and_full_range_give_the_same_colour() {
        for (format, range, y) in [
            (Pixel::YUV420P, Range::MPEG, 126),
            (Pixel::YUV420P, Range::JPEG, 128),
            (Pixel::YUVJ420P, Range::JPEG, 128),
        ] {
            let mut f = frame::Video::new(format, 32, 32);
            f.data_mut(0).fill(y);
            f.data_mut(1).fill(128);
            f.data_mut(2).fill(128);
            f.set_color_range(range);
            let g = Geometry::new((32, 32), 1.0, Orientation::default(), 16).unwrap();
            let mut out = Vec::new();
            Converter::default().convert(&f, &g, &mut out).unwrap();
            assert_eq!(out.len(), 16 * 16 * 3);
            assert!(out.iter().all(|&v| (127..=129).contains(&v)), "{format:?} {range:?}: {}", out[0]);
        }
    }
}
