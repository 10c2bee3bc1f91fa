//! What is in a dataset, for people and for scripts, and contact sheets of its clips.

use crate::{
    Error, Result,
    format::{Clip, Codec, Dataset, RUN_FRAMES, Totals, crc32c, run_count, run_frames, split_run},
    ledger::{Action, decode_ledger},
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write};
use storage::Location;

/// Frames on a contact sheet at most, and in a row of it.
const SHEET_FRAMES: u32 = 16;
const SHEET_COLUMNS: u32 = 4;
/// Longest side of a picture on the sheet, about, and the space between pictures.
const SHEET_SIDE: u32 = 480;
const SHEET_GAP: u32 = 4;
/// Rows of a table that are printed; the rest is counted.
const ROWS: usize = 40;
const EXAMPLES: usize = 3;
const BAR: u64 = 40;

/// A dataset summed up.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub url: String,
    pub digest: String,
    pub version: u32,
    pub codec: Codec,
    pub quality: Option<u8>,
    pub totals: Totals,
    /// Playing time of all clips.
    pub hours: f64,
    pub files: usize,
    pub splits: BTreeMap<String, u64>,
    /// Each label with its clips, by label id. Clips of several labels count for each.
    pub labels: Vec<Count>,
    pub unlabelled: u64,
    /// Width x height, most frequent first.
    pub resolutions: Vec<Count>,
    /// Frames a second, most frequent first.
    pub frame_rates: Vec<Count>,
    /// Shortest, median and longest clip, frames.
    pub clip_frames: [u32; 3],
    pub ledger: Vec<LedgerGroup>,
    pub ingest: serde_json::Value,
}

/// A value and the clips that have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    pub name: String,
    pub clips: u64,
}

/// Inputs that share what became of them and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerGroup {
    pub action: Action,
    pub reason: String,
    pub inputs: u64,
    /// A few of them: source and detail.
    pub examples: Vec<(String, String)>,
}

/// Sums up the dataset at `location`.
///
/// # Errors
/// No dataset there, a damaged one, or the store's own.
pub async fn inspect(location: &Location) -> Result<Report> {
    let dataset = Dataset::open(location).await?;
    let m = &dataset.manifest;
    let url = location.url_of(&m.ledger.key);
    let ledger =
        decode_ledger(location.get(&m.ledger.key).await?).map_err(|why| Error::Damaged { url, why })?;
    let mut groups: BTreeMap<(Action, String), LedgerGroup> = BTreeMap::new();
    for e in ledger {
        let group = groups.entry((e.action, e.reason.clone())).or_insert_with(|| LedgerGroup {
            action: e.action,
            reason: e.reason,
            inputs: 0,
            examples: vec![],
        });
        group.inputs += 1;
        if group.examples.len() < EXAMPLES {
            group.examples.push((e.source, e.detail));
        }
    }
    let clips = &dataset.clips;
    let mut labels: Vec<Count> = m.labels.iter().map(|l| Count { name: l.clone(), clips: 0 }).collect();
    for label in clips.iter().flat_map(|c| c.labels) {
        if let Some(count) = usize::try_from(*label).ok().and_then(|l| labels.get_mut(l)) {
            count.clips += 1;
        }
    }
    let mut lengths: Vec<u32> = clips.iter().map(|c| c.num_frames).collect();
    lengths.sort_unstable();
    let length = |i: usize| lengths.get(i).copied().unwrap_or(0);
    Ok(Report {
        url: location.url().into(),
        digest: dataset.digest.clone(),
        version: m.version,
        codec: m.codec,
        quality: m.quality,
        totals: m.totals,
        hours: clips.iter().map(|c| f64::from(c.num_frames) / c.fps).sum::<f64>() / 3600.0,
        files: m.files.len(),
        splits: m.splits.clone(),
        labels,
        unlabelled: clips.iter().filter(|c| c.label.is_none()).count() as u64,
        resolutions: counted(clips.iter().map(|c| format!("{}x{}", c.width, c.height))),
        frame_rates: counted(clips.iter().map(|c| format!("{:.3}", c.fps))),
        clip_frames: [length(0), length(lengths.len() / 2), length(lengths.len().saturating_sub(1))],
        ledger: groups.into_values().collect(),
        ingest: m.ingest.clone(),
    })
}

impl Report {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut t = String::new();
        let quality = self.quality.map_or(String::new(), |q| format!(", quality {q}"));
        let codec = match self.codec {
            Codec::Jpeg => "JPEG",
            Codec::Raw => "raw RGB",
        };
        let Totals { clips, frames, bytes, skipped } = self.totals;
        let [short, middle, long] = self.clip_frames;
        // Writing to a String cannot fail.
        let _ = writeln!(t, "{}", self.url);
        let _ = writeln!(t, "  digest   {}", self.digest);
        let _ = writeln!(
            t,
            "  clips    {clips} ({:.2} hours; {short} to {long} frames, median {middle})",
            self.hours
        );
        let _ = writeln!(t, "  frames   {frames} in {codec}{quality}");
        let _ = writeln!(t, "  size     {} in {} files", size(bytes), self.files);
        let _ = writeln!(t, "  skipped  {skipped} inputs");
        let splits: Vec<Count> =
            self.splits.iter().map(|(name, &clips)| Count { name: name.clone(), clips }).collect();
        table(&mut t, "splits", &splits);
        let mut labels = self.labels.clone();
        if self.unlabelled > 0 {
            labels.push(Count { name: "(unlabelled)".into(), clips: self.unlabelled });
        }
        table(&mut t, "labels", &labels);
        table(&mut t, "resolutions", &self.resolutions);
        table(&mut t, "frame rates", &self.frame_rates);
        if !self.ledger.is_empty() {
            let _ = writeln!(t, "\nledger");
        }
        for g in &self.ledger {
            let _ = writeln!(t, "  {} {}: {}", g.inputs, g.action.as_str(), g.reason);
            for (source, detail) in &g.examples {
                let _ = writeln!(t, "    {source}: {detail}");
            }
            if g.inputs > g.examples.len() as u64 {
                let _ = writeln!(t, "    and {} more", g.inputs - g.examples.len() as u64);
            }
        }
        t
    }
}

/// A PNG of up to 16 frames of a clip, evenly spread from its first to its last, row by row.
///
/// # Errors
/// No such clip (with the nearest id), damaged frames, or the store's own.
pub async fn contact_sheet(location: &Location, clip_id: &str) -> Result<Vec<u8>> {
    let dataset = Dataset::open(location).await?;
    let Some(clip) = dataset.clips.iter().find(|c| c.clip_id == clip_id) else {
        let near = dataset.clips.iter().map(|c| (strsim::jaro_winkler(clip_id, c.clip_id), c.clip_id));
        let near = near
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(String::new(), |(_, id)| format!("; the nearest is {id}"));
        return Err(Error::Usage(format!(
            "draw the clip {clip_id:?} of {}: there is none{near}",
            location.url()
        )));
    };
    let frames = frames_of(&dataset, clip).await?;
    draw(clip, &frames).map_err(|why| Error::Stopped(format!("draw the clip {clip_id:?}: {why}")))
}

/// The sheet's frames, RGB8.
async fn frames_of(dataset: &Dataset, clip: Clip<'_>) -> Result<Vec<Vec<u8>>> {
    let n = clip.num_frames.min(SHEET_FRAMES);
    let place = |i: u32| {
        if n < 2 { 0 } else { (u64::from(i) * u64::from(clip.num_frames - 1) / u64::from(n - 1)) as u32 }
    };
    let wanted: Vec<u32> = (0..n).map(place).collect();
    let codec = dataset.manifest.codec;
    let key = dataset.file_key(clip);
    let mut frames = Vec::new();
    for run in 0..run_count(clip.num_frames) {
        let mut of_run = wanted.iter().filter(|f| **f / RUN_FRAMES == run).peekable();
        if of_run.peek().is_none() {
            continue;
        }
        let damaged = |why: String| Error::DamagedClip {
            file: dataset.location.url_of(key),
            clip: clip.clip_id.into(),
            run,
            why,
        };
        let at = clip.run_bytes(run..run + 1);
        let bytes = dataset.location.get_range(key, clip.offset + at.start..clip.offset + at.end).await?;
        if crc32c(&bytes) != clip.run_crcs[run as usize] {
            return Err(damaged("its CRC32C is wrong".into()));
        }
        let parts = split_run(codec, &bytes, run_frames(clip.num_frames, run), clip.width, clip.height)
            .map_err(&damaged)?;
        for frame in of_run {
            let stored = &bytes[parts[(frame % RUN_FRAMES) as usize].clone()];
            frames.push(match codec {
                Codec::Raw => stored.to_vec(),
                Codec::Jpeg => {
                    let image = turbojpeg::decompress(stored, turbojpeg::PixelFormat::RGB)
                        .map_err(|e| damaged(e.to_string()))?;
                    if (image.width, image.height, image.pitch)
                        != (clip.width as usize, clip.height as usize, clip.width as usize * 3)
                    {
                        return Err(damaged(format!("a frame is {}x{}", image.width, image.height)));
                    }
                    image.pixels
                }
            });
        }
    }
    Ok(frames)
}

fn draw(clip: Clip<'_>, frames: &[Vec<u8>]) -> std::result::Result<Vec<u8>, String> {
    // Every k-th pixel: a sheet is for a glance.
    let k = clip.width.max(clip.height).div_ceil(SHEET_SIDE);
    let (tile_w, tile_h) = (clip.width.div_ceil(k), clip.height.div_ceil(k));
    let columns = SHEET_COLUMNS.min(frames.len() as u32);
    let rows = (frames.len() as u32).div_ceil(SHEET_COLUMNS);
    let (width, height) =
        (columns * (tile_w + SHEET_GAP) + SHEET_GAP, rows * (tile_h + SHEET_GAP) + SHEET_GAP);
    let mut sheet = vec![40u8; (width * height * 3) as usize];
    for (i, frame) in (0u32..).zip(frames) {
        let left = SHEET_GAP + i % SHEET_COLUMNS * (tile_w + SHEET_GAP);
        let top = SHEET_GAP + i / SHEET_COLUMNS * (tile_h + SHEET_GAP);
        for y in 0..tile_h {
            for x in 0..tile_w {
                let from = ((y * k * clip.width + x * k) * 3) as usize;
                let to = (((top + y) * width + left + x) * 3) as usize;
                sheet[to..to + 3].copy_from_slice(&frame[from..from + 3]);
            }
        }
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(&sheet).map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// Most frequent first; of equals the smaller name.
pub(crate) fn counted(names: impl Iterator<Item = String>) -> Vec<Count> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    names.for_each(|n| *counts.entry(n).or_default() += 1);
    let mut all: Vec<Count> = counts.into_iter().map(|(name, clips)| Count { name, clips }).collect();
    all.sort_by_key(|c| std::cmp::Reverse(c.clips));
    all
}

fn table(t: &mut String, title: &str, rows: &[Count]) {
    if rows.is_empty() {
        return;
    }
    let most = rows.iter().map(|r| r.clips).max().unwrap_or(1).max(1);
    let name = rows.iter().take(ROWS).map(|r| r.name.chars().count()).max().unwrap_or(0).min(40);
    let _ = writeln!(t, "\n{title}");
    for row in rows.iter().take(ROWS) {
        let bar = "#".repeat((row.clips * BAR).div_ceil(most) as usize);
        let _ = writeln!(t, "  {:name$} {:>8} {bar}", row.name, row.clips);
    }
    if rows.len() > ROWS {
        let rest: u64 = rows[ROWS..].iter().map(|r| r.clips).sum();
        let _ = writeln!(t, "  and {} more with {rest} clips", rows.len() - ROWS);
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len() - 1).take_while(|i| bytes >> (10 * (i + 1)) > 0).count();
    match step {
        0 => format!("{bytes} B"),
        _ => format!("{:.1} {}", bytes as f64 / (1u64 << (10 * step)) as f64, units[step]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_tables() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 40), "5.0 TiB");
        let rows = counted(["b", "a", "b"].into_iter().map(String::from));
        assert_eq!(rows[0], Count { name: "b".into(), clips: 2 });
        let mut t = String::new();
        table(&mut t, "labels", &rows);
        assert!(t.contains(&format!("b        2 {}", "#".repeat(40))), "{t}");
        assert!(t.contains(&format!("a        1 {}\n", "#".repeat(20))), "{t}");
    }
}
