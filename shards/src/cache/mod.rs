//! A node's cache of verified runs on local disk, shared by all ranks and jobs of the node.
//!
//! ```text
//! core.rs   what is kept and what makes room: pure; the simulator runs it too
//! disk.rs   the folder: locks, table, slot files
//! writer.rs writes what was offered, behind the reader's back
//! ```
//!
//! The limit is cut into slots, files of at most 64 MiB (see [`core`]). A process appends runs to one slot
//! at a time; a slot is emptied as a whole. What holds, whatever process is killed and whenever:
//!
//! 1. *The limit.* There are `slots` slot files of at most `slot_bytes`, and the table; their sum is at most
//!    the limit. Nothing is counted at run time, so nothing can be miscounted.
//! 2. *No wrong run.* A run is served only if its length and CRC32C are those that the dataset's index names.
//!    Slots bear the dataset's digest, so two datasets, or one that was rewritten, never mix.
//! 3. *One writer.* A slot is given out under the table's lock and only with its own exclusive lock, which
//!    fails while any reader or the writer holds it shared. Locks are the kernel's (`flock`): a killed process holds none.
//! 4. *Nothing is emptied under a reader.* The same lock; and a slot's generation changes only under it,
//!    so a reader who finds the generation it knows reads the run it means.
//! 5. *No leak.* A run counts once it is published (its bytes, its record, then the table's entry). What was
//!    written and not published is overwritten by the next writer of the slot, which goes on where the published runs end.
//!
//! After a power cut a slot may lack bytes that its record promises: by 2 that is a miss. For a disk of the
//! machine itself: not every network file system keeps `flock` between hosts.

mod core;
mod disk;
#[cfg(test)]
mod tests;
mod writer;

pub use core::{DatasetTag, Filler, Geometry, Open, Place, Table};
pub use disk::RunKey;

use crate::format::crc32c;
use crate::inspect::size;
use crate::{Error, Result};
use bytes::Bytes;
use disk::Folder;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use writer::{Message, Writer};

/// Ceiling on the bytes of runs that wait to be written; what comes beyond is not kept.
pub const PENDING_BYTES: u64 = 64 << 20;

/// A run as the dataset's index names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub key: RunKey,
    pub bytes: u64,
    pub crc32c: u32,
}

/// What this process has done with the cache so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Runs found, and verified.
    pub hits: u64,
    /// Runs not found.
    pub misses: u64,
    /// Bytes of the runs found.
    pub hit_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Runs thrown out to make room.
    pub evicted: u64,
    /// Fetched runs that were not kept: too large, no room, or the disk was too slow.
    pub bypassed: u64,
    /// Runs found but not what the index says; they count as misses, too.
    pub damaged: u64,
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let part = 100.0 * self.hits as f64 / (self.hits + self.misses).max(1) as f64;
        write!(f, "{part:.1} % of {} runs found ({})", self.hits + self.misses, size(self.hit_bytes))?;
        write!(f, ", {} written", size(self.written_bytes))?;
        let rare = [(self.evicted, "thrown out"), (self.bypassed, "not kept"), (self.damaged, "damaged")];
        rare.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, what)| write!(f, ", {n} {what}"))
    }
}

/// One process's hold on a node's cache, for one dataset. Dropped, it writes what waits.
#[derive(Debug)]
pub struct Cache {
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    queue: Option<mpsc::Sender<Message>>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    folder: Folder,
    dataset: DatasetTag,
    known: Mutex<Known>,
    pending: AtomicU64,
    off: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    hit_bytes: AtomicU64,
    written_bytes: AtomicU64,
    evicted: AtomicU64,
    bypassed: AtomicU64,
    damaged: AtomicU64,
}

/// What this process knows of all slots.
#[derive(Debug, Default)]
struct Known {
    runs: HashMap<RunKey, Place>,
    /// Generation and records read, by slot.
    slots: Vec<(u32, u32)>,
}

impl Cache {
    /// Opens or makes the cache in `folder` for a dataset, by [`crate::format::Dataset::digest`].
    ///
    /// # Errors
    /// The folder cannot be made or written, or another process uses it with a larger limit.
    pub fn open(folder: &Path, limit: u64, digest: &str) -> Result<Self> {
        let failed = |source| Error::Io { path: format!("the cache in {}", folder.display()), source };
        let dataset = tag(digest);
        let opened = Folder::open(folder, limit, &dataset).map_err(failed)?;
        let shared = Arc::new(Shared {
            path: folder.into(),
            known: Mutex::new(Known {
                runs: HashMap::new(),
                slots: vec![(0, 0); opened.geometry.slots as usize],
            }),
            folder: opened,
            dataset,
            pending: AtomicU64::new(0),
            off: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            hit_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            bypassed: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        });
        shared.refresh(&mut shared.known()).map_err(failed)?;
        let (queue, messages) = mpsc::channel();
        let writer = Writer::new(shared.clone());
        let writer = std::thread::Builder::new()
            .name("cache".into())
            .spawn(move || writer.run(&messages))
            .map_err(failed)?;
        Ok(Self { shared, queue: Some(queue), writer: Some(writer) })
    }

    /// The runs that are here, each verified; `None` for the others, in the order of `wanted`.
    pub async fn get(&self, wanted: Vec<Wanted>) -> Vec<Option<Bytes>> {
        let places = self.shared.find(&wanted);
        if places.iter().all(Option::is_none) {
            self.shared.misses.fetch_add(wanted.len() as u64, Relaxed);
            return vec![None; wanted.len()];
        }
        let (shared, count) = (self.shared.clone(), wanted.len());
        // Ends early only with the runtime itself.
        tokio::task::spawn_blocking(move || shared.read_all(&wanted, &places))
            .await
            .unwrap_or_else(|_| vec![None; count])
    }

    /// Keeps a verified run, if there is room and time; never waits.
    pub fn offer(&self, key: RunKey, run: Bytes) {
        let (shared, bytes) = (&self.shared, run.len() as u64);
        let too_large = bytes > shared.folder.geometry.largest_run();
        if too_large || shared.off.load(Relaxed) || !shared.reserve(bytes) {
            shared.bypassed.fetch_add(1, Relaxed);
            return;
        }
        if let Some(queue) = &self.queue {
            // The writer ends only after this was dropped.
            drop(queue.send(Message::Run(key, run)));
        }
    }

    /// Waits until everything offered so far is written or given up.
    pub fn flush(&self) {
        let (done, wait) = mpsc::channel();
        if let Some(queue) = &self.queue {
            drop(queue.send(Message::Flush(done)));
            // An error is the writer's end: nothing waits any more.
            let _ = wait.recv();
        }
    }

    /// What this process has done so far.
    pub fn stats(&self) -> Stats {
        let s = &self.shared;
        Stats {
            hits: s.hits.load(Relaxed),
            misses: s.misses.load(Relaxed),
            hit_bytes: s.hit_bytes.load(Relaxed),
            written_bytes: s.written_bytes.load(Relaxed),
            evicted: s.evicted.load(Relaxed),
            bypassed: s.bypassed.load(Relaxed),
            damaged: s.damaged.load(Relaxed),
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
    }
}

/// The tag of a dataset's digest.
pub fn tag(digest: &str) -> DatasetTag {
    let mut tag = DatasetTag::default();
    // The digest is hexadecimal: half of it tells datasets apart.
    for (byte, pair) in tag.iter_mut().zip(digest.as_bytes().chunks(2)) {
        *byte = std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok()).unwrap_or(0x5a);
    }
    tag
}

impl Shared {
    /// Where the runs lie. What other processes wrote since is looked up only where something is missing.
    fn find(&self, wanted: &[Wanted]) -> Vec<Option<Place>> {
        let mut known = self.known();
        let look = |known: &Known| -> Vec<Option<Place>> {
            wanted.iter().map(|w| known.runs.get(&w.key).copied()).collect()
        };
        let places = look(&known);
        if places.iter().all(Option::is_some) || self.refresh(&mut known).is_err() {
            return places;
        }
        look(&known)
    }

    /// Learns what was published or emptied since.
    fn refresh(&self, known: &mut Known) -> io::Result<()> {
        for (number, slot) in (0..).zip(self.folder.slots()?) {
            let (generation, read) = known.slots[number as usize];
            if generation != slot.generation {
                known.runs.retain(|_, place| place.slot != number);
                known.slots[number as usize] = (slot.generation, 0);
            } else if read >= slot.entries {
                continue;
            }
            if slot.dataset != self.dataset {
                continue;
            }
            let from = known.slots[number as usize].1;
            let records = match self.folder.records(number, &slot, from) {
                // The table is ahead of the file only while the slot is being emptied.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                records => records?,
            };
            known.slots[number as usize].1 = slot.entries;
            known.runs.extend(records);
        }
        Ok(())
    }

    fn read_all(&self, wanted: &[Wanted], places: &[Option<Place>]) -> Vec<Option<Bytes>> {
        let mut pinned: Option<(Place, File)> = None;
        let read = |(wanted, place): (&Wanted, &Option<Place>)| {
            let run = place.as_ref().and_then(|place| self.read(wanted, place, &mut pinned));
            let (count, bytes) = if run.is_some() { (&self.hits, wanted.bytes) } else { (&self.misses, 0) };
            count.fetch_add(1, Relaxed);
            self.hit_bytes.fetch_add(bytes, Relaxed);
            run
        };
        wanted.iter().zip(places).map(read).collect()
    }

    /// Reads and verifies one run; `pinned` is the slot of the one before, often the same.
    fn read(&self, wanted: &Wanted, place: &Place, pinned: &mut Option<(Place, File)>) -> Option<Bytes> {
        let same = |p: &Place| (p.slot, p.generation) == (place.slot, place.generation);
        if !pinned.as_ref().is_some_and(|(p, _)| same(p)) {
            *pinned = None;
            let file = self.folder.pin(place.slot, place.generation).ok().flatten();
            *pinned = file.map(|file| (*place, file));
        }
        let Some((_, file)) = pinned else {
            // Emptied since: what went with it is forgotten, so that it can be written again.
            let _ = self.refresh(&mut self.known());
            return None;
        };
        let mut bytes = vec![0; wanted.bytes as usize];
        let read = file.read_exact_at(&mut bytes, place.at);
        if read.is_ok() && crc32c(&bytes) == wanted.crc32c {
            return Some(bytes.into());
        }
        self.damaged.fetch_add(1, Relaxed);
        tracing::warn!(
            "a run in the cache {}, slot {}, is not what the dataset's index says; it is fetched again",
            self.path.display(),
            place.slot
        );
        self.forget(wanted, place);
        None
    }

    fn forget(&self, wanted: &Wanted, place: &Place) {
        let mut known = self.known();
        if known.runs.get(&wanted.key) == Some(place) {
            known.runs.remove(&wanted.key);
        }
    }

    /// True where `bytes` more may wait.
    fn reserve(&self, bytes: u64) -> bool {
        let room = |waiting: u64| waiting.checked_add(bytes).filter(|&sum| sum <= PENDING_BYTES);
        self.pending.fetch_update(Relaxed, Relaxed, room).is_ok()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing in it is ever half done: the worst of a panic is a run not known.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
