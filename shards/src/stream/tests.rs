//! The whole reading half against small datasets on disk.

use super::*;
use crate::format::{Codec, MANIFEST_KEY};
use crate::plan::PlanSpec;
use crate::testing::{frame, write_dataset};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const WINDOW: ClipSpec = ClipSpec { frames: 6, sampling_rate: 3, fps: None, single_frame: false };
const VIEW: View =
    View::Train { crop: 16, scale: Scale::ShortSide { min: 16, max: 22 }, flip: 0.5, seed: 11 };
const VIEWS: View = View::Eval { short_side: 20, crop: 16, clips: 3, crops: 2 };

struct Bench {
    folder: TempDir,
    runtime: Runtime,
    dataset: Arc<Dataset>,
}

/// 26 clips of various lengths and sizes, 21 of them for training.
fn bench(codec: Codec) -> Bench {
    let clips: Vec<_> = (0..26).map(|i| (3 + i * 5 % 61, 20 + i % 9, 30 - i % 7)).collect();
    bench_of(codec, &clips)
}

fn bench_of(codec: Codec, clips: &[(u32, u32, u32)]) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let location = write_dataset(folder.path(), codec, clips);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dataset = Arc::new(runtime.block_on(Dataset::open(&location)).unwrap());
    Bench { folder, runtime, dataset }
}

impl Bench {
    fn options(&self, threads: usize, prefetch_bytes: u64) -> StreamOptions {
        StreamOptions::new(self.runtime.handle().clone(), threads, prefetch_bytes)
    }

    fn pass(&self) -> TrainPass {
        let clips = self.dataset.clips_of("train").unwrap();
        let spec = PlanSpec {
            dataset_digest: self.dataset.digest.clone(),
            seed: 5,
            clips: clips.len() as u64,
            lanes: 4,
            global_batch: 8,
            drop_last: false,
        };
        let plan = Arc::new(Plan::new(spec).unwrap());
        TrainPass { clips, plan, rank: 0, world: 1, start: (0, 0), end: 7, clip: WINDOW, view: VIEW }
    }

    fn train(&self, pass: TrainPass, threads: usize, prefetch_bytes: u64) -> Vec<Batch> {
        all(Stream::train(self.dataset.clone(), pass, &self.options(threads, prefetch_bytes)).unwrap())
            .unwrap()
    }

    /// Changes a data file on disk, after the dataset was opened.
    fn damage(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.folder.path().join(key);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }

    /// Every clip of the training split in turn, until the first error.
    fn first_error(&self) -> Error {
        all(Stream::train(self.dataset.clone(), self.pass(), &self.options(2, 1 << 20)).unwrap()).unwrap_err()
    }
}

/// Every batch, without what the clock said.
fn all(mut stream: Stream) -> Result<Vec<Batch>> {
    let mut batches = Vec::new();
    while let Some(mut batch) = stream.next()? {
        batch.waited = Duration::ZERO;
        batches.push(batch);
    }
    assert_eq!(stream.batches_left(), 0);
    assert!(stream.next().unwrap().is_none(), "the end stays the end");
    Ok(batches)
}

#[test]
fn the_same_bytes_come_whatever_the_threads_and_budget_do() {
    for codec in [Codec::Raw, Codec::Jpeg] {
        let bench = bench(codec);
        let one = bench.train(bench.pass(), 1, 1 << 30);
        assert_eq!(one.len(), 7);
        assert_eq!(one[0].shape, [8, 6, 16, 16, 3]);
        assert_eq!(one[0].frames.len(), one[0].shape.iter().product::<usize>());
        assert_eq!((one[2].labels.len(), one[2].global_clips), (5, 5), "an epoch's last batch is short");
        assert!(one[0].frames.iter().any(|&b| b != 0));
        assert_eq!(one, bench.train(bench.pass(), 4, 1 << 30));
        assert_eq!(one, bench.train(bench.pass(), 2, 0), "a budget of one batch");
        assert_ne!(one[0].frames, one[3].frames, "another epoch");
    }
}

#[test]
fn ranks_together_see_what_one_sees() {
    let bench = bench(Codec::Jpeg);
    let whole = bench.train(bench.pass(), 2, 1 << 20);
    for world in 1..=3 {
        let ranks: Vec<Vec<Batch>> = (0..world)
            .map(|rank| bench.train(TrainPass { rank, world, ..bench.pass() }, 2, 1 << 20))
            .collect();
        for (step, expected) in whole.iter().enumerate() {
            let parts = || ranks.iter().map(|r| &r[step]);
            assert_eq!(parts().flat_map(|b| b.frames.clone()).collect::<Vec<u8>>(), expected.frames);
            assert_eq!(parts().flat_map(|b| b.labels.clone()).collect::<Vec<i64>>(), expected.labels);
            assert_eq!(parts().flat_map(|b| b.positions.clone()).collect::<Vec<u64>>(), expected.positions);
            assert!(parts().all(|b| b.global_clips == expected.global_clips));
        }
    }
}

#[test]
fn a_start_in_the_middle_gives_the_rest() {
    let bench = bench(Codec::Raw);
    let whole = bench.train(bench.pass(), 2, 1 << 20);
    for (start, first) in [((0, 2), 2), ((0, 3), 3), ((1, 0), 3), ((2, 0), 6), ((9, 0), 7)] {
        assert_eq!(bench.train(TrainPass { start, ..bench.pass() }, 2, 1 << 20), whole[first..]);
    }
}

#[test]
fn shown_frames_are_those_of_the_clip() {
    // Crop = frame: the pixels pass through untouched, or mirrored.
    let bench = bench_of(Codec::Raw, &[(40, 20, 20); 3]);
    let view = |flip| View::Train { crop: 20, scale: Scale::ShortSide { min: 20, max: 20 }, flip, seed: 1 };
    let clip = ClipSpec { frames: 40, sampling_rate: 1, fps: None, single_frame: false };
    let pass = |view, clip| TrainPass { view, clip, end: 1, ..bench.pass() };
    for (flip, mirror) in [(0.0, false), (1.0, true)] {
        let batch = bench.train(pass(view(flip), clip), 2, 1 << 20).remove(0);
        for (i, shown) in batch.frames.chunks(20 * 20 * 3).enumerate() {
            let mut expected = frame(batch.clips[i / 40], (i % 40) as u32, 20, 20);
            if mirror {
                expected = expected
                    .chunks(60)
                    .flat_map(|row| row.chunks(3).rev().flatten().copied().collect::<Vec<u8>>())
                    .collect();
            }
            assert!(shown == expected, "frame {i}, mirrored {mirror}");
        }
    }
    let one = ClipSpec { frames: 8, sampling_rate: 2, single_frame: true, ..clip };
    let batch = bench.train(pass(view(0.0), one), 2, 1 << 20).remove(0);
    for shown in batch.frames.chunks(8 * 20 * 20 * 3) {
        assert!(shown.chunks(20 * 20 * 3).all(|f| f == &shown[..20 * 20 * 3]));
    }
}

#[test]
fn jpeg_clips_look_like_raw_ones() {
    let (raw, jpeg) = (bench(Codec::Raw), bench(Codec::Jpeg));
    let eval = |bench: &Bench| {
        let clips = bench.dataset.clips_of("val").unwrap();
        let pass = EvalPass { clips, rank: 0, world: 1, batch: 64, clip: WINDOW, view: VIEWS };
        all(Stream::eval(bench.dataset.clone(), pass, &bench.options(2, 1 << 24)).unwrap()).unwrap().remove(0)
    };
    let (a, b) = (eval(&raw), eval(&jpeg));
    assert_eq!((a.shape, &a.labels), (b.shape, &b.labels));
    let difference: u64 = a.frames.iter().zip(&b.frames).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(difference < 4 * a.frames.len() as u64, "mean {}", difference as f64 / a.frames.len() as f64);
}

#[test]
fn evaluation_shows_each_clip_in_every_view_once() {
    let bench = bench(Codec::Jpeg);
    let clips = bench.dataset.clips_of("val").unwrap();
    let mut seen = Vec::new();
    let mut joined = Vec::new();
    for (world, batch) in [(1, 1000), (2, 5), (2, 0)] {
        let mut bytes = Vec::new();
        for rank in 0..world {
            let pass = EvalPass { clips: clips.clone(), rank, world, batch, clip: WINDOW, view: VIEWS };
            let stream = Stream::eval(bench.dataset.clone(), pass, &bench.options(2, 1 << 16)).unwrap();
            for b in all(stream).unwrap() {
                assert_eq!(b.shape[0], b.labels.len());
                assert!(b.shape[0] <= batch.max(2) as usize, "two crops are the least");
                seen.extend(b.clips.iter().copied().zip(b.views.iter().copied()));
                let label = |c: &u32| bench.dataset.clip(clips[*c as usize]).label.map_or(-1, i64::from);
                assert!(b.clips.iter().map(label).eq(b.labels.iter().copied()));
                bytes.extend(b.frames);
            }
        }
        let every: Vec<(u32, u32)> = (0..5).flat_map(|c| (0..6).map(move |v| (c, v))).collect();
        assert_eq!(std::mem::take(&mut seen), every);
        joined.push(bytes);
    }
    assert!(joined[0] == joined[1] && joined[1] == joined[2], "batch and world size change nothing");
}

#[test]
fn a_flipped_byte_is_named_by_file_clip_and_run() {
    for codec in [Codec::Raw, Codec::Jpeg] {
        let bench = bench_of(codec, &[(40, 24, 24); 4]);
        let clip = bench.dataset.clips[2].clone();
        let at = (clip.offset + clip.run_offsets[1] + 50) as usize;
        bench.damage("data/test/0.parquet", |bytes| bytes[at] ^= 1);
        let view = View::Train { crop: 16, scale: Scale::ShortSide { min: 16, max: 16 }, flip: 0.0, seed: 0 };
        let window = ClipSpec { frames: 40, sampling_rate: 1, fps: None, single_frame: false };
        let pass = TrainPass { clip: window, view, end: 1, ..bench.pass() };
        let mut stream = Stream::train(bench.dataset.clone(), pass, &bench.options(2, 1 << 20)).unwrap();
        let e = stream.next().unwrap_err();
        let Error::DamagedClip { file, clip, run, .. } = &e else { panic!("{e}") };
        assert!(file.ends_with("data/test/0.parquet"), "{file}");
        assert_eq!((clip.as_str(), *run), ("clip-002", 1), "{e}");
        assert_eq!(stream.stats().refetches, 1);
        assert!(stream.next().unwrap_err().to_string().contains("earlier error"));
    }
}

#[test]
fn the_first_error_in_order_is_the_one_reported() {
    let bench = bench(Codec::Raw);
    let order: Vec<u32> =
        (0..3).flat_map(|s| bench.pass().plan.global_batch(0, s)).map(|sample| sample.clip).collect();
    let clips = bench.pass().clips;
    // The third batch and, in it, everything else is damaged; the first two are whole.
    for &place in &order[16..] {
        let clip = bench.dataset.clip(clips[place as usize]).clone();
        let range = clip.offset as usize..(clip.offset + clip.bytes) as usize;
        bench.damage(&bench.dataset.manifest.files[clip.file as usize].key, |b| b[range].fill(9));
    }
    let mut stream = Stream::train(bench.dataset.clone(), bench.pass(), &bench.options(2, 1 << 20)).unwrap();
    assert!(stream.next().unwrap().is_some() && stream.next().unwrap().is_some());
    let expected = &bench.dataset.clip(clips[order[16] as usize]).clip_id;
    match stream.next().unwrap_err() {
        Error::DamagedClip { clip, .. } => assert_eq!(&clip, expected),
        e => panic!("{e}"),
    }
}

#[test]
fn a_file_cut_off_or_gone_is_named() {
    let bench = bench(Codec::Raw);
    bench.damage("data/test/1.parquet", |bytes| bytes.truncate(20_000));
    let e = bench.first_error();
    assert!(e.is_damage(), "{e}");
    let text = e.to_string();
    assert!(
        text.contains("data/test/1.parquet") && text.contains("clip-") && text.contains("cut off"),
        "{text}"
    );
    std::fs::remove_file(bench.folder.path().join("data/test/1.parquet")).unwrap();
    let e = bench.first_error();
    assert!(e.is_damage() && e.to_string().contains("missing"), "{e}");
}

#[test]
fn a_jpeg_of_another_size_is_an_error_of_its_run() {
    let bench = bench_of(Codec::Jpeg, &[(20, 24, 16); 2]);
    let mut manifest = std::fs::read_to_string(bench.folder.path().join(MANIFEST_KEY)).unwrap();
    let mut clips = bench.dataset.clips.clone();
    clips[0].width = 16_000;
    let index = crate::format::encode_index(&clips).unwrap();
    manifest = manifest.replace(&bench.dataset.manifest.index.sha256, &storage::sha256_hex(&index));
    let bytes = |n: usize| format!("\"bytes\": {n},");
    manifest = manifest.replace(&bytes(bench.dataset.manifest.index.bytes as usize), &bytes(index.len()));
    std::fs::write(bench.folder.path().join(MANIFEST_KEY), manifest).unwrap();
    std::fs::write(bench.folder.path().join("index.parquet"), index).unwrap();
    let location = bench.dataset.location.clone();
    let dataset = Arc::new(bench.runtime.block_on(Dataset::open(&location)).unwrap());
    let bench = Bench { dataset, ..bench };
    let e = bench.first_error().to_string();
    assert!(e.contains("clip-000") && e.contains("24x16, not 16000x16"), "{e}");
}

#[test]
fn a_dropped_stream_leaves_nothing_running() {
    let bench = bench(Codec::Jpeg);
    for taken in [0, 2] {
        let pass = TrainPass { end: 100_000, ..bench.pass() };
        let mut stream = Stream::train(bench.dataset.clone(), pass, &bench.options(2, 1 << 18)).unwrap();
        for _ in 0..taken {
            stream.next().unwrap().unwrap();
        }
        let asked = now();
        drop(stream);
        // Aborted tasks end at their next turn; the deadline only bounds a failure.
        while bench.runtime.metrics().num_alive_tasks() > 0 {
            assert!(asked.elapsed() < Duration::from_secs(10), "tasks are left running");
            std::thread::yield_now();
        }
    }
}

#[test]
fn the_budget_bounds_what_waits() {
    // One batch: 8 clips of 40 x 32x32x3 bytes, stored and shown; the budget holds one and a half.
    let bench = bench_of(Codec::Raw, &[(40, 32, 32); 40]);
    let a_batch = 8 * 40 * 32 * 32 * 3;
    let view = View::Train { crop: 32, scale: Scale::ShortSide { min: 32, max: 32 }, flip: 0.5, seed: 1 };
    let clip = ClipSpec { frames: 40, sampling_rate: 1, fps: None, single_frame: false };
    let pass = TrainPass { end: 40, clip, view, ..bench.pass() };
    let mut stream = Stream::train(bench.dataset.clone(), pass, &bench.options(2, 3 * a_batch)).unwrap();
    for taken in 1..=40 {
        stream.next().unwrap().unwrap();
        let fetched = stream.stats().bytes;
        // Whoever holds no budget has fetched nothing: two batches of pixels fill it.
        assert!(fetched <= (taken + 2) * a_batch, "{fetched} bytes after {taken} batches of {a_batch}");
    }
}

#[test]
fn impossible_passes_are_refused_in_words() {
    let bench = bench(Codec::Raw);
    let refused = |pass: TrainPass| {
        let e = Stream::train(bench.dataset.clone(), pass, &bench.options(1, 0)).unwrap_err();
        assert!(e.is_usage(), "{e}");
        e.to_string()
    };
    assert!(refused(TrainPass { world: 5, ..bench.pass() }).contains("data.lanes is 4"));
    assert!(refused(TrainPass { start: (0, 4), ..bench.pass() }).contains("3 steps"));
    assert!(refused(TrainPass { view: VIEWS, ..bench.pass() }).contains("evaluation"));
    assert!(refused(TrainPass { clips: vec![ClipIndex(0)], ..bench.pass() }).contains("made for 21"));
    assert!(refused(TrainPass { clip: ClipSpec { frames: 0, ..WINDOW }, ..bench.pass() }).contains("frames"));
}

/// Not a test of anything: prints what this machine decodes. Run it with `--run-ignored only`.
#[test]
#[ignore = "a measurement"]
fn measure_decoding() {
    let bench = bench_of(Codec::Jpeg, &[(80, 340, 256); 10]);
    let clip = ClipSpec { frames: 32, sampling_rate: 2, fps: None, single_frame: false };
    let view = View::Train { crop: 224, scale: Scale::ShortSide { min: 256, max: 320 }, flip: 0.5, seed: 1 };
    let pass = TrainPass { clip, view, end: 25, ..bench.pass() };
    let bytes: u64 = bench.dataset.clips.iter().map(|c| c.bytes).sum();
    let started = now();
    let mut stream = Stream::train(bench.dataset.clone(), pass, &bench.options(2, 256 << 20)).unwrap();
    let (mut clips, mut first) = (0, None);
    while let Some(batch) = stream.next().unwrap() {
        first.get_or_insert(batch.waited);
        clips += batch.shape[0];
    }
    let took = started.elapsed().as_secs_f64();
    println!(
        "{clips} clips of 32x224x224 from 340x256 JPEG ({} bytes a frame) on 2 threads: {:.1} clips/s, {:.0} frames/s, first batch after {:?}, {:?}",
        bytes / 80 / 10,
        clips as f64 / took,
        clips as f64 * 32.0 / took,
        first,
        stream.stats(),
    );
}
