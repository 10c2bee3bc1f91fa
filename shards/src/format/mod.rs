//! What a dataset is made of. A dataset is a prefix in a store:
//!
//! ```text
//! dataset.json             the manifest: totals, labels, files and digests; written last
//! index.parquet            one row a clip: where its frames are, run by run, and their CRCs
//! data/<hash>/<n>.parquet  the clips
//! ledger.parquet           every input that was skipped or repaired
//! ```

mod clip;
mod clips;
mod index;
mod manifest;

pub use clip::{
    Payload, PayloadBuilder, RUN_FRAMES, crc32c, jpeg_length, run_count, run_frames, split_jpegs, split_run,
};
pub use clips::{Clip, Clips};
pub use index::{ClipMeta, decode_index, encode_index, index_schema};
pub use manifest::{Codec, DataFile, FORMAT, Manifest, ObjectRef, Totals, VERSION};

use crate::{Error, Result};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use std::{fs::File, io::Write};
use storage::{Location, hex, sha256_hex};

/// Key of the manifest.
pub const MANIFEST_KEY: &str = "dataset.json";
/// Key of the index.
pub const INDEX_KEY: &str = "index.parquet";
/// Key of the ledger.
pub const LEDGER_KEY: &str = "ledger.parquet";

/// Key of what an unfinished ingest claims its destination with.
pub const CLAIM_KEY: &str = "ingest/plan.json";

/// Position of a clip in [`Dataset::clips`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClipIndex(pub u32);

/// An opened dataset: all that is known of it without reading a clip.
#[derive(Debug)]
pub struct Dataset {
    pub manifest: Manifest,
    /// SHA-256 of the bytes of dataset.json, lower-case hex: the dataset's identity.
    pub digest: String,
    /// Every clip, in the index's order.
    pub clips: Clips,
    pub location: Location,
}

impl Dataset {
    /// Opens a dataset: one GET of the manifest, one of the index, whose digest is checked.
    ///
    /// # Errors
    /// No dataset there, a newer format, or a manifest or index that is damaged or contradicts itself.
    pub async fn open(location: &Location) -> Result<Self> {
        let url = location.url_of(MANIFEST_KEY);
        let text = match location.get(MANIFEST_KEY).await {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => return Err(Error::NotADataset { url: location.url().into() }),
            Err(e) => return Err(e.into()),
        };
        let manifest = Manifest::parse(&text, &url)?;
        let digest = sha256_hex(&text);

        let url = location.url_of(&manifest.index.key);
        let damaged = |why: String| Error::Damaged { url: url.clone(), why };
        let file = index_file(location, &manifest.index).await?;
        // Parsing takes a while for many clips, and a panic in the Parquet decoder becomes an error here.
        let clips = tokio::task::spawn_blocking(move || decode_index(file))
            .await
            .map_err(|e| damaged(format!("the Parquet decoder failed on it ({e})")))?
            .map_err(&damaged)?;
        manifest.check_clips(&clips).map_err(damaged)?;
        Ok(Self { manifest, digest, clips, location: location.clone() })
    }

    /// The clips of a split, in the index's order.
    ///
    /// # Errors
    /// No such split, or it is empty.
    pub fn clips_of(&self, split: &str) -> Result<Vec<ClipIndex>> {
        let found: Vec<ClipIndex> = self
            .clips
            .iter()
            .enumerate()
            .filter(|(_, c)| c.split == split)
            .map(|(i, _)| ClipIndex(i as u32))
            .collect();
        if found.is_empty() {
            let known = self.manifest.splits.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::Usage(format!(
                "use the split {split:?} of {}: it has no clips; the dataset's splits are: {known}",
                self.location.url()
            )));
        }
        Ok(found)
    }

    /// The clip at an index.
    pub fn clip(&self, index: ClipIndex) -> Clip<'_> {
        self.clips.get(index.0 as usize)
    }

    /// Key of the data file that holds a clip.
    pub fn file_key(&self, clip: Clip) -> &str {
        &self.manifest.files[clip.file as usize].key
    }
}

/// The index in a file without a name, its digest checked: in memory it would lie beside what is made of it.
async fn index_file(location: &Location, index: &ObjectRef) -> Result<File> {
    /// Of one request.
    const PART: u64 = 16 << 20;
    let url = location.url_of(&index.key);
    let damaged = |why: String| Error::Damaged { url: url.clone(), why };
    let io = |source| Error::Io { path: std::env::temp_dir().display().to_string(), source };
    let (size, _) = match location.head(&index.key).await {
        Ok(head) => head,
        Err(e) if e.is_not_found() => {
            return Err(damaged("the manifest names it but it is missing".into()));
        }
        Err(e) => return Err(e.into()),
    };
    if size != index.bytes {
        return Err(damaged(format!("it has {size} bytes, not {}", index.bytes)));
    }
    let mut file = tempfile::tempfile().map_err(io)?;
    let mut digest = Sha256::new();
    let starts = (0..size).step_by(PART as usize);
    let parts = starts.map(|start| location.get_range(&index.key, start..(start + PART).min(size)));
    let mut parts = futures::stream::iter(parts).buffered(4);
    while let Some(part) = parts.next().await {
        let part = part?;
        digest.update(&part);
        file.write_all(&part).map_err(io)?;
    }
    let found = hex(&digest.finalize());
    if found != index.sha256 {
        return Err(damaged(format!("its SHA-256 is {found}, not {}", index.sha256)));
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
