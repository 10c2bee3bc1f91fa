//! Planar YUV to upright RGB: the colour matrix, the range and the display orientation.
//!
//! FFmpeg's scaler brings every video to 8-bit 4:4:4 of the wanted size without touching the meaning
//! of the samples; here they become RGB by the matrix and range that the video names, and are turned
//! the way the recording device asked for. Transfer functions are left alone: HDR material keeps its
//! own (PQ or HLG) and looks pale, as it does in every framework that decodes to plain RGB.

/// Luma weights and sample range of a video's YUV.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matrix {
    /// Fixed point, 16 fractional bits: luma scale, then what Cb and Cr add to R, G and B.
    luma: i32,
    r: [i32; 2],
    g: [i32; 2],
    b: [i32; 2],
    black: i32,
}

impl Matrix {
    /// From the weights of red and blue in luma (ITU-T H.273, table 4).
    pub fn from_weights(kr: f64, kb: f64, full_range: bool) -> Self {
        let kg = 1.0 - kr - kb;
        let (rr, bb) = (2.0 * (1.0 - kr), 2.0 * (1.0 - kb));
        Self::new([0.0, rr], [-kb * bb / kg, -kr * rr / kg], [bb, 0.0], full_range)
    }

    /// Y, Cg, Co (H.273 matrix coefficients 8).
    pub fn ycgco(full_range: bool) -> Self {
        Self::new([-1.0, 1.0], [1.0, 0.0], [-1.0, -1.0], full_range)
    }

    fn new(r: [f64; 2], g: [f64; 2], b: [f64; 2], full_range: bool) -> Self {
        let (y_scale, c_scale, black) =
            if full_range { (1.0, 1.0, 0) } else { (255.0 / 219.0, 255.0 / 224.0, 16) };
        let fixed = |x: f64| (x * 65536.0).round() as i32;
        let chroma = |c: [f64; 2]| [fixed(c[0] * c_scale), fixed(c[1] * c_scale)];
        Self { luma: fixed(y_scale), r: chroma(r), g: chroma(g), b: chroma(b), black }
    }

    /// One pixel.
    #[inline(always)]
    pub fn rgb(&self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        let y = (i32::from(y) - self.black) * self.luma + 32768;
        let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
        let one = |c: [i32; 2]| ((y + c[0] * cb + c[1] * cr) >> 16).clamp(0, 255) as u8;
        [one(self.r), one(self.g), one(self.b)]
    }
}

/// How stored pictures must be turned to stand upright: one of the eight symmetries of a rectangle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    /// Rows become columns, before the flips.
    pub transpose: bool,
    /// Mirrored left to right in the result.
    pub flip_x: bool,
    /// Mirrored top to bottom in the result.
    pub flip_y: bool,
}

impl Orientation {
    /// From a display matrix as MP4 files carry it: nine native-endian 32-bit numbers `a b u c d v x y w`,
    /// where a stored point (p, q) is shown at (a p + c q, b p + d q). The nearest symmetry is taken.
    /// `None` where the bytes are no such matrix.
    pub fn from_display_matrix(bytes: &[u8]) -> Option<Self> {
        let number = |i: usize| {
            let four = bytes.get(i * 4..i * 4 + 4)?;
            Some(i64::from(i32::from_ne_bytes(four.try_into().ok()?)))
        };
        let (a, b, c, d) = (number(0)?, number(1)?, number(3)?, number(4)?);
        if bytes.len() < 36 || [a, b, c, d] == [0; 4] {
            return None;
        }
        Some(if a.abs() + d.abs() >= b.abs() + c.abs() {
            Self { transpose: false, flip_x: a < 0, flip_y: d < 0 }
        } else {
            Self { transpose: true, flip_x: c < 0, flip_y: b < 0 }
        })
    }

    /// Width and height after the turn.
    pub fn turned(self, width: u32, height: u32) -> (u32, u32) {
        if self.transpose { (height, width) } else { (width, height) }
    }

    /// First sample and the steps along an output row and from row to row, for planes of `stride`.
    fn walk(self, width: usize, height: usize, stride: usize) -> (isize, isize, isize) {
        let (right, bottom) = (width as isize - 1, height as isize - 1);
        let (stride, one) = (stride as isize, 1isize);
        // Whether the stored x and y axes run backwards in the result.
        let (back_x, back_y) =
            if self.transpose { (self.flip_y, self.flip_x) } else { (self.flip_x, self.flip_y) };
        let start = if back_x { right } else { 0 } + if back_y { bottom * stride } else { 0 };
        let step = |back: bool, by: isize| if back { -by } else { by };
        let (along_x, along_y) = (step(back_x, one), step(back_y, stride));
        if self.transpose { (start, along_y, along_x) } else { (start, along_x, along_y) }
    }
}

/// Samples of a picture of `width` x `height` whose planes have rows of `stride` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Planes<'a> {
    pub width: usize,
    pub height: usize,
    pub stride: usize,
    pub samples: Samples<'a>,
}

/// What the planes hold.
#[derive(Clone, Copy, Debug)]
pub enum Samples<'a> {
    /// Y, Cb, Cr, one byte each, 4:4:4.
    Yuv([&'a [u8]; 3], Matrix),
    /// Luma only.
    Grey(&'a [u8], Matrix),
    /// Packed R, G, B; `stride` counts pixels' bytes too.
    Rgb(&'a [u8]),
}

/// Writes the picture as upright RGB8 (H, W, 3) into `out`, replacing what it held.
///
/// # Errors
/// Planes shorter than their size says.
pub fn to_rgb(planes: &Planes, orientation: Orientation, out: &mut Vec<u8>) -> Result<(), String> {
    let &Planes { width, height, stride, samples } = planes;
    let (pixel, shortest) = match samples {
        Samples::Yuv(p, _) => (1, p.iter().map(|p| p.len()).min().unwrap_or(0)),
        Samples::Grey(p, _) => (1, p.len()),
        Samples::Rgb(p) => (3, p.len()),
    };
    if width == 0 || height == 0 || stride < width * pixel || shortest < stride * (height - 1) + width * pixel
    {
        return Err(format!("a picture of {width}x{height} has too few samples"));
    }
    out.clear();
    out.resize(width * height * 3, 0);
    match samples {
        Samples::Yuv([y, u, v], m) if orientation == Orientation::default() => {
            // The common case, row by row, so that the compiler can vectorise it.
            for (row, line) in out.chunks_exact_mut(width * 3).enumerate() {
                let at = row * stride;
                let (y, u, v) = (&y[at..at + width], &u[at..at + width], &v[at..at + width]);
                for (((o, &y), &u), &v) in line.chunks_exact_mut(3).zip(y).zip(u).zip(v) {
                    o.copy_from_slice(&m.rgb(y, u, v));
                }
            }
        }
        Samples::Yuv([y, u, v], m) => fill(planes, orientation, out, |i| m.rgb(y[i], u[i], v[i])),
        Samples::Grey(y, m) => fill(planes, orientation, out, |i| m.rgb(y[i], 128, 128)),
        Samples::Rgb(p) => {
            // Walk in pixels where rows are padded to any number of bytes: recompute row and column.
            let narrow = Planes { stride: width, ..*planes };
            fill(&narrow, orientation, out, |i| {
                let at = (i / width) * stride + (i % width) * 3;
                [p[at], p[at + 1], p[at + 2]]
            });
        }
    }
    Ok(())
}

fn fill(planes: &Planes, orientation: Orientation, out: &mut [u8], pixel: impl Fn(usize) -> [u8; 3]) {
    let (start, along, down) = orientation.walk(planes.width, planes.height, planes.stride);
    let columns = if orientation.transpose { planes.height } else { planes.width };
    for (row, line) in out.chunks_exact_mut(columns * 3).enumerate() {
        let first = start + row as isize * down;
        for (column, o) in line.chunks_exact_mut(3).enumerate() {
            o.copy_from_slice(&pixel((first + column as isize * along) as usize));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix_bytes(a: i32, b: i32, c: i32, d: i32) -> Vec<u8> {
        [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
            .iter()
            .flat_map(|x| x.to_ne_bytes())
            .collect()
    }

    /// A picture of 3x2 whose red channel counts 0..6, turned.
    fn turn(o: Orientation) -> Vec<u8> {
        // Rows padded to 4 samples.
        let y = [0, 1, 2, 99, 3, 4, 5, 99];
        let flat = [128u8; 8];
        let m = Matrix::from_weights(0.299, 0.114, true);
        let planes = Planes { width: 3, height: 2, stride: 4, samples: Samples::Yuv([&y, &flat, &flat], m) };
        let mut out = Vec::new();
        to_rgb(&planes, o, &mut out).unwrap();
        out.chunks(3).map(|p| p[0]).collect()
    }

    #[test]
    fn turns_as_the_display_matrix_says() {
        let of = |a, b, c, d| turn(Orientation::from_display_matrix(&matrix_bytes(a, b, c, d)).unwrap());
        assert_eq!(of(1, 0, 0, 1), [0, 1, 2, 3, 4, 5]);
        assert_eq!(of(-1, 0, 0, -1), [5, 4, 3, 2, 1, 0]);
        assert_eq!(of(-1, 0, 0, 1), [2, 1, 0, 5, 4, 3]);
        // A quarter turn clockwise, as a phone held upright records it: the left column becomes the top row.
        assert_eq!(of(0, 1, -1, 0), [3, 0, 4, 1, 5, 2]);
        // Counter-clockwise, and the two transpositions.
        assert_eq!(of(0, -1, 1, 0), [2, 5, 1, 4, 0, 3]);
        assert_eq!(of(0, 1, 1, 0), [0, 3, 1, 4, 2, 5]);
        assert_eq!(of(0, -1, -1, 0), [5, 2, 4, 1, 3, 0]);
        assert_eq!(Orientation::from_display_matrix(&[1, 2, 3]), None);
        assert_eq!(Orientation::from_display_matrix(&matrix_bytes(0, 0, 0, 0)), None);
    }

    #[test]
    fn rgb_and_grey_turn_alike() {
        let o = Orientation { transpose: true, flip_x: true, flip_y: false };
        let rgb = [0, 0, 0, 1, 1, 1, 2, 2, 2, 77, 3, 3, 3, 4, 4, 4, 5, 5, 5, 77];
        let planes = Planes { width: 3, height: 2, stride: 10, samples: Samples::Rgb(&rgb) };
        let mut out = Vec::new();
        to_rgb(&planes, o, &mut out).unwrap();
        assert_eq!(out.chunks(3).map(|p| p[0]).collect::<Vec<_>>(), turn(o));
        let m = Matrix::from_weights(0.299, 0.114, true);
        let planes =
            Planes { width: 3, height: 2, stride: 3, samples: Samples::Grey(&[0, 1, 2, 3, 4, 5], m) };
        to_rgb(&planes, o, &mut out).unwrap();
        assert_eq!(out.chunks(3).map(|p| p[0]).collect::<Vec<_>>(), turn(o));
    }

    #[test]
    fn known_colours() {
        // Pure red by BT.709, limited range: Y 63, Cb 102, Cr 240 (H.273); full-range BT.601: 76, 85, 255.
        let close = |a: [u8; 3], b: [i32; 3]| a.iter().zip(b).all(|(&a, b)| (i32::from(a) - b).abs() <= 2);
        assert!(close(Matrix::from_weights(0.2126, 0.0722, false).rgb(63, 102, 240), [255, 0, 0]));
        assert!(close(Matrix::from_weights(0.299, 0.114, true).rgb(76, 85, 255), [255, 0, 0]));
        assert!(close(Matrix::from_weights(0.299, 0.114, false).rgb(16, 128, 128), [0, 0, 0]));
        assert!(close(Matrix::from_weights(0.299, 0.114, false).rgb(235, 128, 128), [255, 255, 255]));
        // Pure green in YCgCo: Y 1/2, Cg +1/2, Co 0.
        assert!(close(Matrix::ycgco(true).rgb(128, 255, 128), [0, 255, 0]));
    }

    #[test]
    fn short_planes_are_refused() {
        let planes = Planes { width: 3, height: 2, stride: 3, samples: Samples::Rgb(&[0; 17]) };
        assert!(to_rgb(&planes, Orientation::default(), &mut Vec::new()).is_err());
    }
}
