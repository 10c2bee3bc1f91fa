//! The cache's folder: its locks, its table and its slot files. Plain reads and writes; every state that a
//! kill can leave is one that the next opener can use.
//!
//! ```text
//! users        no bytes; every process holds a shared lock on it: who gets it alone may clean up
//! table        a header, then an entry a slot; whoever gives out slots holds its exclusive lock
//! slot-00042   index records, then runs; readers and its one writer hold shared locks
//! ```

use super::core::{CHANCES, DatasetTag, ENTRY, Geometry, HEADER, Open, Place, RECORD, Slot, Table, payload};
use crate::format::crc32c;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"mareych1";
/// Place of a slot's `chances` inside its entry: generation (4 bytes, 4 spare), dataset (16), end (8), entries
/// (4), sealed (1), chances (1), and the low half of the generation once more (2).
const CHANCES_AT: u64 = 37;

/// A run of a dataset: its data file's place in the manifest and its first byte there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunKey {
    pub file: u32,
    pub offset: u64,
}

/// An opened folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    pub geometry: Geometry,
    table: File,
    /// Its shared lock lasts as long as this.
    _users: File,
}

/// The exclusive lock on the table.
struct Locked<'a>(&'a File);

impl<'a> Locked<'a> {
    fn new(table: &'a File) -> io::Result<Self> {
        flock(table, FlockOperation::LockExclusive)?;
        Ok(Self(table))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Can only fail for a file that is no file.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

impl Folder {
    /// Opens or makes the cache in `path`. Alone, it puts in order whatever was left.
    pub fn open(path: &Path, limit: u64, dataset: &DatasetTag) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let users = file(&path.join("users"))?;
        let table = file(&path.join("table"))?;
        let locked = Locked::new(&table)?;
        // Everybody asks for this under the table's lock, so between the two locks nobody comes in.
        let alone = flock(&users, FlockOperation::NonBlockingLockExclusive).is_ok();
        let found = read_geometry(&table)?;
        let geometry = match found {
            Some(found) if found.limit == limit => found,
            Some(found) if !alone && found.limit < limit => {
                tracing::warn!(
                    "the cache in {} is in use with a limit of {} bytes; that limit stays in force",
                    path.display(),
                    found.limit
                );
                found
            }
            Some(found) if !alone => {
                let why = format!(
                    "another process uses it with a limit of {} bytes, above this job's {limit}; \
                     give data.cache.limit the same value in both",
                    found.limit
                );
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
            }
            _ => Geometry::of(limit),
        };
        if alone {
            tidy(path, &table, found, geometry, dataset)?;
        }
        flock(&users, FlockOperation::LockShared)?;
        drop(locked);
        Ok(Self { path: path.into(), geometry, table, _users: users })
    }

    /// All slots, without a lock: one that is just being given out may show an old count of runs beside
    /// its new generation, and then counts as empty.
    pub fn slots(&self) -> io::Result<Vec<Slot>> {
        Ok(read_table(&self.table, self.geometry)?.slots)
    }

    /// Publishes and gives back the slot that is full, and takes another. The file is locked as long as it is open.
    pub fn claim(
        &self,
        full: Option<(Open, File)>,
        dataset: &DatasetTag,
    ) -> io::Result<Option<(Open, File)>> {
        let _locked = Locked::new(&self.table)?;
        if let Some((open, _)) = &full {
            self.publish(open, true)?;
        }
        drop(full);
        let mut table = read_table(&self.table, self.geometry)?;
        let before = table.clone();
        let mut taken: Option<File> = None;
        let mut failed: Option<io::Error> = None;
        let open = table.claim(dataset, |slot| match self.lock_alone(slot) {
            Ok(Some(file)) => {
                taken = Some(file);
                true
            }
            Ok(None) => false,
            Err(e) => {
                failed.get_or_insert(e);
                false
            }
        });
        // The table first: a kill before the file is emptied leaves a slot without published runs.
        write_changes(&self.table, &before, &table)?;
        let Some((open, file)) = open.zip(taken) else { return failed.map_or(Ok(None), Err) };
        if before.slots[open.slot as usize].generation != open.generation {
            file.set_len(0)?;
        }
        // From exclusive to shared in two steps; nobody asks for exclusive without the table's lock.
        flock(&file, FlockOperation::LockShared)?;
        Ok(Some((open, file)))
    }

    /// Makes known what was appended. For the slot's writer alone.
    pub fn publish(&self, open: &Open, sealed: bool) -> io::Result<()> {
        let mut bytes = [0; 13];
        bytes[..8].copy_from_slice(&open.end.to_le_bytes());
        bytes[8..12].copy_from_slice(&open.entries.to_le_bytes());
        bytes[12] = sealed.into();
        self.table.write_all_at(&bytes, entry_at(open.slot) + 24)
    }

    /// Writes a run and its record; [`Folder::publish`] comes after.
    pub fn append(&self, file: &File, place: &Place, key: RunKey, run: &[u8]) -> io::Result<()> {
        file.write_all_at(run, place.at)?;
        let record = Record { key, bytes: run.len() as u32, at: place.at, generation: place.generation };
        file.write_all_at(&record.to_bytes(), u64::from(place.record) * RECORD)
    }

    /// The published runs of a slot from number `from` on; a record that is not whole is left out.
    pub fn records(&self, number: u32, slot: &Slot, from: u32) -> io::Result<Vec<(RunKey, Place)>> {
        let count = u64::from(slot.entries.saturating_sub(from)) * RECORD;
        if count == 0 || count > self.geometry.index_bytes {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; count as usize];
        let file = File::open(self.slot_path(number))?;
        let read = read_up_to(&file, &mut bytes, u64::from(from) * RECORD)?;
        let runs = payload(&self.geometry);
        let whole = |record: &Record| {
            let end = record.at.checked_add(record.bytes.into());
            record.generation == slot.generation
                && record.at >= runs.start
                && end.is_some_and(|e| e <= runs.end)
        };
        let records = bytes[..read].chunks_exact(RECORD as usize).map(|b| Record::parse(b).filter(whole));
        let numbered = (from..).zip(records).filter_map(|(n, r)| Some((n, r?)));
        let place = |n, r: &Record| Place { slot: number, generation: r.generation, at: r.at, record: n };
        Ok(numbered.map(|(n, r)| (r.key, place(n, &r))).collect())
    }

    /// A slot for reading: while the answer lives the slot is not emptied. `None`: it is being emptied, or
    /// was since `generation`.
    pub fn pin(&self, slot: u32, generation: u32) -> io::Result<Option<File>> {
        let file = match File::open(self.slot_path(slot)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
            return Ok(None);
        }
        // It changes under the slot's exclusive lock only.
        let mut now = [0; 4];
        self.table.read_exact_at(&mut now, entry_at(slot))?;
        if u32::from_le_bytes(now) != generation {
            return Ok(None);
        }
        self.table.write_all_at(&[CHANCES], entry_at(slot) + CHANCES_AT)?;
        Ok(Some(file))
    }

    fn lock_alone(&self, slot: u32) -> io::Result<Option<File>> {
        let file = file(&self.slot_path(slot))?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
    }

    fn slot_path(&self, slot: u32) -> PathBuf {
        slot_path(&self.path, slot)
    }
}

/// Run by whoever has the folder alone: what does not fit the table goes, and what other datasets
/// left may make room.
fn tidy(
    path: &Path,
    file: &File,
    found: Option<Geometry>,
    geometry: Geometry,
    dataset: &DatasetTag,
) -> io::Result<()> {
    let same_cut =
        |g: &Geometry| (g.slot_bytes, g.index_bytes) == (geometry.slot_bytes, geometry.index_bytes);
    let mut table = match found.filter(same_cut) {
        Some(_) => read_table(file, geometry)?,
        None => Table::new(geometry),
    };
    table.hand = table.hand.checked_rem(geometry.slots).unwrap_or(0);
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("slot-")).map(str::parse::<u32>);
        let Some(Ok(number)) = number else { continue };
        let at = slot_path(path, number);
        let known = table.slots.get(number as usize).is_some_and(|s| s.dataset != DatasetTag::default());
        if !known || std::fs::metadata(&at)?.len() > geometry.slot_bytes {
            std::fs::remove_file(&at)?;
        }
    }
    let runs = payload(&geometry);
    for (number, slot) in (0..).zip(table.slots.iter_mut()) {
        let whole = (runs.start..=runs.end).contains(&slot.end);
        if slot.dataset != DatasetTag::default() && !(whole && slot_path(path, number).exists()) {
            *slot = Slot { generation: slot.generation.wrapping_add(1), ..Slot::default() };
        }
    }
    table.forsake_others(dataset);
    let mut bytes = header(&geometry, table.hand).to_vec();
    table.slots.iter().for_each(|s| bytes.extend(entry(s)));
    // Without a header until it is whole: a kill between the two leaves a table that is made anew.
    file.write_all_at(&[0; 8], 0)?;
    file.set_len(bytes.len() as u64)?;
    file.write_all_at(&bytes[8..], 8)?;
    file.write_all_at(&bytes[..8], 0)
}

fn file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn slot_path(folder: &Path, slot: u32) -> PathBuf {
    folder.join(format!("slot-{slot:05}"))
}

fn entry_at(slot: u32) -> u64 {
    HEADER + u64::from(slot) * ENTRY
}

/// The header: magic, limit, slot size, index size, slots, hand, and a CRC of all but the hand.
fn header(geometry: &Geometry, hand: u32) -> [u8; HEADER as usize] {
    let mut bytes = [0; HEADER as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&geometry.limit.to_le_bytes());
    bytes[16..24].copy_from_slice(&geometry.slot_bytes.to_le_bytes());
    bytes[24..32].copy_from_slice(&geometry.index_bytes.to_le_bytes());
    bytes[32..36].copy_from_slice(&geometry.slots.to_le_bytes());
    let crc = crc32c(&bytes[..36]);
    bytes[36..40].copy_from_slice(&crc.to_le_bytes());
    bytes[HAND_AT as usize..][..4].copy_from_slice(&hand.to_le_bytes());
    bytes
}

const HAND_AT: u64 = 64;

fn read_geometry(table: &File) -> io::Result<Option<Geometry>> {
    let mut bytes = [0; 40];
    if read_up_to(table, &mut bytes, 0)? < 40 || &bytes[..8] != MAGIC {
        return Ok(None);
    }
    let geometry = Geometry {
        limit: u64_at(&bytes, 8),
        slot_bytes: u64_at(&bytes, 16),
        index_bytes: u64_at(&bytes, 24),
        slots: u32_at(&bytes, 32),
    };
    let whole = u32_at(&bytes, 36) == crc32c(&bytes[..36]);
    Ok((whole && geometry == Geometry::of(geometry.limit)).then_some(geometry))
}

fn read_table(file: &File, geometry: Geometry) -> io::Result<Table> {
    let mut table = Table::new(geometry);
    let mut bytes = vec![0; HEADER as usize + table.slots.len() * ENTRY as usize];
    let read = read_up_to(file, &mut bytes, 0)?;
    bytes[read..].fill(0);
    let (head, entries) = bytes.split_at(HEADER as usize);
    table.hand = u32_at(head, HAND_AT as usize).checked_rem(geometry.slots).unwrap_or(0);
    for (slot, e) in table.slots.iter_mut().zip(entries.chunks_exact(ENTRY as usize)) {
        let mut dataset = DatasetTag::default();
        dataset.copy_from_slice(&e[8..24]);
        let generation = u32_at(e, 0);
        let of_generation = e[38..40] == generation.to_le_bytes()[..2];
        *slot = Slot {
            generation,
            dataset,
            end: u64_at(e, 24),
            entries: if of_generation { u32_at(e, 32) } else { 0 },
            sealed: e[36] != 0,
            chances: e[CHANCES_AT as usize].min(CHANCES),
        };
    }
    Ok(table)
}

fn entry(slot: &Slot) -> [u8; ENTRY as usize] {
    let mut e = [0; ENTRY as usize];
    e[..4].copy_from_slice(&slot.generation.to_le_bytes());
    e[8..24].copy_from_slice(&slot.dataset);
    e[24..32].copy_from_slice(&slot.end.to_le_bytes());
    e[32..36].copy_from_slice(&slot.entries.to_le_bytes());
    e[36] = slot.sealed.into();
    e[CHANCES_AT as usize] = slot.chances;
    e[38..].copy_from_slice(&slot.generation.to_le_bytes()[..2]);
    e
}

fn write_changes(file: &File, before: &Table, after: &Table) -> io::Result<()> {
    file.write_all_at(&after.hand.to_le_bytes(), HAND_AT)?;
    for (slot, (old, new)) in (0..).zip(before.slots.iter().zip(&after.slots)) {
        if old.generation != new.generation {
            file.write_all_at(&entry(new), entry_at(slot))?;
        } else if old.chances != new.chances {
            // Not more: the slot's writer may be publishing at this moment.
            file.write_all_at(&[new.chances], entry_at(slot) + CHANCES_AT)?;
        }
    }
    Ok(())
}

struct Record {
    key: RunKey,
    bytes: u32,
    at: u64,
    generation: u32,
}

impl Record {
    fn to_bytes(&self) -> [u8; RECORD as usize] {
        let mut b = [0; RECORD as usize];
        b[..4].copy_from_slice(&self.key.file.to_le_bytes());
        b[4..8].copy_from_slice(&self.bytes.to_le_bytes());
        b[8..16].copy_from_slice(&self.key.offset.to_le_bytes());
        b[16..24].copy_from_slice(&self.at.to_le_bytes());
        b[24..28].copy_from_slice(&self.generation.to_le_bytes());
        let crc = crc32c(&b[..28]);
        b[28..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    fn parse(b: &[u8]) -> Option<Self> {
        let key = RunKey { file: u32_at(b, 0), offset: u64_at(b, 8) };
        let record = Self { key, bytes: u32_at(b, 4), at: u64_at(b, 16), generation: u32_at(b, 24) };
        (crc32c(&b[..28]) == u32_at(b, 28)).then_some(record)
    }
}

fn read_up_to(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], at + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read)
}

/// Both for slices that are long enough by construction.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, &b| n << 8 | u32::from(b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}
