//! Randomness that is a function of its key alone, and stays so: ChaCha8 under SHA-256 of the key,
//! with the few draws spelt out here rather than left to a library's version.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// The generator of a purpose and its numbers, e.g. ("lane order" + digest, [seed, epoch, lane]).
pub(crate) struct Keyed(ChaCha8Rng);

impl Keyed {
    /// Two different keys give unrelated generators: lengths are hashed too.
    pub(crate) fn new(purpose: &str, text: &str, numbers: &[u64]) -> Self {
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
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Fisher and Yates' shuffle.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}
