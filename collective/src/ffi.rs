//! The bridge between Rust and the C++ shim in `cpp/`.
#![allow(clippy::too_many_arguments)] // of the kernels

use crate::{autograd::Block, store::Keys};

#[cxx::bridge(namespace = "shim")]
pub mod shim {
    /// Autocast's thread-local state before a guard changed it.
    struct AutocastState {
        cuda: bool,
        enabled: bool,
        dtype: i8,
    }

    extern "Rust" {
        type Keys;
        fn duplicate(self: &Keys) -> Box<Keys>;
        fn set(self: &Keys, key: &str, value: &[u8]) -> Result<()>;
        fn get(self: &Keys, key: &str, timeout_ms: i64) -> Result<Vec<u8>>;
        fn add(self: &Keys, key: &str, n: i64) -> Result<i64>;
        fn compare_set(self: &Keys, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>>;
        fn wait(self: &Keys, keys: Vec<String>, timeout_ms: i64) -> Result<()>;
        fn check(self: &Keys, keys: Vec<String>) -> Result<bool>;
        fn remove(self: &Keys, key: &str) -> Result<bool>;
        fn num_keys(self: &Keys) -> Result<i64>;

        type Block;
        fn run(self: &Block, x: &Tensor) -> Result<usize>;
    }

    unsafe extern "C++" {
        include!("shim.h");

        type Tensor;
        type Store;
        type Work;
        type Group;
        type Reducer;

        fn make_store(keys: Box<Keys>, timeout_ms: i64) -> Result<UniquePtr<Store>>;
        fn set(self: &Store, key: &str, value: &[u8]) -> Result<()>;
        fn get(self: &Store, key: &str) -> Result<Vec<u8>>;
        fn add(self: &Store, key: &str, n: i64) -> Result<i64>;
        fn compare_set(self: &Store, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>>;
        fn wait_for(self: &Store, key: &str, timeout_ms: i64) -> Result<()>;
        fn check(self: &Store, key: &str) -> Result<bool>;
        fn remove(self: &Store, key: &str) -> Result<bool>;
        fn num_keys(self: &Store) -> Result<i64>;

        fn wait(self: &Work, timeout_ms: i64) -> Result<()>;
        fn done(self: &Work) -> Result<bool>;

        fn gloo_group(
            store: &Store,
            prefix: &str,
            rank: i32,
            size: i32,
            host: &str,
            timeout_ms: i64,
        ) -> Result<UniquePtr<Group>>;
        fn nccl_group(
            store: &Store,
            prefix: &str,
            rank: i32,
            size: i32,
            device: i32,
            timeout_ms: i64,
        ) -> Result<UniquePtr<Group>>;
        fn all_reduce(self: &Group, t: &Tensor, op: u8) -> Result<UniquePtr<Work>>;
        fn broadcast(self: &Group, t: &Tensor, root: i32) -> Result<UniquePtr<Work>>;
        fn barrier(self: &Group) -> Result<UniquePtr<Work>>;
        unsafe fn broadcast_all(self: &Group, tensors: &[usize], root: i32) -> Result<()>;
        fn abort(self: &Group) -> Result<()>;
        fn healthy(self: &Group) -> Result<bool>;

        unsafe fn make_reducer(
            params: &[usize],
            group: &Group,
            first_bucket_bytes: i64,
            bucket_bytes: i64,
            find_unused: bool,
            grad_as_view: bool,
            layout: &[u64],
        ) -> Result<UniquePtr<Reducer>>;
        fn prepare_forward(self: &Reducer) -> Result<bool>;
        unsafe fn prepare_backward(self: &Reducer, outputs: &[usize]) -> Result<()>;
        fn zero_grad(self: &Reducer) -> Result<()>;
        fn exchange_wait(self: &Reducer) -> Result<f64>;
        fn lay_out(self: &Reducer) -> Result<Vec<u64>>;

        fn init_logging() -> Result<()>;
        fn load_plugin(path: &str) -> Result<()>;
        fn keep_pages() -> Result<bool>;
        fn sum_over_ranks(group: &Group, x: &Tensor) -> Result<usize>;
        fn recompute(block: Box<Block>, x: &Tensor) -> Result<usize>;

        fn autocast_enter(cuda: bool, half: bool) -> Result<AutocastState>;
        fn autocast_leave(before: &AutocastState) -> Result<()>;
        fn channels_last_3d(t: &Tensor) -> Result<usize>;
        fn channels_last_3d_in_place(t: &Tensor) -> Result<()>;
        unsafe fn fused_adamw(
            params: &[usize],
            grads: &[usize],
            exp_avgs: &[usize],
            exp_avg_sqs: &[usize],
            step: f64,
            lr: f64,
            beta1: f64,
            beta2: f64,
            weight_decay: f64,
            eps: f64,
        ) -> Result<()>;
        unsafe fn fused_sgd(
            params: &[usize],
            grads: &[usize],
            momenta: &[usize],
            lr: f64,
            momentum: f64,
            weight_decay: f64,
            nesterov: bool,
        ) -> Result<()>;
        unsafe fn foreach_norm(tensors: &[usize]) -> Result<f64>;
        unsafe fn foreach_mul(tensors: &[usize], factor: f64) -> Result<()>;
        unsafe fn foreach_lerp(tensors: &[usize], ends: &[usize], weight: f64) -> Result<()>;
        unsafe fn foreach_copy(tensors: &[usize], sources: &[usize]) -> Result<()>;
    }
}
