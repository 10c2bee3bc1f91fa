//! What a large index costs: `cargo nextest run -p shards -E 'test(memory_of_an_index)' --no-capture` prints memory and
//! time; MAREY_CLIPS=650000 makes it as large as Kinetics-700 (the time then is a measurement, not a test).
#![allow(clippy::unwrap_used)]

use shards::{
    format::{
        ClipMeta, Codec, DataFile, Dataset, FORMAT, INDEX_KEY, LEDGER_KEY, MANIFEST_KEY, Manifest, ObjectRef,
        Totals, VERSION, encode_index,
    },
    plan::{Plan, PlanSpec},
};
use std::{fs, path::Path, process::Command};
use storage::{Location, sha256_hex};

/// Ten seconds at 30 frames a second, a JPEG of 20 KB each.
const FRAMES: u32 = 300;
const RUN_BYTES: u32 = 16 * 20_000;
/// Clips of one data file of about 400 MB.
const ROWS: u64 = 64;
/// 650,000 clips in 300 MiB.
const BYTES_A_CLIP: u64 = (300 << 20) / 650_000;
/// What the program itself, its runtime and one page of each column take.
const FIXED: u64 = 24 << 20;

#[test]
fn memory_of_an_index() {
    let clips = std::env::var("MAREY_CLIPS").map_or(65_000, |n| n.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), clips);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "open_and_plan", "--ignored", "--nocapture"])
        .env("MAREY_DATASET", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{text}{}", String::from_utf8_lossy(&child.stderr));
    let peak: u64 = text.split("peak ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let index = fs::metadata(folder.path().join(INDEX_KEY)).unwrap().len();
    println!(
        "{clips} clips, {} MiB of index: {}",
        index >> 20,
        text.lines().find(|l| l.contains("peak")).unwrap()
    );
    assert!(peak <= FIXED + clips * BYTES_A_CLIP, "{peak} bytes for {clips} clips");
}

/// Run by the test above in a process of its own.
#[test]
#[ignore = "a part of memory_of_an_index"]
#[allow(clippy::disallowed_methods)] // A measurement.
fn open_and_plan() {
    let Ok(url) = std::env::var("MAREY_DATASET") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let began = std::time::Instant::now();
    let dataset = runtime.block_on(Dataset::open(&Location::parse(&url).unwrap())).unwrap();
    let opened = began.elapsed();
    let clips = dataset.clips_of("train").unwrap();
    let plan = Plan::new(PlanSpec {
        dataset_digest: dataset.digest.clone(),
        seed: 1,
        clips: clips.len() as u64,
        lanes: 64,
        global_batch: 512,
        drop_last: false,
        stages: vec![],
    });
    let batch = plan.unwrap().global_batch(3, 1000);
    let planned = began.elapsed();
    assert!(batch.len() <= 512);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim();
    let kib: u64 = peak.split(' ').next().unwrap().parse().unwrap();
    println!("opened after {opened:.2?}, a batch planned after {planned:.2?}, peak {} bytes", kib << 10);
}

fn write(folder: &Path, clips: u64) {
    let put = |key: &str, bytes: &[u8]| {
        fs::write(folder.join(key), bytes).unwrap();
        ObjectRef { key: key.into(), bytes: bytes.len() as u64, sha256: sha256_hex(bytes) }
    };
    let rows: Vec<ClipMeta> = (0..clips).map(row).collect();
    let index = put(INDEX_KEY, &encode_index(&rows).unwrap());
    drop(rows);
    let files: Vec<DataFile> = (0..clips.div_ceil(ROWS))
        .map(|n| DataFile {
            key: format!("data/{n:05}.parquet"),
            bytes: ROWS * u64::from(payload()),
            etag: None,
            sha256: sha256_hex(&n.to_le_bytes()),
            rows: ROWS.min(clips - n * ROWS),
        })
        .collect();
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        codec: Codec::Jpeg,
        quality: Some(90),
        totals: Totals {
            clips,
            frames: clips * u64::from(FRAMES),
            bytes: files.iter().map(|f| f.bytes).sum(),
            skipped: 0,
        },
        labels: (0..700).map(|n| format!("label {n}")).collect(),
        splits: [("train".to_string(), clips)].into(),
        files,
        index,
        ledger: put(LEDGER_KEY, b""),
        ingest: serde_json::Value::Null,
    };
    put(MANIFEST_KEY, &manifest.to_bytes().unwrap());
}

fn payload() -> u32 {
    FRAMES.div_ceil(16) * RUN_BYTES
}

fn row(n: u64) -> ClipMeta {
    let mixed = |i: u64| (n * 31 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let runs = FRAMES.div_ceil(16);
    // As ids of videos are: eleven letters of no order.
    let name = format!("{:011x}_{:06}_{:06}", mixed(0) >> 20, n % 900, n % 900 + 10);
    ClipMeta {
        source: format!("train/label {}/{name}.mp4", n % 700),
        clip_id: name,
        start_s: (n % 900) as f64,
        label: Some((n % 700) as i32),
        labels: vec![(n % 700) as i32],
        split: "train".into(),
        file: (n / ROWS) as u32,
        offset: n % ROWS * u64::from(payload()),
        bytes: u64::from(payload()),
        num_frames: FRAMES,
        fps: 30.0,
        width: 340,
        height: 256,
        // Runs of no two lengths alike.
        run_offsets: (0..runs)
            .map(|i| i * RUN_BYTES + (mixed(u64::from(i)) % 9999) as u32 * u32::from(i > 0))
            .chain([payload()])
            .collect(),
        run_crcs: (0..runs).map(|i| (mixed(u64::from(i)) >> 32) as u32).collect(),
    }
}
