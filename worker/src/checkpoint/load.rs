//! Reading a checkpoint back: every byte is verified before it is believed, and a damaged or
//! unfinished one is named and passed over for the one before.

use super::layout::{self, FileEntry, Header, Manifest, Part};
use crate::{Error, Result};
use bytes::Bytes;
use configs::Config;
use futures::{StreamExt, TryStreamExt, stream};
use safetensors::{SafeTensors, tensor::Dtype};
use std::collections::{BTreeMap, HashMap};
use storage::Location;
use tch::{Kind, Tensor};

/// A step's folder that may hold a checkpoint.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Steps done when it was taken.
    pub step: u64,
    /// The step's folder.
    pub folder: Location,
    /// It has a manifest: its writers finished.
    pub complete: bool,
}

/// A whole, verified checkpoint in host memory.
#[derive(Debug)]
pub struct Loaded {
    /// All that the manifest says besides its files.
    pub header: Header,
    /// The step's folder, for messages.
    pub url: String,
    /// Of its files, what this process itself read.
    pub read: Read,
    /// Its manifest is in the run; else the nodes' own copies are all there is of it.
    pub committed: bool,
    pub(super) parts: Parts,
}

/// Bytes that one process has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    pub store: u64,
    /// From its node's own copies.
    pub local: u64,
}

/// A checkpoint's tensors by name, on the CPU; what was not asked for or never saved is empty.
#[derive(Debug, Default)]
pub struct Parts {
    /// The model's state dict.
    pub model: HashMap<String, Tensor>,
    pub optimizer: HashMap<String, Tensor>,
    /// Averaged weights, under the weights' names.
    pub ema: HashMap<String, Tensor>,
}

impl Parts {
    /// Adds the tensors of a file whose bytes were verified.
    pub(super) fn take(&mut self, folder: &Location, file: &FileEntry, bytes: &[u8]) -> Result<()> {
        let wrong = |why: &str| broken(folder, &file.key, why);
        let into = self.of(part_of(folder, file)?);
        for (name, tensor) in tensors_of(bytes).map_err(|why| wrong(&why))? {
            if into.insert(name.clone(), tensor).is_some() {
                return Err(wrong(&format!("{name} is also in another file")));
            }
        }
        Ok(())
    }

    fn of(&mut self, part: Part) -> &mut HashMap<String, Tensor> {
        match part {
            Part::Model => &mut self.model,
            Part::Optimizer => &mut self.optimizer,
            Part::Ema => &mut self.ema,
        }
    }
}

/// The candidates at `location`, newest first: a run's, or the one if it is a `.../step-N` folder.
pub async fn newest(location: &Location) -> Result<Vec<Candidate>> {
    let name = location.url().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if let Some(step) = layout::parse_step(name) {
        let folder = location.clone();
        let complete = folder.get_opt(layout::MANIFEST).await?.is_some();
        return Ok(vec![Candidate { step, folder, complete }]);
    }
    let mut steps: BTreeMap<u64, bool> = BTreeMap::new();
    for object in location.list(layout::CHECKPOINTS).await? {
        let mut parts =
            object.key.trim_start_matches(layout::CHECKPOINTS).trim_start_matches('/').splitn(2, '/');
        if let (Some(step), Some(file)) = (parts.next().and_then(layout::parse_step), parts.next()) {
            *steps.entry(step).or_default() |= file == layout::MANIFEST;
        }
    }
    let candidate =
        |(step, complete)| Candidate { step, folder: location.join(&layout::step_folder(step)), complete };
    Ok(steps.into_iter().rev().map(candidate).collect())
}

/// The checkpoint for a command's `--checkpoint`, without its optimizer state; averaged weights, where
/// there are any, take the place of the last step's. As [`best`], but none is an error.
pub async fn open(location: &Location, log: impl FnMut(String)) -> Result<Loaded> {
    let mut loaded = best(location, &[Part::Model, Part::Ema], log).await?.ok_or_else(|| {
        Error::Usage(format!(
            "find a finished checkpoint at {}: give a run's URL or one of its {}/step-N folders",
            location.url(),
            layout::CHECKPOINTS
        ))
    })?;
    let averaged = std::mem::take(&mut loaded.parts.ema);
    loaded.parts.model.extend(averaged);
    Ok(loaded)
}

/// These `parts` of the newest whole checkpoint at `location`; `None` where none was ever finished. Each one that is
/// passed over goes to `log` with the reason.
///
/// # Errors
/// Where the store fails (that says nothing about the checkpoint), where a newer version of this
/// program wrote the newest one, and where all finished checkpoints are damaged: starting anew
/// without a word would lose the run.
pub async fn best(
    location: &Location,
    parts: &[Part],
    mut log: impl FnMut(String),
) -> Result<Option<Loaded>> {
    let mut damaged = None;
    for candidate in newest(location).await? {
        let url = candidate.folder.url().to_string();
        if !candidate.complete {
            log(never_finished(&url));
            continue;
        }
        match read(&candidate.folder, parts).await {
            Ok(loaded) => return Ok(Some(loaded)),
            Err(Error::Checkpoint { url: file, why }) => {
                log(format!("checkpoint {url} is damaged: {file}: {why}: passed over"));
                damaged.get_or_insert(Error::Checkpoint { url: file, why });
            }
            Err(e) => return Err(e),
        }
    }
    match damaged {
        Some(e) => Err(e),
        None => Ok(None),
    }
}

/// Reads these `parts` of the checkpoint in a step's folder. Length and digest of every file are checked before it is
/// parsed. Whatever is wrong with the checkpoint itself is an [`Error::Checkpoint`].
pub async fn read(folder: &Location, parts: &[Part]) -> Result<Loaded> {
    let manifest = manifest(folder).await?;
    let (mut into, mut read) = (Parts::default(), Read::default());
    for file in &manifest.files {
        if parts.contains(&part_of(folder, file)?) {
            into.take(folder, file, &verified(folder, file).await?)?;
            read.store += file.bytes;
        }
    }
    Ok(Loaded { header: manifest.header, url: folder.url().into(), read, committed: true, parts: into })
}

/// What is said of a step without a manifest.
pub(super) fn never_finished(url: &str) -> String {
    format!("checkpoint {url} was never finished (no {}): passed over", layout::MANIFEST)
}

impl Loaded {
    /// The model's state dict, on the CPU.
    pub fn model_tensors(&self) -> &HashMap<String, Tensor> {
        &self.parts.model
    }

    /// The optimizer's state, on the CPU; empty if it was not asked for.
    pub fn optimizer_tensors(&self) -> &HashMap<String, Tensor> {
        &self.parts.optimizer
    }

    /// Header and tensors, to be consumed.
    pub fn into_parts(self) -> (Header, Parts) {
        (self.header, self.parts)
    }

    /// The configuration of the job that wrote it.
    pub fn config(&self) -> Result<Config> {
        Ok(Config::parse(&format!("the configuration in {}", self.url), &self.header.config_toml, &[])?)
    }

    /// As [`Header::check_model`].
    pub fn check_model(&self, model: &configs::Model, classes: usize) -> Result<()> {
        self.header.check_model(&self.url, model, classes)
    }

    /// As [`Header::check_labels`].
    pub fn check_labels(&self, labels: &[String]) -> Result<()> {
        self.header.check_labels(&self.url, labels)
    }
}

/// The manifest in a step's folder, as far as it can be checked without its files.
pub(super) async fn manifest(folder: &Location) -> Result<Manifest> {
    let damaged = |why: String| broken(folder, layout::MANIFEST, &why);
    let Some(bytes) = folder.get_opt(layout::MANIFEST).await? else {
        return Err(damaged("it does not exist: the checkpoint was never finished".into()));
    };
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| damaged(format!("it is no JSON: {e}")))?;
    if value["format"] != layout::FORMAT {
        return Err(damaged(format!("its format is {}, not {:?}", value["format"], layout::FORMAT)));
    }
    if value["version"].as_u64().is_some_and(|v| v > u64::from(layout::VERSION)) {
        return Err(Error::Usage(format!(
            "read {}: it has version {}, and this program reads up to {}; use a newer marey",
            folder.url_of(layout::MANIFEST),
            value["version"],
            layout::VERSION
        )));
    }
    let manifest: Manifest =
        serde_json::from_value(value).map_err(|e| damaged(format!("a field is missing or wrong: {e}")))?;
    let ranks = manifest.header.world_size as usize;
    let imported = manifest.header.dataset_digest == layout::NO_DATASET;
    for part in Part::ALL {
        let files = manifest.files.iter().filter(|f| layout::part_of(&f.key) == Some(part)).count();
        let never_saved = files == 0 && (part == Part::Ema || (part == Part::Optimizer && imported));
        if files != ranks && !never_saved {
            return Err(damaged(format!("{files} {part:?} files are listed; {ranks} ranks write one each")));
        }
    }
    Ok(manifest)
}

/// The object's bytes, after its length and digest were found right.
pub(super) async fn verified(folder: &Location, file: &FileEntry) -> Result<Bytes> {
    let wrong = |why: String| broken(folder, &file.key, &why);
    let gone = |e: storage::Error| match e.is_not_found() {
        true => wrong("the file is gone".into()),
        false => e.into(),
    };
    let (length, _) = folder.head(&file.key).await.map_err(gone)?;
    if length != file.bytes {
        return Err(wrong(format!("it has {length} bytes instead of {}", file.bytes)));
    }
    let bytes = fetch(folder, file).await.map_err(gone)?;
    let expected = file.sha256.clone();
    let (bytes, digest) = tokio::task::spawn_blocking(move || {
        let digest = storage::sha256_hex(&bytes);
        (bytes, digest)
    })
    .await
    .map_err(|e| wrong(format!("its digest was not finished: {e}")))?;
    if digest != expected {
        return Err(wrong(format!("its SHA-256 is {digest} instead of {expected}")));
    }
    Ok(bytes)
}

fn part_of(folder: &Location, file: &FileEntry) -> Result<Part> {
    layout::part_of(&file.key)
        .ok_or_else(|| broken(folder, &file.key, "the manifest names a file that is none of a checkpoint's"))
}

/// A large object in ranges, a few at a time: no single request outlives the client's time limit.
async fn fetch(folder: &Location, file: &FileEntry) -> storage::Result<Bytes> {
    const PIECE: u64 = 32 << 20;
    if file.bytes <= PIECE {
        return folder.get(&file.key).await;
    }
    let starts = (0..file.bytes).step_by(PIECE as usize);
    let mut pieces = stream::iter(starts)
        .map(|at| folder.get_range(&file.key, at..(at + PIECE).min(file.bytes)))
        .buffered(4);
    let mut all = Vec::with_capacity(file.bytes as usize);
    while let Some(piece) = pieces.try_next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

/// The tensors of a safetensors file, on the CPU; an error says in words what is wrong with the bytes.
pub fn tensors_of(bytes: &[u8]) -> std::result::Result<Vec<(String, Tensor)>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| format!("it is no safetensors file: {e}"))?;
    let mut tensors = vec![];
    for (name, view) in file.iter() {
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let kind = kind_of(view.dtype()).ok_or_else(|| format!("{name} has the type {:?}", view.dtype()))?;
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)
            .map_err(|e| format!("{name} is unusable: {e}"))?;
        tensors.push((name.to_string(), tensor));
    }
    Ok(tensors)
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

fn broken(folder: &Location, key: &str, why: &str) -> Error {
    Error::Checkpoint { url: folder.url_of(key), why: why.into() }
}
