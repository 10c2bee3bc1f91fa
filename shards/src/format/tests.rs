//! The format against itself, and against damage of every kind.

use super::*;
use crate::testing::{clip_meta, encode_jpeg, frame, write_dataset};
use bytes::Bytes;
use proptest::prelude::*;
use std::path::Path;

const SMALL: [(u32, u32, u32); 3] = [(20, 24, 16), (5, 16, 24), (33, 17, 19)];

fn open(folder: &Path) -> Result<Dataset> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(Dataset::open(&Location::parse(folder.to_str().unwrap()).unwrap()))
}

/// Writes a dataset, changes the manifest as JSON, and says how opening it fails.
fn refused(change: impl FnOnce(&mut serde_json::Value)) -> Error {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), Codec::Raw, &SMALL);
    let path = folder.path().join(MANIFEST_KEY);
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
    open(folder.path()).unwrap_err()
}

/// As [`refused`], but changes a clip and keeps all digests right.
fn refused_clip(change: impl FnOnce(&mut ClipMeta)) -> String {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), Codec::Raw, &SMALL);
    let dataset = open(folder.path()).unwrap();
    let mut rows = dataset.clips.to_rows();
    change(&mut rows[1]);
    dataset.manifest.check_clips(&Clips::of(&rows).unwrap()).unwrap_err()
}

#[test]
fn a_dataset_opens_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), Codec::Jpeg, &[(20, 24, 16); 7]);
    let dataset = open(folder.path()).unwrap();
    assert_eq!(dataset.digest, sha256_hex(&std::fs::read(folder.path().join(MANIFEST_KEY)).unwrap()));
    assert_eq!(dataset.clips.len(), 7);
    assert_eq!(dataset.clips_of("val").unwrap(), [ClipIndex(4)]);
    assert_eq!(dataset.clip(ClipIndex(4)).label, Some(0));
    assert_eq!(dataset.clip(ClipIndex(6)).label, None);
    assert_eq!(dataset.file_key(dataset.clip(ClipIndex(3))), "data/test/1.parquet");
    let none = dataset.clips_of("test").unwrap_err();
    assert!(none.is_usage());
    assert!(none.to_string().contains("\"test\"") && none.to_string().contains("train, val"), "{none}");
}

#[test]
fn nothing_there_is_the_users_to_fix() {
    let folder = tempfile::tempdir().unwrap();
    let e = open(folder.path()).unwrap_err();
    assert!(e.is_usage() && e.to_string().contains("no dataset.json"), "{e}");
}

#[test]
fn manifests_that_cannot_be_are_refused_in_words() {
    let newer = refused(|m| m["version"] = 2.into());
    assert!(newer.is_usage() && newer.to_string().contains("version is 2"), "{newer}");
    let damaged = |change: fn(&mut serde_json::Value), word: &str| {
        let e = refused(change);
        assert!(e.is_damage() && e.to_string().contains(word), "{e} lacks {word}");
    };
    damaged(|m| m["format"] = "webdataset".into(), "webdataset");
    damaged(|m| m["codec"] = "av1".into(), "av1");
    damaged(|m| m["index"]["key"] = "../index.parquet".into(), "leads out of");
    damaged(|m| m["files"][0]["key"] = "/etc/passwd".into(), "leads out of");
    damaged(|m| m["totals"]["clips"] = 4.into(), "do not sum");
    damaged(|m| m["files"][0]["bytes"] = u64::MAX.into(), "do not sum");
    damaged(|m| m["index"]["sha256"] = "00".into(), "SHA-256");
    damaged(|m| m["index"]["bytes"] = 1.into(), "bytes, not 1");
    damaged(|m| m["index"]["key"] = "gone.parquet".into(), "missing");
    damaged(|m| *m = serde_json::json!([1, 2]), "no manifest");
    damaged(|m| m["labels"] = serde_json::json!([]), "has no name");
}

#[test]
fn clips_that_cannot_be_are_refused_in_words() {
    let refused = |change: fn(&mut ClipMeta), word: &str| {
        let why = refused_clip(change);
        assert!(why.contains(word), "{why} lacks {word}");
    };
    refused(|c| c.num_frames = 0, "clip \"clip-001\": it has no frames");
    refused(|c| c.file = 2, "no file 2");
    refused(|c| c.offset = u64::MAX, "lies beyond");
    refused(|c| c.bytes += 1 << 30, "lies beyond");
    refused(|c| c.bytes -= 1, "cover");
    refused(|c| c.num_frames = 17, "2 runs");
    refused(|c| c.num_frames = 6, "6 raw frames");
    refused(|c| c.width = 100_000, "100000x24");
    refused(|c| c.fps = f64::NAN, "NaN");
    refused(|c| c.label = Some(-3), "has no name");
    refused(|c| c.labels = vec![0, 9], "label 9 has no name");
    refused(|c| c.split = "val".into(), "splits");
    refused(|c| c.file = 0, "clips of data/test/0.parquet");
    refused(|c| c.run_offsets.clear(), "0 offsets");
}

#[test]
fn labels_are_found_by_name() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), Codec::Raw, &SMALL);
    let manifest = open(folder.path()).unwrap().manifest;
    let ids = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        manifest.label_ids("data.augment.no_flip", &names)
    };
    assert_eq!(ids(&["right", "left"]).unwrap(), [2, 1]);
    let e = ids(&["left", "rigth"]).unwrap_err();
    assert!(e.is_usage());
    assert_eq!(
        e.to_string(),
        "understand data.augment.no_flip: the dataset has no label \"rigth\"; did you mean \"right\"?"
    );
}

#[test]
fn an_index_of_other_columns_is_refused() {
    use arrow::array::{RecordBatch, StringArray};
    let ids: arrow::array::ArrayRef = std::sync::Arc::new(StringArray::from(vec!["a"]));
    let batch = RecordBatch::try_from_iter([("clip_id", ids)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert!(decode_index(Bytes::from(bytes)).unwrap_err().contains("no column source"));
    assert!(decode_index(Bytes::from_static(b"PAR1 not at all")).is_err());
}

#[test]
fn a_damaged_index_is_never_taken_for_whole() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path(), Codec::Raw, &SMALL);
    let path = folder.path().join(INDEX_KEY);
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(&path, bad).unwrap();
        assert!(open(folder.path()).unwrap_err().is_damage(), "byte {at}");
    }
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(open(folder.path()).unwrap_err().is_damage());
}

fn any_clip() -> impl Strategy<Value = ClipMeta> {
    let list = proptest::collection::vec(any::<i32>(), 0..4);
    let runs = proptest::collection::vec(any::<(u32, u32)>(), 0..5);
    (".*", any::<Option<i32>>(), list, "train|val", any::<(u32, u64, u64)>(), 0.1f64..1e4, runs).prop_map(
        |(clip_id, label, labels, split, (file, offset, bytes), fps, runs)| ClipMeta {
            clip_id,
            label,
            labels,
            split: split.into(),
            file,
            offset,
            bytes,
            run_offsets: runs.iter().map(|r| r.0).collect(),
            run_crcs: runs.iter().map(|r| r.1).collect(),
            ..clip_meta(7, 8, 9, fps)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_index_reads_back_as_written(clips in proptest::collection::vec(any_clip(), 0..20)) {
        prop_assert_eq!(decode_index(Bytes::from(encode_index(&clips).unwrap())).unwrap().to_rows(), clips);
    }

    #[test]
    fn jpegs_are_found_where_they_lie(sizes in proptest::collection::vec((1u32..40, 1u32..40), 1..6)) {
        let jpegs: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(i, &(w, h))| encode_jpeg(&frame(i as u32, 1, w, h), w, h)).collect();
        let run = jpegs.concat();
        let found = split_jpegs(&run, jpegs.len() as u32).unwrap();
        prop_assert!(found.into_iter().map(|r| &run[r]).eq(jpegs.iter().map(Vec::as_slice)));
        prop_assert!(split_jpegs(&run, jpegs.len() as u32 + 1).is_err());
        prop_assert!(split_jpegs(&run[..run.len() - 1], jpegs.len() as u32).is_err());
    }

    #[test]
    fn no_bytes_make_the_jpeg_splitter_panic(
        bytes in proptest::collection::vec(proptest::sample::select(vec![0u8, 1, 2, 0xd8, 0xd9, 0xda, 0xff]), 0..64),
    ) {
        drop(split_jpegs(&bytes, 3));
        drop(split_jpegs(&[&[0xff, 0xd8][..], &bytes].concat(), u32::MAX));
    }
}

#[test]
fn markers_inside_segments_and_scans_do_not_end_a_frame() {
    // A comment that holds FFD9; a scan with a stuffed zero, a restart and fill bytes; two scans.
    let jpeg = [
        0xff, 0xd8, 0xff, 0xfe, 0, 6, 0xff, 0xd9, 1, 2, 0xff, 0xda, 0, 2, 7, 0xff, 0x00, 0xd9, 0xff, 0xd3, 8,
        0xff, 0xff, 0xc4, 0, 4, 0xff, 0xd9, 0xff, 0xda, 0, 2, 9, 0xff, 0xd9,
    ];
    let run = jpeg.repeat(2);
    assert_eq!(split_jpegs(&run, 2).unwrap(), [0..jpeg.len(), jpeg.len()..run.len()]);
}

#[test]
fn payloads_know_their_runs() {
    let mut builder = PayloadBuilder::default();
    assert!(builder.is_empty());
    for t in 0..33u8 {
        builder.push(&[t; 10]);
    }
    let payload = builder.finish();
    assert_eq!(payload.run_offsets, [0, 160, 320, 330]);
    assert_eq!(payload.run_crcs[2], crc32c(&[32; 10]));
    assert_eq!((run_count(33), run_frames(33, 0), run_frames(33, 2), run_frames(33, 3)), (3, 16, 1, 0));
    // The check value of CRC-32C.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
