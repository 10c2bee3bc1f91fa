//! Checkpoints: who writes which tensors, snapshots, uploads, and verified loading.
//!
//! ```text
//! checkpoints/step-000012000/g000003/model-1-of-2.safetensors      a rank's weights (rank 0: and buffers)
//! checkpoints/step-000012000/g000003/optimizer-1-of-2.safetensors  a rank's optimizer state
//! checkpoints/step-000012000/manifest.json                         put last, and only once
//! ```
//!
//! A step without its manifest was never finished and does not count. The files are plain
//! safetensors under the reference implementations' names.

pub mod layout;
pub mod load;
pub mod local;
pub mod save;
pub mod shared;

#[cfg(test)]
mod tests;

pub use layout::{FileEntry, Header, Manifest, Place};
pub use load::Loaded;
pub use local::Local;
pub use save::Snapshot;
