//! The tools on small datasets.

use super::*;
use crate::{
    format::{Codec, Manifest},
    testing::write_dataset,
    verify::verify,
};
use proptest::prelude::*;
use std::{collections::BTreeMap, path::PathBuf};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// 20 clips of 8x4, of labels down, left, right and up.
    fn dataset(&self, name: &str, codec: Codec, clips: usize) -> Location {
        let folder = self.dir.path().join(name);
        let clips: Vec<_> = (0..clips).map(|i| (3 + i as u32 % 20, 8, 4)).collect();
        let location = write_dataset(&folder, codec, &clips);
        // The fixture's ledger is empty bytes; the tools read it.
        rewrite_ledger(&location);
        location
    }

    fn out(&self, name: &str) -> Location {
        Location::parse(self.dir.path().join(name).to_str().unwrap()).unwrap()
    }

    fn csv(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("list.csv");
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn rewrite_ledger(location: &Location) {
    block_on(async {
        let key = location.url_of(MANIFEST_KEY);
        let mut manifest = Manifest::parse(&location.get(MANIFEST_KEY).await.unwrap(), &key).unwrap();
        let ledger = crate::ledger::encode_ledger(&[]).unwrap();
        manifest.ledger.bytes = ledger.len() as u64;
        manifest.ledger.sha256 = storage::sha256_hex(&ledger);
        location.put("ledger.parquet", ledger).await.unwrap();
        location.put(MANIFEST_KEY, manifest.to_bytes().unwrap()).await.unwrap();
    });
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn open(location: &Location) -> (Dataset, Vec<ClipMeta>) {
    let verdict = block_on(verify(location, &mut |_, _| ())).unwrap();
    assert_eq!(verdict.damage, [""; 0]);
    let opened = block_on(Opened::open(location)).unwrap();
    (opened.dataset, opened.clips)
}

/// Where each clip's payload is, and its bytes.
fn payloads(location: &Location) -> BTreeMap<String, Vec<u8>> {
    let (dataset, clips) = open(location);
    let get = |c: &ClipMeta| {
        let key = &dataset.manifest.files[c.file as usize].key;
        block_on(location.get_range(key, c.offset..c.offset + c.bytes)).unwrap().to_vec()
    };
    clips.iter().map(|c| (c.clip_id.clone(), get(c))).collect()
}

fn fractions(all: &[(&str, f64)]) -> Vec<Fraction> {
    all.iter().map(|(name, share)| Fraction { name: (*name).into(), share: *share }).collect()
}

fn by_clip(all: &[(&str, f64)], seed: u64, stratify: bool) -> SplitBy {
    SplitBy::Fractions { fractions: fractions(all), seed, by: By::Clip, stratify }
}

proptest! {
    #[test]
    fn strata_are_divided_as_asked(
        sizes in prop::collection::vec(0usize..40, 1..8),
        seed in 0u64..100,
        val in 0.05f64..0.4,
    ) {
        let shares = [1.0 - val - 0.05, val, 0.05];
        let keys: Vec<(u32, String)> = (0u32..)
            .zip(&sizes)
            .flat_map(|(s, &n)| (0..n).map(move |i| (s, format!("{s}/{i}"))))
            .collect();
        let units: Vec<(u32, &str, u64)> = keys.iter().map(|(s, k)| (*s, k.as_str(), 1)).collect();
        let splits = assign(&units, &shares, seed);
        // Each stratum, and the whole: the difference of two places in one sequence of small deviations.
        let near = |chosen: &dyn Fn(u32) -> bool, room: f64| {
            let of: Vec<usize> = (0..units.len()).filter(|&i| chosen(units[i].0)).collect();
            (0..3).all(|s| {
                let got = of.iter().filter(|&&i| splits[i] == s).count() as f64;
                (got - shares[s] * of.len() as f64).abs() <= room
            })
        };
        prop_assert!(near(&|_| true, 2.0));
        for s in 0..sizes.len() as u32 {
            prop_assert!(near(&|x| x == s, 4.0));
        }
        // The order of the units does not matter.
        let reversed: Vec<_> = units.iter().rev().copied().collect();
        let again: Vec<usize> = assign(&reversed, &shares, seed).into_iter().rev().collect();
        prop_assert_eq!(splits, again);
    }
}

#[test]
fn a_split_deals_anew_and_leaves_the_frames_alone() {
    let b = Bench::new();
    let from = b.dataset("from", Codec::Jpeg, 40);
    let how = by_clip(&[("train", 0.75), ("val", 0.25)], 1, true);
    let mut bytes = 0;
    let manifest = block_on(split(&from, &b.out("a"), &how, &mut |n| bytes += n)).unwrap();
    assert_eq!(manifest.splits, BTreeMap::from([("train".into(), 30), ("val".into(), 10)]));
    assert_eq!(bytes, manifest.totals.bytes);
    assert!(payloads(&from) == payloads(&b.out("a")));
    let (new, clips) = open(&b.out("a"));
    assert_eq!(new.manifest.files, open(&from).0.manifest.files);
    // On one disk the copies are links.
    use std::os::unix::fs::MetadataExt;
    let file = b.dir.path().join("from").join(&new.manifest.files[0].key);
    assert_eq!(std::fs::metadata(file).unwrap().nlink(), 2);
    // Of each label a quarter, up to the draw's one or two.
    for label in 0..4 {
        let of = || clips.iter().filter(|c| c.label == Some(label));
        let val = of().filter(|c| &*c.split == "val").count() as f64;
        assert!((val - of().count() as f64 / 4.0).abs() <= 2.0, "{label}: {val}");
    }
    // The same draw again, another seed.
    block_on(split(&from, &b.out("b"), &how, &mut |_| ())).unwrap();
    let splits = |name| open(&b.out(name)).1.into_iter().map(|c| c.split).collect::<Vec<_>>();
    assert_eq!(splits("a"), splits("b"));
    let other = by_clip(&[("train", 0.75), ("val", 0.25)], 2, true);
    block_on(split(&from, &b.out("c"), &other, &mut |_| ())).unwrap();
    assert_ne!(splits("a"), splits("c"));
    // All clips of the fixture come from one source.
    let together = SplitBy::Fractions {
        fractions: fractions(&[("train", 0.5), ("val", 0.5)]),
        seed: 0,
        by: By::Source,
        stratify: false,
    };
    let manifest = block_on(split(&from, &b.out("d"), &together, &mut |_| ())).unwrap();
    assert_eq!(manifest.splits.len(), 1);
}

#[test]
fn a_split_by_a_list_and_its_mistakes() {
    let b = Bench::new();
    let from = b.dataset("from", Codec::Raw, 6);
    let list = |text: &str| SplitBy::List(b.csv(text));
    let how = list("split,clip_id\nholdout,clip-002\nval,clip-000\n");
    let manifest = block_on(split(&from, &b.out("a"), &how, &mut |_| ())).unwrap();
    let count = |s: &str| manifest.splits[s];
    assert_eq!((count("train"), count("val"), count("holdout")), (3, 2, 1));
    let refuse = |how: &SplitBy, out: &str, part: &str| {
        let e = block_on(split(&from, &b.out(out), how, &mut |_| ())).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains(part), "{e}");
        assert!(out == "a" || !b.dir.path().join(out).exists(), "{out} was written to");
    };
    refuse(&how, "a", "a dataset is there");
    refuse(&list("clip_id,split\nclip-9,val\n"), "x", "row 2");
    refuse(&list("clip_id,split\nclip-001,\n"), "x", "its split is empty");
    refuse(&list("clip_id,split\nclip-001,a\nclip-001,b\n"), "x", "in row 2 already");
    refuse(&list("clip,split\n"), "x", "no column \"clip_id\"");
    refuse(&list("clip_id,split\n"), "x", "no rows");
    refuse(&by_clip(&[("train", 0.5)], 0, false), "x", "sum to 0.5");
    refuse(&by_clip(&[("train", 0.5), ("train", 0.5)], 0, false), "x", "named twice");
    refuse(&by_clip(&[("train", 1.5), ("val", -0.5)], 0, false), "x", "above 0");
}

#[test]
fn a_merge_unites_labels_by_name() {
    let b = Bench::new();
    let (one, two) = (b.dataset("one", Codec::Raw, 6), b.dataset("two", Codec::Raw, 9));
    // The second calls "up" another name, and has a label more.
    let names = b.csv("old,new\nup,away\n");
    block_on(relabel(&two, &b.out("renamed"), &Relabel::Names(names), &mut |_| ())).unwrap();
    let both = [one.clone(), b.out("renamed")];
    let e = block_on(merge(&both, &b.out("x"), false, &mut |_| ())).unwrap_err().to_string();
    assert!(e.contains("\"clip-000\"") && e.contains("and 3 more") && e.contains("--prefix-ids"), "{e}");
    let manifest = block_on(merge(&both, &b.out("all"), true, &mut |_| ())).unwrap();
    assert_eq!(manifest.labels, ["down", "left", "right", "up", "away"]);
    assert_eq!((manifest.totals.clips, manifest.files.len()), (15, 4));
    let (_, clips) = open(&b.out("all"));
    let label = |id: &str| clips.iter().find(|c| c.clip_id == id).unwrap().label;
    assert_eq!((label("one/clip-003"), label("renamed/clip-003")), (Some(3), Some(4)));
    let all = payloads(&b.out("all"));
    assert!(payloads(&two).iter().all(|(id, bytes)| all[&format!("renamed/{id}")] == *bytes));
    // Merged again: its files have one folder each by then.
    let jpeg = b.dataset("jpeg", Codec::Jpeg, 3);
    let e = block_on(merge(&[b.out("all"), jpeg], &b.out("x"), true, &mut |_| ())).unwrap_err().to_string();
    assert!(e.contains("one codec") && e.contains("raw"), "{e}");
    let again = [b.out("all"), one.clone()];
    let manifest = block_on(merge(&again, &b.out("more"), false, &mut |_| ())).unwrap();
    assert_eq!(manifest.totals.clips, 21);
    open(&b.out("more"));
    let e = block_on(merge(&[one], &b.out("x"), false, &mut |_| ())).unwrap_err();
    assert!(e.to_string().contains("two or more"));
}

#[test]
fn labels_change_in_the_index() {
    let b = Bench::new();
    let from = b.dataset("from", Codec::Raw, 8);
    let change = |text: &str, out: &str| {
        block_on(relabel(&from, &b.out(out), &Relabel::Clips(b.csv(text)), &mut |_| ()))
    };
    let manifest = change("clip_id,label\nclip-000,spin;down;spin\nclip-001,\n", "a").unwrap();
    assert_eq!(manifest.labels, ["down", "left", "right", "up", "spin"]);
    let (_, clips) = open(&b.out("a"));
    assert_eq!((clips[0].label, &clips[0].labels), (Some(4), &vec![4, 0]));
    assert_eq!((clips[1].label, clips[1].labels.len()), (None, 0));
    assert_eq!(clips[2].label, Some(2));
    assert!(payloads(&from) == payloads(&b.out("a")));
    let e = change("clip_id,label\nclip-77,x\n", "x").unwrap_err().to_string();
    assert!(e.contains("row 2: there is no clip \"clip-77\""), "{e}");

    // Two names become one: the ids close up.
    let names = Relabel::Names(b.csv("old,new\nleft,sideways\nright,sideways\n"));
    let manifest = block_on(relabel(&from, &b.out("b"), &names, &mut |_| ())).unwrap();
    assert_eq!(manifest.labels, ["down", "sideways", "up"]);
    let labels: Vec<_> = open(&b.out("b")).1.iter().map(|c| c.label).collect();
    assert_eq!(labels[..4], [Some(0), Some(1), Some(1), Some(2)]);
    let names = Relabel::Names(b.csv("old,new\nlift,x\n"));
    let e = block_on(relabel(&from, &b.out("x"), &names, &mut |_| ())).unwrap_err().to_string();
    assert!(e.contains("no label \"lift\""), "{e}");
}

#[test]
fn stats_count_by_split_and_label_and_find_duplicates() {
    let b = Bench::new();
    let from = b.dataset("from", Codec::Raw, 10);
    block_on(merge(&[from.clone(), from.clone()], &b.out("twice"), true, &mut |_| ())).unwrap();
    let list = b.csv("clip_id,split\nfrom-2/clip-000,val\n");
    block_on(split(&b.out("twice"), &b.out("leaky"), &SplitBy::List(list), &mut |_| ())).unwrap();
    let s = block_on(stats(&b.out("leaky"))).unwrap();
    assert_eq!((s.all.clips, s.unlabelled, s.multi_label), (20, 2, 0));
    assert_eq!(s.splits.values().map(|a| a.clips).sum::<u64>(), 20);
    // Frames are 3 to 12, at 25 a second, 96 bytes each.
    assert_eq!(s.all.frames, 2 * 75);
    assert_eq!(s.all.bytes, 2 * 75 * 96);
    assert!((s.all.hours * 3600.0 * 25.0 - 150.0).abs() < 1e-9);
    assert_eq!((s.clip_frames.0[&0], s.clip_frames.0[&50], s.clip_frames.0[&100]), (3.0, 7.0, 12.0));
    assert_eq!(s.labels[0].all.clips, 6);
    assert_eq!(s.labels[0].splits["val"], 3);
    // Each clip stands there twice; one pair on both sides.
    assert_eq!((s.duplicates.clips, s.duplicates.across_splits), (10, 1));
    assert_eq!(s.duplicates.examples[0], ["from-1/clip-000", "from-2/clip-000"]);
    assert_eq!((s.sources, s.sources_across_splits), (1, 1));
    let text = s.text();
    assert!(text.contains("8x4") && text.contains("10 clips; 1 kinds stand in several splits"), "{text}");
    let json: serde_json::Value = serde_json::to_value(&s).unwrap();
    assert_eq!(json["clip_frames"]["100"], 12.0);
    assert_eq!(json["labels"][3]["name"], "up");
}
