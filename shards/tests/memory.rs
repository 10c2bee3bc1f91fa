//! The stream's memory: what the process's own peak says of the declared budget.
#![allow(clippy::unwrap_used)]

use shards::format::{
    ClipMeta, Codec, Dataset, FORMAT, Manifest, ObjectRef, PayloadBuilder, Totals, VERSION, crc32c,
    encode_index,
};
use shards::plan::{Plan, PlanSpec};
use shards::stream::{Augment, ClipSpec, Scale, Stream, StreamOptions, TrainPass, View};
use shards::writer::DataFileWriter;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use storage::{Location, sha256_hex};

const MIB: u64 = 1 << 20;
const CLIPS: u32 = 300;
const SIDE: u32 = 112;

/// Raw clips of 16 frames, 0.6 MB each.
fn write_dataset(folder: &Path) {
    let mut file = DataFileWriter::new().unwrap();
    for i in 0..CLIPS {
        let mut payload = PayloadBuilder::default();
        (0..16).for_each(|t| payload.push(&vec![(i + t) as u8; (SIDE * SIDE * 3) as usize]));
        let clip = ClipMeta {
            clip_id: format!("clip-{i:04}"),
            source: "none".into(),
            start_s: 0.0,
            label: Some(0),
            labels: vec![],
            split: "train".into(),
            file: 0,
            offset: 0,
            bytes: 0,
            num_frames: 16,
            fps: 25.0,
            width: SIDE,
            height: SIDE,
            run_offsets: vec![],
            run_crcs: vec![],
        };
        file.push(clip, payload.finish()).unwrap();
    }
    let file = file.finish().unwrap();
    let location = Location::parse(folder.to_str().unwrap()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stored = runtime.block_on(file.store(&location, |_| "data/0.parquet".into())).unwrap();
    let index = encode_index(&file.rows).unwrap();
    let object = |key: &str, bytes: &[u8]| {
        std::fs::write(folder.join(key), bytes).unwrap();
        ObjectRef { key: key.into(), bytes: bytes.len() as u64, sha256: sha256_hex(bytes) }
    };
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        codec: Codec::Raw,
        quality: None,
        totals: Totals {
            clips: CLIPS.into(),
            frames: u64::from(CLIPS) * 16,
            bytes: stored.bytes,
            skipped: 0,
        },
        labels: vec!["one".into()],
        splits: [("train".to_string(), u64::from(CLIPS))].into(),
        files: vec![stored],
        index: object("index.parquet", &index),
        ledger: object("ledger.parquet", b""),
        ingest: serde_json::Value::Null,
    };
    std::fs::write(folder.join("dataset.json"), manifest.to_bytes().unwrap()).unwrap();
}

/// A line of /proc/self/status, bytes.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|l| l.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "the child of the other test"]
fn stream_and_print_the_peak() {
    let Ok(folder) = std::env::var("MEMORY_FOLDER") else { return };
    let budget: u64 = std::env::var("MEMORY_BUDGET").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dataset = Arc::new(runtime.block_on(Dataset::open(&Location::parse(&folder).unwrap())).unwrap());
    let clips = dataset.clips_of("train").unwrap();
    let spec = PlanSpec {
        dataset_digest: dataset.digest.clone(),
        clips: clips.len() as u64,
        lanes: 4,
        global_batch: 4,
        ..PlanSpec::default()
    };
    let scale = Scale::ShortSide { min: SIDE, max: SIDE };
    let pass = TrainPass {
        clips,
        plan: Arc::new(Plan::new(spec).unwrap()),
        rank: 0,
        world: 1,
        start: (0, 0),
        end: 225,
        clip: ClipSpec { frames: 16, sampling_rate: 1, fps: None, single_frame: false },
        view: View::Train { crop: SIDE, scale, flip: 0.5, seed: 1, repeats: 1, augment: Augment::NONE },
    };
    let before = status("VmRSS");
    let mut stream =
        Stream::train(dataset, pass, &StreamOptions::new(runtime.handle().clone(), 2, budget)).unwrap();
    let mut sum = 0;
    while let Some(batch) = stream.next().unwrap() {
        // A trainer that is slower than the stream, so that the budget is what holds it.
        sum = (0..40).fold(sum, |sum, _| crc32c(&batch.frames) ^ sum);
        stream.recycle(batch);
    }
    // On a line of its own, whatever the harness says of this test.
    println!("\npeak {} {sum}", status("VmHWM") - before);
}

#[test]
fn the_peak_stays_by_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(folder.path());
    let peak = |budget: u64| -> u64 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stream_and_print_the_peak", "--ignored", "--nocapture"])
            .env("MEMORY_FOLDER", folder.path())
            .env("MEMORY_BUDGET", budget.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        let line = text.lines().find_map(|l| l.strip_prefix("peak ")).unwrap_or_else(|| panic!("{child:?}"));
        line.split(' ').next().unwrap().parse().unwrap()
    };
    let peaks = [16, 64, 160].map(|budget| (budget, peak(budget * MIB)));
    println!("{:?}", peaks.map(|(budget, peak)| (budget, peak / MIB)));
    for (budget, peak) in peaks {
        // On top come the batch in the trainer's hands (2.4 MB), the reading threads, and pages that the
        // allocator keeps: 35 to 63 MiB were measured.
        assert!(peak <= budget * MIB * 5 / 4 + 48 * MIB, "{peaks:?}");
    }
    assert!(peaks[2].1 > peaks[0].1 + 48 * MIB, "the budget is what is measured: {peaks:?}");
}
