//! New datasets out of finished ones: split, merged, relabelled; and what is in one, counted.
//!
//! A finished dataset never changes, for its digest names it in plans and checkpoints. So each of these
//! writes another dataset elsewhere: data files are copied byte for byte (inside the store, where source and
//! destination share one), index and manifest are new. The columns `label`, `labels` and `split` inside the
//! data files stay as they were ingested; the index is what counts.

mod merge;
mod relabel;
mod split;
mod stats;

pub use merge::merge;
pub use relabel::{Relabel, relabel};
pub use split::{By, Fraction, SplitBy, assign, split};
pub use stats::{Stats, stats};

use crate::{
    Error, Result,
    format::{CLAIM_KEY, ClipMeta, DataFile, Dataset, MANIFEST_KEY},
    ledger::{LedgerEntry, decode_ledger},
};
use futures::{StreamExt, TryStreamExt, stream};
use std::{collections::HashMap, path::Path};
use storage::Location;

/// Copies under way at once.
const COPIES: usize = 16;

/// A dataset with all that is written anew.
struct Opened {
    dataset: Dataset,
    clips: Vec<ClipMeta>,
    ledger: Vec<LedgerEntry>,
}

impl Opened {
    async fn open(location: &Location) -> Result<Self> {
        let dataset = Dataset::open(location).await?;
        let key = &dataset.manifest.ledger.key;
        let damaged = |why| Error::Damaged { url: location.url_of(key), why };
        let ledger = decode_ledger(location.get(key).await?).map_err(damaged)?;
        Ok(Self { clips: dataset.clips.to_rows(), ledger, dataset })
    }

    /// As a new manifest names it.
    fn origin(&self) -> serde_json::Value {
        serde_json::json!({ "url": self.dataset.location.url(), "digest": self.dataset.digest })
    }

    /// Copies the data files to `out`, under the keys that `name` makes of their places and keys.
    async fn copy_files(
        &self,
        out: &Location,
        name: impl Fn(usize, &str) -> String,
        copied: &mut dyn FnMut(u64),
    ) -> Result<Vec<DataFile>> {
        let from = &self.dataset.location;
        let keys: Vec<(DataFile, String)> = (self.dataset.manifest.files.iter().enumerate())
            .map(|(i, f)| (f.clone(), name(i, &f.key)))
            .collect();
        let copies = keys.into_iter().map(|(file, key)| async move {
            out.copy_from(&key, from, &file.key).await?;
            let (bytes, etag) = out.head(&key).await?;
            if bytes != file.bytes {
                let why = format!("it has {bytes} bytes, not {}", file.bytes);
                return Err(Error::Damaged { url: from.url_of(&file.key), why });
            }
            Ok(DataFile { key, etag: etag.filter(|_| out.has_etags()), ..file })
        });
        let mut copies = stream::iter(copies).buffered(COPIES);
        let mut files = Vec::new();
        while let Some(file) = copies.try_next().await? {
            copied(file.bytes);
            files.push(file);
        }
        Ok(files)
    }
}

/// Refuses a destination that holds a dataset or an unfinished ingest.
async fn check_vacant(out: &Location) -> Result<()> {
    for (key, what) in [(MANIFEST_KEY, "a dataset"), (CLAIM_KEY, "an unfinished ingest")] {
        match out.head(key).await {
            Ok(_) => {
                return Err(Error::Usage(format!(
                    "write a dataset to {}: {what} is there; choose another place",
                    out.url()
                )));
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A CSV of two columns with these names in its header: line, first, second.
fn read_pairs(path: &Path, columns: [&str; 2]) -> Result<Vec<(u64, String, String)>> {
    let name = path.display();
    let bad = |line: u64, why: String| Error::Usage(format!("read {name}, row {line}: {why}"));
    let text = std::fs::read_to_string(path).map_err(|e| Error::Usage(format!("read {name}: {e}")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|e| bad(1, e.to_string()))?.clone();
    let place = |column: &str| {
        let all = header.iter().collect::<Vec<_>>().join(", ");
        let found = header.iter().position(|h| h.eq_ignore_ascii_case(column));
        found.ok_or_else(|| bad(1, format!("there is no column {column:?}; the header has: {all}")))
    };
    let (first, second) = (place(columns[0])?, place(columns[1])?);
    let mut rows: Vec<(u64, String, String)> = Vec::new();
    let mut seen: HashMap<String, u64> = HashMap::new();
    for record in reader.records() {
        let record = record.map_err(|e| bad(e.position().map_or(0, |p| p.line()), e.to_string()))?;
        let line = record.position().map_or(0, |p| p.line());
        let key = record.get(first).unwrap_or_default().to_string();
        if key.is_empty() {
            return Err(bad(line, format!("its {} is empty", columns[0])));
        }
        if let Some(before) = seen.insert(key.clone(), line) {
            return Err(bad(line, format!("{key:?} is in row {before} already")));
        }
        rows.push((line, key, record.get(second).unwrap_or_default().into()));
    }
    if rows.is_empty() {
        return Err(Error::Usage(format!("read {name}: it has no rows below its header")));
    }
    Ok(rows)
}

/// The places of clips by id.
fn places(clips: &[ClipMeta]) -> HashMap<&str, usize> {
    clips.iter().enumerate().map(|(i, c)| (c.clip_id.as_str(), i)).collect()
}

#[cfg(test)]
mod tests;
