//! Video networks on libtorch, with weights under the reference implementations' names.
//!
//! [`Model`] is a network with its tensors, built from a [`configs::Model`]: SlowFast as in pytorchvideo,
//! Video Swin as in torchvision. It does no I/O; [`parity`] compares it with a reference's numbers, and [`weights`]
//! fills it with those of other implementations.

mod error;
mod layers;
mod model;
mod named;
pub mod parity;
mod registry;
mod resnet;
mod slowfast;
mod swin;
pub mod weights;

pub use error::{Error, Result};
pub use model::{Model, Network};
pub use named::{Named, Role};
pub use registry::{PRESETS, presets};
