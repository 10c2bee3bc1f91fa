//! Video networks on libtorch, with weights under the reference implementations' names.
//!
//! [`Model`] is a network with its tensors, built from a [`configs::Model`]: SlowFast, Slow, I3D and C2D as in
//! pytorchvideo, Video Swin as in torchvision. It does no I/O; [`parity`] compares it with a reference's numbers.

mod depth;
mod error;
mod head;
mod layers;
mod model;
mod named;
mod non_local;
mod norm;
pub mod parity;
mod pass;
mod registry;
mod resnet;
mod resnet3d;
mod slowfast;
mod swin;

pub use depth::{Layer, layers};
pub use error::{Error, Result};
pub use model::Model;
pub use named::{Named, Role};
pub use pass::{Exchange, NormMode};
pub use registry::{PRESETS, presets};
