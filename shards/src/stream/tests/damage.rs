//! Damage is named by file, clip and run; where the job asks for it, the clip is left out and nothing else changes.

use super::*;
use std::collections::BTreeSet;

/// Spoils the stored bytes of training clips, by their places in the split.
fn spoil(bench: &Bench, places: impl IntoIterator<Item = u32>) {
    let clips = bench.dataset.clips_of("train").unwrap();
    for place in places {
        let clip = bench.dataset.clip(clips[place as usize]);
        let range = clip.offset as usize..(clip.offset + clip.bytes) as usize;
        bench.damage(&bench.dataset.manifest.files[clip.file as usize].key, |b| b[range].fill(9));
    }
}

fn quarantined(bench: &Bench, pass: TrainPass) -> Vec<Batch> {
    let options = StreamOptions { on_damage: OnDamage::Quarantine, ..bench.options(2, 1 << 20) };
    all(Stream::train(bench.dataset.clone(), pass, &options).unwrap()).unwrap()
}

/// A batch's rows by position: pixels and labels.
fn rows(batch: &Batch) -> Vec<(u64, &[u8], i64)> {
    let a_view = batch.shape[1..].iter().product();
    let pixels = batch.frames.chunks(a_view);
    assert_eq!(pixels.len(), batch.shape[0]);
    batch.positions.iter().zip(pixels).zip(&batch.labels).map(|((p, x), l)| (*p, x, *l)).collect()
}

#[test]
fn a_damaged_clip_leaves_a_hole_and_nothing_else_changes() {
    for codec in [Codec::Raw, Codec::Jpeg] {
        let bench = bench(codec);
        let whole = bench.train(bench.pass(), 2, 1 << 20);
        let lost = BTreeSet::from([whole[0].clips[0], whole[0].clips[3], whole[1].clips[7]]);
        spoil(&bench, lost.clone());
        let holes = quarantined(&bench, bench.pass());
        for (batch, before) in holes.iter().zip(&whole) {
            let kept = rows(before).into_iter().zip(&before.clips).filter(|(_, c)| !lost.contains(c));
            let kept: Vec<_> = kept.map(|(row, _)| row).collect();
            assert_eq!(rows(batch), kept);
            let missing: Vec<u32> = batch.missing.iter().map(|m| m.clip).collect();
            let expected: Vec<u32> = before.clips.iter().copied().filter(|c| lost.contains(c)).collect();
            assert_eq!(missing, expected);
            assert_eq!(batch.global_clips, before.global_clips, "what was planned");
            assert!(batch.missing.iter().all(|m| m.views == 1 && m.why.contains("its CRC32C is")));
        }
        // Two epochs and the beginning of a third.
        assert!(holes.iter().map(|b| b.missing.len()).sum::<usize>() >= 6);
        for world in [2, 3] {
            let ranks: Vec<Vec<Batch>> = (0..world)
                .map(|rank| quarantined(&bench, TrainPass { rank, world, ..bench.pass() }))
                .collect();
            for (step, batch) in holes.iter().enumerate() {
                let parts = || ranks.iter().map(|r| &r[step]);
                assert_eq!(parts().flat_map(rows).collect::<Vec<_>>(), rows(batch));
                assert_eq!(parts().flat_map(|b| b.missing.clone()).collect::<Vec<_>>(), batch.missing);
            }
        }
    }
}

#[test]
fn a_whole_batch_may_be_lost() {
    let bench = bench(Codec::Raw);
    let whole = bench.train(bench.pass(), 2, 1 << 20);
    spoil(&bench, whole[1].clips.clone());
    let holes = quarantined(&bench, bench.pass());
    assert_eq!((holes[1].shape[0], holes[1].frames.len(), holes[1].missing.len()), (0, 0, 8));
    assert_eq!(rows(&holes[0]), rows(&whole[0]));
    assert_eq!(rows(&holes[2]), rows(&whole[2]));
}

#[test]
fn a_repeated_clip_is_lost_in_every_repeat() {
    let bench = bench(Codec::Raw);
    let View::Train { crop, scale, flip, seed, augment, .. } = VIEW else { unreachable!() };
    let view = View::Train { crop, scale, flip, seed, repeats: 3, augment };
    let lost = bench.train(bench.pass(), 2, 1 << 20)[0].clips[2];
    spoil(&bench, [lost]);
    let first = &quarantined(&bench, TrainPass { view, ..bench.pass() })[0];
    assert_eq!(first.missing.iter().map(|m| m.clip).collect::<Vec<u32>>(), [lost; 3]);
    assert_eq!((first.shape[0], first.global_clips), (21, 24));
}

#[test]
fn an_evaluation_lacks_the_windows_of_a_damaged_clip() {
    let bench = bench(Codec::Raw);
    let clips = bench.dataset.clips_of("train").unwrap();
    spoil(&bench, [4]);
    let options = StreamOptions { on_damage: OnDamage::Quarantine, ..bench.options(2, 1 << 20) };
    let pass = EvalPass { clips: clips.clone(), rank: 0, world: 1, batch: 8, clip: WINDOW, view: VIEWS };
    let batches = all(Stream::eval(bench.dataset.clone(), pass, &options).unwrap()).unwrap();
    let seen: Vec<u32> = batches.iter().flat_map(|b| b.clips.clone()).collect();
    assert_eq!(seen.len(), (clips.len() - 1) * 6);
    assert!(!seen.contains(&4));
    let missing: Vec<Missing> = batches.iter().flat_map(|b| b.missing.clone()).collect();
    assert_eq!(missing.iter().map(|m| (m.clip, m.views)).collect::<Vec<_>>(), [(4, 2); 3]);
}

#[test]
fn a_missing_file_is_damage_of_its_clips() {
    let bench = bench(Codec::Raw);
    std::fs::remove_file(bench.folder.path().join("data/test/1.parquet")).unwrap();
    let lost: usize = quarantined(&bench, bench.pass()).iter().map(|b| b.missing.len()).sum();
    assert!(lost > 10, "every second clip");
}

#[test]
fn a_flipped_byte_is_named_by_file_clip_and_run() {
    for codec in [Codec::Raw, Codec::Jpeg] {
        let bench = bench_of(codec, &[(40, 24, 24); 4]);
        let clip = bench.dataset.clip(ClipIndex(2));
        let at = (clip.offset + clip.run_bytes(1..2).start + 50) as usize;
        bench.damage("data/test/0.parquet", |bytes| bytes[at] ^= 1);
        let view = train_view(16, 16, 16, 0.0);
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
        let clip = bench.dataset.clip(clips[place as usize]);
        let range = clip.offset as usize..(clip.offset + clip.bytes) as usize;
        bench.damage(&bench.dataset.manifest.files[clip.file as usize].key, |b| b[range].fill(9));
    }
    let mut stream = Stream::train(bench.dataset.clone(), bench.pass(), &bench.options(2, 1 << 20)).unwrap();
    assert!(stream.next().unwrap().is_some() && stream.next().unwrap().is_some());
    let expected = bench.dataset.clip(clips[order[16] as usize]).clip_id;
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
    let mut clips = bench.dataset.clips.to_rows();
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
