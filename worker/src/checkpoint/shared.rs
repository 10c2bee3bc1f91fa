//! Loading by all ranks of a group together: each reads and verifies its share of the files, so that every byte
//! leaves the store once for the whole job, and the group exchanges the rest.
//!
//! Rank 0 chooses the newest whole checkpoint. Where any rank finds its share damaged, all pass over to the one
//! before. A rank holds the checkpoint's tensors, its own share and one file at most.
//!
//! Where nodes keep copies, a file is read by a rank that has one. A copy that is damaged costs its way to the store
//! and a warning.

use super::{
    layout::{self, FileEntry, Manifest},
    load::{self, Candidate, Loaded, Parts, Read},
    local::Local,
};
use crate::{Error, Result};
use bytes::Bytes;
use collective::{Group, ReduceOp};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, future::Future, time::Duration};
use storage::Location;
use tch::{Device, Kind, Tensor};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::AbortOnDropHandle;

/// While some rank still reads, all meet this often: a slow store is no lost peer.
const MEET: Duration = Duration::from_secs(1);
/// Bytes of one broadcast.
const PIECE: usize = 16 << 20;

/// What the ranks load with.
pub struct Shared<'a> {
    pub run: &'a Location,
    /// This node's copies; every rank has some or none has.
    pub local: Option<&'a Local>,
    /// The group's.
    pub generation: u64,
    pub group: &'a Group,
    /// Where the group's tensors live.
    pub device: Device,
    pub runtime: &'a Handle,
    /// Called about once a second while the ranks read or exchange.
    pub tick: &'a dyn Fn(),
}

/// What rank 0 has found.
#[derive(Serialize, Deserialize)]
enum Choice {
    Read { step: u64, manifest: Box<Manifest>, committed: bool },
    Nothing,
    Trouble(Trouble),
}

/// Why a rank cannot go on with a checkpoint.
#[derive(Clone, Serialize, Deserialize)]
enum Trouble {
    /// The checkpoint's fault: the one before may do.
    Damaged { url: String, why: String },
    /// Anything else, in words.
    Failed(String),
}

/// A rank's files of a checkpoint, by their places in the manifest.
#[derive(Default)]
struct Share {
    files: BTreeMap<usize, Bytes>,
    read: Read,
    /// Copies that could not be used.
    unusable: Vec<String>,
}

impl Shared<'_> {
    /// The newest whole checkpoint of the run, verified, the same on every rank; `None` where none was ever
    /// finished. Call it on every rank. Each checkpoint that is passed over goes to rank 0's `log` with the reason, each
    /// copy to that of the rank that could not use it.
    ///
    /// One that the generation before this one has taken but not committed is used where all of it lies in rank 0's
    /// folder: nobody has gone on from an earlier state since, so that it is the job's own newest.
    ///
    /// # Errors
    /// As a single reader's: the store fails, a newer version of this program wrote the newest one, all that were
    /// finished are damaged. Where that is another rank's error, a lost peer's.
    pub fn newest(&self, mut log: impl FnMut(String)) -> Result<Option<Loaded>> {
        let mut left = None;
        let mut damaged: Option<Trouble> = None;
        loop {
            let (choice, mine) = self.choose(&mut left, &mut log)?;
            let trouble = match choice {
                Choice::Nothing => return damaged.map_or(Ok(None), |t| Err(self.error(0, t))),
                Choice::Trouble(t @ Trouble::Failed(_)) => {
                    return Err(mine.unwrap_or_else(|| self.error(0, t)));
                }
                Choice::Trouble(t) => t,
                Choice::Read { step, manifest, committed } => {
                    match self.load(step, *manifest, committed, &mut log)? {
                        Ok(loaded) => return Ok(Some(loaded)),
                        Err(damage) if committed => damage,
                        Err(damage) => {
                            // It never was a checkpoint.
                            self.pass_over(&damage, &mut log);
                            continue;
                        }
                    }
                }
            };
            self.pass_over(&trouble, &mut log);
            damaged.get_or_insert(trouble);
        }
    }

    fn pass_over(&self, trouble: &Trouble, log: &mut impl FnMut(String)) {
        if let (Trouble::Damaged { url, why }, 0) = (trouble, self.group.rank()) {
            log(format!("the checkpoint is damaged: {url}: {why}: passed over for the one before"));
        }
    }

    /// The next candidate of rank 0; `left`: those that it has not tried. Beside it rank 0's own error.
    fn choose(
        &self,
        left: &mut Option<std::vec::IntoIter<Candidate>>,
        log: &mut impl FnMut(String),
    ) -> Result<(Choice, Option<Error>)> {
        let (first, run) = (self.group.rank() == 0, self.run.clone());
        let before = left.take();
        let own = self.local.cloned().filter(|_| first && before.is_none());
        let last = self.generation.saturating_sub(1);
        let found = self.meanwhile(async move {
            if !first {
                return Ok::<_, Error>((vec![].into_iter(), vec![], None));
            }
            let mut candidates = match before {
                Some(left) => left,
                None => load::newest(&run).await?.into_iter(),
            };
            // On the async threads: a few small files.
            if let Some(whole) = own.and_then(|local| local.newest_whole(last))
                && candidates.as_slice().iter().all(|c| !c.complete || c.step < whole.header.step)
            {
                return Ok((candidates, vec![], Some((whole.header.step, Ok(whole), false))));
            }
            let mut passed = vec![];
            let next = loop {
                match candidates.next() {
                    Some(c) if c.complete => break Some((c.step, load::manifest(&c.folder).await, true)),
                    Some(c) => passed.push(load::never_finished(c.folder.url())),
                    None => break None,
                }
            };
            Ok((candidates, passed, next))
        })?;
        let mut mine = None;
        let choice = match found {
            Ok((candidates, passed, next)) => {
                *left = Some(candidates);
                passed.into_iter().for_each(log);
                match next {
                    None => Choice::Nothing,
                    Some((step, Ok(manifest), committed)) => {
                        Choice::Read { step, manifest: Box::new(manifest), committed }
                    }
                    Some((_, Err(e), _)) => Choice::Trouble(trouble_of(e, &mut mine)),
                }
            }
            Err(e) => Choice::Trouble(trouble_of(e, &mut mine)),
        };
        Ok((self.say(0, &choice)?, mine))
    }

    /// Reads and exchanges one checkpoint. Inside: what is wrong with it.
    fn load(
        &self,
        step: u64,
        manifest: Manifest,
        committed: bool,
        log: &mut impl FnMut(String),
    ) -> Result<std::result::Result<Loaded, Trouble>> {
        let folder = self.run.join(&layout::step_folder(step));
        let owners = self.owners(step, &manifest.files)?;
        let me = self.group.rank() as u32;
        let mine: Vec<(usize, FileEntry)> =
            manifest.files.iter().cloned().enumerate().filter(|(i, _)| owners[*i] == me).collect();
        let source = Source { step, local: self.local.cloned(), store: committed.then(|| folder.clone()) };
        let read = self.meanwhile(async move {
            let read: Vec<_> = mine.into_iter().map(|(i, file)| read_file(source.clone(), i, file)).collect();
            let read: Vec<_> = stream::iter(read).buffered(2).try_collect().await?;
            let mut share = Share::default();
            for (i, bytes, from_store, unusable) in read {
                let count = if from_store { &mut share.read.store } else { &mut share.read.local };
                *count += bytes.len() as u64;
                share.unusable.extend(unusable);
                share.files.insert(i, bytes);
            }
            Ok(share)
        })?;
        let mut share = match self.settle(read)? {
            Ok(share) => share,
            Err(damage) => return Ok(Err(damage)),
        };
        for why in share.unusable {
            log(format!("a node's copy of a checkpoint is unusable: {why}; the store's is read instead"));
        }
        let mut parts = Parts::default();
        for (i, file) in manifest.files.iter().enumerate() {
            let bytes = self.hand_round(owners[i] as usize, share.files.remove(&i), file.bytes)?;
            // The same bytes everywhere, and so the same verdict.
            if let Err(e) = parts.take(&folder, file, &bytes) {
                return Ok(Err(trouble_of(e, &mut None)));
            }
        }
        let url = match (committed, self.local) {
            (false, Some(local)) => local.url(step, manifest.header.generation),
            _ => folder.url().into(),
        };
        Ok(Ok(Loaded { header: manifest.header, url, read: share.read, committed, parts }))
    }

    /// Who reads each file: a rank that has a copy of it, where there is one.
    fn owners(&self, step: u64, files: &[FileEntry]) -> Result<Vec<u32>> {
        let sizes: Vec<u64> = files.iter().map(|f| f.bytes).collect();
        let world = self.group.world();
        let mut held = vec![0i64; world * files.len()];
        if let Some(local) = self.local {
            let mine = held[self.group.rank() * files.len()..].iter_mut();
            mine.zip(files).for_each(|(flag, file)| *flag = local.holds(step, file).into());
            held = self.reduce(&held, ReduceOp::Sum)?;
        }
        Ok(layout::share_out(&sizes, world as u32, |rank, i| held[rank as usize * files.len() + i] != 0))
    }

    /// Every rank learns whether all have what they wanted. Inside: the damage that any rank has found.
    fn settle<T>(&self, mine: Result<T>) -> Result<std::result::Result<T, Trouble>> {
        let mut own = None;
        let mine = mine.map_err(|e| trouble_of(e, &mut own));
        let mut flags = vec![0i64; self.group.world()];
        flags[self.group.rank()] = mine.is_err().into();
        let flags = self.reduce(&flags, ReduceOp::Sum)?;
        let mut all = vec![];
        for rank in (0..flags.len()).filter(|&r| flags[r] != 0) {
            let own = mine.as_ref().err().cloned().unwrap_or(Trouble::Failed(String::new()));
            all.push((rank, self.say(rank, &own)?));
        }
        // A store that fails says nothing about the checkpoint.
        if let Some((rank, failed)) = all.iter().find(|(_, t)| matches!(t, Trouble::Failed(_))) {
            return Err(own.unwrap_or_else(|| self.error(*rank, failed.clone())));
        }
        Ok(match (mine, all.into_iter().next()) {
            (_, Some((_, damage))) => Err(damage),
            (mine, None) => mine,
        })
    }

    /// Runs this rank's `work` until every rank's is done.
    fn meanwhile<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let mut work = AbortOnDropHandle::new(self.runtime.spawn(work));
        let mut done = None;
        while self.reduce(&[i64::from(done.is_some())], ReduceOp::Min)? == [0] {
            if done.is_none() {
                done = self.runtime.block_on(async { timeout(MEET, &mut work).await.ok() });
            }
            (self.tick)();
        }
        match done {
            Some(Ok(value)) => Ok(value),
            _ => Err(Error::JobFailed("the reading of a checkpoint broke off".into())),
        }
    }

    /// Every rank takes over `root`'s value.
    fn say<T: Serialize + for<'a> Deserialize<'a>>(&self, root: usize, value: &T) -> Result<T> {
        let bad =
            |e: serde_json::Error| Error::JobFailed(format!("the ranks cannot agree on a checkpoint: {e}"));
        let mine = serde_json::to_vec(value).map_err(bad)?;
        let length = [if self.group.rank() == root { mine.len() as i64 } else { 0 }];
        let length = self.reduce(&length, ReduceOp::Max)?[0] as u64;
        let own = (self.group.rank() == root).then(|| Bytes::from(mine));
        serde_json::from_slice(&self.hand_round(root, own, length)?).map_err(bad)
    }

    /// Every rank takes over `root`'s `length` bytes, piece by piece.
    fn hand_round(&self, root: usize, own: Option<Bytes>, length: u64) -> Result<Bytes> {
        let mut taken = vec![0u8; if own.is_some() { 0 } else { length as usize }];
        for at in (0..length as usize).step_by(PIECE) {
            let piece = at..(at + PIECE).min(length as usize);
            let tensor = match &own {
                Some(own) => Tensor::f_from_slice(&own[piece.clone()])?,
                None => Tensor::f_zeros([piece.len() as i64], (Kind::Uint8, Device::Cpu))?,
            };
            let tensor = tensor.f_to_device(self.device)?;
            self.group.broadcast(&tensor, root)?.wait()?;
            if own.is_none() {
                let n = piece.len();
                tensor.f_to_device(Device::Cpu)?.f_copy_data_u8(&mut taken[piece], n)?;
            }
            (self.tick)();
        }
        Ok(own.unwrap_or_else(|| taken.into()))
    }

    fn reduce(&self, numbers: &[i64], op: ReduceOp) -> Result<Vec<i64>> {
        let tensor = Tensor::f_from_slice(numbers)?.f_to_device(self.device)?;
        self.group.all_reduce(&tensor, op)?.wait()?;
        Ok(Vec::<i64>::try_from(&tensor.f_to_device(Device::Cpu)?)?)
    }

    fn error(&self, rank: usize, trouble: Trouble) -> Error {
        match trouble {
            Trouble::Damaged { url, why } => Error::Checkpoint { url, why },
            Trouble::Failed(why) => Error::Collective(collective::Error::Peer {
                doing: "load the newest checkpoint together".into(),
                why: format!("rank {rank} failed to {why}"),
            }),
        }
    }
}

/// Where a checkpoint's files are read.
#[derive(Clone)]
struct Source {
    step: u64,
    local: Option<Local>,
    /// The step's folder, where it was committed.
    store: Option<Location>,
}

/// A file by its place in the manifest, whether it came from the store, and what was wrong with a copy.
async fn read_file(
    from: Source,
    place: usize,
    file: FileEntry,
) -> Result<(usize, Bytes, bool, Option<String>)> {
    let (mut unusable, step) = (None, from.step);
    if let Some(local) = from.local {
        let wanted = file.clone();
        let copy = tokio::task::spawn_blocking(move || local.read(step, &wanted));
        match copy.await.map_err(|e| Error::JobFailed(format!("the reading of a copy broke off: {e}")))? {
            Ok(Some(bytes)) => return Ok((place, bytes, false, None)),
            Ok(None) => {}
            Err(why) => unusable = Some(why),
        }
    }
    match from.store {
        Some(folder) => Ok((place, load::verified(&folder, &file).await?, true, unusable)),
        None => Err(Error::Checkpoint {
            url: file.key,
            why: unusable.unwrap_or_else(|| "no rank of this job has a copy of it".into()),
        }),
    }
}

/// In words for the other ranks; an error that is no damage stays in `own`.
fn trouble_of(e: Error, own: &mut Option<Error>) -> Trouble {
    match e {
        Error::Checkpoint { url, why } => Trouble::Damaged { url, why },
        e => {
            let text = e.to_string();
            *own = Some(e);
            Trouble::Failed(text)
        }
    }
}
