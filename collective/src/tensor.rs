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

/// Another handle on a tensor that the shim holds.
pub fn shared(t: &shim::Tensor) -> Tensor {
    let pointer = std::ptr::from_ref(t) as *mut torch_sys::C_tensor;
    // Safety: the reference is valid, and the clone is a new `at::Tensor` that tch owns.
    unsafe { Tensor::from_ptr(torch_sys::at_shallow_clone(pointer)) }
}

/// Gives an `at::Tensor*` to the shim, which deletes it.
pub fn released(t: Tensor) -> usize {
    let t = std::mem::ManuallyDrop::new(t);
    t.as_ptr() as usize
}
