//! An index made up from a few numbers, for a dataset that does not exist yet.

use crate::format::{
    ClipMeta, Clips, Codec, DataFile, Dataset, FORMAT, Manifest, ObjectRef, RUN_FRAMES, Totals, VERSION,
    run_count,
};
use crate::{Error, Result};
use std::sync::Arc;
use storage::Location;

/// Clips that are all alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Synthetic {
    pub clips: u32,
    /// Frames of each.
    pub frames: u32,
    /// Frames a second.
    pub fps: f64,
    /// Bytes of a stored frame.
    pub frame_bytes: u64,
    /// Bytes of a data file, about.
    pub file_bytes: u64,
}

/// A dataset of one split, `split`, that can be planned and sampled but not read.
///
/// # Errors
/// A number that is 0.
pub fn synthetic(spec: &Synthetic, split: &str) -> Result<Dataset> {
    let Synthetic { clips: count, frames, fps, frame_bytes, file_bytes } = *spec;
    if count == 0 || frames == 0 || frame_bytes == 0 || !(fps.is_finite() && fps > 0.0) {
        return Err(Error::Usage("simulate clips without number, frames, bytes or frame rate".into()));
    }
    let too_large =
        || Error::Usage(format!("simulate clips of {frames} x {frame_bytes} bytes: 2^32 is the most"));
    let bytes = u64::from(frames).checked_mul(frame_bytes).filter(|b| u32::try_from(*b).is_ok());
    let bytes = bytes.ok_or_else(too_large)?;
    let ends = |run: u32| (run * RUN_FRAMES).min(frames) * frame_bytes as u32;
    let run_offsets: Vec<u32> = (0..=run_count(frames)).map(ends).collect();
    let a_file = (file_bytes / bytes).max(1);
    let split: Arc<str> = split.into();
    let clip = |number: u32| ClipMeta {
        clip_id: String::new(),
        source: String::new(),
        start_s: 0.0,
        label: None,
        labels: Vec::new(),
        split: split.clone(),
        file: (u64::from(number) / a_file) as u32,
        offset: u64::from(number) % a_file * bytes,
        bytes,
        num_frames: frames,
        fps,
        // Which frames are shown does not depend on their size.
        width: 16_384,
        height: 16_384,
        run_offsets: run_offsets.clone(),
        run_crcs: vec![0; run_offsets.len() - 1],
    };
    let mut clips = Clips::default();
    for number in 0..count {
        clips.push(clip(number).view()).map_err(Error::Stopped)?;
    }
    let nothing = |key: &str| ObjectRef { key: key.into(), bytes: 0, sha256: String::new() };
    let file = |number: u64| {
        let rows = a_file.min(u64::from(count) - number * a_file);
        let key = format!("data/{number}.parquet");
        DataFile { key, bytes: rows * bytes, etag: None, sha256: String::new(), rows }
    };
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        codec: Codec::Jpeg,
        quality: None,
        totals: Totals {
            clips: count.into(),
            frames: u64::from(count) * u64::from(frames),
            bytes: u64::from(count) * bytes,
            skipped: 0,
        },
        labels: Vec::new(),
        splits: [(split.to_string(), u64::from(count))].into(),
        files: (0..u64::from(count).div_ceil(a_file)).map(file).collect(),
        index: nothing("index.parquet"),
        ledger: nothing("ledger.parquet"),
        ingest: serde_json::Value::Null,
    };
    Ok(Dataset { manifest, digest: format!("{spec:?}"), clips, location: Location::parse("/nowhere")? })
}
