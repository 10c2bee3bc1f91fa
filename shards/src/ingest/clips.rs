//! One input video to its clips: resampled in time, cut, scaled, turned upright, encoded.

use super::{
    Input, Options,
    encode::FrameEncoder,
    scale::{Converter, Geometry},
    video::Video,
};
use crate::{
    format::{ClipMeta, Payload, PayloadBuilder},
    ledger::{Action, LedgerEntry},
};
use ffmpeg_next::frame;

/// Bytes of one clip's payload beyond which it is refused: one clip is one Parquet page, and is held in memory.
const LARGEST_PAYLOAD: usize = 1 << 30;
/// Times this close together are the same, seconds: containers round them.
const SAME_TIME: f64 = 1e-6;

/// A clip ready to be written. `file`, `offset` and what the payload knows of itself are not set yet.
#[derive(Debug)]
pub struct NewClip {
    /// Place among the clips of its input; increasing, not always without gaps.
    pub piece: u32,
    pub meta: ClipMeta,
    pub payload: Payload,
}

/// Decodes `input` and hands its clips from `first_piece` on to `emit`, in order; stops early where that
/// says `false`. Returns what the ledger must say of the input.
pub fn ingest_video(
    input: &Input,
    options: &Options,
    first_piece: u32,
    emit: &mut dyn FnMut(NewClip) -> bool,
) -> Vec<LedgerEntry> {
    let entry = |action, reason: &str, detail: String| LedgerEntry {
        source: input.source.clone(),
        action,
        reason: reason.into(),
        detail,
    };
    let mut video = match Video::open(&input.path) {
        Ok(v) => v,
        Err(e) => return vec![entry(Action::Skipped, e.reason, e.detail)],
    };
    let mut encoder = match FrameEncoder::new(options.codec, options.quality) {
        Ok(e) => e,
        Err(e) => return vec![entry(Action::Skipped, "encoder", e)],
    };
    let mut cutter = Cutter {
        input,
        options,
        first_piece,
        encoder: &mut encoder,
        converter: Converter::default(),
        geometry: None,
        rgb: Vec::new(),
        open: None,
        pieces: 0,
        emit,
    };
    let outcome = cutter.run(&mut video);
    let any = cutter.pieces > 0;
    let complaint = video.complaint();
    match (outcome, any) {
        (Err(Stop::Consumer), _) => vec![],
        (Err(Stop::Failed(reason, why)), false) => vec![entry(Action::Skipped, reason, why)],
        (Err(Stop::Failed(reason, why)), true) => {
            vec![entry(Action::Repaired, reason, format!("cut off: {why}"))]
        }
        (Ok(_), false) => {
            let cut = input.cut.filter(|_| video.end() > 0.0);
            let why = match (cut, complaint) {
                (Some(c), _) => {
                    return vec![entry(
                        Action::Skipped,
                        "empty cut",
                        format!("no picture from {} s on: it ends at {:.2} s", c.start, video.end()),
                    )];
                }
                (None, Some(c)) => c,
                (None, None) => "it holds no pictures".into(),
            };
            vec![entry(Action::Skipped, "nothing decodes", why)]
        }
        (Ok(tail), true) => {
            let damage = complaint.map(|c| entry(Action::Repaired, "damaged", c));
            let tail =
                tail.map(|s| entry(Action::Repaired, "tail", format!("the last {s:.2} s are no clip")));
            damage.into_iter().chain(tail).collect()
        }
    }
}

/// Why an input ends before its video does.
enum Stop {
    /// Nobody wants its clips any more.
    Consumer,
    /// A reason to group by, and the detail.
    Failed(&'static str, String),
}

struct Cutter<'a> {
    input: &'a Input,
    options: &'a Options,
    first_piece: u32,
    encoder: &'a mut FrameEncoder,
    converter: Converter,
    geometry: Option<Geometry>,
    rgb: Vec<u8>,
    open: Option<OpenClip>,
    /// Clips finished so far, those before `first_piece` too.
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

/// A picture that stays on show until the next one's slot, when resampling.
struct Held {
    picture: frame::Video,
    /// First slot of the resampled clock that shows it.
    slot: u64,
}

impl Cutter<'_> {
    /// The whole input; the seconds of a tail that was left out.
    fn run(&mut self, video: &mut Video) -> Result<Option<f64>, Stop> {
        let (start, end) = self.input.cut.map_or((0.0, None), |c| (c.start, c.end));
        let mut picture = frame::Video::empty();
        let mut held: Option<Held> = None;
        let mut finish = None;
        while let Some(time) = video.next(&mut picture) {
            if end.is_some_and(|end| time >= end - SAME_TIME) {
                finish = end;
                break;
            }
            let Some(fps) = self.options.fps else {
                if time >= start - SAME_TIME {
                    self.add(video, &picture, time - start, false)?;
                }
                continue;
            };
            // Each picture takes the nearest tick; ticks without one repeat the picture before, and of
            // several pictures at one tick the last one counts. A cut may begin inside a picture's time.
            let slot = ((time - start) * fps).round().max(0.0) as u64;
            if let Some(h) = held.take() {
                self.show(video, &h, slot, fps)?;
            }
            let empty = frame::Video::empty();
            held = Some(Held { picture: std::mem::replace(&mut picture, empty), slot });
        }
        if let (Some(h), Some(fps)) = (held, self.options.fps) {
            let until = finish.unwrap_or(video.end());
            // A cut that begins after everything shows nothing; any other has at least one tick.
            if until > start {
                self.show(video, &h, ((until - start) * fps).round().max(1.0) as u64, fps)?;
            }
        }
        self.close(video, true)
    }

    /// Adds a held picture once for each tick before `until`.
    fn show(&mut self, video: &Video, held: &Held, until: u64, fps: f64) -> Result<(), Stop> {
        for slot in held.slot..until {
            self.add(video, &held.picture, slot as f64 / fps, slot > held.slot)?;
        }
        Ok(())
    }

    /// Adds a picture at `time` after the cut's start; `again` where it is the one added last.
    fn add(&mut self, video: &Video, picture: &frame::Video, time: f64, again: bool) -> Result<(), Stop> {
        let time = time.max(0.0);
        let piece = self.options.clip_seconds.map_or(0, |s| ((time + SAME_TIME) / s).floor() as u32);
        if self.open.as_ref().is_some_and(|c| c.piece != piece) {
            self.close(video, false)?;
        }
        let clip = self.open.get_or_insert_with(|| OpenClip {
            piece,
            frames: 0,
            first: time,
            last: time,
            payload: PayloadBuilder::default(),
        });
        (clip.frames, clip.last) = (clip.frames + 1, time);
        if piece < self.first_piece {
            return Ok(());
        }
        let geometry = match self.geometry {
            Some(g) => g,
            None => {
                let size = (picture.width(), picture.height());
                let turn = video.orientation(picture);
                let g = Geometry::new(size, video.pixel_aspect(picture), turn, self.options.short_side)
                    .map_err(|why| Stop::Failed("too large", why))?;
                *self.geometry.insert(g)
            }
        };
        // A repeated picture at the start of a clip was last converted for the clip before: its RGB is still there.
        if !again || self.rgb.is_empty() {
            self.converter
                .convert(picture, &geometry, &mut self.rgb)
                .map_err(|why| Stop::Failed("pixel format", why))?;
        }
        let (width, height) = geometry.size();
        let stored =
            self.encoder.encode(&self.rgb, width, height).map_err(|why| Stop::Failed("encoder", why))?;
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
    fn close(&mut self, video: &Video, last: bool) -> Result<Option<f64>, Stop> {
        let (Some(clip), options) = (self.open.take(), self.options) else { return Ok(None) };
        let fps = options.fps.unwrap_or_else(|| rate(&clip, video.rate()));
        if let (Some(s), true) = (options.clip_seconds, last && self.pieces > 0) {
            let length = f64::from(clip.frames) / fps;
            if length < s / 2.0 {
                return Ok(Some(length));
            }
        }
        self.pieces += 1;
        let (Some(geometry), true) = (self.geometry, clip.piece >= self.first_piece) else { return Ok(None) };
        let (width, height) = geometry.size();
        let input = self.input;
        let meta = ClipMeta {
            clip_id: match options.clip_seconds {
                Some(_) => format!("{}#{:04}", input.clip_id, clip.piece),
                None => input.clip_id.clone(),
            },
            source: input.source.clone(),
            start_s: input.cut.map_or(0.0, |c| c.start) + clip.first,
            label: input.labels.first().copied(),
            labels: input.labels.clone(),
            split: input.split.as_str().into(),
            file: 0,
            offset: 0,
            bytes: 0,
            num_frames: 0,
            fps,
            width,
            height,
            run_offsets: vec![],
            run_crcs: vec![],
        };
        let clip = NewClip { piece: clip.piece, meta, payload: clip.payload.finish() };
        if (self.emit)(clip) { Ok(None) } else { Err(Stop::Consumer) }
    }
}

/// Average frames a second of a clip; the container's figure where they agree, for it is exact.
fn rate(clip: &OpenClip, container: f64) -> f64 {
    let span = clip.last - clip.first;
    if clip.frames < 2 || span <= 0.0 {
        return container;
    }
    let measured = f64::from(clip.frames - 1) / span;
    if (measured / container - 1.0).abs() < 0.005 { container } else { measured }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_rate_is_measured_and_snaps_to_the_container() {
        let clip =
            |frames, last| OpenClip { piece: 0, frames, first: 0.0, last, payload: Default::default() };
        assert_eq!(rate(&clip(31, 1.001), 30000.0 / 1001.0), 30000.0 / 1001.0);
        assert_eq!(rate(&clip(11, 1.0), 30.0), 10.0);
        assert_eq!(rate(&clip(1, 0.0), 30.0), 30.0);
    }
}
