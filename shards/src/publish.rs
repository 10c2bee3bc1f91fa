//! A dataset's index, ledger and manifest, written in the order that makes the manifest the last word.

use crate::{
    Error, Result,
    format::{
        ClipMeta, Clips, Codec, DataFile, FORMAT, INDEX_KEY, LEDGER_KEY, MANIFEST_KEY, Manifest, ObjectRef,
        Totals, VERSION, encode_index,
    },
    ledger::{Action, LedgerEntry, encode_ledger},
};
use std::collections::BTreeMap;
use storage::{Location, PutOutcome, sha256_hex};

/// What a new dataset holds; its data files are at their places already.
pub struct Contents<'a> {
    pub codec: Codec,
    /// JPEG quality; absent for raw, and where it differs between clips.
    pub quality: Option<u8>,
    pub labels: Vec<String>,
    pub files: Vec<DataFile>,
    pub clips: &'a [ClipMeta],
    pub ledger: &'a [LedgerEntry],
    /// How it came to be, for people.
    pub origin: serde_json::Value,
}

/// Writes index and ledger, then the manifest.
///
/// # Errors
/// Contents that contradict each other, another dataset that came there meanwhile, or the store's own.
pub async fn publish(out: &Location, contents: Contents<'_>) -> Result<Manifest> {
    let failed = |why| Error::Stopped(format!("write the dataset {}: {why}", out.url()));
    let Contents { codec, quality, labels, files, clips, ledger, origin } = contents;
    let mut splits = BTreeMap::new();
    clips.iter().for_each(|c| *splits.entry(c.split.to_string()).or_default() += 1);
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        codec,
        quality,
        totals: Totals {
            clips: clips.len() as u64,
            frames: clips.iter().map(|c| u64::from(c.num_frames)).sum(),
            bytes: files.iter().map(|f| f.bytes).sum(),
            skipped: ledger.iter().filter(|e| e.action == Action::Skipped).count() as u64,
        },
        labels,
        splits,
        files,
        index: put(out, INDEX_KEY, encode_index(clips).map_err(failed)?).await?,
        ledger: put(out, LEDGER_KEY, encode_ledger(ledger).map_err(failed)?).await?,
        ingest: origin,
    };
    Clips::of(clips).and_then(|clips| manifest.check_clips(&clips)).map_err(failed)?;
    let bytes = manifest.to_bytes()?;
    if out.put_if_absent(MANIFEST_KEY, bytes.clone()).await? == PutOutcome::Exists
        && out.get(MANIFEST_KEY).await? != bytes
    {
        return Err(Error::Usage(format!(
            "write the dataset {}: another one was finished there meanwhile; choose another place",
            out.url()
        )));
    }
    Ok(manifest)
}

async fn put(out: &Location, key: &str, bytes: Vec<u8>) -> Result<ObjectRef> {
    let object = ObjectRef { key: key.into(), bytes: bytes.len() as u64, sha256: sha256_hex(&bytes) };
    out.put(key, bytes).await?;
    Ok(object)
}
