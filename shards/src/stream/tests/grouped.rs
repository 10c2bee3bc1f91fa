//! Grouped shuffling: whole groups by one request each, every other promise as ever.

use super::*;
use crate::cache::Cache;
use crate::plan::{Groups, Order};
use crate::stream::{BatchPlan, Batches};
use std::collections::{BTreeMap, HashSet};
use std::sync::Weak;

/// 67 small clips, 54 of them for training, in two files of about 100 KB.
fn small() -> Bench {
    let clips: Vec<_> = (0..67).map(|i| (3 + i * 5 % 11, 20, 24)).collect();
    bench_of(Codec::Raw, &clips)
}

fn pass(bench: &Bench, window: u64, lanes: u32) -> TrainPass {
    let pass = bench.pass();
    let groups = Groups::new(&bench.dataset, &pass.clips, window, lanes, 5);
    let spec = PlanSpec { lanes, order: Order::Grouped(groups), ..pass.plan.spec().clone() };
    let plan = Arc::new(Plan::new(spec).unwrap());
    let end = plan.first_step(2);
    TrainPass { plan, end, ..pass }
}

fn groups(pass: &TrainPass) -> &Groups {
    let Order::Grouped(groups) = &pass.plan.spec().order else { panic!("another order") };
    groups
}

/// As from a store: with a cache before it a folder is not read in the decode threads.
fn options(bench: &Bench) -> StreamOptions {
    let cache = Cache::open(&bench.folder.path().join("cache"), 256 << 20, &bench.dataset.digest).unwrap();
    StreamOptions { cache: Some(Arc::new(cache)), ..bench.options(2, 1 << 20) }
}

#[test]
fn every_clip_once_an_epoch_in_another_order_each_and_alike_at_every_world_size() {
    let bench = small();
    for (window, lanes) in [(1, 4), (40_000, 2), (100_000, 1), (400_000, 8), (1 << 30, 4)] {
        let pass = pass(&bench, window, lanes);
        let order = |epoch| {
            let steps = 0..pass.plan.steps_per_epoch(epoch);
            steps.flat_map(|s| pass.plan.global_batch(epoch, s)).map(|s| s.clip).collect::<Vec<u32>>()
        };
        let (first, second) = (order(0), order(1));
        for mut epoch in [first.clone(), second.clone()] {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..54).collect::<Vec<u32>>(), "window {window}, {lanes} lanes");
        }
        assert_ne!(first, second);
        for world in 1..=lanes {
            for step in 0..pass.plan.steps_per_epoch(1) {
                let ranks = (0..world).flat_map(|r| pass.plan.local(1, step, r, world).unwrap());
                assert_eq!(ranks.collect::<Vec<_>>(), pass.plan.global_batch(1, step));
            }
        }
        // Neighbours in the file, and never two files in one piece.
        let groups = groups(&pass);
        for piece in 0..groups.count() as u32 {
            let clips: Vec<_> =
                groups.places(piece).map(|p| bench.dataset.clip(pass.clips[p as usize])).collect();
            assert!(clips.windows(2).all(|c| c[0].file == c[1].file && c[0].offset < c[1].offset));
        }
    }
    let identity = |window| pass(&bench, window, 4).plan.spec().identity();
    assert_ne!(identity(40_000), identity(400_000), "a resumed run must keep its window");
}

#[test]
fn a_group_is_asked_for_once_and_held_no_longer_than_it_is_needed() {
    let bench = small();
    for (start, world) in [((0, 0), 1), ((0, 3), 1), ((0, 0), 3)] {
        for rank in 0..world {
            let pass = TrainPass { start, rank, world, ..pass(&bench, 400_000, 4) };
            let (plan, clips) = (pass.plan.clone(), pass.clips.clone());
            let mut asked: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
            let mut seen: Vec<(u64, u32, Weak<crate::reader::Group>)> = Vec::new();
            let mut batches = Batches::train(&bench.dataset.clone().into(), pass.clone()).unwrap();
            while let Some(batch) = batches.next() {
                let BatchPlan { epoch, items, .. } = batch.unwrap();
                for item in items {
                    let place = clips.iter().position(|c| *c == item.clip).unwrap() as u32;
                    let piece = groups(&pass).piece_of(place);
                    let group = item.group.unwrap();
                    if group.first {
                        asked.entry(epoch).or_default().push(piece);
                        seen.push((epoch, piece, Arc::downgrade(&group.read)));
                    }
                }
                // All that is held has clips to show in this epoch.
                let left: HashSet<u32> = batches.held_pieces().collect();
                for (of, piece, group) in &seen {
                    let needed = *of == epoch && left.contains(piece);
                    assert_eq!(group.upgrade().is_some(), needed, "piece {piece} of epoch {of}");
                }
            }
            let lanes = plan.lanes_of_rank(rank, world).unwrap();
            for (epoch, mut pieces) in asked {
                let step = if epoch == start.0 { start.1 } else { 0 };
                let mut needed: Vec<u32> =
                    plan.left_of_pieces(epoch, step, lanes.clone()).unwrap().into_keys().collect();
                pieces.sort_unstable();
                needed.sort_unstable();
                assert_eq!(pieces, needed, "epoch {epoch}");
            }
        }
    }
}

#[test]
fn the_same_pixels_come_by_one_request_a_group() {
    let bench = small();
    let pass = || pass(&bench, 800_000, 4);
    let clip_by_clip = bench.train(pass(), 2, 1 << 20);
    let mut stream = Stream::train(bench.dataset.clone(), pass(), &options(&bench)).unwrap();
    let mut whole = Vec::new();
    while let Some(mut batch) = stream.next().unwrap() {
        batch.waited = Duration::ZERO;
        whole.push(batch);
    }
    assert_eq!(whole, clip_by_clip);
    let stats = stream.stats();
    let count = groups(&pass()).count() as u64;
    assert_eq!(stats.requests, 2 * count, "two epochs");
    assert!(count < 54 / 2, "{count} groups of 54 clips");
    let train = |pass| all(Stream::train(bench.dataset.clone(), pass, &options(&bench)).unwrap()).unwrap();
    assert_eq!(train(TrainPass { start: (1, 2), ..pass() }), whole[9..]);
    let ranks: Vec<_> = (0..3).map(|rank| train(TrainPass { rank, world: 3, ..pass() })).collect();
    for (step, expected) in whole.iter().enumerate() {
        let joined: Vec<u8> = ranks.iter().flat_map(|r| r[step].frames.clone()).collect();
        assert_eq!(joined, expected.frames, "step {step}");
    }
}

#[test]
fn damage_inside_a_group_is_one_clips_own() {
    let bench = small();
    let pass = || pass(&bench, 800_000, 4);
    let sound = bench.train(pass(), 2, 1 << 20);
    let bad = bench.dataset.clip(pass().clips[20]);
    let at = (bad.offset + 7) as usize;
    bench.damage(&bench.dataset.manifest.files[bad.file as usize].key, |bytes| bytes[at] ^= 1);
    let stream = Stream::train(bench.dataset.clone(), pass(), &options(&bench)).unwrap();
    let said = all(stream).unwrap_err().to_string();
    assert!(said.contains(bad.clip_id) && said.contains("CRC32C"), "{said}");
    let options = StreamOptions { on_damage: OnDamage::Quarantine, ..options(&bench) };
    let holes = all(Stream::train(bench.dataset.clone(), pass(), &options).unwrap()).unwrap();
    let missing: Vec<u32> = holes.iter().flat_map(|b| b.missing.iter().map(|m| m.clip)).collect();
    assert_eq!(missing, [20, 20], "once an epoch");
    let labels = |all: &[Batch]| all.iter().flat_map(|b| b.clips.clone()).filter(|c| *c != 20).count();
    assert_eq!(labels(&holes), labels(&sound));

    // A file that is cut off: the clips before the cut still come.
    let first = pass().clips[0];
    let file = bench.dataset.clip(first).file;
    let clips = pass().clips;
    let ends = clips.iter().map(|c| bench.dataset.clip(*c)).filter(|c| c.file == file);
    let last = ends.max_by_key(|c| c.offset).unwrap();
    let (key, cut) = (&bench.dataset.manifest.files[file as usize].key, last.offset as usize + 1);
    bench.damage(key, |bytes| bytes.truncate(cut));
    let holes = all(Stream::train(bench.dataset.clone(), pass(), &options).unwrap()).unwrap();
    let missing: HashSet<u32> = holes.iter().flat_map(|b| b.missing.iter().map(|m| m.clip)).collect();
    let lost = clips.iter().position(|c| bench.dataset.clip(*c).clip_id == last.clip_id).unwrap() as u32;
    assert_eq!(missing, HashSet::from([20, lost]));
}
