//! PyTorch's own distributed engine (c10d) on `tch` tensors, and the little of libtorch that a
//! training loop needs and tch lacks.
//!
//! A [`Group`] of ranks meets through a [`Store`], which is any [`KeyValue`]; a [`Reducer`]
//! averages gradients over the group while `backward` runs, exactly as DistributedDataParallel
//! does. Gloo serves CPU tensors, NCCL (feature `cuda`, loaded at run time) CUDA tensors; the NCCL
//! half is compiled and linked by the tests' machine but has not been run on a GPU yet.
//!
//! A dead, hung or late peer is an [`Error::Peer`], never the end of the process: abort the group,
//! drop it and its reducer, and build new ones under a new prefix, in the same process.
//!
//! This crate holds the house's only `unsafe` code and its only C++.
#![allow(unsafe_code)]

mod autograd;
mod cuda;
mod dense;
mod error;
mod ffi;
mod foreach;
mod group;
mod memory;
mod optim;
mod reducer;
mod runtime;
mod store;
mod tensor;

pub use autograd::{BlockFn, RankSum, recompute};
pub use cuda::load_cuda;
pub use dense::{as_stored, with_bytes};
pub use error::{Error, Result};
pub use foreach::{foreach_copy, foreach_lerp, foreach_mul, foreach_norm};
pub use group::{Aborter, Backend, Group, ReduceOp, Work};
pub use memory::MemoryStore;
pub use optim::{AdamW, Sgd, fused_adamw, fused_sgd};
pub use reducer::{Buckets, Reducer, ReducerOptions, backward};
pub use runtime::{Autocast, channels_last_3d, channels_last_3d_, exit_now, init, keep_pages};
pub use store::{KeyValue, Store};
