//! What an unfinished ingest leaves at its destination, so that it can go on after it was killed, and so
//! that several machines can each do a part of it.
//!
//! `ingest/plan.json` is put first, if absent: options, a digest of the inputs, the number of parts. Each
//! part then grows a log, `ingest/<part>/<n>.json`, one record a data file: the file, the ledger so far,
//! where to go on; its rows of the index lie beside it. `ingest/<part>/done.json` ends the log. Records are
//! put if absent, and files are named after their contents: two machines that do the same part cannot
//! spoil each other's work, the one that finds its record taken goes on from there.
//! All are removed once dataset.json is there.

use super::{Found, Options};
use crate::{
    Error, Result,
    format::{CLAIM_KEY, ClipMeta, Codec, DataFile, decode_index, encode_index},
    ledger::LedgerEntry,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use std::{fmt, ops::Range, str::FromStr};
use storage::{Location, PutOutcome, hex, sha256_hex};

const FOLDER: &str = "ingest";
/// Raised where the same options give other bytes than before: an older half-finished ingest is not continued.
const REVISION: u32 = 2;
/// More parts than this are taken for a mistake.
const MOST_PARTS: u32 = 10_000;

/// The whole of what decides a dataset's clips.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub revision: u32,
    /// Options as the manifest records them.
    pub options: serde_json::Value,
    pub inputs: u64,
    /// SHA-256 over every input's source, size, labels, split and cut, and the label names.
    pub inputs_sha256: String,
}

/// One machine's share of an ingest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1 on.
    number: u32,
    of: u32,
}

/// `ingest/plan.json`: the plan, and what finishing needs to know of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub plan: Plan,
    pub parts: u32,
    pub codec: Codec,
    /// JPEG quality; absent for raw.
    pub quality: Option<u8>,
    pub labels: Vec<String>,
}

/// Where to go on: clip `piece` of input `input` of the part is the next.
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

/// `done.json`: the part is through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Records, thus data files, of the part.
    pub records: u32,
    /// Ledger entries after the last record.
    pub ledger: Vec<LedgerEntry>,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct StoredRecord {
    file: DataFile,
    /// Key of the rows, and their SHA-256.
    clips: String,
    clips_sha256: String,
    ledger: Vec<LedgerEntry>,
    next: Position,
}

impl Part {
    /// All of it.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// Part `number`, from 1 on, of `of`; `None` where there is no such part.
    pub fn new(number: u32, of: u32) -> Option<Self> {
        ((1..=of).contains(&number) && of <= MOST_PARTS).then_some(Self { number, of })
    }

    /// All parts of a whole.
    pub fn all(of: u32) -> impl Iterator<Item = Self> {
        (1..=of).map(move |number| Self { number, of })
    }

    /// Parts in all.
    pub fn of(self) -> u32 {
        self.of
    }

    /// True for the first.
    pub fn is_first(self) -> bool {
        self.number == 1
    }

    /// The inputs of this part, given all inputs' weights: neighbours, and about as heavy as every other
    /// part. The ranges of all parts in turn are all inputs.
    pub fn range(self, weights: &[u64]) -> Range<usize> {
        // An input without bytes still costs something to open.
        let weight = |w: &u64| u128::from(*w) + 1;
        let total: u128 = weights.iter().map(weight).sum();
        let bound = |k: u32| {
            let until = total * u128::from(k) / u128::from(self.of);
            let mut before = 0;
            let heavier = |w: &u64| {
                before += weight(w);
                before > until
            };
            weights.iter().position(heavier).unwrap_or(weights.len())
        };
        bound(self.number - 1)..bound(self.number)
    }

    /// Key of data file `n` whose bytes have that SHA-256.
    pub fn file_key(self, folder: &str, n: u32, sha256: &str) -> String {
        let (Self { number, of }, short) = (self, &sha256[..sha256.len().min(8)]);
        match of {
            1 => format!("{folder}/{n:05}-{short}.parquet"),
            _ => format!("{folder}/{number}-of-{of}-{n:05}-{short}.parquet"),
        }
    }

    fn key(self, name: &str) -> String {
        format!("{FOLDER}/{:05}/{name}", self.number)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        parts.and_then(|(i, n)| Self::new(i, n)).ok_or(format!(
            "{text:?} is no part; write i/n with i from 1 to n and n up to {MOST_PARTS}, such as 1/4"
        ))
    }
}

impl Plan {
    /// The plan of these inputs under these options.
    pub fn new(options: &Options, found: &Found) -> Self {
        let mut hash = Sha256::new();
        let mut field = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        found.labels.iter().for_each(|l| field(l));
        for i in &found.inputs {
            field(&format!("{:?} {:?} {:?} {} {:?}", i.labels, i.spans, i.cut, i.size, i.split));
            field(&i.source);
            i.media.describe(&mut field);
        }
        found.ledger.iter().for_each(|e| field(&e.source));
        Self {
            revision: REVISION,
            options: options.to_json(),
            inputs: found.inputs.len() as u64,
            inputs_sha256: hex(&hash.finalize()),
        }
    }

    /// SHA-256 of the plan, hex: two ingests of the same digest write the same clips.
    pub fn digest(&self) -> String {
        sha256_hex(&to_json(self))
    }

    /// What distinguishes another plan from this one, in words.
    pub fn difference(&self, other: &Plan) -> String {
        if self.revision != other.revision {
            return format!("an ingest of revision {} wrote it, this is {}", other.revision, self.revision);
        }
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
        "its videos or labels were others".into()
    }
}

impl Claim {
    /// Claims the destination for this ingest, or finds it claimed by the same one.
    ///
    /// # Errors
    /// Another ingest is at work there.
    pub async fn put(&self, location: &Location) -> Result<()> {
        let ours = to_json(self);
        if location.put_if_absent(CLAIM_KEY, ours.clone()).await? == PutOutcome::Created {
            return Ok(());
        }
        let theirs = location.get(CLAIM_KEY).await?;
        if theirs == ours {
            return Ok(());
        }
        let differs = match serde_json::from_slice::<Claim>(&theirs) {
            Ok(other) if other.plan != self.plan => self.plan.difference(&other.plan),
            Ok(other) => format!("it was in {} parts, now {}", other.parts, self.parts),
            Err(_) => "its plan cannot be read".into(),
        };
        Err(Error::Usage(format!(
            "ingest into {}: an unfinished ingest with other arguments is there ({differs}); \
             repeat it with its own arguments, or choose or empty another place",
            location.url()
        )))
    }

    /// The claim at a destination, if there is one.
    ///
    /// # Errors
    /// The store's own, or it cannot be read.
    pub async fn get(location: &Location) -> Result<Option<Self>> {
        get_json(location, CLAIM_KEY).await
    }
}

impl Record {
    /// Makes data file `n` of a part count. False where another machine was first with other contents:
    /// its record stands.
    ///
    /// # Errors
    /// The store's own.
    pub async fn put(&self, location: &Location, part: Part, n: u32) -> Result<bool> {
        let clips =
            encode_index(&self.clips).map_err(|e| Error::Stopped(format!("record a data file: {e}")))?;
        let clips_sha256 = sha256_hex(&clips);
        let stored = StoredRecord {
            file: self.file.clone(),
            clips: part.key(&format!("{n:05}-{}.parquet", &clips_sha256[..8])),
            clips_sha256,
            ledger: self.ledger.clone(),
            next: self.next,
        };
        location.put(&stored.clips, clips).await?;
        let (key, text) = (part.key(&format!("{n:05}.json")), to_json(&stored));
        if location.put_if_absent(&key, text).await? == PutOutcome::Created {
            return Ok(true);
        }
        // Ours already, or another's: the same but for a tag that the store made up is the same.
        let theirs: Option<StoredRecord> = get_json(location, &key).await?;
        Ok(theirs.is_some_and(|mut theirs| {
            theirs.file.etag.clone_from(&stored.file.etag);
            theirs == stored
        }))
    }

    /// Record `n` of a part, if it was made.
    ///
    /// # Errors
    /// The store's own, or a damaged record.
    pub async fn get(location: &Location, part: Part, n: u32) -> Result<Option<Self>> {
        let stored: Option<StoredRecord> = get_json(location, &part.key(&format!("{n:05}.json"))).await?;
        let Some(stored) = stored else { return Ok(None) };
        let damaged = |why: String| Error::Damaged { url: location.url_of(&stored.clips), why };
        let bytes = location.get(&stored.clips).await?;
        if sha256_hex(&bytes) != stored.clips_sha256 {
            return Err(damaged("its SHA-256 is not the recorded one".into()));
        }
        let clips = decode_index(bytes).map_err(damaged)?.to_rows();
        Ok(Some(Self { file: stored.file, clips, ledger: stored.ledger, next: stored.next }))
    }
}

impl Done {
    /// Ends the log of a part; where another machine did so first, its word stands.
    ///
    /// # Errors
    /// The store's own.
    pub async fn put(&self, location: &Location, part: Part) -> Result<()> {
        location.put_if_absent(&part.key("done.json"), to_json(self)).await?;
        Ok(())
    }

    /// The end of a part's log, if it has one.
    ///
    /// # Errors
    /// The store's own, or it cannot be read.
    pub async fn get(location: &Location, part: Part) -> Result<Option<Self>> {
        get_json(location, &part.key("done.json")).await
    }
}

/// Removes all traces of the ingest, the plan last. What an interrupted removal left goes the next time.
///
/// # Errors
/// The store's own.
pub async fn clear(location: &Location) -> Result<()> {
    for object in location.list(FOLDER).await? {
        if object.key != CLAIM_KEY {
            location.delete(&object.key).await?;
        }
    }
    location.delete(CLAIM_KEY).await?;
    Ok(())
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Maps of strings and numbers always serialize.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

async fn get_json<T: DeserializeOwned>(location: &Location, key: &str) -> Result<Option<T>> {
    let Some(text) = location.get_opt(key).await? else { return Ok(None) };
    let damaged = |e: serde_json::Error| Error::Damaged { url: location.url_of(key), why: e.to_string() };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_are_written_as_i_of_n() {
        assert_eq!("2/3".parse::<Part>().unwrap().to_string(), "2/3");
        for bad in ["0/3", "4/3", "3", "1/0", "a/b", "1/99999", "-1/2", "1/2/3", ""] {
            assert!(bad.parse::<Part>().unwrap_err().contains("write i/n"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parts_cover_every_input_once_and_are_even(
            weights in prop::collection::vec(0u64..1000, 0..60),
            of in 1u32..12,
        ) {
            let mut next = 0;
            let all: u64 = weights.iter().map(|w| w + 1).sum();
            for part in Part::all(of) {
                let range = part.range(&weights);
                prop_assert_eq!(range.start, next);
                next = range.end;
                let weight: u64 = weights[range].iter().map(|w| w + 1).sum();
                // Even up to one input.
                prop_assert!(weight <= all / u64::from(of) + 1001);
            }
            prop_assert_eq!(next, weights.len());
        }
    }
}
