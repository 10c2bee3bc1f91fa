//! Every byte of a dataset against its digests: names the file, clip and run that are damaged.

use crate::{
    Error, Result,
    format::{ClipMeta, DataFile, Dataset, crc32c},
    ledger::decode_ledger,
    writer::payload_ends,
};
use arrow::array::AsArray;
use bytes::Bytes;
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
use storage::{Location, sha256_hex};

/// Damaged clips told of one file; the rest are counted.
const TOLD: usize = 20;

/// What was looked at and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub files: u64,
    pub clips: u64,
    pub bytes: u64,
    /// One line each: what is damaged and how. Empty: all is well.
    pub damage: Vec<String>,
}

/// Checks a whole dataset, one data file in memory at a time. `progress` gets bytes done and in all.
///
/// # Errors
/// No dataset there, a newer format, or a store that fails. Damage is no error but a [`Verdict`].
pub async fn verify(location: &Location, progress: &mut dyn FnMut(u64, u64)) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let dataset = match Dataset::open(location).await {
        Ok(d) => d,
        Err(e) if e.is_damage() => {
            verdict.damage.push(e.to_string());
            return Ok(verdict);
        }
        Err(e) => return Err(e),
    };
    verdict.damage.extend(check_ledger(&dataset).await?);
    let total = dataset.manifest.totals.bytes;
    progress(0, total);
    let mut of_file: Vec<Vec<ClipMeta>> = vec![vec![]; dataset.manifest.files.len()];
    for clip in dataset.clips.iter() {
        of_file[clip.file as usize].push(clip.to_meta());
    }
    for (file, clips) in dataset.manifest.files.iter().zip(of_file) {
        let url = location.url_of(&file.key);
        let found = match location.get(&file.key).await {
            Ok(bytes) => {
                let file = file.clone();
                let count = clips.len();
                // A panic in the Parquet decoder becomes a finding here.
                let checked = tokio::task::spawn_blocking(move || check_file(&bytes, &file, &clips)).await;
                verdict.clips += count as u64;
                checked.unwrap_or_else(|e| vec![format!("the check of it failed ({e})")])
            }
            Err(e) if e.is_not_found() => vec![format!("it is missing, with {} clips", clips.len())],
            Err(e) => return Err(e.into()),
        };
        verdict.damage.extend(found.into_iter().map(|what| format!("{url}: {what}")));
        verdict.files += 1;
        verdict.bytes += file.bytes;
        progress(verdict.bytes, total);
    }
    Ok(verdict)
}

async fn check_ledger(dataset: &Dataset) -> Result<Option<String>> {
    let ledger = &dataset.manifest.ledger;
    let url = dataset.location.url_of(&ledger.key);
    let what = match dataset.location.get_opt(&ledger.key).await.map_err(Error::from)? {
        None => Some("it is missing".into()),
        Some(bytes) => whole(&bytes, ledger.bytes, &ledger.sha256).or_else(|| decode_ledger(bytes).err()),
    };
    Ok(what.map(|what| format!("{url}: {what}")))
}

/// Size and SHA-256.
fn whole(bytes: &[u8], size: u64, sha256: &str) -> Option<String> {
    if bytes.len() as u64 != size {
        return Some(format!("it has {} bytes, not {size}", bytes.len()));
    }
    let found = sha256_hex(bytes);
    (found != sha256).then(|| format!("its SHA-256 is {found}, not {sha256}"))
}

fn check_file(bytes: &Bytes, file: &DataFile, clips: &[ClipMeta]) -> Vec<String> {
    let mut found: Vec<String> = whole(bytes, file.bytes, &file.sha256).into_iter().collect();
    let mut broken = Vec::new();
    for clip in clips {
        for run in 0..clip.run_crcs.len() {
            let at = clip.view().run_bytes(run as u32..run as u32 + 1);
            let range = (clip.offset + at.start) as usize..(clip.offset + at.end) as usize;
            let why = match bytes.get(range) {
                None => "it is cut off".into(),
                Some(b) if crc32c(b) != clip.run_crcs[run] => {
                    format!("its CRC32C is {:08x}, not {:08x}", crc32c(b), clip.run_crcs[run])
                }
                Some(_) => continue,
            };
            broken.push(format!("clip {:?}, run {run}: {why}", clip.clip_id));
        }
    }
    let more = broken.len().saturating_sub(TOLD);
    let runs_hold = broken.is_empty();
    found.extend(broken.into_iter().take(TOLD));
    if more > 0 {
        found.push(format!("and {more} more runs"));
    }
    if let Err(why) = check_parquet(bytes, clips) {
        found.push(why);
    }
    if runs_hold && !found.is_empty() {
        found.push("every run of frames in it is whole; the damage is elsewhere in the file".into());
    }
    found
}

/// The file read as any Parquet reader would, against the index.
fn check_parquet(bytes: &Bytes, clips: &[ClipMeta]) -> std::result::Result<(), String> {
    let metadata = ParquetMetaDataReader::new()
        .with_offset_index_policy(PageIndexPolicy::Required)
        .parse_and_finish(bytes)
        .map_err(|e| format!("its Parquet metadata cannot be read: {e}"))?;
    let ends = payload_ends(&metadata)?;
    let expected: Vec<u64> = clips.iter().map(|c| c.offset + c.bytes).collect();
    if ends != expected {
        return Err("its pages do not lie where the index says".into());
    }
    let unreadable = |e: &dyn std::fmt::Display| format!("its column clip_id cannot be read: {e}");
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).map_err(|e| unreadable(&e))?;
    let only = ProjectionMask::columns(builder.parquet_schema(), ["clip_id"]);
    let mut ids = clips.iter().map(|c| c.clip_id.as_str());
    for batch in builder.with_projection(only).build().map_err(|e| unreadable(&e))? {
        let batch = batch.map_err(|e| unreadable(&e))?;
        let column = batch.columns().first().and_then(|c| c.as_string_opt::<i32>());
        let column = column.ok_or_else(|| unreadable(&"it is no text"))?;
        // A merge may have put a prefix and a slash before the file's own ids.
        let same = |own: Option<&str>, id: Option<&str>| match (own, id) {
            (Some(own), Some(id)) => id.strip_suffix(own).is_some_and(|p| p.is_empty() || p.ends_with('/')),
            _ => false,
        };
        if column.iter().any(|own| !same(own, ids.next())) {
            return Err("its clips are not those of the index".into());
        }
    }
    Ok(())
}
