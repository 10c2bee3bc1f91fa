//! Functions of the autograd graph that tch lacks: a sum over the ranks, and blocks that are computed
//! again in the backward pass.

use crate::{
    Error, Group, Result,
    ffi::shim,
    group::Handle,
    tensor::{at, owned, released, shared},
};
use std::sync::Arc;
use tch::Tensor;

/// Sums tensors over a group's ranks as part of the graph. It keeps the group's connections open; what
/// [`Group`] says of threads and order holds for it too.
#[derive(Clone)]
pub struct RankSum {
    group: Arc<Handle>,
    doing: String,
}

impl RankSum {
    /// Of this group.
    pub fn new(group: &Group) -> Self {
        Self { group: group.handle(), doing: group.doing("sum over the ranks") }
    }

    /// The sum of every rank's `x` (one shape on all), on every rank; its backward pass sums the gradients
    /// likewise. Every rank calls it, and runs backward through it, in the same order.
    pub fn sum(&self, x: &Tensor) -> Result<Tensor> {
        shim::sum_over_ranks(&self.group.0, at(x)).map(owned).map_err(|e| Error::of_shim(&*self.doing, e))
    }
}

impl std::fmt::Debug for RankSum {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "RankSum({})", self.doing)
    }
}

/// A function of one tensor that can be called again; the text of its error ends up in that of `backward`.
/// It may run on libtorch's own thread for a CUDA device, but only while the thread that made it waits in
/// `backward`.
pub type BlockFn = dyn Fn(&Tensor) -> std::result::Result<Tensor, String>;

/// `block(x)` without keeping what lies between: the backward pass calls `block` again, under the same
/// autocast and with the same random numbers (Chen et al. 2016; `torch.utils.checkpoint`, reentrant).
/// `x` requires grad. Works under a [`crate::Reducer`] where no parameter is used twice.
pub fn recompute(block: Arc<BlockFn>, x: &Tensor) -> Result<Tensor> {
    shim::recompute(Box::new(Block(block)), at(x))
        .map(owned)
        .map_err(|e| Error::of_shim("run a block that will be computed again", e))
}

/// What the C++ side keeps of a block.
pub struct Block(Arc<BlockFn>);

impl Block {
    /// A new `at::Tensor*`, owned by the caller.
    pub fn run(&self, x: &shim::Tensor) -> std::result::Result<usize, String> {
        let y = (self.0)(&shared(x))?;
        Ok(released(y))
    }
}
