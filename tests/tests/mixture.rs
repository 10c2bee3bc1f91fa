//! A job on two datasets by weight: which clips of each it shows, counted anew from what its workers say of every
//! step, at one, two and three workers, and when one of them is killed in the middle of an epoch.

use std::{collections::BTreeMap, fs, path::PathBuf};
use tests::{
    data,
    job::{self, Job, clips},
    ok,
    small::{Fixture, SWIN},
};
use xtask::motion::LABELS;

/// Clips of the two datasets.
const CLIPS: [usize; 2] = [60, 24];
/// Clips of each in an epoch: weights of three and one.
const SHARES: [usize; 2] = [30, 10];
/// Of five steps each.
const EPOCHS: u64 = 8;
const STEPS: u64 = 5 * EPOCHS;

/// Epoch and clips of each step.
type Shown = BTreeMap<u64, (u64, Vec<String>)>;

struct Case {
    fixture: Fixture,
    config: PathBuf,
    overrides: Vec<String>,
}

impl Case {
    fn new() -> Self {
        let fixture = Fixture::new();
        let config = fixture.config("job.toml", SWIN);
        let first = fixture.run("dataset").display().to_string();
        let (second, renamed) = extra(&fixture);
        let overrides = [
            fixture.data(),
            &format!(
                "data.mixture=[{{ url = {first:?}, weight = 3.0 }}, {{ url = {second:?}, weight = 1.0, rename = {{ {renamed:?} = {:?} }} }}]",
                LABELS[0]
            ),
            &format!("data.epoch_clips={}", SHARES.iter().sum::<usize>()),
            &format!("train.epochs={EPOCHS}"),
            &format!("train.max_steps={STEPS}"),
            "checkpoint.every_steps=10000",
            "cluster.beat_timeout=5s",
            "cluster.gather=60s",
            "cluster.min_workers=1",
        ]
        .map(String::from)
        .to_vec();
        Self { fixture, config, overrides }
    }

    fn coordinator(&self, workers: usize, run: &str) -> (Job, String) {
        let workers = format!("cluster.workers={workers}");
        let all: Vec<&str> = self.overrides.iter().map(String::as_str).chain([workers.as_str()]).collect();
        Job::coordinator(&self.config, &self.fixture.run(run), "127.0.0.1:0", &all)
    }

    /// A run of `workers` that nothing disturbs: losses, and the clips of each step.
    fn straight(&self, workers: usize) -> (BTreeMap<u64, f64>, Shown) {
        let run = format!("straight-{workers}");
        let (coordinator, address) = self.coordinator(workers, &run);
        let all: Vec<Job> = (0..workers).map(|_| Job::worker(&address)).collect();
        coordinator.finish();
        let said: Vec<String> = all.into_iter().map(Job::finish).collect();
        (job::losses(&self.fixture.run(&run)), clips(said.iter().map(String::as_str)))
    }
}

/// Another dataset of the same motions, whose clips have names of their own, as one of its labels has. Returns that
/// label besides the dataset.
fn extra(fixture: &Fixture) -> (String, String) {
    let folder = fixture.run("more");
    let videos = data::motion_videos(&folder, CLIPS[1], 0);
    fs::rename(videos.join("train"), videos.join("extra")).expect("renamed");
    let labels = fs::read_to_string(videos.join("labels.csv")).expect("the labels");
    let other = format!("another {}", LABELS[0]);
    let labels =
        labels.replace("train/", "extra/").replace(&format!(",{},", LABELS[0]), &format!(",{other},"));
    fs::write(videos.join("labels.csv"), labels).expect("written");
    let out = folder.join("dataset").display().to_string();
    let (videos, labels) = (videos.display().to_string(), videos.join("labels.csv").display().to_string());
    ok(&["ingest", &videos, "--labels", &labels, "--out", &out, "--no-progress"]);
    (out, other)
}

/// As many of each dataset in every epoch as its weight says; of each, every clip once before any twice.
#[track_caller]
fn check_shares(shown: &Shown) {
    let mut epochs: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for (epoch, clips) in shown.values() {
        epochs.entry(*epoch).or_default().extend(clips.iter().map(String::as_str));
    }
    assert_eq!(epochs.keys().copied().collect::<Vec<_>>(), (0..EPOCHS).collect::<Vec<u64>>());
    let mut counts: [BTreeMap<&str, usize>; 2] = Default::default();
    for (epoch, clips) in epochs {
        for (part, prefix) in ["train/", "extra/"].iter().enumerate() {
            let of: Vec<&str> = clips.iter().copied().filter(|clip| clip.starts_with(prefix)).collect();
            assert_eq!(of.len(), SHARES[part], "epoch {epoch}: {prefix}");
            of.into_iter().for_each(|clip| *counts[part].entry(clip).or_default() += 1);
            let passes = SHARES[part] * (epoch as usize + 1) / CLIPS[part];
            let rest = SHARES[part] * (epoch as usize + 1) % CLIPS[part];
            let often = counts[part].values().filter(|n| **n == passes + 1).count();
            let seldom = counts[part].values().filter(|n| **n == passes && passes > 0).count();
            let unseen = if passes == 0 { CLIPS[part] - rest } else { 0 };
            assert_eq!((often, seldom + unseen), (rest, CLIPS[part] - rest), "epoch {epoch}: {prefix}");
        }
        assert_eq!(clips.len(), SHARES.iter().sum::<usize>(), "epoch {epoch}");
    }
}

#[track_caller]
fn close(a: &BTreeMap<u64, f64>, b: &BTreeMap<u64, f64>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (step, a) in a {
        assert!((a - b[step]).abs() <= 1e-5 * a.abs(), "step {step}: {a} and {}", b[step]);
    }
}

#[test]
fn two_datasets_come_by_their_weights_whoever_dies() {
    let case = Case::new();
    let (want, shown) = case.straight(1);
    assert_eq!(want.len(), STEPS as usize);
    check_shares(&shown);
    for workers in [2, 3] {
        let (losses, clips) = case.straight(workers);
        assert_eq!(clips, shown, "{workers} workers");
        close(&losses, &want);
    }

    let (mut coordinator, address) = case.coordinator(3, "killed");
    let mut workers: Vec<Job> = (0..3).map(|_| Job::worker(&address)).collect();
    // The third epoch has begun.
    coordinator.wait_line(&["step 12 of"]);
    // With its supervisor, so that it does not come back.
    let killed = workers.remove(1).kill_all();
    coordinator.wait_line(&["lost worker"]);
    coordinator.finish();
    let mut said: Vec<String> = workers.into_iter().map(Job::finish).collect();
    assert!(said.iter().all(|s| !s.contains("resumed from the checkpoint")), "{said:?}");
    said.push(killed);
    assert_eq!(clips(said.iter().map(String::as_str)), shown);
    close(&job::losses(&case.fixture.run("killed")), &want);
}
