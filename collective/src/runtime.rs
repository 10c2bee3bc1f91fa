//! Switches of libtorch and libc that tch lacks: logging, malloc, autocast, memory formats.

use crate::{
    Error, Result,
    ffi::shim,
    tensor::{at, owned},
};
use std::{marker::PhantomData, sync::OnceLock};
use tch::{Device, Tensor};

/// Honours TORCH_CPP_LOG_LEVEL and TORCH_DISTRIBUTED_DEBUG, as Python's `import torch` does. Call it
/// once at the start; later calls do nothing.
pub fn init() -> Result<()> {
    static ONCE: OnceLock<Result<()>> = OnceLock::new();
    ONCE.get_or_init(|| shim::init_logging().map_err(|e| Error::of_shim("set up libtorch's log", e))).clone()
}

/// Tells glibc's malloc to keep freed pages and to map none of its own: a training step frees what
/// the next one takes, and fetching and zeroing the pages anew costs up to half of a small step.
/// Memory stays at its peak from then on. It works for the program's main thread, so run the
/// training loop there. False where libc has no such switch.
pub fn keep_pages() -> bool {
    shim::keep_pages().unwrap_or(false)
}

/// Ends the process with `status`, now: no destructor runs, in whatever libtorch's threads are.
pub fn exit_now(status: i32) -> ! {
    unsafe extern "C" {
        safe fn _exit(status: i32) -> !;
    }
    _exit(status)
}

/// While this lives, matrix products and convolutions of this thread run in 16 bits and the rest
/// stays as it is. Drop it before `backward` (which remembers the types of its forward pass), on the
/// thread that made it.
#[must_use = "autocast ends when the guard is dropped"]
pub struct Autocast {
    before: shim::AutocastState,
    _thread_local: PhantomData<*const ()>,
}

impl Autocast {
    /// bf16 on `device`'s kind.
    pub fn bf16(device: Device) -> Result<Self> {
        Self::enter(device, false)
    }

    /// fp16 on `device`'s kind; gradients need a scaled loss.
    pub fn fp16(device: Device) -> Result<Self> {
        Self::enter(device, true)
    }

    fn enter(device: Device, half: bool) -> Result<Self> {
        let cuda = match device {
            Device::Cpu => false,
            Device::Cuda(_) => true,
            other => {
                return Err(Error::other("enable autocast", format!("{other:?} is neither CPU nor CUDA")));
            }
        };
        let before = shim::autocast_enter(cuda, half).map_err(|e| Error::of_shim("enable autocast", e))?;
        Ok(Self { before, _thread_local: PhantomData })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // Only thread-local switches are set back: nothing in it can fail.
        let _ = shim::autocast_leave(&self.before);
    }
}

/// The tensor (N,C,D,H,W) with its channels innermost in memory, the layout in which convolutions
/// are fastest; the same tensor if it lies so already. Not in place, and part of the graph.
pub fn channels_last_3d(t: &Tensor) -> Result<Tensor> {
    shim::channels_last_3d(at(t)).map(owned).map_err(|e| Error::of_shim("lay a tensor out channels last", e))
}

/// As [`channels_last_3d`] for a parameter, which stays the same leaf (`p.data = ...` in Python);
/// its gradient goes along. Before the optimizer's state and the reducer are made.
pub fn channels_last_3d_(t: &Tensor) -> Result<()> {
    shim::channels_last_3d_in_place(at(t)).map_err(|e| Error::of_shim("lay a parameter out channels last", e))
}
