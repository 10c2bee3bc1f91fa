//! Videos, folders of images or tables of images to a clip dataset: found, decoded in parallel, written,
//! and resumed where it was killed; by one machine, or in parts by several.
//!
//! The order of the clips, the borders of the files and every byte depend on the inputs, the options and
//! the number of parts alone, never on timing or on how often the ingest was interrupted; the clips and
//! their bytes do not depend on the number of parts either.

mod builder;
mod cells;
mod clips;
mod colour;
mod encode;
mod ffi;
mod finish;
mod images;
mod inputs;
mod journal;
mod labels;
mod layouts;
mod pipeline;
mod progress;
mod remote;
mod scale;
mod sink;
mod table;
mod video;

pub use builder::NewClip;
pub use finish::finish;
pub use inputs::{Found, Input, Media, Sources};
pub use journal::{Part, Plan, Position};
pub use labels::{Cut, LabelRow, Labels, Span};
pub use layouts::Layout;
pub use progress::Progress;
pub use table::TableSources;

use crate::{
    Error, Result,
    format::{Codec, MANIFEST_KEY, Manifest},
    ledger::Action,
};
use journal::{Claim, Done};
use pipeline::Event;
use sink::Sink;
use storage::Location;
use tokio::runtime::Runtime;

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

/// What the ingest of a part did.
#[derive(Clone, Debug)]
pub enum PartDone {
    /// The part is through; so many of its inputs had been before.
    Done { inputs: u64, resumed: u64 },
    /// The dataset was finished before.
    Finished(Box<Manifest>),
}

/// Writes the dataset of `found` to `out`, or finishes what an interrupted run began there. Blocks;
/// not to be called from async code. `jobs` is the number of decoding threads; `quiet` shows no progress.
///
/// # Errors
/// Impossible options, another dataset or ingest at `out`, no readable input at all, or the
/// store's own. Inputs that cannot be read are no error: they go into the ledger.
pub fn ingest(
    runtime: &Runtime,
    found: &Found,
    options: &Options,
    out: &Location,
    jobs: usize,
    quiet: bool,
) -> Result<Summary> {
    match ingest_part(runtime, found, options, Part::WHOLE, out, jobs, quiet)? {
        PartDone::Finished(manifest) => {
            Ok(Summary { manifest: *manifest, already: true, resumed: 0, repaired: 0 })
        }
        PartDone::Done { resumed, .. } => Ok(Summary { resumed, ..runtime.block_on(finish(out))? }),
    }
}

/// Ingests one part of `found`; when all parts are through, [`finish`] makes them a dataset. Otherwise as
/// [`ingest`].
///
/// # Errors
/// As [`ingest`], or the destination is claimed for another number of parts.
pub fn ingest_part(
    runtime: &Runtime,
    found: &Found,
    options: &Options,
    part: Part,
    out: &Location,
    jobs: usize,
    quiet: bool,
) -> Result<PartDone> {
    options.check()?;
    let plan = Plan::new(options, found);
    if let Some(manifest) = runtime.block_on(finished(&plan, out))? {
        return Ok(PartDone::Finished(Box::new(manifest)));
    }
    let claim = Claim {
        parts: part.of(),
        codec: options.codec,
        quality: options.stored_quality(),
        labels: found.labels.clone(),
        plan,
    };
    runtime.block_on(claim.put(out))?;
    let folder = format!("data/{}", &claim.plan.digest()[..16]);
    let weights: Vec<u64> = found.inputs.iter().map(|i| i.size).collect();
    let inputs = &found.inputs[part.range(&weights)];
    let total = inputs.len() as u64;
    let mut resumed = None;
    loop {
        if runtime.block_on(Done::get(out, part))?.is_some() {
            return Ok(PartDone::Done { inputs: total, resumed: resumed.unwrap_or(total) });
        }
        let mut sink = Sink::resume(runtime, out, part, &folder, &found.ledger)?;
        let start = sink.next;
        let resumed = *resumed.get_or_insert(start.input);
        let mut progress = Progress::new(total, start.input, quiet);
        let result = pipeline::run(inputs, options, start, jobs, &mut |event| {
            match &event {
                Event::Clip(_, clip) => progress.clip(clip.payload.bytes.len() as u64),
                Event::Done(ledger) => progress.video(ledger.iter().any(|e| e.action == Action::Skipped)),
                Event::Failed(_) => {}
            }
            sink.take(event, options.file_size)
        });
        progress.finish();
        if !sink.overtaken {
            result?;
        }
        if sink.close(Position { input: total, piece: 0 })? {
            // Another machine may have done this part too, and all of it have been finished meanwhile.
            return Ok(match runtime.block_on(finished(&claim.plan, out))? {
                Some(manifest) => PartDone::Finished(Box::new(manifest)),
                None => PartDone::Done { inputs: total, resumed },
            });
        }
    }
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
