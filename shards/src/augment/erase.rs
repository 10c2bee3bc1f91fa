//! Random erasing: a box of every frame filled with noise (Zhong et al. 2020; PySlowFast's
//! `datasets/random_erasing.py`, mode "pixel", `cube`).

use crate::Result;
use crate::random::Keyed;
use crate::sampling::usage;

/// How boxes are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Erasing {
    /// Probability that a clip is erased at all.
    pub prob: f64,
    /// Part of the frame that the box covers, least and most.
    pub area: [f64; 2],
    /// The box's height over its width, least and most.
    pub aspect: [f64; 2],
    /// The network's input is (x / 255 - mean) / std: there the noise is standard normal.
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

/// One drawn box, pixels, and where its noise comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Erase {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
    pub mean: [f64; 3],
    pub std: [f64; 3],
    pub seed: u64,
}

impl Erasing {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A number out of its range.
    pub fn check(&self) -> Result<()> {
        let Self { prob, area: [a, b], aspect: [c, d], mean, std } = *self;
        let ok = (0.0..=1.0).contains(&prob)
            && (0.0 < a && a <= b && b <= 1.0)
            && (0.0 < c && c <= d && d.is_finite())
            && mean.iter().chain(&std).all(|x| x.is_finite());
        if ok { Ok(()) } else { usage(format!("random erasing is {self:?}, which are no probability and ranges")) }
    }

    /// A box inside a frame of `side` pixels: a hundred tries, then none.
    pub(super) fn draw(&self, side: u32, random: &mut Keyed) -> Option<Erase> {
        if random.unit() >= self.prob {
            return None;
        }
        for _ in 0..100 {
            let area = random.between(self.area[0], self.area[1]) * f64::from(side).powi(2);
            let aspect = random.between(self.aspect[0].ln(), self.aspect[1].ln()).exp();
            let (height, width) = ((area * aspect).sqrt().round(), (area / aspect).sqrt().round());
            if height < f64::from(side) && width < f64::from(side) {
                let (height, width) = (height as u32, width as u32);
                let top = random.below(u64::from(side - height) + 1) as u32;
                let left = random.below(u64::from(side - width) + 1) as u32;
                let seed = random.bits();
                return Some(Erase { left, top, width, height, mean: self.mean, std: self.std, seed });
            }
        }
        None
    }
}

impl Erase {
    /// Fills the box in every frame of a clip (T, side, side, 3). The reference draws N(0, 1) after
    /// normalisation; frames are bytes here, so the noise is brought back to them: what lies
    /// beyond black and white becomes black and white.
    pub fn fill(&self, clip: &mut [u8], side: u32) {
        let mut random = Keyed::new("noise", "", &[self.seed]);
        let (row, frame) = (side as usize * 3, (side as usize).pow(2) * 3);
        let bytes = self.left as usize * 3..(self.left + self.width) as usize * 3;
        let mean: [f64; 3] = self.mean.map(|m| m * 255.0 + 0.5);
        let std: [f64; 3] = self.std.map(|s| s * 255.0);
        // Normals come in pairs.
        let mut next: Option<f64> = None;
        for frame in clip.chunks_exact_mut(frame) {
            for line in frame.chunks_exact_mut(row).skip(self.top as usize).take(self.height as usize) {
                for (i, x) in line[bytes.clone()].iter_mut().enumerate() {
                    let normal = next.take().unwrap_or_else(|| {
                        let [first, second] = random.normals();
                        next = Some(second);
                        first
                    });
                    *x = (normal * std[i % 3] + mean[i % 3]) as u8;
                }
            }
        }
    }
}
