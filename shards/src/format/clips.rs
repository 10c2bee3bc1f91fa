//! Every clip of a dataset in memory, column by column: about 300 bytes for a clip of ten seconds, so that the
//! 650,000 of Kinetics-700 take less than 200 MiB in each process.

use super::ClipMeta;
use std::ops::Range;

/// One clip, borrowed from the table that holds it. The fields are those of [`ClipMeta`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip<'a> {
    /// Unique in the dataset.
    pub clip_id: &'a str,
    /// The video it was cut from.
    pub source: &'a str,
    /// Where the clip begins in its source, seconds.
    pub start_s: f64,
    /// Label id; `None`: unlabelled.
    pub label: Option<i32>,
    /// All label ids of a clip with several.
    pub labels: &'a [i32],
    pub split: &'a str,
    /// Place of its data file in the manifest's `files`.
    pub file: u32,
    /// First byte of the payload in the data file.
    pub offset: u64,
    /// Bytes of the payload.
    pub bytes: u64,
    pub num_frames: u32,
    /// Frames a second as stored.
    pub fps: f64,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Start of each run of 16 frames relative to the payload, then the end.
    pub run_offsets: &'a [u32],
    /// CRC32C of each run.
    pub run_crcs: &'a [u32],
}

impl Clip<'_> {
    /// Where neighbouring runs lie, relative to the payload. They are runs of the clip: it was checked when the
    /// dataset was opened.
    pub fn run_bytes(&self, runs: Range<u32>) -> Range<u64> {
        let at = |run: u32| u64::from(self.run_offsets[run as usize]);
        at(runs.start)..at(runs.end)
    }

    /// The label ids to train on: all of `labels`, or else `label`.
    pub fn label_ids(&self) -> Vec<i32> {
        if self.labels.is_empty() { self.label.into_iter().collect() } else { self.labels.to_vec() }
    }

    /// The row that holds the same.
    pub fn to_meta(&self) -> ClipMeta {
        ClipMeta {
            clip_id: self.clip_id.into(),
            source: self.source.into(),
            start_s: self.start_s,
            label: self.label,
            labels: self.labels.to_vec(),
            split: self.split.into(),
            file: self.file,
            offset: self.offset,
            bytes: self.bytes,
            num_frames: self.num_frames,
            fps: self.fps,
            width: self.width,
            height: self.height,
            run_offsets: self.run_offsets.to_vec(),
            run_crcs: self.run_crcs.to_vec(),
        }
    }
}

impl ClipMeta {
    /// The row as [`Clip`].
    pub fn view(&self) -> Clip<'_> {
        Clip {
            clip_id: &self.clip_id,
            source: &self.source,
            start_s: self.start_s,
            label: self.label,
            labels: &self.labels,
            split: &self.split,
            file: self.file,
            offset: self.offset,
            bytes: self.bytes,
            num_frames: self.num_frames,
            fps: self.fps,
            width: self.width,
            height: self.height,
            run_offsets: &self.run_offsets,
            run_crcs: &self.run_crcs,
        }
    }
}

/// A table of clips, in chunks that are never moved or copied: one large allocation a column would need twice its
/// size while it grows.
#[derive(Debug, Default)]
pub struct Clips {
    chunks: Vec<Chunk>,
    splits: Vec<Box<str>>,
}

/// Clips of every chunk but the last.
const CHUNK: usize = 4096;

#[derive(Debug, Default)]
struct Chunk {
    ids: Lists<u8>,
    sources: Lists<u8>,
    labels: Lists<i32>,
    run_offsets: Lists<u32>,
    run_crcs: Lists<u32>,
    rows: Vec<Row>,
}

/// What has the same size for every clip.
#[derive(Clone, Copy, Debug)]
struct Row {
    start_s: f64,
    fps: f64,
    offset: u64,
    bytes: u64,
    label: Option<i32>,
    file: u32,
    num_frames: u32,
    width: u32,
    height: u32,
    /// Place in `splits`.
    split: u32,
}

impl Clips {
    /// A table of these rows.
    ///
    /// # Errors
    /// As [`Clips::push`].
    pub fn of(rows: &[ClipMeta]) -> Result<Self, String> {
        let mut clips = Self::default();
        rows.iter().try_for_each(|row| clips.push(row.view()))?;
        Ok(clips)
    }

    /// Number of clips.
    pub fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.rows.len())
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The clip at a place; a place beyond the table panics, as for a slice.
    pub fn get(&self, place: usize) -> Clip<'_> {
        let (chunk, place) = (&self.chunks[place / CHUNK], place % CHUNK);
        let row = chunk.rows[place];
        Clip {
            clip_id: chunk.ids.text(place),
            source: chunk.sources.text(place),
            start_s: row.start_s,
            label: row.label,
            labels: chunk.labels.get(place),
            split: &self.splits[row.split as usize],
            file: row.file,
            offset: row.offset,
            bytes: row.bytes,
            num_frames: row.num_frames,
            fps: row.fps,
            width: row.width,
            height: row.height,
            run_offsets: chunk.run_offsets.get(place),
            run_crcs: chunk.run_crcs.get(place),
        }
    }

    /// All clips in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Clip<'_>> + DoubleEndedIterator {
        (0..self.len()).map(|place| self.get(place))
    }

    /// All clips as rows of their own.
    pub fn to_rows(&self) -> Vec<ClipMeta> {
        self.iter().map(|clip| clip.to_meta()).collect()
    }

    /// Appends a clip.
    ///
    /// # Errors
    /// In words: 4,096 neighbours with more than 2^32 bytes of names, labels or runs.
    pub fn push(&mut self, clip: Clip) -> Result<(), String> {
        let split = match self.splits.iter().rposition(|s| **s == *clip.split) {
            Some(place) => place,
            None => {
                self.splits.push(clip.split.into());
                self.splits.len() - 1
            }
        };
        let chunk = match self.chunks.last_mut() {
            Some(last) if last.rows.len() < CHUNK => last,
            full => {
                if let Some(full) = full {
                    full.shrink();
                }
                self.chunks.push(Chunk::default());
                let last = self.chunks.len() - 1;
                &mut self.chunks[last]
            }
        };
        chunk.ids.push(clip.clip_id.as_bytes())?;
        chunk.sources.push(clip.source.as_bytes())?;
        chunk.labels.push(clip.labels)?;
        chunk.run_offsets.push(clip.run_offsets)?;
        chunk.run_crcs.push(clip.run_crcs)?;
        chunk.rows.push(Row {
            start_s: clip.start_s,
            fps: clip.fps,
            offset: clip.offset,
            bytes: clip.bytes,
            label: clip.label,
            file: clip.file,
            num_frames: clip.num_frames,
            width: clip.width,
            height: clip.height,
            split: split as u32,
        });
        Ok(())
    }
}

impl Chunk {
    /// Gives back what it will not need.
    fn shrink(&mut self) {
        self.ids.shrink();
        self.sources.shrink();
        self.labels.shrink();
        self.run_offsets.shrink();
        self.run_crcs.shrink();
        self.rows.shrink_to_fit();
    }
}

/// Lists of any length, one after another in one allocation.
#[derive(Debug, Default)]
struct Lists<T> {
    values: Vec<T>,
    ends: Vec<u32>,
}

impl<T: Copy> Lists<T> {
    fn push(&mut self, list: &[T]) -> Result<(), String> {
        let end = u32::try_from(self.values.len() + list.len());
        let end = end.map_err(|_| "4,096 of its clips have more than 2^32 runs, labels or bytes of names")?;
        self.values.extend_from_slice(list);
        self.ends.push(end);
        Ok(())
    }

    fn shrink(&mut self) {
        self.values.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    fn get(&self, place: usize) -> &[T] {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.values[start as usize..self.ends[place] as usize]
    }
}

impl Lists<u8> {
    fn text(&self, place: usize) -> &str {
        // Only whole texts are pushed.
        std::str::from_utf8(self.get(place)).unwrap_or_default()
    }
}
