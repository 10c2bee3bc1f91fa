//! One call for many tensors, where a loop would launch a kernel for each: `torch._foreach_*`.
//!
//! The tensors of a list are of one device; nothing here is part of the graph.

use crate::{Error, Result, ffi::shim, tensor::pointers};
use tch::Tensor;

/// The Euclidean norm of all values of all tensors.
pub fn foreach_norm(tensors: &[Tensor]) -> Result<f64> {
    // Safety: here and below, the pointers live as long as the lists.
    unsafe { shim::foreach_norm(&pointers(tensors)) }.map_err(|e| Error::of_shim("measure the norm", e))
}

/// Multiplies every tensor in place.
pub fn foreach_mul(tensors: &[Tensor], factor: f64) -> Result<()> {
    unsafe { shim::foreach_mul(&pointers(tensors), factor) }.map_err(|e| Error::of_shim("scale tensors", e))
}

/// Moves each tensor in place by `weight` of the way to its end.
pub fn foreach_lerp(tensors: &[Tensor], ends: &[Tensor], weight: f64) -> Result<()> {
    unsafe { shim::foreach_lerp(&pointers(tensors), &pointers(ends), weight) }
        .map_err(|e| Error::of_shim("average tensors", e))
}

/// Copies each source into its tensor.
pub fn foreach_copy(tensors: &[Tensor], sources: &[Tensor]) -> Result<()> {
    unsafe { shim::foreach_copy(&pointers(tensors), &pointers(sources)) }
        .map_err(|e| Error::of_shim("copy tensors", e))
}
