//! Affine warps of a frame, bilinear, as Pillow's `Image.transform(AFFINE, BILINEAR, fillcolor=128)`.

/// What lies outside the frame: timm's `img_mean`.
const FILL: [u8; 3] = [128; 3];

/// The output pixel (x, y) shows the input at (a x + b y + c, d x + e y + f), measured in pixels
/// from the frame's upper left corner; (x, y) is a pixel's middle.
pub(super) struct Affine(pub(super) [f64; 6]);

impl Affine {
    /// Counter-clockwise about the middle, as `Image.rotate`.
    pub(super) fn rotation(degrees: f64, side: usize) -> Self {
        let (sin, cos) = (-degrees.to_radians()).sin_cos();
        let middle = side as f64 / 2.0;
        Self([
            cos,
            sin,
            middle - middle * (cos + sin),
            -sin,
            cos,
            middle - middle * (cos - sin),
        ])
    }
}

/// Warps a frame (side, side, 3) in place.
pub(super) fn warp(frame: &mut [u8], side: usize, map: &Affine, spare: &mut Vec<u8>) {
    spare.clear();
    spare.extend_from_slice(frame);
    let source = spare.as_chunks::<3>().0;
    let [a, b, c, d, e, f] = map.0;
    let inside = 0.0..side as f64;
    for (y, line) in frame.as_chunks_mut::<3>().0.chunks_exact_mut(side).enumerate() {
        let yin = y as f64 + 0.5;
        for (x, pixel) in line.iter_mut().enumerate() {
            let xin = x as f64 + 0.5;
            let (u, v) = (a * xin + b * yin + c, d * xin + e * yin + f);
            *pixel = match inside.contains(&u) && inside.contains(&v) {
                true => bilinear(source, side, u - 0.5, v - 0.5),
                false => FILL,
            };
        }
    }
}

/// The colour between the four pixels about (u, v); beyond the border its pixels go on.
fn bilinear(source: &[[u8; 3]], side: usize, u: f64, v: f64) -> [u8; 3] {
    let (x, y) = (u.floor(), v.floor());
    let (dx, dy) = (u - x, v - y);
    // A cast saturates at 0.
    let place = |i: f64| (i as usize).min(side - 1);
    let (x0, x1) = (place(x), place(x + 1.0));
    let (above, below) = (place(y) * side, place(y + 1.0) * side);
    let corners = [above + x0, above + x1, below + x0, below + x1].map(|i| source[i]);
    std::array::from_fn(|c| {
        let [p, q, r, s] = corners.map(|pixel| f64::from(pixel[c]));
        let (top, bottom) = (p + (q - p) * dx, r + (s - r) * dx);
        (top + (bottom - top) * dy) as u8
    })
}
