//! The ranks of a generation meet: its group, given up as soon as the generation is over.

use super::Job;
use crate::{
    Error, Result,
    device::Device,
    session::{Assignment, Session},
    store_client::StoreOverGrpc,
};
use collective::{Backend, Group, Store};
use std::{
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

/// How often a rank that waits for the others looks whether the generation is over.
const LOOK: Duration = Duration::from_millis(100);

/// Connects to the other ranks. Nothing can abort a group that is not whole yet, so it is made on a thread of its
/// own: where a peer dies on the way, that thread waits out its time alone. `meanwhile` is done beside it.
pub(super) fn meet<T>(
    job: &Job,
    session: &mut Session,
    at: &Assignment,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Group, T)> {
    let limit = job.config.cluster.collective_timeout.duration();
    let keys = Arc::new(StoreOverGrpc::new(session.channel(), job.runtime.handle().clone(), limit));
    let (device, host) = (job.options.device, job.host.clone());
    let (generation, rank, world) = (at.generation, at.rank, at.world);
    let make = move || {
        let backend = match device {
            Device::Cpu(_) => Backend::Gloo { host: &host },
            Device::Cuda(i) => Backend::Nccl { device: i as i32 },
        };
        let store = Store::new(keys, limit)?;
        Group::new(&store, &format!("g{generation}/"), rank, world, backend, limit)
    };
    session.progress().meets("meeting of the ranks");
    let (done, met) = channel();
    thread::Builder::new()
        .name("meet".into())
        .spawn(move || drop(done.send(make())))
        .map_err(|source| Error::Io { path: "a thread".into(), source })?;
    let made = meanwhile()?;
    let group = loop {
        match met.recv_timeout(LOOK) {
            Ok(group) => break group?,
            Err(RecvTimeoutError::Timeout) => session.check(generation)?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::JobFailed("the thread that made the group broke off".into()));
            }
        }
    };
    session.watch_over(generation, &group);
    Ok((group, made))
}
