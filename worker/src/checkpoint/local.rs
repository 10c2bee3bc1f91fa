//! A node's own copies of its ranks' shares of the last checkpoints: written before the upload, read in place of the
//! store.
//!
//! ```text
//! FOLDER/first-5f3a09c27d11e806/                       one folder a run: the same URL anew is another run
//!     step-000012000-g000003/model-1-of-2.safetensors  as in the run
//!     step-000012000-g000003/rank-1-of-2.json          last: what rank 1 wrote, with its digests
//! ```
//!
//! What a checkpoint is, is told by the manifest in the run; a copy only saves the way to the store, and is believed
//! when its digest is the manifest's. An attempt of which every rank's record is here is whole by itself.

use super::{
    layout::{self, FileEntry, Header, Manifest},
    save::Packed,
};
use crate::Result;
use bytes::Bytes;
use configs::LocalCopies;
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    fs, io,
    path::{Path, PathBuf},
};
use storage::Location;

/// The run's first object of all, which nobody ever replaces: it tells a run from an earlier one at its URL.
const BIRTH: &str = "coordinator/journal/0000000001.json";

/// Where a node keeps its copies of one run.
#[derive(Clone, Debug)]
pub struct Local {
    folder: PathBuf,
    keep: usize,
}

/// What one rank has written.
#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    header: Header,
    files: Vec<FileEntry>,
}

impl Local {
    /// The copies of `run`, which the coordinator calls `url`.
    pub async fn of_run(settings: &LocalCopies, run: &Location, url: &str) -> Result<Self> {
        let birth = run.get_opt(BIRTH).await?.unwrap_or_default();
        let name = url.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let digest = storage::sha256_hex(&[url.as_bytes(), b"\n", &birth].concat());
        let folder = Path::new(&settings.folder).join(format!("{name}-{}", &digest[..16]));
        Ok(Self { folder, keep: settings.keep })
    }

    /// Writes a rank's share, after making room for it. A file has its name only when it is whole on the disk. Where
    /// that fails nothing of it stays.
    pub fn write(&self, share: &Packed) -> io::Result<()> {
        let (header, rank) = (&share.header, share.rank);
        let own = self.attempt(header.step, header.generation);
        self.make_room(&own)?;
        fs::create_dir_all(&own)?;
        let record = Record { header: header.clone(), files: share.entries() };
        let record: Bytes = serde_json::to_vec(&record)?.into();
        let record = (record_name(rank, header.world_size), vec![record]);
        let files = share.files.iter().map(|f| (file_name(&f.key).to_string(), f.chunks.clone()));
        let files: Vec<(String, Vec<Bytes>)> = files.chain([record]).collect();
        let written = files.iter().try_for_each(|(name, chunks)| put(&own, name, chunks));
        match written.and_then(|()| fs::File::open(&own)?.sync_all()) {
            Ok(()) => Ok(()),
            Err(e) => {
                for (name, _) in &files {
                    // It may never have come to be.
                    let _ = fs::remove_file(own.join(name));
                }
                Err(e)
            }
        }
    }

    /// Whether a file of a checkpoint seems to be here.
    pub fn holds(&self, step: u64, file: &FileEntry) -> bool {
        self.path(step, &file.key).and_then(|p| fs::metadata(p).ok()).is_some_and(|m| m.len() == file.bytes)
    }

    /// A file of a checkpoint, verified; `None`: there is no copy here. An error says which copy is unusable, and why.
    pub fn read(&self, step: u64, file: &FileEntry) -> std::result::Result<Option<Bytes>, String> {
        let Some(path) = self.path(step, &file.key) else { return Ok(None) };
        let unusable = |why: String| format!("{}: {why}", path.display());
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| unusable(e.to_string()))?,
        };
        if bytes.len() as u64 != file.bytes {
            return Err(unusable(format!("it has {} bytes instead of {}", bytes.len(), file.bytes)));
        }
        match storage::sha256_hex(&bytes) {
            digest if digest == file.sha256 => Ok(Some(bytes.into())),
            digest => Err(unusable(format!("its SHA-256 is {digest} instead of {}", file.sha256))),
        }
    }

    /// The newest attempt of `generation` of which every rank's record and files seem to be here.
    pub fn newest_whole(&self, generation: u64) -> Option<Manifest> {
        let attempts = self.attempts().ok()?.into_iter().filter(|(g, _, _)| *g == generation);
        attempts.filter_map(|(_, step, folder)| self.whole(step, &folder)).next()
    }

    /// How a person would name an attempt.
    pub fn url(&self, step: u64, generation: u64) -> String {
        self.attempt(step, generation).display().to_string()
    }

    fn whole(&self, step: u64, folder: &Path) -> Option<Manifest> {
        let names = fs::read_dir(folder).ok()?.flatten().filter_map(|e| e.file_name().into_string().ok());
        let world: u32 =
            names.filter_map(|n| n.strip_prefix("rank-1-of-")?.strip_suffix(".json")?.parse().ok()).next()?;
        let record =
            |rank| serde_json::from_slice(&fs::read(folder.join(record_name(rank, world))).ok()?).ok();
        let records: Vec<Record> = (0..world).map(record).collect::<Option<_>>()?;
        let header = records.first()?.header.clone();
        let alike =
            records.iter().all(|r| r.header == header) && (header.step, header.world_size) == (step, world);
        let files: Vec<FileEntry> = records.into_iter().flat_map(|r| r.files).collect();
        let here = alike && files.iter().all(|f| self.holds(step, f));
        here.then_some(Manifest { header, files })
    }

    /// Removes all attempts but the newest, so that with `own` there are as many as may be.
    fn make_room(&self, own: &Path) -> io::Result<()> {
        let others = self.attempts()?.into_iter().filter(|(_, _, folder)| folder != own);
        for (_, _, folder) in others.skip(self.keep.saturating_sub(1)) {
            match fs::remove_dir_all(&folder) {
                // Another trainer of this node does the same.
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Generation, step and folder of each attempt, newest first: a later generation may have gone back in steps.
    fn attempts(&self) -> io::Result<Vec<(u64, u64, PathBuf)>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries?,
        };
        let mut found = vec![];
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.rsplit_once("-g"));
            let Some((step, generation)) = name else { continue };
            if let (Some(step), Ok(generation)) = (layout::parse_step(step), generation.parse()) {
                found.push((generation, step, path));
            }
        }
        found.sort_by_key(|(generation, step, _)| Reverse((*generation, *step)));
        Ok(found)
    }

    fn attempt(&self, step: u64, generation: u64) -> PathBuf {
        self.folder.join(format!("{}-{}", layout::step_name(step), layout::attempt(generation)))
    }

    /// Of a manifest's key; `None`: it is none of ours, and might lead elsewhere.
    fn path(&self, step: u64, key: &str) -> Option<PathBuf> {
        let (attempt, name) = key.split_once('/')?;
        let plain = |part: &str| !part.is_empty() && part != ".." && !part.contains('/');
        let folder = format!("{}-{attempt}", layout::step_name(step));
        (plain(attempt) && plain(name)).then(|| self.folder.join(folder).join(name))
    }
}

/// Whole or not at all, and on the disk before it has its name.
fn put(folder: &Path, name: &str, chunks: &[Bytes]) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".unfinished-").tempfile_in(folder)?;
    chunks.iter().try_for_each(|c| io::Write::write_all(&mut file, c))?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name)).map(drop).map_err(|e| e.error)
}

fn record_name(rank: u32, world: u32) -> String {
    format!("rank-{}-of-{world}.json", rank + 1)
}

fn file_name(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}
