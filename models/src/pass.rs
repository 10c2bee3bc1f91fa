//! How a forward pass is run: training or not, and where batch norms take their statistics from.

use crate::Result;
use std::{fmt::Debug, sync::Arc};
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
}

impl Default for Pass {
    fn default() -> Self {
        Self { train: false, norm: NormMode::Local, momentum: 0.1, absent: false }
    }
}
