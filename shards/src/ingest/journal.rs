//! What an unfinished ingest leaves at its destination, so that it can go on after it was killed.
//!
//! `ingest/plan.json` is put first, if absent: the options and a digest of the inputs. After each data
//! file comes `ingest/<n>.parquet` (its rows of the index) and then `ingest/<n>.json` (the file, the
//! ledger so far, where to go on). All are removed once dataset.json is there.

use super::{Input, Options};
use crate::{
    Error, Result,
    format::{ClipMeta, DataFile, decode_index, encode_index},
    ledger::LedgerEntry,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use storage::{Location, PutOutcome, hex, sha256_hex};

const FOLDER: &str = "ingest";
const PLAN_KEY: &str = "ingest/plan.json";
/// Raised where the same options give other bytes than before: an older half-finished ingest is not continued.
const REVISION: u32 = 1;

/// The whole of what decides a dataset's bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub revision: u32,
    /// Options as the manifest records them.
    pub options: serde_json::Value,
    pub inputs: u64,
    /// SHA-256 over every input's source, size, labels, split and cut, and the label names.
    pub inputs_sha256: String,
}

/// Where to go on: clip `piece` of input `input` is the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub input: u64,
    pub piece: u32,
}

/// What is recorded after each data file.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub file: DataFile,
    pub clips: Vec<ClipMeta>,
    /// Ledger entries since the record before.
    pub ledger: Vec<LedgerEntry>,
    pub next: Position,
}

#[derive(Serialize, Deserialize)]
struct StoredRecord {
    file: DataFile,
    clips_sha256: String,
    ledger: Vec<LedgerEntry>,
    next: Position,
}

impl Plan {
    /// The plan of these inputs under these options.
    pub fn new(options: &Options, inputs: &[Input], labels: &[String]) -> Self {
        let mut hash = Sha256::new();
        let mut field = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        labels.iter().for_each(|l| field(l));
        for i in inputs {
            field(&format!("{:?} {:?} {} {:?}", i.labels, i.cut, i.bytes, i.split));
            field(&i.source);
        }
        Self {
            revision: REVISION,
            options: options.to_json(),
            inputs: inputs.len() as u64,
            inputs_sha256: hex(&hash.finalize()),
        }
    }

    /// SHA-256 of the plan, hex: two ingests of the same digest write the same bytes.
    pub fn digest(&self) -> String {
        sha256_hex(&self.to_bytes())
    }

    fn to_bytes(&self) -> Vec<u8> {
        // Maps of strings and numbers always serialize.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Claims the destination for this plan, or finds it claimed by the same one.
    ///
    /// # Errors
    /// Another plan is at work there.
    pub async fn claim(&self, location: &Location) -> Result<()> {
        let ours = self.to_bytes();
        if location.put_if_absent(PLAN_KEY, ours.clone()).await? == PutOutcome::Created {
            return Ok(());
        }
        let theirs = location.get(PLAN_KEY).await?;
        if theirs == ours {
            return Ok(());
        }
        let differs = match serde_json::from_slice::<Plan>(&theirs) {
            Ok(other) => self.difference(&other),
            Err(_) => "its plan cannot be read".into(),
        };
        Err(Error::Usage(format!(
            "ingest into {}: an unfinished ingest with other arguments is there ({differs}); \
             repeat it with its own arguments, or choose or empty another place",
            location.url()
        )))
    }

    /// What distinguishes another plan from this one, in words.
    pub fn difference(&self, other: &Plan) -> String {
        if let (Some(ours), Some(theirs)) = (self.options.as_object(), other.options.as_object()) {
            let changed = |k: &&String| ours.get(*k) != theirs.get(*k);
            if let Some(key) = ours.keys().chain(theirs.keys()).find(changed) {
                let show = |v: Option<&serde_json::Value>| v.map_or("absent".into(), |v| v.to_string());
                return format!("{key} was {}, now {}", show(theirs.get(key)), show(ours.get(key)));
            }
        }
        if self.inputs != other.inputs {
            return format!("it had {} inputs, now {}", other.inputs, self.inputs);
        }
        if self.inputs_sha256 != other.inputs_sha256 {
            return "its videos or labels were others".into();
        }
        format!("its revision was {}, now {}", other.revision, self.revision)
    }
}

impl Record {
    /// Makes data file `n` count.
    ///
    /// # Errors
    /// The store's own.
    pub async fn put(&self, location: &Location, n: usize) -> Result<()> {
        let clips =
            encode_index(&self.clips).map_err(|e| Error::Stopped(format!("record a data file: {e}")))?;
        let stored = StoredRecord {
            file: self.file.clone(),
            clips_sha256: sha256_hex(&clips),
            ledger: self.ledger.clone(),
            next: self.next,
        };
        let text = serde_json::to_vec_pretty(&stored)
            .map_err(|e| Error::Stopped(format!("record a data file: {e}")))?;
        location.put(&format!("{FOLDER}/{n:05}.parquet"), clips).await?;
        location.put(&format!("{FOLDER}/{n:05}.json"), text).await?;
        Ok(())
    }

    /// Record `n`, if it was made.
    ///
    /// # Errors
    /// The store's own, or a damaged record.
    pub async fn get(location: &Location, n: usize) -> Result<Option<Self>> {
        let key = format!("{FOLDER}/{n:05}.json");
        let damaged = |key: &str, why: String| Error::Damaged { url: location.url_of(key), why };
        let Some(text) = location.get_opt(&key).await? else { return Ok(None) };
        let stored: StoredRecord = serde_json::from_slice(&text).map_err(|e| damaged(&key, e.to_string()))?;
        let key = format!("{FOLDER}/{n:05}.parquet");
        let bytes = location.get(&key).await?;
        if sha256_hex(&bytes) != stored.clips_sha256 {
            return Err(damaged(&key, "its SHA-256 is not the recorded one".into()));
        }
        let clips = decode_index(bytes).map_err(|why| damaged(&key, why))?.to_rows();
        Ok(Some(Self { file: stored.file, clips, ledger: stored.ledger, next: stored.next }))
    }
}

/// Removes all traces of the ingest, the plan last. What an interrupted removal left goes the next time.
///
/// # Errors
/// The store's own.
pub async fn clear(location: &Location) -> Result<()> {
    for object in location.list(FOLDER).await? {
        if object.key != PLAN_KEY {
            location.delete(&object.key).await?;
        }
    }
    location.delete(PLAN_KEY).await?;
    Ok(())
}
