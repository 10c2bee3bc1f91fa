//! The operations of RandAugment and colour jitter on one RGB frame, as Pillow computes them.

use super::affine::{Affine, warp};

/// One operation with all its parameters; Pillow's functions of the same names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// Each channel is stretched to 0..=255.
    AutoContrast,
    /// Each channel's histogram is made flat.
    Equalize,
    Invert,
    /// Degrees, counter-clockwise.
    Rotate(f64),
    /// Bits kept.
    Posterize(u32),
    /// Values from this on are inverted.
    Solarize(u32),
    /// Added to values below 128.
    SolarizeAdd(u32),
    /// Blend of the frame's grey (0) and the frame (1); beyond 1 more vivid.
    Color(f64),
    /// Blend of the mean grey and the frame.
    Contrast(f64),
    /// Blend of black and the frame.
    Brightness(f64),
    /// Blend of the smoothed frame and the frame.
    Sharpness(f64),
    /// Columns shifted a row.
    ShearX(f64),
    /// Rows shifted a column.
    ShearY(f64),
    /// Part of the width.
    TranslateX(f64),
    /// Part of the height.
    TranslateY(f64),
}

impl Op {
    /// Operations that [`Op::increasing`] knows.
    pub(super) const KINDS: u64 = 15;

    /// Operation `kind` of timm's `_RAND_INCREASING_TRANSFORMS` at `level` in 0..=10; `sign` is -1 or 1
    /// (timm's `LEVEL_TO_ARG`).
    pub(super) fn increasing(kind: u64, level: f64, sign: f64) -> Self {
        let part = level / 10.0;
        let factor = (1.0 + sign * part * 0.9).max(0.1);
        match kind {
            0 => Op::AutoContrast,
            1 => Op::Equalize,
            2 => Op::Invert,
            3 => Op::Rotate(sign * part * 30.0),
            4 => Op::Posterize(4 - (part * 4.0) as u32),
            5 => Op::Solarize(256 - (part * 256.0) as u32),
            6 => Op::SolarizeAdd((part * 110.0) as u32),
            7 => Op::Color(factor),
            8 => Op::Contrast(factor),
            9 => Op::Brightness(factor),
            10 => Op::Sharpness(factor),
            11 => Op::ShearX(sign * part * 0.3),
            12 => Op::ShearY(sign * part * 0.3),
            13 => Op::TranslateX(sign * part * 0.45),
            _ => Op::TranslateY(sign * part * 0.45),
        }
    }

    /// Changes one frame (side, side, 3) in place. `spare` is scratch memory.
    pub fn apply(&self, frame: &mut [u8], side: u32, spare: &mut Vec<u8>) {
        let size = side as usize;
        let pixels = frame.as_chunks_mut::<3>().0;
        match *self {
            Op::AutoContrast => look_up(pixels, &histograms(pixels).map(|h| stretched(&h))),
            Op::Equalize => look_up(pixels, &histograms(pixels).map(|h| equalized(&h))),
            Op::Invert => map(pixels, |x| 255 - x),
            Op::Posterize(bits) => map(pixels, |x| (u32::from(x) & (0xff00 >> bits.min(8))) as u8),
            Op::Solarize(from) => map(pixels, |x| if u32::from(x) < from { x } else { 255 - x }),
            Op::SolarizeAdd(add) => map(pixels, |x| match x {
                0..128 => (u32::from(x) + add).min(255) as u8,
                _ => x,
            }),
            Op::Brightness(factor) => map(pixels, |x| blend(0, x, factor as f32)),
            Op::Contrast(factor) => {
                let mean = mean_grey(pixels);
                map(pixels, |x| blend(mean, x, factor as f32));
            }
            Op::Color(factor) => {
                for pixel in pixels {
                    let grey = grey(*pixel);
                    *pixel = pixel.map(|x| blend(grey, x, factor as f32));
                }
            }
            Op::Sharpness(factor) => sharpen(frame, size, factor as f32, spare),
            Op::Rotate(degrees) => warp(frame, size, &Affine::rotation(degrees, size), spare),
            Op::ShearX(shear) => warp(frame, size, &Affine([1.0, shear, 0.0, 0.0, 1.0, 0.0]), spare),
            Op::ShearY(shear) => warp(frame, size, &Affine([1.0, 0.0, 0.0, shear, 1.0, 0.0]), spare),
            Op::TranslateX(part) => {
                warp(frame, size, &Affine([1.0, 0.0, part * size as f64, 0.0, 1.0, 0.0]), spare);
            }
            Op::TranslateY(part) => {
                warp(frame, size, &Affine([1.0, 0.0, 0.0, 0.0, 1.0, part * size as f64]), spare);
            }
        }
    }
}

type Table = [u8; 256];

fn map(pixels: &mut [[u8; 3]], value: impl Fn(u8) -> u8) {
    let table: Table = std::array::from_fn(|x| value(x as u8));
    for x in pixels.as_flattened_mut() {
        *x = table[usize::from(*x)];
    }
}

fn look_up(pixels: &mut [[u8; 3]], tables: &[Table; 3]) {
    for [r, g, b] in pixels {
        *r = tables[0][usize::from(*r)];
        *g = tables[1][usize::from(*g)];
        *b = tables[2][usize::from(*b)];
    }
}

fn histograms(pixels: &[[u8; 3]]) -> [[u32; 256]; 3] {
    let mut counts = [[0; 256]; 3];
    for pixel in pixels {
        for (count, x) in counts.iter_mut().zip(pixel) {
            count[usize::from(*x)] += 1;
        }
    }
    counts
}

/// `ImageOps.autocontrast` without a cut-off.
fn stretched(histogram: &[u32; 256]) -> Table {
    let low = histogram.iter().position(|&n| n > 0).unwrap_or(0) as f64;
    let high = histogram.iter().rposition(|&n| n > 0).unwrap_or(0) as f64;
    if high <= low {
        return std::array::from_fn(|x| x as u8);
    }
    let scale = 255.0 / (high - low);
    let offset = -low * scale;
    // A cast saturates and cuts off, as Pillow does.
    std::array::from_fn(|x| (x as f64 * scale + offset) as u8)
}

/// `ImageOps.equalize`.
fn equalized(histogram: &[u32; 256]) -> Table {
    let last = histogram.iter().rfind(|&&n| n > 0).copied().unwrap_or(0);
    let step = (histogram.iter().sum::<u32>() - last) / 255;
    if step == 0 {
        return std::array::from_fn(|x| x as u8);
    }
    let mut n = step / 2;
    histogram.map(|count| {
        let value = (n / step).min(255) as u8;
        n += count;
        value
    })
}

/// `Image.convert("L")`: ITU-R 601-2 luma in 16-bit fixed point.
fn grey([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

fn mean_grey(pixels: &[[u8; 3]]) -> u8 {
    let sum: u64 = pixels.iter().map(|&p| u64::from(grey(p))).sum();
    (sum as f64 / pixels.len().max(1) as f64 + 0.5) as u8
}

/// `Image.blend`: from `base` (0) to `x` (1) and beyond, clamped, cut off.
fn blend(base: u8, x: u8, factor: f32) -> u8 {
    (f32::from(base) + factor * (f32::from(x) - f32::from(base))) as u8
}

/// `ImageEnhance.Sharpness`: a blend with `ImageFilter.SMOOTH`, which leaves the border alone.
fn sharpen(frame: &mut [u8], side: usize, factor: f32, spare: &mut Vec<u8>) {
    spare.clear();
    spare.extend_from_slice(frame);
    let row = side * 3;
    for y in 1..side.saturating_sub(1) {
        let [above, here, below] = [y - 1, y, y + 1].map(|y| &spare[y * row..(y + 1) * row]);
        let out = &mut frame[y * row..(y + 1) * row];
        for i in 3..row - 3 {
            let three = |line: &[u8]| u32::from(line[i - 3]) + u32::from(line[i]) + u32::from(line[i + 3]);
            let sum = three(above) + three(here) + three(below) + 4 * u32::from(here[i]);
            out[i] = blend(((2 * sum + 13) / 26) as u8, here[i], factor);
        }
    }
}
