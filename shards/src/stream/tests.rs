//! The whole reading half against small datasets on disk.

mod damage;
mod grouped;

use super::*;
use crate::format::{ClipIndex, Clips, Codec, MANIFEST_KEY};
use crate::plan::PlanSpec;
use crate::testing::{frame, write_dataset};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const WINDOW: ClipSpec = ClipSpec { frames: 6, sampling_rate: 3, fps: None, single_frame: false };
const VIEW: View = train_view(16, 16, 22, 0.5);
const VIEWS: View =
    View::Eval { short_side: 20, crop: 16, clips: 3, crops: 2, sampling: TestSampling::PySlowFast };

const fn train_view(crop: u32, min: u32, max: u32, flip: f64) -> View {
    let scale = Scale::ShortSide { min, max };
    View::Train { crop, scale, flip, seed: 11, repeats: 1, augment: Augment::NONE }
}

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
            ..PlanSpec::default()
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

/// Every batch, without what the clock said. Their memory goes back to the stream, spoilt.
fn all(mut stream: Stream) -> Result<Vec<Batch>> {
    let mut batches = Vec::new();
    while let Some(mut batch) = stream.next()? {
        batch.waited = Duration::ZERO;
        batches.push(batch.clone());
        batch.frames.fill(0xa5);
        stream.recycle(batch);
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
    let view = |flip| train_view(20, 20, 20, flip);
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
fn whole_clips_are_shown_as_they_are_stored() {
    let all_frames = ClipSpec { frames: 20, sampling_rate: 1, fps: None, single_frame: false };
    // The second window ends inside a run, so that its frames cannot be read to where they belong.
    for frames in [20, 12] {
        let bench = bench_of(Codec::Raw, &[(20, 24, 16); 10]);
        let clip = ClipSpec { frames, ..all_frames };
        let whole = TrainPass { clip, view: View::Whole { width: 24, height: 16 }, end: 1, ..bench.pass() };
        let batch = bench.train(whole.clone(), 2, 1 << 20).remove(0);
        assert_eq!(batch.shape, [8, frames as usize, 16, 24, 3]);
        for (i, shown) in batch.frames.chunks(24 * 16 * 3).enumerate() {
            let clip = whole.clips[batch.clips[i / frames as usize] as usize].0;
            assert!(shown == frame(clip, i as u32 % frames, 24, 16), "frame {i}");
        }
    }
    let jpeg = bench_of(Codec::Jpeg, &[(20, 24, 16); 10]);
    let pass = |view| TrainPass { clip: all_frames, view, end: 1, ..jpeg.pass() };
    let batch = jpeg.train(pass(View::Whole { width: 24, height: 16 }), 2, 1 << 20).remove(0);
    let mut worst = 0;
    for (i, shown) in batch.frames.chunks(24 * 16 * 3).enumerate() {
        let clip = jpeg.pass().clips[batch.clips[i / 20] as usize].0;
        let stored = frame(clip, i as u32 % 20, 24, 16);
        worst = shown.iter().zip(&stored).map(|(a, b)| a.abs_diff(*b)).max().unwrap().max(worst);
    }
    assert!(worst < 40, "{worst}");
    let refused = pass(View::Whole { width: 24, height: 20 });
    let e = Stream::train(jpeg.dataset.clone(), refused, &jpeg.options(1, 0)).unwrap_err();
    assert!(e.is_usage() && e.to_string().contains("is 24x16"), "{e}");
}

#[test]
fn damage_and_loss_are_named_where_clips_are_read_to_where_they_belong() {
    let bench = bench_of(Codec::Raw, &[(40, 24, 16); 8]);
    let clip = ClipSpec { frames: 40, sampling_rate: 1, fps: None, single_frame: false };
    let first_error = || {
        let pass = TrainPass { clip, view: View::Whole { width: 24, height: 16 }, end: 1, ..bench.pass() };
        let e =
            all(Stream::train(bench.dataset.clone(), pass, &bench.options(2, 1 << 20)).unwrap()).unwrap_err();
        assert!(e.is_damage(), "{e}");
        e.to_string()
    };
    let clip = bench.dataset.clip(ClipIndex(2));
    let key = bench.dataset.file_key(clip).to_owned();
    bench.damage(&key, |bytes| bytes[(clip.offset + clip.run_bytes(1..2).start + 50) as usize] ^= 1);
    let e = first_error();
    assert!(e.contains("clip-002") && e.contains("run 1") && e.contains("CRC32C"), "{e}");
    bench.damage(&key, |bytes| bytes.truncate(clip.offset as usize + 10));
    assert!(first_error().contains("cut off"));
    std::fs::remove_file(bench.folder.path().join(&key)).unwrap();
    assert!(first_error().contains("missing"));
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
    let view = train_view(32, 32, 32, 0.5);
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

#[test]
fn a_repeated_clip_is_shown_again_and_drawn_anew() {
    let bench = bench(Codec::Raw);
    let once = bench.train(bench.pass(), 2, 1 << 20);
    let again = |repeats| {
        let View::Train { crop, scale, flip, seed, augment, .. } = VIEW else { unreachable!() };
        View::Train { crop, scale, flip, seed, repeats, augment }
    };
    let three = bench.train(TrainPass { view: again(3), ..bench.pass() }, 2, 1 << 20);
    assert_eq!(three.len(), once.len());
    for (one, three) in once.iter().zip(&three) {
        let n = one.labels.len();
        let a_view = one.frames.len() / n;
        assert_eq!((three.shape[0], three.global_clips), (3 * n, 3 * one.global_clips));
        assert_eq!(three.views, [0, 1, 2].repeat(n));
        let thrice = |all: &[u64]| all.iter().flat_map(|&x| [x; 3]).collect::<Vec<u64>>();
        assert_eq!(three.positions, thrice(&one.positions));
        let shown: Vec<&[u8]> = three.frames.chunks(a_view).collect();
        assert!(one.frames.chunks(a_view).eq(shown.iter().copied().step_by(3)), "the first is as before");
        let same = shown.chunks(3).filter(|v| v[0] == v[1] || v[1] == v[2]).count();
        assert!(same < n, "the others are new");
    }
    let world = |rank| bench.train(TrainPass { view: again(3), rank, world: 2, ..bench.pass() }, 2, 1 << 20);
    let (left, right) = (world(0), world(1));
    for ((l, r), whole) in left.iter().zip(&right).zip(&three) {
        assert_eq!([&l.frames[..], &r.frames].concat(), whole.frames);
        assert_eq!(l.global_clips, whole.global_clips);
    }
    let refused = TrainPass { view: again(0), ..bench.pass() };
    let e = Stream::train(bench.dataset.clone(), refused, &bench.options(1, 0)).unwrap_err();
    assert!(e.to_string().contains("repeats"), "{e}");
}

#[test]
fn augmented_batches_are_the_same_whatever_the_threads_do() {
    let bench = bench(Codec::Jpeg);
    let pass = || TrainPass { view: augmented(16, 16, 22), ..bench.pass() };
    let one = bench.train(pass(), 1, 1 << 30);
    assert_eq!(one, bench.train(pass(), 4, 0));
    let plain = bench.train(bench.pass(), 2, 1 << 30);
    assert_eq!(one[0].positions, plain[0].positions);
    assert_ne!(one[0].frames, plain[0].frames);
    let halves: Vec<Vec<Batch>> =
        (0..2).map(|rank| bench.train(TrainPass { rank, world: 2, ..pass() }, 2, 1 << 20)).collect();
    for (step, whole) in one.iter().enumerate() {
        assert_eq!([&halves[0][step].frames[..], &halves[1][step].frames].concat(), whole.frames);
    }
}

#[test]
fn every_label_of_a_clip_comes_along() {
    let mut bench = bench(Codec::Raw);
    let mut rows = bench.dataset.clips.to_rows();
    for (i, clip) in rows.iter_mut().enumerate() {
        clip.labels = [3, 1, 2][..i % 4].to_vec();
        clip.label = clip.labels.first().copied();
    }
    Arc::get_mut(&mut bench.dataset).unwrap().clips = Clips::of(&rows).unwrap();
    let clips = bench.dataset.clips_of("train").unwrap();
    for batch in bench.train(bench.pass(), 2, 1 << 20) {
        for (i, place) in batch.clips.iter().enumerate() {
            let meta = bench.dataset.clip(clips[*place as usize]);
            assert_eq!(batch.label_sets[i], meta.labels);
            assert_eq!(batch.labels[i], meta.label.map_or(-1, i64::from));
        }
    }
}

/// RandAugment m7-n4, jitter and erasing, all of it often.
fn augmented(crop: u32, min: u32, max: u32) -> View {
    let augment = Augment {
        no_flip: vec![1],
        color_jitter: Some(ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4 }),
        rand_augment: Some(RandAugment { magnitude: 7.0, magnitude_std: 0.5, num_ops: 4, prob: 0.5 }),
        erasing: Some(Erasing {
            prob: 0.5,
            area: [0.02, 1.0 / 3.0],
            aspect: [0.3, 1.0 / 0.3],
            mean: [0.45; 3],
            std: [0.225; 3],
        }),
    };
    View::Train { crop, scale: Scale::ShortSide { min, max }, flip: 0.5, seed: 11, repeats: 1, augment }
}

/// Not a test of anything: prints what this machine decodes. Run it with `--run-ignored only`.
#[test]
#[ignore = "a measurement"]
fn measure_decoding() {
    let bench = bench_of(Codec::Jpeg, &[(80, 340, 256); 10]);
    let clip = ClipSpec { frames: 16, sampling_rate: 4, fps: None, single_frame: false };
    let with = |change: fn(&mut Augment)| {
        let mut view = augmented(224, 256, 320);
        let View::Train { augment, .. } = &mut view else { unreachable!() };
        change(augment);
        view
    };
    let views = [
        ("crop and flip", train_view(224, 256, 320, 0.5)),
        ("RandAugment m7-n4", with(|a| (a.color_jitter, a.erasing) = (None, None))),
        ("colour jitter", with(|a| (a.rand_augment, a.erasing) = (None, None))),
        (
            "erasing at 0.25",
            with(|a| {
                (a.rand_augment, a.color_jitter) = (None, None);
                a.erasing.iter_mut().for_each(|e| e.prob = 0.25);
            }),
        ),
    ];
    for (name, view) in views {
        let pass = TrainPass { clip, view, end: 25, ..bench.pass() };
        let started = now();
        let mut stream = Stream::train(bench.dataset.clone(), pass, &bench.options(2, 256 << 20)).unwrap();
        let (mut clips, mut first) = (0, None);
        while let Some(batch) = stream.next().unwrap() {
            first.get_or_insert(batch.waited);
            clips += batch.shape[0];
        }
        let took = started.elapsed().as_secs_f64();
        println!(
            "{name}: {clips} clips of 16x224x224 from 340x256 JPEG on 2 threads: {:.1} clips/s, {:.0} frames/s, first batch after {first:?}, {:?}",
            clips as f64 / took,
            clips as f64 * 16.0 / took,
            stream.stats(),
        );
    }
}

#[test]
fn steps_of_multigrid_training_have_their_own_shapes() {
    use crate::plan::{Shape, Stage};
    let bench = bench(Codec::Jpeg);
    let shape = |batch, frames, side| Shape { batch, frames, side };
    let stages = vec![
        Stage { end: 1, cycle: vec![shape(2, 3, 8), shape(1, 3, 11)] },
        Stage { end: 2, cycle: vec![shape(1, 6, 16)] },
    ];
    let plan = bench.pass().plan.spec().clone();
    let plan = Arc::new(Plan::new(PlanSpec { stages, ..plan }).unwrap());
    let pass = || TrainPass { plan: plan.clone(), end: 5, ..bench.pass() };
    let whole = bench.train(pass(), 2, 1 << 20);
    let shapes: Vec<[usize; 4]> =
        whole.iter().map(|b| [b.shape[0], b.shape[1], b.shape[2], b.global_clips]).collect();
    let full = |b| [b, 6, 16, b];
    assert_eq!(shapes, [[16, 3, 8, 16], [5, 3, 11, 5], full(8), full(8), full(5)]);
    assert!(whole.iter().all(|b| b.frames.len() == b.shape.iter().product::<usize>()));
    let places: Vec<(u64, u64)> = whole.iter().map(|b| (b.epoch, b.step)).collect();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]);
    // The full shape is what a plain job shows in that epoch.
    let plain = bench.train(TrainPass { start: (1, 0), end: 6, ..bench.pass() }, 2, 1 << 20);
    assert_eq!(whole[2..], plain);
    for (start, first) in [((0, 1), 1), ((1, 0), 2), ((1, 2), 4)] {
        assert_eq!(bench.train(TrainPass { start, ..pass() }, 2, 1 << 20), whole[first..]);
    }
    let ranks: Vec<_> =
        (0..3).map(|rank| bench.train(TrainPass { rank, world: 3, ..pass() }, 2, 1 << 20)).collect();
    for (step, expected) in whole.iter().enumerate() {
        let joined: Vec<u8> = ranks.iter().flat_map(|r| r[step].frames.clone()).collect();
        assert_eq!(joined, expected.frames, "step {step}");
    }
}

#[test]
fn a_mixture_draws_from_both_datasets_and_maps_their_labels() {
    use crate::plan::{Order, Pools, Shares};
    let (a, b) = (bench(Codec::Jpeg), bench_of(Codec::Raw, &[(20, 24, 20); 11]));
    let names = ["up", "down", "left", "right", "stop"].map(String::from);
    let source = |bench: &Bench| Source::named(bench.dataset.clone(), &names, &Default::default()).unwrap();
    let sources = Sources::new(vec![source(&a), source(&b)]).unwrap();
    let parts = [sources.clips_of(0, "train").unwrap(), sources.clips_of(1, "train").unwrap()];
    let sizes = [parts[0].len() as u32, parts[1].len() as u32];
    assert_eq!(sizes, [21, 9]);
    let pools = Arc::new(vec![(0..21).collect(), (21..30).collect()]);
    let spec = PlanSpec {
        dataset_digest: sources.digest(),
        clips: 30,
        order: Order::Pools(Pools { pools, shares: Shares::Fixed(vec![10, 6]) }),
        ..a.pass().plan.spec().clone()
    };
    let plan = Arc::new(Plan::new(spec).unwrap());
    let pass = || TrainPass { clips: parts.concat(), plan: plan.clone(), end: 6, ..a.pass() };
    let train = |pass| all(Stream::train_of(sources.clone(), pass, &a.options(2, 1 << 20)).unwrap()).unwrap();
    let whole = train(pass());
    assert_eq!(whole.iter().map(|b| b.clips.len()).collect::<Vec<_>>(), [8; 6]);
    for epoch in whole.chunks(2) {
        let second = epoch.iter().flat_map(|b| &b.clips).filter(|c| **c >= 21).count();
        assert_eq!(second, 6);
    }
    // Three epochs show 18 of the second's 9 clips: each twice.
    let mut count = vec![0; 30];
    whole.iter().flat_map(|b| &b.clips).for_each(|c| count[*c as usize] += 1);
    assert!(
        count[21..].iter().all(|n| *n == 2) && count[..21].iter().all(|n| *n == 1 || *n == 2),
        "{count:?}"
    );
    // Both have down, left, right, up; here they are 1, 2, 3, 0.
    let here = [1, 2, 3, 0];
    for (place, label) in whole.iter().flat_map(|b| b.clips.iter().zip(&b.labels)) {
        let (source, clip) = sources.place(pass().clips[*place as usize]);
        let theirs = sources.dataset(source).clip(clip).label;
        assert_eq!(*label, theirs.map_or(-1, |id| here[id as usize]));
    }
    let split = |rank| train(TrainPass { rank, world: 2, ..pass() });
    let (left, right) = (split(0), split(1));
    for (i, b) in whole.iter().enumerate() {
        assert_eq!([left[i].frames.clone(), right[i].frames.clone()].concat(), b.frames);
    }
    assert_eq!(train(TrainPass { start: (1, 1), ..pass() }), whole[3..]);

    let refused = |names: &[&str], rename: &[(&str, &str)]| {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let rename = rename.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        Source::named(a.dataset.clone(), &names, &rename).map(|s| s.labels)
    };
    let said = refused(&["down", "left"], &[]).unwrap_err().to_string();
    assert!(
        said.contains("2 of its labels") && said.contains("\"right\"") && said.contains("rename"),
        "{said}"
    );
    let same = refused(&["down", "left", "right", "above"], &[("up", "above")]);
    assert_eq!(same.unwrap(), None);
    assert!(refused(&["down"], &[("upp", "down")]).unwrap_err().to_string().contains("no such label"));
}

/// A resumed stream reads its own batches and nothing of those before them.
#[test]
fn the_consumed_prefix_is_not_read_again() {
    let bench = bench(Codec::Jpeg);
    let read = |start, end| {
        let pass = TrainPass { start, end, ..bench.pass() };
        let mut stream = Stream::train(bench.dataset.clone(), pass, &bench.options(2, 1 << 20)).unwrap();
        while stream.next().unwrap().is_some() {}
        let stats = stream.stats();
        (stats.bytes, stats.requests)
    };
    let (whole, first, rest) = (read((0, 0), 6), read((0, 0), 4), read((1, 1), 6));
    assert_eq!((first.0 + rest.0, first.1 + rest.1), whole);
    assert!(rest.0 < whole.0 / 2, "{rest:?} of {whole:?}");
}
