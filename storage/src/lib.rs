//! Opens `s3://bucket/prefix`, `file:///path` and plain paths alike, and words their errors for people.
//!
//! A [`Location`] is a prefix in a store; its methods take keys relative to it. [`Reads`] are the ranged
//! reads of training, with deadlines, retries and second copies of slow requests.

mod error;
mod location;
mod reads;
mod requests;
mod unfinished;
mod upload;

pub use error::{Error, Result};
pub use location::{Listed, Location, PutOutcome};
pub use reads::Reads;
pub use requests::{RequestPolicy, RequestStats};
pub use upload::Bandwidth;

use sha2::{Digest, Sha256};

/// SHA-256 of `bytes`, lower-case hex: the digest used for every object in manifests.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex of a digest.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
