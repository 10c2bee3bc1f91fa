//! One video file as a sequence of good pictures with their times.
//!
//! Damage never ends the whole: what is broken is left out up to the next key frame, and
//! [`Video::complaint`] says what happened. FFmpeg runs one thread a video; videos run in parallel.

use super::{colour::Orientation, ffi, scale};
use ffmpeg_next::{
    self as ffmpeg, Dictionary, Error, Packet, Rational, codec, decoder,
    format::{self, context::Input, stream::Disposition},
    frame, media, packet, threading,
};
use std::{io::Read, path::Path, sync::Once};

/// Gaps in the clock beyond this are edits or wrapped counters, not still pictures, seconds.
const LONGEST_GAP: f64 = 60.0;
/// A demuxer that fails this often in a row has lost its way.
const MOST_FAILURES: u32 = 1000;

/// A video being read.
pub struct Video {
    input: Input,
    decoder: decoder::Video,
    stream: usize,
    time_base: f64,
    /// Average frames a second by the container's account, where it is sane.
    rate: Option<f64>,
    orientation: Option<Orientation>,
    pixel_aspect: Rational,
    /// What the container says the pictures last, seconds.
    expected: Option<f64>,
    clock: Clock,
    damage: Damage,
    drained: bool,
    /// All of it was read.
    finished: bool,
}

/// Why a file gives no pictures: a short reason to group by, and the detail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub reason: &'static str,
    pub detail: String,
}

#[derive(Default)]
struct Clock {
    /// Last picture's time stamp and time, and where it ends.
    last: Option<(i64, f64)>,
    /// The stamp that stands for time 0.
    origin: i64,
    end: f64,
    jumps: u32,
}

#[derive(Default)]
struct Damage {
    /// First thing that went wrong.
    first: Option<String>,
    /// Pictures with this time stamp or a later one are doubtful until a key frame.
    from: Option<i64>,
    dropped: u64,
    pictures: u64,
}

impl Video {
    /// Opens a file and the decoder of its main video stream.
    ///
    /// # Errors
    /// No media file, no video stream in it, or none that can be decoded.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        init();
        let absolute = std::path::absolute(path).map_err(|e| unreadable("unreadable", e))?;
        if absolute.to_str().is_none() {
            return Err(unreadable("unreadable", "its name is not UTF-8, which FFmpeg needs"));
        }
        let mut options = Dictionary::new();
        // A playlist in disguise must not open sockets.
        options.set("protocol_whitelist", "file");
        let input = format::input_with_dictionary(&absolute, options).map_err(|e| explain(&absolute, e))?;
        if input.nb_streams() == 0 {
            return Err(explain(&absolute, Error::InvalidData));
        }
        let none = || {
            let kinds: Vec<_> =
                input.streams().map(|s| format!("{:?}", s.parameters().medium()).to_lowercase()).collect();
            unreadable("no video stream", format!("its streams: {}", kinds.join(", ")))
        };
        let stream = input.streams().best(media::Type::Video).ok_or_else(none)?;
        if stream.disposition().contains(Disposition::ATTACHED_PIC) {
            return Err(unreadable("no video stream", "only a cover picture"));
        }
        let parameters = stream.parameters();
        let codec = parameters.id();
        let mut context =
            codec::Context::from_parameters(parameters).map_err(|e| unreadable("no decoder", e))?;
        context.set_threading(threading::Config {
            kind: threading::Type::None,
            count: 1,
            ..Default::default()
        });
        let mut decoder = context.decoder();
        decoder.set_packet_time_base(stream.time_base());
        let decoder =
            decoder.video().map_err(|e| unreadable("no decoder", format!("its codec {codec:?}: {e}")))?;
        let pixel_aspect = ffi::pixel_aspect(&stream);
        let time_base = seconds(stream.time_base());
        let rate = Some(seconds(stream.avg_frame_rate())).filter(|r| (0.01..=1000.0).contains(r));
        let orientation = stream
            .side_data()
            .find(|d| d.kind() == packet::side_data::Type::DisplayMatrix)
            .and_then(|d| Orientation::from_display_matrix(d.data()));
        // The container's own length counts its longest stream: it says something of this one if it is alone.
        let expected = if stream.duration() > 0 {
            Some(stream.duration() as f64 * time_base)
        } else {
            Some(input.duration() as f64 / 1e6).filter(|d| *d > 0.0 && input.nb_streams() == 1)
        };
        let stream = stream.index();
        Ok(Self {
            input,
            decoder,
            stream,
            time_base,
            rate,
            orientation,
            pixel_aspect,
            expected,
            clock: Clock::default(),
            damage: Damage::default(),
            drained: false,
            finished: false,
        })
    }

    /// The container's average frame rate, or 25 where it names none.
    pub fn rate(&self) -> f64 {
        self.rate.unwrap_or(25.0)
    }

    /// How the pictures must be turned; `picture` may say so itself where the container does not.
    pub fn orientation(&self, picture: &frame::Video) -> Orientation {
        self.orientation
            .or_else(|| {
                let data = picture.side_data(frame::side_data::Type::DisplayMatrix)?;
                Orientation::from_display_matrix(data.data())
            })
            .unwrap_or_default()
    }

    /// Width of a pixel by its height.
    pub fn pixel_aspect(&self, picture: &frame::Video) -> f64 {
        scale::pixel_aspect(self.pixel_aspect, picture.aspect_ratio())
    }

    /// Decodes the next good picture into `picture`; its time in seconds after the first one, never
    /// running backwards. `None` at the end.
    pub fn next(&mut self, picture: &mut frame::Video) -> Option<f64> {
        loop {
            match self.decoder.receive_frame(picture) {
                Ok(()) => {
                    if self.is_good(picture) {
                        return Some(self.time(picture));
                    }
                }
                Err(Error::Other { errno }) if errno == ffmpeg::error::EAGAIN => self.feed(),
                Err(Error::Eof) => {
                    self.finished = true;
                    return None;
                }
                Err(e) => {
                    self.note(None, format!("decoding fails: {e}"));
                    // A decoder that fails while it is drained would fail forever.
                    if self.drained {
                        self.finished = true;
                        return None;
                    }
                    self.feed();
                }
            }
        }
    }

    /// Where the last picture ends, seconds after the first began.
    pub fn end(&self) -> f64 {
        self.clock.end
    }

    /// What was wrong with the part that was read: `None` if it is as its container promises.
    pub fn complaint(&self) -> Option<String> {
        let mut said = Vec::new();
        if let Some(first) = &self.damage.first {
            said.push(match self.damage.dropped {
                0 => first.clone(),
                n => format!("{first}; {n} broken pictures left out"),
            });
        }
        let step = 1.0 / self.rate();
        if let Some(expected) = self.expected.filter(|_| self.finished) {
            let missing = expected - self.clock.end;
            if missing > (3.0 * step).max(0.02 * expected) {
                said.push(format!("it ends at {:.2} of {expected:.2} s", self.clock.end));
            }
        }
        if self.clock.jumps > 0 {
            said.push(format!("its clock jumps {} times", self.clock.jumps));
        }
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// Hands the decoder one packet, or tells it that there are no more.
    fn feed(&mut self) {
        let mut failures = 0;
        loop {
            let mut packet = Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() != self.stream => continue,
                Ok(()) => {
                    let at = packet.pts().or(packet.dts());
                    if packet.is_corrupt() {
                        self.note(at, "the file breaks off inside a picture".into());
                    }
                    if let Err(e) = self.decoder.send_packet(&packet) {
                        self.note(at, format!("decoding fails: {e}"));
                    }
                    return;
                }
                Err(Error::Eof) => break,
                Err(e @ (Error::InvalidData | Error::Other { errno: ffmpeg::error::EAGAIN })) => {
                    failures += 1;
                    if failures == 1 {
                        self.note(None, format!("reading fails: {e}"));
                    }
                    if failures == MOST_FAILURES {
                        break;
                    }
                }
                Err(e) => {
                    self.note(None, format!("reading fails: {e}"));
                    break;
                }
            }
        }
        self.drained = true;
        if let Err(e) = self.decoder.send_eof() {
            self.note(None, format!("decoding fails: {e}"));
        }
    }

    /// Remembers trouble with the picture at a time stamp, or with all that follow the last one.
    fn note(&mut self, at: Option<i64>, what: String) {
        let d = &mut self.damage;
        let where_ = match d.pictures {
            0 => "before the first picture".into(),
            n => format!("after picture {n} ({:.2} s)", self.clock.end),
        };
        d.first.get_or_insert(format!("{what}, {where_}"));
        let next = self.clock.last.map_or(i64::MIN, |(ts, _)| ts.saturating_add(1));
        let from = at.unwrap_or(next);
        d.from = Some(d.from.map_or(from, |f| f.min(from)));
    }

    /// False for pictures that are damaged or predicted from damaged ones.
    fn is_good(&mut self, picture: &frame::Video) -> bool {
        let stamp = picture.timestamp();
        if picture.is_corrupt() || picture.has_decode_errors() {
            self.note(stamp, "a picture is damaged".into());
            self.damage.dropped += 1;
            return false;
        }
        let doubtful = self.damage.from.is_some_and(|from| stamp.is_none_or(|s| s >= from));
        if doubtful && !picture.is_key() {
            self.damage.dropped += 1;
            return false;
        }
        if doubtful {
            self.damage.from = None;
        }
        self.damage.pictures += 1;
        true
    }

    fn time(&mut self, picture: &frame::Video) -> f64 {
        let step = 1.0 / self.rate();
        let clock = &mut self.clock;
        let ticks = |seconds: f64| (seconds / self.time_base).round() as i64;
        let next = clock.last.map_or(0.0, |(_, before)| before + step);
        let stamp = picture.timestamp().unwrap_or_else(|| clock.origin.saturating_add(ticks(next)));
        // Times are multiples of the stamps' unit, not sums of gaps: no error adds up.
        let time = |origin: i64| stamp.saturating_sub(origin) as f64 * self.time_base;
        if let Some((_, before)) = clock.last {
            let passed = time(clock.origin) - before;
            if !(passed > 0.0 && passed <= LONGEST_GAP) {
                clock.jumps += 1;
                clock.origin = stamp.saturating_sub(ticks(next));
            }
        } else {
            clock.origin = stamp;
        }
        let time = time(clock.origin);
        clock.last = Some((stamp, time));
        let shown = picture.packet().duration as f64 * self.time_base;
        clock.end = time + if shown > 0.0 && shown <= LONGEST_GAP { shown } else { step };
        time
    }
}

/// Readies FFmpeg, once: its words for errors, and silence on stderr (the ledger tells what matters).
fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Only registers texts; it cannot fail.
        let _ = ffmpeg::init();
        ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
    });
}

fn unreadable(reason: &'static str, detail: impl ToString) -> Unreadable {
    Unreadable { reason, detail: detail.to_string() }
}

/// FFmpeg says "Invalid data" of everything: look for the plain causes first.
fn explain(path: &Path, e: Error) -> Unreadable {
    let mut head = [0u8; 512];
    match std::fs::File::open(path).and_then(|mut f| f.read(&mut head)) {
        Err(e) => unreadable("unreadable", e),
        Ok(0) => unreadable("not a video", "the file is empty"),
        Ok(n) if std::str::from_utf8(&head[..n]).is_ok_and(|t| !t.contains('\0')) => {
            unreadable("not a video", format!("it holds text ({e})"))
        }
        Ok(n) if n >= 8 && &head[4..8] == b"ftyp" => unreadable(
            "not a video",
            format!(
                "an MP4 file whose index is missing or broken, as where it was cut off while being written ({e})"
            ),
        ),
        Ok(_) => unreadable("not a video", e),
    }
}

fn seconds(r: Rational) -> f64 {
    if r.denominator() == 0 { 0.0 } else { f64::from(r) }
}
