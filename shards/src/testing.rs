//! Small datasets for this crate's tests: real payloads, a real index and manifest, in a folder.

use crate::format::{
    ClipMeta, Codec, DataFile, FORMAT, MANIFEST_KEY, Manifest, ObjectRef, PayloadBuilder, Totals, VERSION,
    encode_index, run_count,
};
use crate::writer::{DataFileWriter, FinishedFile};
use std::collections::BTreeMap;
use std::path::Path;
use storage::{Location, sha256_hex};

/// A clip's row without bytes.
pub(crate) fn clip_meta(num_frames: u32, width: u32, height: u32, fps: f64) -> ClipMeta {
    ClipMeta {
        clip_id: "clip".into(),
        source: "video.mp4".into(),
        start_s: 0.0,
        label: Some(0),
        labels: vec![0],
        split: "train".into(),
        file: 0,
        offset: 0,
        bytes: 0,
        num_frames,
        fps,
        width,
        height,
        run_offsets: (0..=run_count(num_frames)).collect(),
        run_crcs: vec![0; run_count(num_frames) as usize],
    }
}

/// One frame: smooth, and different for every clip and time.
pub(crate) fn frame(clip: u32, t: u32, width: u32, height: u32) -> Vec<u8> {
    let pixel = |y: u32, x: u32| {
        [(x * 2 + t * 5) as u8 / 2, (y * 2 + clip * 31) as u8 / 2, ((x + y) / 2 + clip * 7 + t) as u8 / 2]
    };
    (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(y, x))).collect()
}

pub(crate) fn encode_jpeg(rgb: &[u8], width: u32, height: u32) -> Vec<u8> {
    let image = turbojpeg::Image {
        pixels: rgb,
        width: width as usize,
        pitch: width as usize * 3,
        height: height as usize,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2).unwrap().to_vec()
}

/// Writes a dataset of clips of (frames, width, height): every fifth is in "val", the label is the
/// clip's number mod 4, every seventh has none. Two data files.
pub(crate) fn write_dataset(folder: &Path, codec: Codec, clips: &[(u32, u32, u32)]) -> Location {
    let mut files = [DataFileWriter::new().unwrap(), DataFileWriter::new().unwrap()];
    let mut splits: BTreeMap<String, u64> = BTreeMap::new();
    for (i, &(frames, width, height)) in clips.iter().enumerate() {
        let mut builder = PayloadBuilder::default();
        for t in 0..frames {
            let rgb = frame(i as u32, t, width, height);
            match codec {
                Codec::Raw => builder.push(&rgb),
                Codec::Jpeg => builder.push(&encode_jpeg(&rgb, width, height)),
            }
        }
        let split = if i % 5 == 4 { "val" } else { "train" };
        *splits.entry(split.into()).or_default() += 1;
        let label = (i % 7 != 6).then_some(i as i32 % 4);
        let meta = ClipMeta {
            clip_id: format!("clip-{i:03}"),
            label,
            labels: label.into_iter().collect(),
            split: split.into(),
            file: (i % 2) as u32,
            ..clip_meta(frames, width, height, 25.0)
        };
        files[i % 2].push(meta, builder.finish()).unwrap();
    }
    let files = files.map(|file| file.finish().unwrap());
    let mut rows: Vec<ClipMeta> = files.iter().flat_map(|f| f.rows.clone()).collect();
    rows.sort_by(|a, b| a.clip_id.cmp(&b.clip_id));
    let put = |key: &str, bytes: &[u8]| {
        let path = folder.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
        ObjectRef { key: key.into(), bytes: bytes.len() as u64, sha256: sha256_hex(bytes) }
    };
    let data = |(i, file): (usize, &FinishedFile)| {
        let object = put(&format!("data/test/{i}.parquet"), &file.bytes);
        let rows = file.rows.len() as u64;
        DataFile { key: object.key, bytes: object.bytes, etag: None, sha256: object.sha256, rows }
    };
    let files: Vec<DataFile> = files.iter().enumerate().map(data).collect();
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        codec,
        quality: (codec == Codec::Jpeg).then_some(90),
        totals: Totals {
            clips: rows.len() as u64,
            frames: rows.iter().map(|r| u64::from(r.num_frames)).sum(),
            bytes: files.iter().map(|f| f.bytes).sum(),
            skipped: 0,
        },
        labels: ["down", "left", "right", "up"].map(String::from).to_vec(),
        splits,
        files,
        index: put("index.parquet", &encode_index(&rows).unwrap()),
        ledger: put("ledger.parquet", b""),
        ingest: serde_json::Value::Null,
    };
    put(MANIFEST_KEY, &manifest.to_bytes().unwrap());
    Location::parse(folder.to_str().unwrap()).unwrap()
}
