//! Stored frames gathered into clips: cut by time, labelled, and handed on when they are whole.

use super::{Input, Options};
use crate::{
    format::{ClipMeta, Payload, PayloadBuilder},
    ledger::{Action, LedgerEntry},
};

/// Bytes of one clip's payload beyond which it is refused: one clip is one Parquet page, and is held in memory.
const LARGEST_PAYLOAD: usize = 1 << 30;
/// Times this close together are the same, seconds: containers round them.
pub const SAME_TIME: f64 = 1e-6;

/// A clip ready to be written. `file`, `offset` and what the payload knows of itself are not set yet.
#[derive(Debug)]
pub struct NewClip {
    /// Place among the clips of its input; increasing, not always without gaps.
    pub piece: u32,
    pub meta: ClipMeta,
    pub payload: Payload,
}

/// Why an input ends before all of it was read.
#[derive(Debug)]
pub enum Stop {
    /// Nobody wants its clips any more.
    Consumer,
    /// A reason to group by, and the detail.
    Failed(&'static str, String),
}

/// The clips of one input. Frames come in order: [`begin`](Self::begin), then [`push`](Self::push)
/// where that asks for it.
pub struct ClipBuilder<'a> {
    input: &'a Input,
    options: &'a Options,
    first_piece: u32,
    open: Option<OpenClip>,
    /// Width and height of the stored frames, once the first one is there.
    size: (u32, u32),
    pieces: u32,
    emit: &'a mut dyn FnMut(NewClip) -> bool,
}

/// The clip being filled.
struct OpenClip {
    piece: u32,
    frames: u32,
    first: f64,
    last: f64,
    payload: PayloadBuilder,
}

impl<'a> ClipBuilder<'a> {
    /// Clips before `first_piece` are cut but not handed on. `emit` says `false` where it wants no more.
    pub fn new(
        input: &'a Input,
        options: &'a Options,
        first_piece: u32,
        emit: &'a mut dyn FnMut(NewClip) -> bool,
    ) -> Self {
        Self { input, options, first_piece, open: None, size: (0, 0), pieces: 0, emit }
    }

    /// Clips finished so far, those before the first wanted one too.
    pub fn pieces(&self) -> u32 {
        self.pieces
    }

    /// Takes note of a frame `time` seconds after the input's start; `rate` is its source's frames a second.
    /// True where its clip is wanted: the frame must be pushed.
    ///
    /// # Errors
    /// Nobody wants the clip that this frame ends.
    pub fn begin(&mut self, time: f64, rate: f64) -> Result<bool, Stop> {
        let time = time.max(0.0);
        let piece = self.options.clip_seconds.map_or(0, |s| ((time + SAME_TIME) / s).floor() as u32);
        if self.open.as_ref().is_some_and(|c| c.piece != piece) {
            self.close(rate, false)?;
        }
        let clip = self.open.get_or_insert_with(|| OpenClip {
            piece,
            frames: 0,
            first: time,
            last: time,
            payload: PayloadBuilder::default(),
        });
        (clip.frames, clip.last) = (clip.frames + 1, time);
        Ok(piece >= self.first_piece)
    }

    /// Appends the stored form of the frame that was begun last.
    ///
    /// # Errors
    /// The clip grows beyond what one may have.
    pub fn push(&mut self, stored: &[u8], size: (u32, u32)) -> Result<(), Stop> {
        let Some(clip) = &mut self.open else { return Ok(()) };
        self.size = size;
        clip.payload.push(stored);
        if clip.payload.len() > LARGEST_PAYLOAD {
            self.open = None;
            let why = "as one clip it exceeds 1 GiB; cut it with --clip-seconds".to_string();
            return Err(Stop::Failed("too long", why));
        }
        Ok(())
    }

    /// Ends the open clip. The last one of several is left out if it is shorter than half a clip:
    /// then its seconds are returned.
    ///
    /// # Errors
    /// Nobody wants it.
    pub fn close(&mut self, rate: f64, last: bool) -> Result<Option<f64>, Stop> {
        let (Some(clip), options) = (self.open.take(), self.options) else { return Ok(None) };
        let fps = options.fps.unwrap_or_else(|| measured(&clip, rate));
        if let (Some(s), true) = (options.clip_seconds, last && self.pieces > 0) {
            let length = f64::from(clip.frames) / fps;
            if length < s / 2.0 {
                return Ok(Some(length));
            }
        }
        self.pieces += 1;
        if clip.piece < self.first_piece {
            return Ok(None);
        }
        let input = self.input;
        let start_s = input.cut.map_or(0.0, |c| c.start) + clip.first;
        let labels = match options.clip_seconds {
            Some(_) => input.labels_between(start_s, start_s + f64::from(clip.frames) / fps),
            None => input.labels.clone(),
        };
        let meta = ClipMeta {
            clip_id: match options.clip_seconds {
                Some(_) => format!("{}#{:04}", input.clip_id, clip.piece),
                None => input.clip_id.clone(),
            },
            source: input.source.clone(),
            start_s,
            label: labels.first().copied(),
            labels,
            split: input.split.as_str().into(),
            fps,
            width: self.size.0,
            height: self.size.1,
            ..ClipMeta::default()
        };
        let clip = NewClip { piece: clip.piece, meta, payload: clip.payload.finish() };
        if (self.emit)(clip) { Ok(None) } else { Err(Stop::Consumer) }
    }
}

/// A ledger row of an input.
pub fn entry(source: &str, action: Action, reason: &str, detail: impl Into<String>) -> LedgerEntry {
    LedgerEntry { source: source.into(), action, reason: reason.into(), detail: detail.into() }
}

/// What the ledger says of an input that ended with `outcome` after `pieces` clips.
pub fn outcome_entries(source: &str, outcome: Result<Option<f64>, Stop>, pieces: u32) -> Vec<LedgerEntry> {
    match outcome {
        Err(Stop::Consumer) | Ok(None) => vec![],
        Err(Stop::Failed(reason, why)) if pieces == 0 => vec![entry(source, Action::Skipped, reason, why)],
        Err(Stop::Failed(reason, why)) => {
            vec![entry(source, Action::Repaired, reason, format!("cut off: {why}"))]
        }
        Ok(Some(tail)) => {
            vec![entry(source, Action::Repaired, "tail", format!("the last {tail:.2} s are no clip"))]
        }
    }
}

/// Average frames a second of a clip; the source's figure where they agree, for it is exact.
fn measured(clip: &OpenClip, source: f64) -> f64 {
    let span = clip.last - clip.first;
    if clip.frames < 2 || span <= 0.0 {
        return source;
    }
    let measured = f64::from(clip.frames - 1) / span;
    if (measured / source - 1.0).abs() < 0.005 { source } else { measured }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_rate_is_measured_and_snaps_to_the_container() {
        let clip =
            |frames, last| OpenClip { piece: 0, frames, first: 0.0, last, payload: Default::default() };
        assert_eq!(measured(&clip(31, 1.001), 30000.0 / 1001.0), 30000.0 / 1001.0);
        assert_eq!(measured(&clip(11, 1.0), 30.0), 10.0);
        assert_eq!(measured(&clip(1, 0.0), 30.0), 30.0);
    }
}
