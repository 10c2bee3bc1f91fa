//! Randomness that is a function of its key alone, and stays so: ChaCha8 under SHA-256 of the key,
//! with the few draws spelt out here rather than left to a library's version.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// The generator of a purpose and its numbers, e.g. ("lane order" + digest, [seed, epoch, lane]).
pub struct Keyed(ChaCha8Rng);

impl Keyed {
    /// Two different keys give unrelated generators: lengths are hashed too.
    pub fn new(purpose: &str, text: &str, numbers: &[u64]) -> Self {
        let mut hash = Sha256::new();
        for part in [purpose, text] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        for n in numbers {
            hash.update(n.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    /// Uniform in 0..n; 0 where n is 0. The bias is below n / 2^64.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The generator itself, for distributions that a library draws.
    pub fn generator(&mut self) -> &mut impl Rng {
        &mut self.0
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Two independent standard normals (Box and Muller 1958).
    pub fn normals(&mut self) -> [f64; 2] {
        // 1 - [0, 1) keeps the logarithm finite.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
        [radius * cos, radius * sin]
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Fisher and Yates' shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}
