//! A group of ranks and the collectives between them.

use crate::{
    Error, Result, Store, cuda,
    ffi::shim,
    store::millis,
    tensor::{at, pointers},
};
use cxx::UniquePtr;
use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{Arc, Weak},
    time::Duration,
};
use tch::Tensor;

/// Who carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend<'a> {
    /// CPU tensors over TCP. `host` is the name or address of the interface to listen on, which the
    /// peers must reach; empty: whatever this machine's name resolves to.
    Gloo { host: &'a str },
    /// CUDA tensors; needs feature `cuda` and an NVIDIA GPU.
    Nccl { device: i32 },
}

/// How values of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReduceOp {
    Sum = 0,
    Min = 3,
    Max = 4,
}

/// A `c10d::ProcessGroup` with one backend. Its collectives are issued from one thread, in the same
/// order on every rank; [`Group::aborter`] is for the other threads.
///
/// After an error call [`Group::abort`] before dropping the group (and its reducer): dropping waits
/// for collectives that are still in flight.
pub struct Group {
    inner: Arc<Handle>,
    name: String,
    rank: usize,
    world: usize,
    /// Not `Sync`: c10d numbers collectives without a lock.
    _one_thread: PhantomData<Cell<()>>,
}

pub(crate) struct Handle(pub(crate) UniquePtr<shim::Group>);
// Safety: c10d's groups may be used from any thread, one at a time (Group is not Sync), except for
// `abort`, which may run beside the others: Gloo's takes each pair's lock, NCCL's its own.
unsafe impl Send for Handle {}
unsafe impl Sync for Handle {}

impl Group {
    /// Meets the other `world - 1` ranks under `prefix`, which no earlier group may have used, and
    /// connects to them. Every wait in it, and each collective later, lasts at most `timeout`.
    ///
    /// Errors: [`Error::Peer`] if a rank does not come, [`Error::Store`], [`Error::Cuda`].
    pub fn new(
        store: &Store,
        prefix: &str,
        rank: usize,
        world: usize,
        backend: Backend,
        timeout: Duration,
    ) -> Result<Self> {
        let doing = || format!("join group {prefix} as rank {rank} of {world}");
        if world == 0 || rank >= world || world > i32::MAX as usize {
            return Err(Error::other(doing(), "ranks count from 0 to below the size of the group"));
        }
        let (r, n, t) = (rank as i32, world as i32, millis(timeout));
        let made = match backend {
            Backend::Gloo { host } => shim::gloo_group(&store.inner, prefix, r, n, host, t),
            Backend::Nccl { device } => {
                cuda::load_cuda()?;
                shim::nccl_group(&store.inner, prefix, r, n, device, t)
            }
        };
        let inner = Arc::new(Handle(made.map_err(|e| Error::of_shim(doing(), e))?));
        Ok(Self { inner, name: prefix.into(), rank, world, _one_thread: PhantomData })
    }

    /// This process's place in the group.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks the group has.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Reduces `t`, of the same shape and type on every rank, in place.
    pub fn all_reduce(&self, t: &Tensor, op: ReduceOp) -> Result<Work> {
        self.work("all-reduce", || self.inner.0.all_reduce(at(t), op as u8))
    }

    /// Every rank's `t`, of the same shape and type, takes on `root`'s values.
    pub fn broadcast(&self, t: &Tensor, root: usize) -> Result<Work> {
        self.work("broadcast", || self.inner.0.broadcast(at(t), root as i32))
    }

    /// Returns when every rank has come here.
    pub fn barrier(&self) -> Result<()> {
        self.work("meet at a barrier", || self.inner.0.barrier())?.wait()
    }

    /// As [`Group::broadcast`] for many tensors of any types, in the same order on every rank,
    /// packed into few messages. Returns when it is done.
    pub fn broadcast_all(&self, ts: &[Tensor], root: usize) -> Result<()> {
        // Safety: the pointers live as long as `ts`.
        unsafe { self.inner.0.broadcast_all(&pointers(ts), root as i32) }
            .map_err(|e| Error::of_shim(self.doing("broadcast"), e))
    }

    /// Errs if the group has failed although no call did: NCCL's collectives fail on the device, so
    /// ask before using their results. Gloo's come out of `wait` and `backward`.
    pub fn check(&self) -> Result<()> {
        match self.inner.0.healthy() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Peer {
                doing: self.doing("go on"),
                why: "an earlier collective failed or timed out on the device".into(),
            }),
            Err(e) => Err(Error::of_shim(self.doing("go on"), e)),
        }
    }

    /// Ends the group: what is in flight fails now instead of at its time-out, here and on the peers.
    pub fn abort(&self) -> Result<()> {
        self.inner.0.abort().map_err(|e| Error::of_shim(self.doing("abort"), e))
    }

    /// A handle by which another thread can end the group while this one waits for a peer.
    pub fn aborter(&self) -> Aborter {
        Aborter(Arc::downgrade(&self.inner))
    }

    pub(crate) fn handle(&self) -> Arc<Handle> {
        self.inner.clone()
    }

    pub(crate) fn shim(&self) -> &shim::Group {
        &self.inner.0
    }

    pub(crate) fn doing(&self, what: &str) -> String {
        format!("{what} in group {} as rank {} of {}", self.name, self.rank, self.world)
    }

    fn work(
        &self,
        what: &str,
        f: impl FnOnce() -> Result<UniquePtr<shim::Work>, cxx::Exception>,
    ) -> Result<Work> {
        let doing = self.doing(what);
        match f() {
            Ok(inner) => Ok(Work { inner, doing }),
            Err(e) => Err(Error::of_shim(doing, e)),
        }
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Group({} {}/{})", self.name, self.rank, self.world)
    }
}

/// Ends a [`Group`] from any thread; does nothing once the group is dropped.
#[derive(Clone)]
pub struct Aborter(Weak<Handle>);

impl Aborter {
    /// See [`Group::abort`].
    pub fn abort(&self) -> Result<()> {
        match self.0.upgrade() {
            Some(handle) => handle.0.abort().map_err(|e| Error::of_shim("abort a group", e)),
            None => Ok(()),
        }
    }
}

/// A collective in flight; the tensors it works on are kept alive by it.
#[must_use = "a collective is done, or has failed, only after wait()"]
pub struct Work {
    inner: UniquePtr<shim::Work>,
    doing: String,
}
// Safety: c10d::Work locks its state.
unsafe impl Send for Work {}

impl Work {
    /// Waits for at most the group's time-out. With NCCL, the device's stream waits instead.
    pub fn wait(&self) -> Result<()> {
        self.inner.wait(0).map_err(|e| Error::of_shim(&*self.doing, e))
    }

    /// Whether it has ended, well or badly.
    pub fn is_done(&self) -> Result<bool> {
        self.inner.done().map_err(|e| Error::of_shim(&*self.doing, e))
    }
}
