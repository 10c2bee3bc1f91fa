//! How a forward pass is run: training or not, where batch norms take their statistics from, and what
//! is computed again in the backward pass.

use crate::Result;
use std::{
    fmt::Debug,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tch::Tensor;

/// Where batch norms take mean and variance from while training. In evaluation they always use the running ones.
#[derive(Clone, Debug, Default)]
pub enum NormMode {
    /// This rank's clips.
    #[default]
    Local,
    /// Groups of so many clips, each on its own; a smaller last group too. With one rank's batch in groups as
    /// large as the published per-device batch, the published statistics are kept whatever the batch.
    SubBatch(i64),
    /// The running statistics, which stay as they are.
    Frozen,
    /// The clips of all ranks.
    Sync(Arc<dyn Exchange>),
}

/// What synchronised batch norm needs of the group.
pub trait Exchange: Debug + Send + Sync {
    /// The differentiable sum of `x` over all ranks: its backward pass sums the gradients over all ranks.
    /// Every rank calls it equally often and in the same order, forwards and backwards.
    fn sum(&self, x: &Tensor) -> Result<Tensor>;
}

/// A block's forward pass, which can be run again.
pub type BlockFn = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// Activation checkpointing: what a block keeps for its backward pass is dropped, and computed again when needed.
pub trait Recompute: Debug + Send + Sync {
    /// `block(x)`, which the backward pass will call once more on the same `x`. For equal numbers it must find
    /// libtorch's random generator and autocast as the first call did.
    fn run(&self, block: Arc<BlockFn>, x: &Tensor) -> Result<Tensor>;
}

/// The settings of one forward pass.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    /// Batch statistics, dropout, drop-path.
    pub(crate) train: bool,
    pub(crate) norm: NormMode,
    /// Weight of the new values in the running statistics.
    pub(crate) momentum: f64,
    /// The clips are a stand-in: they must not count in any statistics.
    pub(crate) absent: bool,
    pub(crate) recompute: Option<Arc<dyn Recompute>>,
}

impl Default for Pass {
    fn default() -> Self {
        Self { train: false, norm: NormMode::Local, momentum: 0.1, absent: false, recompute: None }
    }
}

/// A residual or transformer block. The lock makes it shareable with a backward pass's thread; nobody waits for it.
#[derive(Debug)]
pub(crate) struct Block<B>(Arc<Mutex<B>>);

impl<B: Send + 'static> Block<B> {
    pub(crate) fn new(block: B) -> Self {
        Self(Arc::new(Mutex::new(block)))
    }

    pub(crate) fn get(&self) -> MutexGuard<'_, B> {
        lock(&self.0)
    }

    /// `forward` on `x`; while training through [`Recompute`] if there is one. Not with synchronised norms, whose
    /// exchanges are counted.
    pub(crate) fn run(
        &self,
        x: &Tensor,
        pass: &Pass,
        forward: impl Fn(&B, &Tensor, &Pass) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        match &pass.recompute {
            Some(recompute) if pass.train && !matches!(pass.norm, NormMode::Sync(_)) => {
                let (block, pass, ran) = (self.0.clone(), pass.clone(), AtomicBool::new(false));
                let block = move |x: &Tensor| {
                    // The second time, the clips have already counted in the running statistics.
                    let absent = ran.swap(true, Ordering::Relaxed) || pass.absent;
                    forward(&lock(&block), x, &Pass { absent, ..pass.clone() })
                };
                recompute.run(Arc::new(block), x)
            }
            _ => forward(&self.get(), x, pass),
        }
    }
}

/// A panic elsewhere leaves tensors as good as they were.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
