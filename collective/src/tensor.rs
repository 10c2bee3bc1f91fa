//! tch tensors as the shim takes them.

use crate::ffi::shim;
use tch::Tensor;

/// A `tch::Tensor` owns an `at::Tensor*`; the reference lives as long as `t`.
pub fn at(t: &Tensor) -> &shim::Tensor {
    // Safety: the pointer is never null while `t` lives, and `shim::Tensor` is opaque.
    unsafe { &*(t.as_ptr() as *const shim::Tensor) }
}

/// The same as integers: valid while `ts` lives.
pub fn pointers(ts: &[Tensor]) -> Vec<usize> {
    ts.iter().map(|t| t.as_ptr() as usize).collect()
}

/// Takes over an `at::Tensor*` that the shim has allocated.
pub fn owned(pointer: usize) -> Tensor {
    // Safety: the shim hands out each pointer once, made by `new at::Tensor`, as tch's own calls do.
    unsafe { Tensor::from_ptr(pointer as *mut torch_sys::C_tensor) }
}
