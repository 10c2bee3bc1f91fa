//! One input video to its clips: resampled in time, cut, scaled, turned upright, encoded.

use super::{
    Input, Options,
    builder::{ClipBuilder, NewClip, SAME_TIME, Stop, entry, outcome_entries},
    encode::FrameEncoder,
    scale::{Converter, Geometry},
    video::Video,
};
use crate::ledger::{Action, LedgerEntry};
use ffmpeg_next::frame;

/// Decodes `input` and hands its clips from `first_piece` on to `emit`, in order; stops early where that
/// says `false`. Returns what the ledger must say of the input.
pub fn ingest_video(
    input: &Input,
    options: &Options,
    first_piece: u32,
    emit: &mut dyn FnMut(NewClip) -> bool,
) -> Vec<LedgerEntry> {
    let source = input.source.as_str();
    let skipped = |reason, detail| vec![entry(source, Action::Skipped, reason, detail)];
    let mut video = match Video::open(&input.path) {
        Ok(v) => v,
        Err(e) => return skipped(e.reason, e.detail),
    };
    let mut encoder = match FrameEncoder::new(options.codec, options.quality) {
        Ok(e) => e,
        Err(e) => return skipped("encoder", e),
    };
    let mut cutter = Cutter {
        input,
        options,
        clips: ClipBuilder::new(input, options, first_piece, emit),
        encoder: &mut encoder,
        converter: Converter::default(),
        geometry: None,
        rgb: Vec::new(),
    };
    let outcome = cutter.run(&mut video);
    let pieces = cutter.clips.pieces();
    let complaint = video.complaint();
    if outcome.is_err() || pieces > 0 {
        let damage = complaint.filter(|_| outcome.is_ok());
        let damage = damage.map(|c| entry(source, Action::Repaired, "damaged", c));
        return damage.into_iter().chain(outcome_entries(source, outcome, pieces)).collect();
    }
    match (input.cut.filter(|_| video.end() > 0.0), complaint) {
        (Some(c), _) => {
            let end = video.end();
            skipped("empty cut", format!("no picture from {} s on: it ends at {end:.2} s", c.start))
        }
        (None, Some(c)) => skipped("nothing decodes", c),
        (None, None) => skipped("nothing decodes", "it holds no pictures".into()),
    }
}

struct Cutter<'a> {
    input: &'a Input,
    options: &'a Options,
    clips: ClipBuilder<'a>,
    encoder: &'a mut FrameEncoder,
    converter: Converter,
    geometry: Option<Geometry>,
    rgb: Vec<u8>,
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
        self.clips.close(video.rate(), true)
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
        if !self.clips.begin(time, video.rate())? {
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
        self.clips.push(stored, (width, height))
    }
}
