//! Clip datasets: how they are laid out, written, planned and streamed. No libtorch, no gRPC.
//!
//! Read in the order in which data flows:
//!
//! 1. [`format`]: what a dataset is made of: manifest, index, runs of frames;
//! 2. [`plan`]: which clips make up each global batch, purely; [`trainset`]: a job's own;
//! 3. [`sampling`] and [`augment`]: which frames, crop, flip and changes of its pixels a sample gets, purely;
//! 4. [`reader`]: the needed runs by ranged GET or from the [`cache`], verified;
//! 5. [`decode`]: runs to augmented pixels in the batch buffer;
//! 6. [`stream`]: all of it, prefetched, in order, under a byte budget; [`bench`] measures it.
//!
//! [`simulate`] runs 2, 3 and the cache's core without the bytes.

pub mod augment;
pub mod bench;
pub mod cache;
pub mod decode;
pub mod error;
pub mod format;
#[cfg(feature = "ingest")]
pub mod ingest;
pub mod inspect;
pub mod job;
mod jpeg;
pub mod ledger;
pub mod plan;
pub mod publish;
pub mod random;
pub mod reader;
pub mod sampling;
pub mod simulate;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod tools;
pub mod trainset;
pub mod verify;
pub mod writer;

pub use error::{Error, Result};
