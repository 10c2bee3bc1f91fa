//! A clip's payload: frames back to back, in runs of 16 whose CRC32C the index knows.

use super::Codec;
use std::ops::Range;

/// Frames in a run, the unit that is fetched and verified; a clip's last run may be shorter.
pub const RUN_FRAMES: u32 = 16;

/// Runs of a clip of `num_frames`.
pub fn run_count(num_frames: u32) -> u32 {
    num_frames.div_ceil(RUN_FRAMES)
}

/// Frames `run` holds in a clip of `num_frames`: 16, or fewer in the last run.
pub fn run_frames(num_frames: u32, run: u32) -> u32 {
    num_frames.saturating_sub(run.saturating_mul(RUN_FRAMES)).min(RUN_FRAMES)
}

/// CRC32C (Castagnoli) of a run.
pub fn crc32c(bytes: &[u8]) -> u32 {
    // CRC-32/ISCSI is its name in the catalogue; the checksum fits 32 bits.
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A clip's frames as they are stored, with what the index says of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    pub bytes: Vec<u8>,
    pub num_frames: u32,
    /// Start of each run relative to the payload, then the end.
    pub run_offsets: Vec<u32>,
    /// CRC32C of each run.
    pub run_crcs: Vec<u32>,
}

/// Strings stored frames together into a [`Payload`].
#[derive(Debug, Default)]
pub struct PayloadBuilder {
    bytes: Vec<u8>,
    num_frames: u32,
    run_offsets: Vec<u32>,
    run_crcs: Vec<u32>,
}

impl PayloadBuilder {
    /// Appends one stored frame: a whole JPEG, or height x width x 3 bytes of RGB.
    pub fn push(&mut self, frame: &[u8]) {
        if self.num_frames.is_multiple_of(RUN_FRAMES) {
            self.close_run();
            self.run_offsets.push(self.bytes.len() as u32);
        }
        self.bytes.extend_from_slice(frame);
        self.num_frames += 1;
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True before the first frame.
    pub fn is_empty(&self) -> bool {
        self.num_frames == 0
    }

    /// Closes the last run.
    pub fn finish(mut self) -> Payload {
        self.close_run();
        self.run_offsets.push(self.bytes.len() as u32);
        Payload {
            bytes: self.bytes,
            num_frames: self.num_frames,
            run_offsets: self.run_offsets,
            run_crcs: self.run_crcs,
        }
    }

    fn close_run(&mut self) {
        if let Some(&start) = self.run_offsets.last() {
            self.run_crcs.push(crc32c(&self.bytes[start as usize..]));
        }
    }
}

/// Byte ranges of the `frames` stored frames of one run.
///
/// # Errors
/// Says in words why the run is not that many frames of that codec.
pub fn split_run(
    codec: Codec,
    run: &[u8],
    frames: u32,
    width: u32,
    height: u32,
) -> Result<Vec<Range<usize>>, String> {
    match codec {
        Codec::Jpeg => split_jpegs(run, frames),
        Codec::Raw => {
            let frame = width as usize * height as usize * 3;
            if Some(run.len()) != frame.checked_mul(frames as usize) {
                return Err(format!("{} bytes are not {frames} raw frames of {frame} bytes", run.len()));
            }
            Ok((0..frames as usize).map(|i| i * frame..(i + 1) * frame).collect())
        }
    }
}

/// Byte ranges of exactly `frames` JPEG files that lie back to back.
///
/// # Errors
/// Says in words where the bytes are no JPEG, or that their number differs.
pub fn split_jpegs(run: &[u8], frames: u32) -> Result<Vec<Range<usize>>, String> {
    // A JPEG has at least its two markers: a bound on what a damaged count can make us allocate.
    let mut found = Vec::with_capacity((frames as usize).min(run.len() / 4));
    let mut start = 0;
    while start < run.len() {
        let end =
            jpeg_end(run, start).map_err(|(at, why)| format!("frame {}: {why} at byte {at}", found.len()))?;
        found.push(start..end);
        start = end;
    }
    if found.len() != frames as usize {
        return Err(format!("it holds {} JPEG frames, not {frames}", found.len()));
    }
    Ok(found)
}

/// Bytes of the JPEG that `bytes` begin with.
///
/// # Errors
/// Says in words where they are none.
pub fn jpeg_length(bytes: &[u8]) -> Result<usize, String> {
    jpeg_end(bytes, 0).map_err(|(at, why)| format!("{why} at byte {at}"))
}

/// End of the JPEG at `start`: walks the segments, whose lengths are given, and inside a scan looks
/// for the next marker that is neither a stuffed zero nor a restart (ITU-T T.81, B.1.1).
fn jpeg_end(b: &[u8], start: usize) -> Result<usize, (usize, &'static str)> {
    if b.get(start..start + 2) != Some(&[0xff, 0xd8]) {
        return Err((start, "no JPEG begins"));
    }
    let mut at = start + 2;
    loop {
        if b.get(at) != Some(&0xff) {
            return Err((at, "a JPEG marker is missing"));
        }
        let marker = *b.get(at + 1).ok_or((at, "a JPEG breaks off"))?;
        match marker {
            0xff => at += 1,
            0xd9 => return Ok(at + 2),
            0x01 | 0xd0..=0xd7 => at += 2,
            0x00 | 0xd8 => return Err((at, "a JPEG marker is wrong")),
            _ => {
                let length = b.get(at + 2..at + 4).ok_or((at, "a JPEG breaks off"))?;
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                if length < 2 {
                    return Err((at, "a JPEG segment's length is wrong"));
                }
                at += 2 + length;
                if marker == 0xda {
                    at = scan_end(b, at).ok_or((at, "a JPEG breaks off"))?;
                }
            }
        }
    }
}

/// The first marker at or after `at` that ends entropy-coded data.
fn scan_end(b: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr::memchr(0xff, b.get(at..)?)?;
        match *b.get(at + 1)? {
            0x00 | 0xd0..=0xd7 => at += 2,
            0xff => at += 1,
            _ => return Some(at),
        }
    }
}
