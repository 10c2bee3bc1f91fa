//! Gradients averaged over a group while `backward` runs: DistributedDataParallel's engine.

use crate::{Error, Group, Result, ffi::shim, tensor::pointers};
use cxx::UniquePtr;
use std::time::Duration;
use tch::Tensor;

/// As the arguments of DistributedDataParallel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReducerOptions {
    /// The first bucket is small, so that the exchange starts early.
    pub first_bucket_bytes: usize,
    pub bucket_bytes: usize,
    /// Look for parameters that take no part in a forward pass. Costs a walk over the graph.
    pub find_unused: bool,
    /// Gradients are views of the buckets: saves one copy of all gradients.
    pub gradient_as_bucket_view: bool,
}

impl Default for ReducerOptions {
    fn default() -> Self {
        Self {
            first_bucket_bytes: 1 << 20,
            bucket_bytes: 25 << 20,
            find_unused: false,
            gradient_as_bucket_view: true,
        }
    }
}

/// Which gradients are exchanged together, and in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets(Vec<u64>);

impl Buckets {
    /// One number for each parameter.
    pub fn to_numbers(&self) -> Vec<i64> {
        self.0.iter().map(|&n| n as i64).collect()
    }

    /// What [`Buckets::to_numbers`] gave; [`Reducer::laid_out`] refuses anything else.
    pub fn of_numbers(numbers: &[i64]) -> Self {
        Self(numbers.iter().map(|&n| n as u64).collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.last().map_or(0, |last| (last >> 32) as usize + 1)
    }
}

/// Averages gradients over the group. Every rank runs forward and backward the same number of
/// times; after [`backward`] each parameter's gradient is the mean over the ranks, the same bits on
/// all of them.
pub struct Reducer {
    inner: UniquePtr<shim::Reducer>,
    find_unused: bool,
    doing: String,
}
// Safety: a reducer may move between threads; its hooks lock.
unsafe impl Send for Reducer {}

impl Reducer {
    /// Checks that all ranks hold the same shapes in the same order, and hooks the parameters' gradients;
    /// gradients that are there are dropped. The parameters are leaves that require grad, on one device, of the
    /// same values on all ranks. Change no parameter's memory format afterwards.
    pub fn new(params: &[Tensor], group: &Group, o: ReducerOptions) -> Result<Self> {
        Self::make(params, group, o, &[])
    }

    /// As [`Reducer::new`], with the buckets that another reducer of such parameters has found: their additions are
    /// the same from the first pass on. The same buckets on all ranks.
    pub fn laid_out(params: &[Tensor], group: &Group, o: ReducerOptions, buckets: &Buckets) -> Result<Self> {
        Self::make(params, group, o, &buckets.0)
    }

    fn make(params: &[Tensor], group: &Group, o: ReducerOptions, layout: &[u64]) -> Result<Self> {
        let doing = group.doing("exchange gradients");
        // Safety: the pointers live as long as `params`; the shim keeps tensors, not pointers.
        let inner = unsafe {
            shim::make_reducer(
                &pointers(params),
                group.shim(),
                o.first_bucket_bytes as i64,
                o.bucket_bytes as i64,
                o.find_unused,
                o.gradient_as_bucket_view,
                layout,
            )
        };
        let inner = inner.map_err(|e| Error::of_shim(&*doing, e))?;
        Ok(Self { inner, find_unused: o.find_unused, doing })
    }

    /// Runs one forward pass, whose output a [`backward`] will follow.
    pub fn forward(&self, f: impl FnOnce() -> Tensor) -> Result<Tensor> {
        self.try_forward(|| Ok(f()))
    }

    /// As [`Reducer::forward`], for a network that can fail.
    pub fn try_forward<E: From<Error>>(&self, f: impl FnOnce() -> Result<Tensor, E>) -> Result<Tensor, E> {
        self.inner.prepare_forward().map_err(|e| self.error(e))?;
        let out = f()?;
        let outputs = if self.find_unused { pointers(std::slice::from_ref(&out)) } else { vec![] };
        // Safety: `out` lives until after the call.
        unsafe { self.inner.prepare_backward(&outputs) }.map_err(|e| self.error(e))?;
        Ok(out)
    }

    /// Drops every gradient (Python's `zero_grad(set_to_none=True)`). tch's own `zero_grad` calls
    /// `detach_` on the gradient, which libtorch refuses for views of the buckets.
    pub fn zero_grad(&self) -> Result<()> {
        self.inner.zero_grad().map_err(|e| self.error(e))
    }

    /// How long the last backward pass waited for the exchange after its own work was done: for slower ranks, and
    /// for the wire. Zero before the second pass.
    pub fn exchange_wait(&self) -> Result<Duration> {
        let seconds = self.inner.exchange_wait().map_err(|e| self.error(e))?;
        Ok(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }

    /// After the first pass: lays the buckets out in the order in which its gradients came on rank 0, if they are not
    /// yet. Every rank takes part.
    pub fn lay_out(&self) -> Result<Buckets> {
        self.inner.lay_out().map(Buckets).map_err(|e| self.error(e))
    }

    fn error(&self, e: cxx::Exception) -> Error {
        Error::of_shim(&*self.doing, e)
    }
}

/// `loss.backward()`, told apart by what to do next: a peer that dies during it is an
/// [`Error::Peer`]. The weights are untouched then, and the gradients are worth nothing.
pub fn backward(loss: &Tensor) -> Result<()> {
    loss.f_backward().map_err(|e| Error::of_torch("run the backward pass", e))
}
