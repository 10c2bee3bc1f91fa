//! The moving window: which still, where, and how it moves; sampled bilinearly below a pixel.

use super::video::Image;
use rand_chacha::{ChaCha8Rng, rand_core::Rng};

/// The 12 motions of the camera, named for what the window does on the still.
pub const LABELS: [&str; 12] = [
    "pan_right",
    "pan_down_right",
    "pan_down",
    "pan_down_left",
    "pan_left",
    "pan_up_left",
    "pan_up",
    "pan_up_right",
    "zoom_in",
    "zoom_out",
    "rotate_left",
    "rotate_right",
];

/// A still frame and its halvings, so that a large window is averaged and not just thinned out.
pub struct Still {
    levels: Vec<Image>,
}

impl Still {
    /// Halves `image` while a window of `size` pixels may still need it.
    pub fn new(image: Image, size: u32) -> Self {
        let mut levels = vec![image];
        while let Some(last) = levels.last()
            && last.width.min(last.height) >= 4 * size
        {
            let half = halve(last);
            levels.push(half);
        }
        Self { levels }
    }
}

/// One clip's camera. Coordinates are pixels of the chosen level.
pub struct Camera<'a> {
    image: &'a Image,
    size: u32,
    /// Centre of the window and its movement a frame.
    centre: (f64, f64),
    velocity: (f64, f64),
    /// Pixels of the still per pixel of the video, and its factor a frame.
    scale: f64,
    zoom: f64,
    /// Angle of the window and its change a frame, radians.
    angle: f64,
    spin: f64,
    mirrored: bool,
    gain: f64,
    offset: f64,
}

impl<'a> Camera<'a> {
    /// Draws a camera whose whole path lies inside the still and over visible structure, so that
    /// the motion can be seen.
    pub fn draw(rng: &mut ChaCha8Rng, stills: &'a [Still], motion: usize, size: u32, frames: u32) -> Self {
        let mut best: Option<(f64, Self)> = None;
        for _ in 0..400 {
            let camera = Self::guess(rng, stills, motion, size, frames);
            if !camera.stays_inside(frames) {
                continue;
            }
            let structure = camera.structure(frames);
            if structure > ENOUGH {
                return camera;
            }
            if best.as_ref().is_none_or(|(most, _)| structure > *most) {
                best = Some((structure, camera));
            }
        }
        match best {
            Some((_, camera)) => camera,
            // No path fits a still this small: the edge is repeated outside of it.
            None => Self::guess(rng, stills, motion, size, frames),
        }
    }

    fn guess(rng: &mut ChaCha8Rng, stills: &'a [Still], motion: usize, size: u32, frames: u32) -> Self {
        let still = &stills[rng.next_u64() as usize % stills.len()];
        let image = &still.levels[rng.next_u64() as usize % still.levels.len()];
        let largest = image.width.min(image.height) as f64 / size as f64 * 0.8;
        let mut scale = uniform(rng, 0.6, 1.6).min(largest);
        let speed = uniform(rng, 1.2, 2.4) * size as f64 / 64.0;
        let tilt = uniform(rng, -0.3, 0.3);
        let (mut velocity, mut zoom, mut spin) = ((0.0, 0.0), 1.0, 0.0);
        let middle = (frames as f64 - 1.0) / 2.0;
        match motion {
            0..8 => {
                // The direction is that seen in the video, whose window is tilted on the still.
                let wavers = uniform(rng, -0.12, 0.12);
                let direction = motion as f64 * std::f64::consts::FRAC_PI_4 + wavers + tilt;
                velocity = (direction.cos() * speed * scale, direction.sin() * speed * scale);
            }
            8 | 9 => {
                let rate = uniform(rng, 0.025, 0.045);
                zoom = if motion == 8 { 1.0 - rate } else { 1.0 / (1.0 - rate) };
                // The middle of the clip has the drawn scale, so that neither end tells the label.
                scale /= zoom.powf(middle);
            }
            // y points downward: a growing angle turns the window clockwise.
            _ => spin = uniform(rng, 0.045, 0.08) * if motion == 10 { -1.0 } else { 1.0 },
        }
        Self {
            image,
            size,
            centre: (
                uniform(rng, 0.0, image.width as f64) - velocity.0 * middle,
                uniform(rng, 0.0, image.height as f64) - velocity.1 * middle,
            ),
            velocity,
            scale,
            zoom,
            angle: tilt - spin * middle,
            spin,
            mirrored: rng.next_u32().is_multiple_of(2),
            gain: uniform(rng, 0.7, 1.3),
            offset: uniform(rng, -20.0, 20.0),
        }
    }

    /// The RGB pixels of frame `t`.
    pub fn frame(&self, t: u32) -> Vec<u8> {
        let mut rgb = Vec::with_capacity((self.size * self.size * 3) as usize);
        for y in 0..self.size {
            for x in 0..self.size {
                let (sx, sy) = self.at(t as f64, x as f64, y as f64);
                let value = bilinear(self.image, sx, sy);
                rgb.extend(value.map(|v| (v * self.gain + self.offset).clamp(0.0, 255.0) as u8));
            }
        }
        rgb
    }

    /// Where on the still a pixel of frame `t` looks.
    fn at(&self, t: f64, x: f64, y: f64) -> (f64, f64) {
        let half = (self.size as f64 - 1.0) / 2.0;
        let scale = self.scale * self.zoom.powf(t);
        let (dx, dy) = ((x - half) * scale, (y - half) * scale);
        let (sin, cos) = (self.angle + self.spin * t).sin_cos();
        let sx = self.centre.0 + self.velocity.0 * t + dx * cos - dy * sin;
        let sy = self.centre.1 + self.velocity.1 * t + dx * sin + dy * cos;
        // Mirroring the still, not the window, leaves the motion as it is labelled.
        let sx = if self.mirrored { self.image.width as f64 - 1.0 - sx } else { sx };
        (sx, sy)
    }

    fn stays_inside(&self, frames: u32) -> bool {
        let last = (self.size - 1) as f64;
        let (right, bottom) = ((self.image.width - 1) as f64, (self.image.height - 1) as f64);
        // A turning window's corners describe arcs: look at every frame.
        (0..frames).all(|t| {
            [(0.0, 0.0), (last, 0.0), (0.0, last), (last, last)].into_iter().all(|(x, y)| {
                let (sx, sy) = self.at(t as f64, x, y);
                (0.0..=right).contains(&sx) && (0.0..=bottom).contains(&sy)
            })
        })
    }

    /// The smaller eigenvalue of the structure tensor, averaged over the first and the last frame:
    /// low where there is nothing to see, or only parallel edges that hide motion along them.
    fn structure(&self, frames: u32) -> f64 {
        let n = self.size as usize;
        let mut least = f64::INFINITY;
        for t in [0, frames / 2, frames - 1] {
            let grey: Vec<f64> = self.frame(t).chunks(3).map(|p| f64::from(p[1])).collect();
            let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
            for y in 0..n - 1 {
                for x in 0..n - 1 {
                    let dx = grey[y * n + x + 1] - grey[y * n + x];
                    let dy = grey[(y + 1) * n + x] - grey[y * n + x];
                    xx += dx * dx;
                    xy += dx * dy;
                    yy += dy * dy;
                }
            }
            let count = ((n - 1) * (n - 1)) as f64;
            let (mean, gap) = ((xx + yy) / 2.0, (((xx - yy) / 2.0).powi(2) + xy * xy).sqrt());
            least = least.min((mean - gap) / count);
        }
        least
    }
}

/// Squared grey levels a pixel that must change along every direction.
const ENOUGH: f64 = 25.0;

fn uniform(rng: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    low + (high - low) * unit
}

/// The colour between four pixels; outside of the image its edge goes on.
fn bilinear(image: &Image, x: f64, y: f64) -> [f64; 3] {
    let x = x.clamp(0.0, (image.width - 1) as f64);
    let y = y.clamp(0.0, (image.height - 1) as f64);
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(image.width as usize - 1), (y0 + 1).min(image.height as usize - 1));
    let (fx, fy) = (x - x0 as f64, y - y0 as f64);
    let at = |x: usize, y: usize, c: usize| f64::from(image.rgb[(y * image.width as usize + x) * 3 + c]);
    [0, 1, 2].map(|c| {
        let top = at(x0, y0, c) * (1.0 - fx) + at(x1, y0, c) * fx;
        let bottom = at(x0, y1, c) * (1.0 - fx) + at(x1, y1, c) * fx;
        top * (1.0 - fy) + bottom * fy
    })
}

/// The mean of each two by two pixels.
fn halve(image: &Image) -> Image {
    let (width, height) = (image.width / 2, image.height / 2);
    let mut rgb = Vec::with_capacity((width * height * 3) as usize);
    let at = |x: u32, y: u32, c: u32| u32::from(image.rgb[((y * image.width + x) * 3 + c) as usize]);
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                let (x, y) = (2 * x, 2 * y);
                let sum = at(x, y, c) + at(x + 1, y, c) + at(x, y + 1, c) + at(x + 1, y + 1, c);
                rgb.push((sum / 4) as u8);
            }
        }
    }
    Image { width, height, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    /// A field of smooth spots.
    fn still() -> Still {
        let (width, height) = (200, 160);
        let mut rgb = vec![];
        for y in 0..height {
            for x in 0..width {
                let v = (x as f64 * 0.4).sin() * (y as f64 * 0.3).cos() * 100.0 + 128.0;
                rgb.extend([v as u8; 3]);
            }
        }
        Still::new(Image { width, height, rgb }, 32)
    }

    #[test]
    fn every_motion_moves_as_it_is_named_and_stays_inside() {
        let stills = [still()];
        let centre = |c: &Camera, t: f64| c.at(t, 15.5, 15.5);
        for (motion, label) in LABELS.iter().enumerate() {
            for seed in 0..20 {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let mut c = Camera::draw(&mut rng, &stills, motion, 32, 8);
                assert!(c.stays_inside(8), "{label}");
                assert!(c.structure(8) > ENOUGH, "{label}");
                c.mirrored = false;
                let (a, b) = (centre(&c, 0.0), centre(&c, 7.0));
                // As seen in the video: along the window's own sides.
                let (sin, cos) = c.angle.sin_cos();
                let (sx, sy) = (b.0 - a.0, b.1 - a.1);
                let (dx, dy) = (sx * cos + sy * sin, sy * cos - sx * sin);
                // A diagonal's parts are 0.7 of its length, and the direction wavers by 7 degrees.
                let least = 0.5 * dx.hypot(dy) + 1e-9;
                let pan = label.starts_with("pan");
                assert_eq!(dx > least, pan && label.contains("right"), "{label} {dx} {dy}");
                assert_eq!(dx < -least, pan && label.contains("left"), "{label} {dx} {dy}");
                assert_eq!(dy > least, label.contains("down"), "{label} {dx} {dy}");
                assert_eq!(dy < -least, label.contains("up"), "{label} {dx} {dy}");
                assert_eq!(c.zoom < 1.0, *label == "zoom_in");
                assert_eq!(c.zoom > 1.0, *label == "zoom_out");
                assert_eq!(c.spin < 0.0, *label == "rotate_left");
                assert_eq!(c.spin > 0.0, *label == "rotate_right");
            }
        }
    }

    #[test]
    fn halving_averages() {
        let image = Image { width: 2, height: 2, rgb: vec![0, 0, 0, 10, 0, 0, 20, 0, 0, 30, 4, 8] };
        assert_eq!(halve(&image).rgb, [15, 1, 2]);
    }
}
