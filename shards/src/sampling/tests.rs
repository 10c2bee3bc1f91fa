//! Windows and crops against the references' formulas.

use super::*;
use crate::testing::clip_meta;
use proptest::prelude::*;

const SPEC: ClipSpec = ClipSpec { frames: 8, sampling_rate: 2, fps: None, single_frame: false };

fn train(crop: u32, scale: Scale, flip: f64, seed: u64) -> View {
    View::Train { crop, scale, flip, seed, repeats: 2, augment: Augment::NONE }
}

fn eval(short_side: u32, crop: u32, clips: u32, crops: u32) -> View {
    View::Eval { short_side, crop, clips, crops, sampling: TestSampling::PySlowFast }
}

proptest! {
    #[test]
    fn training_draws_stay_inside_and_depend_on_their_key_alone(
        n in 1u32..500, w in 1u32..700, h in 1u32..700, fps in 1.0f64..120.0,
        frames in 1u32..64, rate in 1u32..17, target in proptest::option::of(1.0f64..120.0),
        short in any::<bool>(), seed: u64, position in 0u64..1_000_000,
    ) {
        let clip = clip_meta(n, w, h, fps);
        let spec = ClipSpec { frames, sampling_rate: rate, fps: target, single_frame: false };
        let scale = match short {
            true => Scale::ShortSide { min: 32, max: 50 },
            false => Scale::Resized { area: [0.08, 1.0], aspect: [0.75, 4.0 / 3.0] },
        };
        let view = train(32, scale, 0.5, seed);
        view.check().unwrap();
        spec.check().unwrap();
        let draw = view.draw(&spec, clip.view(), 3, position, 0);
        prop_assert_eq!(draw.frames.len(), frames as usize);
        prop_assert!(draw.frames.iter().all(|&f| f < n));
        prop_assert!(draw.frames.is_sorted());
        let c = draw.cut.crop;
        prop_assert!(c.left >= 0.0 && c.top >= 0.0 && c.width > 0.0 && c.height > 0.0);
        prop_assert!(c.left + c.width <= f64::from(w) && c.top + c.height <= f64::from(h), "{:?}", c);
        prop_assert_eq!(&draw, &view.draw(&spec, clip.view(), 3, position, 0));
    }

    #[test]
    fn evaluation_views_stay_inside(
        n in 1u32..300, w in 1u32..700, h in 1u32..700, clips in 1u32..12, crops in 1u32..5,
        loops in any::<bool>(), target in proptest::option::of(1.0f64..120.0), frames in 1u32..20,
    ) {
        let clip = clip_meta(n, w, h, 30.0);
        let sampling = if loops { TestSampling::MmAction2 } else { TestSampling::PySlowFast };
        let view = View::Eval { short_side: 40, crop: 32, clips, crops, sampling };
        let spec = ClipSpec { fps: target, frames, ..SPEC };
        for v in 0..view.count() {
            let draw = view.draw(&spec, clip.view(), 0, 0, v);
            prop_assert_eq!(draw.frames.len(), frames as usize);
            let c = draw.cut.crop;
            prop_assert!(draw.frames.iter().all(|&f| f < n) && !draw.cut.flip);
            prop_assert!(c.left >= 0.0 && c.left + c.width <= f64::from(w), "{:?}", c);
            prop_assert!(c.top >= 0.0 && c.top + c.height <= f64::from(h), "{:?}", c);
        }
    }
}

#[test]
fn frame_indices_are_those_of_pyslowfast() {
    // np.clip(np.linspace(s, s + 15, 8), 0, n - 1).astype(int), s = (100 - 16) * at
    let clip = clip_meta(100, 64, 64, 30.0);
    assert_eq!(SPEC.frame_indices(clip.view(), 0.0), [0, 2, 4, 6, 8, 10, 12, 15]);
    assert_eq!(SPEC.frame_indices(clip.view(), 1.0), [84, 86, 88, 90, 92, 94, 96, 99]);
    let half_rate = ClipSpec { fps: Some(15.0), ..SPEC };
    assert_eq!(half_rate.frame_indices(clip.view(), 0.0), [0, 4, 8, 13, 17, 22, 26, 31]);
    assert_eq!(SPEC.frame_indices(clip_meta(3, 64, 64, 30.0).view(), 0.7), [0, 2, 2, 2, 2, 2, 2, 2]);
    let one = ClipSpec { single_frame: true, ..SPEC };
    assert_eq!(one.frame_indices(clip.view(), 0.5), [42; 8]);
}

/// The clip of `n` frames at `fps`, and a window of `frames` at `rate` for `target` frames a second.
fn windows(
    sampling: TestSampling,
    (n, fps): (u32, f64),
    (frames, sampling_rate, target): (u32, u32, Option<f64>),
    windows: u32,
) -> Vec<Vec<u32>> {
    let spec = ClipSpec { frames, sampling_rate, fps: target, single_frame: false };
    let clip = clip_meta(n, 64, 64, fps);
    (0..windows).map(|i| spec.test_indices(clip.view(), sampling, i, windows)).collect()
}

#[test]
fn test_windows_are_those_of_pyslowfast() {
    // span = F * tau * fps / target; s = max(N - span, 0) * i / n
    // torch.clamp(torch.linspace(s, s + span - 1, F), 0, N - 1).long()
    let at = |clip, window, i: usize, n| windows(TestSampling::PySlowFast, clip, window, n)[i].clone();
    let thirty = Some(30.0);
    assert_eq!(at((300, 30.0), (8, 8, thirty), 3, 10), [70, 79, 88, 97, 106, 115, 124, 133]);
    assert_eq!(at((300, 30.0), (8, 8, thirty), 9, 10), [212, 221, 230, 239, 248, 257, 266, 275]);
    assert_eq!(at((250, 25.0), (4, 16, thirty), 7, 10), [137, 155, 172, 190]);
    assert_eq!(
        at((100, 60.0), (16, 4, thirty), 2, 5),
        [0, 8, 16, 25, 33, 42, 50, 59, 67, 76, 84, 93, 99, 99, 99, 99]
    );
    assert_eq!(at((40, 30.0), (8, 8, thirty), 1, 3), [0, 9, 18, 27, 36, 39, 39, 39]);
    assert_eq!(at((301, 29.97), (8, 8, thirty), 5, 10), [118, 127, 136, 145, 154, 163, 172, 181]);
    // Whole numbers: in float64 the last would be 20.
    assert_eq!(at((50, 25.0), (4, 1, thirty), 2, 5), [18, 19, 20, 21]);
    assert_eq!(at((100, 30.0), (8, 2, None), 0, 1)[0], 42, "one alone lies in the middle");
}

#[test]
fn test_windows_are_those_of_mmaction2() {
    // SampleFrames(clip_len=T, frame_interval=tau, num_clips=n, test_mode=True, target_fps=target) 1.2:
    // L = (T - 1) * tau + 1 if target is None else max(1, T * tau * fps / target); room = max(N - L, 0)
    // T == 1: arange(n) * N / n + N / n / 2; n == 1: room // 2; target is None: round(arange(n) * room / (n - 1));
    // else arange(n) * floor(room / (n - 1))
    // mod(offsets[:, None] + (arange(T) * tau, or linspace(0, L - 1, T).astype(int)), N).astype(int)
    let at = |clip, window, n| windows(TestSampling::MmAction2, clip, window, n);
    assert_eq!(
        at((300, 30.0), (8, 2, None), 4),
        [
            [0, 2, 4, 6, 8, 10, 12, 14],
            [95, 97, 99, 101, 103, 105, 107, 109],
            [190, 192, 194, 196, 198, 200, 202, 204],
            [285, 287, 289, 291, 293, 295, 297, 299]
        ]
    );
    assert_eq!(at((100, 30.0), (8, 2, None), 1), [[42, 44, 46, 48, 50, 52, 54, 56]]);
    assert_eq!(at((10, 30.0), (8, 2, None), 2), [[0, 2, 4, 6, 8, 0, 2, 4]; 2], "a short clip begins anew");
    assert_eq!(at((101, 30.0), (1, 1, None), 3), [[16], [50], [84]]);
    let thirty = Some(30.0);
    assert_eq!(
        at((250, 25.0), (8, 8, thirty), 3),
        [
            [0, 7, 14, 22, 29, 37, 44, 52],
            [98, 105, 112, 120, 127, 135, 142, 150],
            [196, 203, 210, 218, 225, 233, 240, 248]
        ]
    );
    assert_eq!(at((250, 25.0), (8, 8, thirty), 1), [[98, 105, 112, 120, 127, 135, 142, 150]]);
    assert_eq!(at((40, 30.0), (8, 8, thirty), 2), [[0, 9, 18, 27, 36, 5, 14, 23]; 2]);
    assert_eq!(at((250, 25.0), (1, 1, thirty), 2), [[62], [187]]);
    let one = ClipSpec { single_frame: true, ..SPEC };
    assert_eq!(one.test_indices(clip_meta(100, 64, 64, 30.0).view(), TestSampling::MmAction2, 1, 2), [85; 8]);
}

#[test]
fn evaluation_crops_are_those_of_uniform_crop() {
    // rw, rh = (short, floor(h / w * short)) if w <= h else (floor(w / h * short), short)
    // x, y = ceil((rw - size) / 2), ceil((rh - size) / 2); then along the long side 0, that, or r - size
    for ((w, h), (short, size), resized, corners) in [
        ((340, 256), (256, 256), (340, 256), [(0, 0), (42, 0), (84, 0)]),
        ((256, 340), (256, 256), (256, 340), [(0, 0), (0, 42), (0, 84)]),
        ((341, 256), (256, 224), (341, 256), [(0, 16), (59, 16), (117, 16)]),
        ((255, 333), (224, 224), (224, 292), [(0, 0), (0, 34), (0, 68)]),
        ((257, 257), (256, 224), (256, 256), [(0, 16), (16, 16), (32, 16)]),
        ((1920, 1080), (256, 256), (455, 256), [(0, 0), (100, 0), (199, 0)]),
    ] {
        let clip = clip_meta(100, w, h, 30.0);
        let scale = (f64::from(w) / f64::from(resized.0), f64::from(h) / f64::from(resized.1));
        for (v, (x, y)) in corners.into_iter().enumerate() {
            let c = eval(short, size, 1, 3).draw(&SPEC, clip.view(), 0, 0, v as u32).cut.crop;
            let expected = [f64::from(x) * scale.0, f64::from(y) * scale.1, f64::from(size) * scale.0];
            for (found, expected) in [c.left, c.top, c.width].into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-9, "{w}x{h}, crop {v}: {c:?}");
            }
        }
    }
    let clip = clip_meta(100, 340, 256, 30.0);
    let view = eval(256, 256, 2, 3);
    let starts: Vec<u32> = (0..6).map(|v| view.draw(&SPEC, clip.view(), 0, 0, v).frames[0]).collect();
    assert_eq!(starts, [0, 0, 0, 42, 42, 42], "crops share their window");
    assert_eq!(
        eval(256, 256, 1, 1).draw(&SPEC, clip.view(), 0, 0, 0).cut.crop.left,
        42.0,
        "one alone is central"
    );
}

#[test]
fn flips_come_at_their_rate_and_starts_spread() {
    let clip = clip_meta(100, 64, 64, 30.0);
    let view = train(32, Scale::ShortSide { min: 32, max: 40 }, 0.3, 1);
    let draws: Vec<Draw> = (0..2000).map(|p| view.draw(&SPEC, clip.view(), 0, p, 0)).collect();
    let flips = draws.iter().filter(|d| d.cut.flip).count();
    assert!((520..680).contains(&flips), "{flips}");
    let starts: std::collections::HashSet<u32> = draws.iter().map(|d| d.frames[0]).collect();
    assert_eq!(starts.len(), 84, "every start of 0..84");
    assert_ne!(draws[0], view.draw(&SPEC, clip.view(), 1, 0, 0), "another epoch");
    let again: Vec<Draw> = (0..2000).map(|p| view.draw(&SPEC, clip.view(), 0, p, 1)).collect();
    let same = draws.iter().zip(&again).filter(|(a, b)| a.frames == b.frames).count();
    assert!(same < 100, "a repeat has its own window: {same} of 2000 are the first's");
}

#[test]
fn the_draws_of_a_key_never_change() {
    // Computed once with ChaCha8 and SHA-256 written anew in another language: other numbers would silently
    // make a resumed run another run.
    let clip = clip_meta(100, 320, 240, 30.0);
    let view = train(112, Scale::ShortSide { min: 128, max: 160 }, 0.5, 7);
    for (position, repeat, frames, (short, left, top), flip) in [
        (1234, 0, [73, 76, 78, 80, 82, 84, 86, 88], (158, 103.61904761904762, 44.050632911392405), true),
        (1235, 0, [16, 18, 20, 22, 25, 27, 29, 31], (143, 126.3157894736842, 3.3566433566433567), true),
        (1234, 1, [32, 34, 37, 39, 41, 43, 45, 47], (144, 81.66666666666667, 45.0), false),
    ] {
        let draw = view.draw(&SPEC, clip.view(), 2, position, repeat);
        assert_eq!(draw.frames, frames);
        let (c, height) = (draw.cut.crop, 112.0 * 240.0 / f64::from(short));
        assert!((c.left - left).abs() + (c.top - top).abs() + (c.height - height).abs() < 1e-9, "{c:?}");
        assert_eq!((draw.cut.flip, draw.cut.ops.len(), draw.cut.erase), (flip, 0, None));
    }
}

#[test]
fn impossible_numbers_are_refused_in_words() {
    let train = |scale| train(64, scale, 0.5, 0).check().unwrap_err().to_string();
    assert!(train(Scale::ShortSide { min: 32, max: 40 }).contains("larger than the short side"));
    assert!(train(Scale::ShortSide { min: 80, max: 70 }).contains("no range"));
    assert!(train(Scale::Resized { area: [0.0, 1.0], aspect: [1.0, 1.0] }).contains("area"));
    assert!(train(Scale::Resized { area: [0.5, 1.0], aspect: [f64::NAN, 1.0] }).contains("aspect"));
    let eval = eval(64, 64, 0, 1);
    assert!(eval.check().unwrap_err().to_string().contains("0x1"));
    assert!(ClipSpec { frames: 0, ..SPEC }.check().is_err());
    assert!(ClipSpec { fps: Some(f64::INFINITY), ..SPEC }.check().is_err());
}

#[test]
fn multigrid_shapes_as_pyslowfast_has_them() {
    use crate::plan::Shape;
    let full = ClipSpec { frames: 32, sampling_rate: 2, fps: None, single_frame: false };
    let view = View::Train {
        crop: 224,
        scale: Scale::ShortSide { min: 256, max: 320 },
        flip: 0.5,
        seed: 3,
        repeats: 1,
        augment: crate::augment::Augment::NONE,
    };
    let shape = |frames, side| Shape { batch: 8, frames, side };
    // int(round(256 * crop / 224)); the largest short side stays.
    for (side, min) in [(158, 181), (112, 128), (224, 256)] {
        let View::Train { crop, scale, .. } = view.shaped(shape(8, side)) else { unreachable!() };
        assert_eq!((crop, scale), (side, Scale::ShortSide { min, max: 320 }));
    }
    // randint(2, 2 * (32 // 8)): every rate comes, and none other.
    let rates: std::collections::BTreeSet<u32> =
        (0..500).map(|position| view.window(&full, shape(8, 158), 0, position, 0).sampling_rate).collect();
    assert_eq!(rates.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(view.window(&full, shape(32, 112), 0, 0, 0), full);
}
