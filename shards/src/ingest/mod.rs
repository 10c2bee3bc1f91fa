//! Videos to a clip dataset: found, decoded in parallel, written, and resumed where it was killed.
//!
//! The order of the clips, the borders of the files and every byte depend on the inputs and options
//! alone, never on timing or on how often the ingest was interrupted.

mod clips;
mod colour;
mod encode;
mod ffi;
mod inputs;
mod journal;
mod labels;
mod pipeline;
mod progress;
mod scale;
mod video;

pub use clips::NewClip;
pub use inputs::{Found, Input, Sources};
pub use journal::{Plan, Position};
pub use labels::{Cut, LabelRow, Labels};
pub use progress::Progress;

use crate::{
    Error, Result,
    format::{
        ClipMeta, Clips, Codec, DataFile, FORMAT, INDEX_KEY, LEDGER_KEY, MANIFEST_KEY, Manifest, ObjectRef,
        Totals, VERSION, encode_index,
    },
    ledger::{Action, LedgerEntry, encode_ledger},
    writer::DataFileWriter,
};
use journal::Record;
use pipeline::Event;
use std::collections::BTreeMap;
use storage::{Location, PutOutcome, sha256_hex};
use tokio::{runtime::Runtime, task::JoinHandle};

/// How videos become clips.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Short side of the stored frames, pixels; smaller videos stay as they are.
    pub short_side: u32,
    /// Resample to this frame rate; `None`: every frame is kept.
    pub fps: Option<f64>,
    /// Cut into clips of this length; `None`: one clip a video.
    pub clip_seconds: Option<f64>,
    pub codec: Codec,
    /// JPEG quality, 1..=100.
    pub quality: u8,
    /// Largest size of a data file, about, bytes; one larger clip makes a larger file.
    pub file_size: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            short_side: 256,
            fps: None,
            clip_seconds: None,
            codec: Codec::Jpeg,
            quality: 90,
            file_size: 256 << 20,
        }
    }
}

/// What an ingest did.
#[derive(Clone, Debug)]
pub struct Summary {
    pub manifest: Manifest,
    /// The dataset was complete before: nothing was done.
    pub already: bool,
    /// Inputs that an earlier, interrupted run had finished.
    pub resumed: u64,
    pub repaired: u64,
}

/// Writes the dataset of `sources` to `out`, or finishes what an interrupted run began there. Blocks;
/// not to be called from async code. `jobs` is the number of decoding threads; `quiet` shows no progress.
///
/// # Errors
/// Impossible options or inputs, another dataset or ingest at `out`, no readable video at all, or the
/// store's own. Videos that cannot be read are no error: they go into the ledger.
pub fn ingest(
    sources: &Sources,
    options: &Options,
    out: &Location,
    jobs: usize,
    quiet: bool,
) -> Result<Summary> {
    options.check()?;
    let found = sources.find()?;
    let plan = Plan::new(options, &found.inputs, &found.labels);
    let runtime = Runtime::new().map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    if let Some(manifest) = runtime.block_on(finished(&plan, out))? {
        return Ok(Summary { manifest, already: true, resumed: 0, repaired: 0 });
    }
    runtime.block_on(plan.claim(out))?;
    let mut sink = Sink::resume(&runtime, out, &plan)?;
    let start = sink.next;
    let mut progress = Progress::new(found.inputs.len() as u64, start.input, quiet);
    let result = pipeline::run(&found.inputs, options, start, jobs, &mut |event| {
        match &event {
            Event::Clip(_, clip) => progress.clip(clip.payload.bytes.len() as u64),
            Event::Done(ledger) => progress.video(ledger.iter().any(|e| e.action == Action::Skipped)),
        }
        sink.take(event, options.file_size)
    });
    progress.finish();
    result?;
    sink.close(Position { input: found.inputs.len() as u64, piece: 0 })?;
    let Sink { files, clips, ledger, .. } = sink;
    if clips.is_empty() {
        runtime.block_on(journal::clear(out))?;
        let first =
            ledger.first().map_or(String::new(), |e| format!("; {}: {} ({})", e.source, e.reason, e.detail));
        let n = found.inputs.len();
        return Err(Error::Usage(format!(
            "ingest {}: none of its {n} videos can be read{first}",
            sources.videos.display()
        )));
    }
    let repaired = ledger.iter().filter(|e| e.action == Action::Repaired).count() as u64;
    let manifest = runtime.block_on(publish(out, options, &plan, found.labels, files, &clips, &ledger))?;
    Ok(Summary { manifest, already: false, resumed: start.input, repaired })
}

impl Options {
    /// # Errors
    /// A value that cannot mean anything.
    pub fn check(&self) -> Result<()> {
        let bad = |option: &str, value: String, rule: &str| {
            Err(Error::Usage(format!("use --{option} {value}: it must be {rule}")))
        };
        if !(1..=16_384).contains(&self.short_side) {
            return bad("short-side", self.short_side.to_string(), "1 to 16384 pixels");
        }
        if let Some(f) = self.fps.filter(|f| !(*f >= 0.01 && *f <= 1000.0)) {
            return bad("fps", f.to_string(), "0.01 to 1000 frames a second");
        }
        if let Some(s) = self.clip_seconds.filter(|s| !(*s >= 0.01 && *s <= 86_400.0)) {
            return bad("clip-seconds", s.to_string(), "0.01 to 86400 seconds");
        }
        if !(1..=100).contains(&self.quality) {
            return bad("quality", self.quality.to_string(), "1 to 100");
        }
        if !(1 << 20..=4 << 30).contains(&self.file_size) {
            return bad("file-size", format!("{} bytes", self.file_size), "1 MiB to 4 GiB");
        }
        Ok(())
    }

    /// As the manifest records them.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "short_side": self.short_side,
            "fps": self.fps,
            "clip_seconds": self.clip_seconds,
            "codec": self.codec,
            "quality": self.stored_quality(),
            "file_size": self.file_size,
        })
    }

    fn stored_quality(&self) -> Option<u8> {
        (self.codec == Codec::Jpeg).then_some(self.quality)
    }
}

/// The manifest, if this very dataset is complete already; leftovers of its ingest are removed then.
async fn finished(plan: &Plan, out: &Location) -> Result<Option<Manifest>> {
    let Some(text) = out.get_opt(MANIFEST_KEY).await? else { return Ok(None) };
    let manifest = Manifest::parse(&text, &out.url_of(MANIFEST_KEY))?;
    match serde_json::from_value::<Plan>(manifest.ingest.clone()) {
        Ok(theirs) if theirs == *plan => {
            journal::clear(out).await?;
            Ok(Some(manifest))
        }
        theirs => Err(Error::Usage(format!(
            "ingest into {}: a finished dataset with other arguments is there ({}); choose another place",
            out.url(),
            theirs.map_or("made otherwise".into(), |t| plan.difference(&t)),
        ))),
    }
}

/// Writes index and ledger, then the manifest, then removes the journal.
async fn publish(
    out: &Location,
    options: &Options,
    plan: &Plan,
    labels: Vec<String>,
    files: Vec<DataFile>,
    clips: &[ClipMeta],
    ledger: &[LedgerEntry],
) -> Result<Manifest> {
    let failed = |why| Error::Stopped(format!("write the dataset {}: {why}", out.url()));
    let mut splits = BTreeMap::new();
    clips.iter().for_each(|c| *splits.entry(c.split.to_string()).or_default() += 1);
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        codec: options.codec,
        quality: options.stored_quality(),
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
        ingest: serde_json::to_value(plan).map_err(|e| failed(e.to_string()))?,
    };
    Clips::of(clips).and_then(|clips| manifest.check_clips(&clips)).map_err(failed)?;
    let bytes = manifest.to_bytes()?;
    if out.put_if_absent(MANIFEST_KEY, bytes.clone()).await? == PutOutcome::Exists
        && out.get(MANIFEST_KEY).await? != bytes
    {
        return Err(Error::Usage(format!(
            "ingest into {}: another ingest has finished a dataset there meanwhile; choose another place",
            out.url()
        )));
    }
    journal::clear(out).await?;
    Ok(manifest)
}

async fn put(out: &Location, key: &str, bytes: Vec<u8>) -> Result<ObjectRef> {
    let object = ObjectRef { key: key.into(), bytes: bytes.len() as u64, sha256: sha256_hex(&bytes) };
    out.put(key, bytes).await?;
    Ok(object)
}

/// Gathers clips into files; one file is uploaded while the next is filled.
struct Sink<'a> {
    runtime: &'a Runtime,
    out: &'a Location,
    /// Folder of the data files.
    folder: String,
    writer: DataFileWriter,
    uploading: Option<JoinHandle<Result<Record>>>,
    files: Vec<DataFile>,
    clips: Vec<ClipMeta>,
    ledger: Vec<LedgerEntry>,
    /// Ledger entries that no record holds yet.
    fresh: Vec<LedgerEntry>,
    /// Files begun, those being uploaded too.
    begun: usize,
    next: Position,
}

impl<'a> Sink<'a> {
    fn resume(runtime: &'a Runtime, out: &'a Location, plan: &Plan) -> Result<Self> {
        let mut sink = Self {
            runtime,
            out,
            folder: format!("data/{}", &plan.digest()[..16]),
            writer: DataFileWriter::new()?,
            uploading: None,
            files: vec![],
            clips: vec![],
            ledger: vec![],
            fresh: vec![],
            begun: 0,
            next: Position::default(),
        };
        while let Some(record) = runtime.block_on(Record::get(out, sink.begun))? {
            sink.begun += 1;
            sink.count(record);
        }
        Ok(sink)
    }

    fn take(&mut self, event: Event, file_size: u64) -> Result<()> {
        match event {
            Event::Done(ledger) => self.fresh.extend(ledger),
            Event::Clip(input, clip) => {
                let size = self.writer.size_with(clip.payload.bytes.len() as u64);
                if !self.writer.is_empty() && size > file_size {
                    self.end_file(Position { input, piece: clip.piece })?;
                }
                let file = self.begun as u32;
                self.writer.push(ClipMeta { file, ..clip.meta }, clip.payload)?;
            }
        }
        Ok(())
    }

    /// Ends the last file and waits for all uploads.
    fn close(&mut self, end: Position) -> Result<()> {
        if !self.writer.is_empty() {
            self.end_file(end)?;
        }
        self.settle()?;
        self.ledger.append(&mut self.fresh);
        Ok(())
    }

    /// Sends the file off; clip `next` is the first of the one after.
    fn end_file(&mut self, next: Position) -> Result<()> {
        // Records must appear in order, and memory holds two files at most.
        self.settle()?;
        let file = std::mem::replace(&mut self.writer, DataFileWriter::new()?).finish()?;
        let ledger = std::mem::take(&mut self.fresh);
        let (n, out) = (self.begun, self.out.clone());
        let key = format!("{}/{n:05}.parquet", self.folder);
        self.uploading = Some(self.runtime.spawn(async move {
            let stored = file.store(&out, &key).await?;
            let record = Record { file: stored, clips: file.rows, ledger, next };
            record.put(&out, n).await?;
            Ok(record)
        }));
        self.begun += 1;
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        if let Some(task) = self.uploading.take() {
            let ended = |e| Error::Stopped(format!("write a data file: its task ended early ({e})"));
            let record = self.runtime.block_on(task).map_err(ended)??;
            self.count(record);
        }
        Ok(())
    }

    fn count(&mut self, record: Record) {
        self.files.push(record.file);
        self.clips.extend(record.clips);
        self.ledger.extend(record.ledger);
        self.next = record.next;
    }
}
