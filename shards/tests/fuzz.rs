//! Bytes that nobody wrote: manifests, indexes and frames changed at random give an error or a dataset, never a
//! panic, and never take memory that the bytes do not account for.

use bytes::Bytes;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use shards::format::{
    ClipMeta, Codec, DataFile, FORMAT, Manifest, ObjectRef, PayloadBuilder, Totals, VERSION, decode_index,
    encode_index, split_jpegs,
};
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What the work may take besides the bytes it is given: the Parquet reader's own buffers.
const BESIDES: usize = 64 << 20;

/// Runs it; it must not panic nor take more than `most` bytes.
fn bounded<T>(most: usize, work: impl FnOnce() -> T) -> T {
    // The peak is that of the whole process: one at a time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let result = work();
    let took = MEMORY.peak_usage().saturating_sub(before);
    assert!(took <= most, "{took} bytes taken, {most} are accounted for");
    result
}

fn clip(i: u32) -> ClipMeta {
    ClipMeta {
        clip_id: format!("clip-{i}"),
        source: "video.mp4".into(),
        start_s: 0.0,
        label: Some(0),
        labels: vec![0],
        split: "train".into(),
        file: 0,
        offset: u64::from(i) * 2000,
        bytes: 2000,
        num_frames: 20,
        fps: 25.0,
        width: 32,
        height: 24,
        run_offsets: vec![0, 1500, 2000],
        run_crcs: vec![1, 2],
    }
}

fn manifest() -> Manifest {
    let object = |key: &str| ObjectRef { key: key.into(), bytes: 9, sha256: "0".repeat(64) };
    Manifest {
        format: FORMAT.into(),
        version: VERSION,
        codec: Codec::Jpeg,
        quality: Some(90),
        totals: Totals { clips: 40, frames: 800, bytes: 100_000, skipped: 0 },
        labels: vec!["a".into(), "b".into()],
        splits: [("train".to_string(), 40)].into(),
        files: vec![DataFile {
            key: "data/x/0.parquet".into(),
            bytes: 100_000,
            etag: None,
            sha256: "0".repeat(64),
            rows: 40,
        }],
        index: object("index.parquet"),
        ledger: object("ledger.parquet"),
        ingest: serde_json::Value::Null,
    }
}

/// Some bytes of it are replaced, and some of its end may be missing.
fn changed(whole: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = whole.len();
    let edits = prop::collection::vec((0..length, any::<u8>()), 0..8);
    (edits, prop_oneof![4 => Just(length), 1 => 0..length]).prop_map(move |(edits, keep)| {
        let mut bytes = whole.clone();
        edits.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes.truncate(keep);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn manifests(bytes in changed(manifest().to_bytes().unwrap())) {
        let parsed = bounded(64 * bytes.len() + (1 << 20), || Manifest::parse(&bytes, "here"));
        // Whatever passes can be written again.
        if let Ok(manifest) = parsed {
            prop_assert!(manifest.to_bytes().is_ok());
        }
    }

    #[test]
    fn manifests_of_anything(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(bounded(1 << 20, || Manifest::parse(&bytes, "here")).is_err());
    }

    #[test]
    fn indexes(bytes in changed(encode_index(&(0..40).map(clip).collect::<Vec<_>>()).unwrap())) {
        // The Parquet decoder may panic on what it is given; opening a dataset catches that. What comes through is
        // checked before it is used.
        let decoded = bounded(64 * bytes.len() + BESIDES, || {
            std::panic::catch_unwind(|| decode_index(Bytes::from(bytes)))
        });
        if let Ok(Ok(clips)) = decoded
            && manifest().check_clips(&clips).is_ok()
        {
            for clip in clips.iter() {
                prop_assert!(clip.offset + clip.bytes <= 100_000);
                prop_assert!(clip.run_offsets.windows(2).all(|w| w[0] < w[1]));
                prop_assert_eq!(clip.run_offsets.last().map(|&end| u64::from(end)), Some(clip.bytes));
            }
        }
    }

    #[test]
    fn frames(bytes in changed(jpegs()), frames in 0u32..20) {
        let found = bounded(64 * bytes.len() + (1 << 20), || split_jpegs(&bytes, frames));
        if let Ok(frames) = found {
            prop_assert!(frames.iter().all(|r| r.start < r.end && r.end <= bytes.len()));
        }
    }
}

/// Three frames as the ingest stores them.
fn jpegs() -> Vec<u8> {
    let pixels = vec![77u8; 32 * 24 * 3];
    let image = turbojpeg::Image {
        pixels: &pixels[..],
        width: 32,
        pitch: 96,
        height: 24,
        format: turbojpeg::PixelFormat::RGB,
    };
    let one = turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2).unwrap();
    let mut builder = PayloadBuilder::default();
    (0..3).for_each(|_| builder.push(&one));
    builder.finish().bytes
}
