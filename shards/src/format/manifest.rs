//! dataset.json: what the dataset holds, and the digests of all its parts. Written last, once.

use super::{Clip, Clips, RUN_FRAMES, run_count};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The `format` of every manifest.
pub const FORMAT: &str = "marey-clips";
/// The newest format version this program reads, and the one it writes.
pub const VERSION: u32 = 1;
/// Sides beyond this are no video: refused before any pixel is allocated.
const MAX_SIDE: u32 = 16_384;

/// How frames are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// One JPEG a frame.
    Jpeg,
    /// RGB8, (T, H, W, 3).
    Raw,
}

/// Sums over the dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub clips: u64,
    pub frames: u64,
    /// Bytes of all data files.
    pub bytes: u64,
    /// Inputs left out; the ledger says why.
    pub skipped: u64,
}

/// One data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Relative to the dataset.
    pub key: String,
    pub bytes: u64,
    #[serde(default)]
    pub etag: Option<String>,
    /// Lower-case hex.
    pub sha256: String,
    /// Clips in it.
    pub rows: u64,
}

/// One other object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Relative to the dataset.
    pub key: String,
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// dataset.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    pub codec: Codec,
    /// JPEG quality, 1..=100; absent for raw.
    #[serde(default)]
    pub quality: Option<u8>,
    pub totals: Totals,
    /// Names of the labels; the place is the label id.
    pub labels: Vec<String>,
    /// Clips of each split.
    pub splits: BTreeMap<String, u64>,
    pub files: Vec<DataFile>,
    pub index: ObjectRef,
    pub ledger: ObjectRef,
    /// The options of the ingest that wrote it, for people.
    #[serde(default)]
    pub ingest: serde_json::Value,
}

impl Manifest {
    /// Parses and checks the bytes of dataset.json; `url` is for messages.
    ///
    /// # Errors
    /// Not JSON, another format, a newer version, or contents that contradict each other.
    pub fn parse(bytes: &[u8], url: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Header {
            format: String,
            version: u64,
        }
        let damaged = |why: String| Error::Damaged { url: url.into(), why };
        let header: Header = serde_json::from_slice(bytes)
            .map_err(|e| damaged(format!("it is no manifest of clips ({e})")))?;
        if header.format != FORMAT {
            return Err(damaged(format!("its format is {:?}, not {FORMAT:?}", header.format)));
        }
        if header.version > u64::from(VERSION) {
            return Err(Error::NewerVersion { url: url.into(), found: header.version, known: VERSION });
        }
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|e| damaged(format!("it is no manifest of clips ({e})")))?;
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// The bytes of dataset.json.
    ///
    /// # Errors
    /// A manifest that its own reader would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check().map_err(Error::Stopped)?;
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Stopped(format!("write the dataset's manifest: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The ids of labels, given by name for the option `option`.
    ///
    /// # Errors
    /// A name that no label has: with the nearest that one has.
    pub fn label_ids(&self, option: &str, names: &[String]) -> Result<Vec<i32>> {
        let id = |name: &String| match self.labels.iter().position(|label| label == name) {
            Some(id) => Ok(id as i32),
            None => {
                let near = self.labels.iter().map(|label| (strsim::jaro_winkler(name, label), label));
                let near = near.max_by(|a, b| a.0.total_cmp(&b.0));
                let hint = near.map_or(String::new(), |(_, label)| format!("; did you mean {label:?}?"));
                Err(Error::Usage(format!("understand {option}: the dataset has no label {name:?}{hint}")))
            }
        };
        names.iter().map(id).collect()
    }

    /// Checks that every clip of the index lies where the manifest's files are, and is whole.
    /// Afterwards no offset, length or count of a clip needs a check before it is used.
    pub fn check_clips(&self, clips: &Clips) -> std::result::Result<(), String> {
        if clips.len() as u64 != self.totals.clips {
            return Err(format!("it has {} clips, the manifest {}", clips.len(), self.totals.clips));
        }
        let mut rows = vec![0u64; self.files.len()];
        let mut splits: BTreeMap<&str, u64> = BTreeMap::new();
        for (row, clip) in clips.iter().enumerate() {
            self.check_clip(clip).map_err(|why| format!("row {row}, clip {:?}: {why}", clip.clip_id))?;
            rows[clip.file as usize] += 1;
            *splits.entry(clip.split).or_default() += 1;
        }
        if let Some(i) = (0..rows.len()).find(|&i| rows[i] != self.files[i].rows) {
            return Err(format!(
                "it has {} clips of {}, not {}",
                rows[i], self.files[i].key, self.files[i].rows
            ));
        }
        let listed = self.splits.iter().filter(|(_, n)| **n > 0).map(|(s, n)| (s.as_str(), *n)).collect();
        if splits != listed {
            return Err(format!("its splits are {splits:?}, the manifest's {listed:?}"));
        }
        Ok(())
    }

    fn check_clip(&self, clip: Clip) -> std::result::Result<(), String> {
        let file = self.files.get(clip.file as usize).ok_or(format!("there is no file {}", clip.file))?;
        let end = clip.offset.checked_add(clip.bytes);
        if end.is_none_or(|end| end > file.bytes) {
            return Err(format!("{}+{} lies beyond {} ({})", clip.offset, clip.bytes, file.key, file.bytes));
        }
        if clip.num_frames == 0 {
            return Err("it has no frames".into());
        }
        if !(1..=MAX_SIDE).contains(&clip.width) || !(1..=MAX_SIDE).contains(&clip.height) {
            return Err(format!("its size is {}x{}", clip.width, clip.height));
        }
        if !(clip.fps.is_finite() && clip.fps > 0.0) {
            return Err(format!("its frame rate is {}", clip.fps));
        }
        let named = |l: &i32| usize::try_from(*l).is_ok_and(|l| l < self.labels.len());
        if let Some(label) = clip.label.iter().chain(clip.labels).find(|l| !named(l)) {
            return Err(format!("its label {label} has no name"));
        }
        let runs = run_count(clip.num_frames) as usize;
        let offsets = clip.run_offsets;
        if offsets.len() != runs + 1 || clip.run_crcs.len() != runs {
            let (o, c) = (offsets.len(), clip.run_crcs.len());
            return Err(format!(
                "{} frames are {runs} runs, but it lists {o} offsets and {c} CRCs",
                clip.num_frames
            ));
        }
        if offsets[0] != 0
            || u64::from(offsets[runs]) != clip.bytes
            || offsets.windows(2).any(|w| w[0] >= w[1])
        {
            return Err("its runs do not cover its bytes in order".into());
        }
        if self.codec == Codec::Raw {
            let frame = u64::from(clip.width) * u64::from(clip.height) * 3;
            let whole = |i: usize| frame * u64::from(clip.num_frames).min(i as u64 * u64::from(RUN_FRAMES));
            if (0..=runs).any(|i| u64::from(offsets[i]) != whole(i)) {
                return Err(format!("its runs are not {} raw frames of {frame} bytes", clip.num_frames));
            }
        }
        Ok(())
    }

    fn check(&self) -> std::result::Result<(), String> {
        let keys = self.files.iter().map(|f| &f.key).chain([&self.index.key, &self.ledger.key]);
        for key in keys {
            if key.is_empty() || key.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
                return Err(format!("the key {key:?} leads out of the dataset"));
            }
        }
        if self.version == 0 {
            return Err("its version is 0".into());
        }
        let total = |what: &str, parts: Option<u64>, whole: u64| match parts {
            Some(n) if n == whole => Ok(()),
            _ => Err(format!("its {what} do not sum to the total {whole}")),
        };
        let sum = |mut it: Box<dyn Iterator<Item = u64> + '_>| it.try_fold(0u64, u64::checked_add);
        total("splits", sum(Box::new(self.splits.values().copied())), self.totals.clips)?;
        total("files' rows", sum(Box::new(self.files.iter().map(|f| f.rows))), self.totals.clips)?;
        total("files' bytes", sum(Box::new(self.files.iter().map(|f| f.bytes))), self.totals.bytes)?;
        if self.totals.clips > u64::from(u32::MAX) {
            return Err("it has more than 2^32 clips".into());
        }
        Ok(())
    }
}
