//! Which clips real jobs show, counted anew from what their workers say of every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use tests::{
    job::Job,
    marey, refused,
    small::{Fixture, SWIN},
};

/// Epoch and clips of each step.
type Record = BTreeMap<u64, (u64, Vec<String>)>;

struct Counted {
    fixture: Fixture,
    config: PathBuf,
    set: Vec<String>,
}

impl Counted {
    fn new(set: &[&str]) -> Self {
        let fixture = Fixture::new();
        let config = fixture.config("job.toml", SWIN);
        Self { fixture, config, set: set.iter().map(|s| s.to_string()).collect() }
    }

    /// A job whose workers record their clips below `logs`.
    fn job(&self, workers: usize, run: &Path, logs: &Path) -> Job {
        let workers = workers.to_string();
        let (config, run, logs) = (text(&self.config), text(run), text(logs));
        let mut args = vec!["train", config, "--workers", &workers, "--run", run, "--log-dir", logs];
        let set = [self.fixture.data()].into_iter().chain(self.set.iter().map(String::as_str));
        args.extend(set.flat_map(|s| ["--set", s]));
        let mut command = marey(&args);
        command.env("RUST_LOG", "info,clips=debug");
        Job::start(command)
    }

    /// What one worker shows in 20 steps.
    fn straight(&self) -> Record {
        let (run, logs) = (self.fixture.run("straight"), self.fixture.run("straight-logs"));
        self.job(1, &run, &logs).finish();
        let record = record(&logs);
        assert_eq!(record.keys().copied().collect::<Vec<_>>(), (1..=20).collect::<Vec<u64>>());
        record
    }

    /// Three workers, killed after the checkpoint of step 10, and two that go on.
    fn interrupted(&self) -> Record {
        let run = self.fixture.run("interrupted");
        let (before, after) = (self.fixture.run("before"), self.fixture.run("after"));
        let mut first = self.job(3, &run, &before);
        first.wait_line(&["checkpoint", "step 10"]);
        first.kill_all();
        assert!(!run.join("checkpoints/step-000000020").exists(), "the kill must come before step 20");
        let said = self.job(2, &run, &after).finish();
        assert!(said.contains("resumed from the checkpoint of step 10"), "{said}");
        let mut all = record(&before);
        all.retain(|step, _| *step <= 10);
        let rest = record(&after);
        assert_eq!(rest.keys().copied().collect::<Vec<_>>(), (11..=20).collect::<Vec<u64>>());
        all.extend(rest);
        all
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The steps that the logs tell of; the ranks' parts put together in the order of the ranks.
fn record(logs: &Path) -> Record {
    let mut parts: BTreeMap<(u64, u64), (u64, Vec<String>)> = BTreeMap::new();
    for file in std::fs::read_dir(logs).expect("logs") {
        let log = std::fs::read(file.expect("a log").path()).expect("a log");
        for line in String::from_utf8_lossy(&log).lines() {
            let Some((head, clips)) = line.split_once(", clips:") else { continue };
            let numbers: Vec<u64> = head
                .rsplit("rank ")
                .next()
                .expect("a rank")
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|n| n.parse().ok())
                .collect();
            let [rank, epoch, step] = numbers[..] else { panic!("{line}") };
            let clips = clips.split_whitespace().map(String::from).collect();
            let twice = parts.insert((step, rank), (epoch, clips));
            assert!(twice.is_none(), "{line}");
        }
    }
    let mut steps = Record::new();
    for ((step, _), (epoch, clips)) in parts {
        let all = steps.entry(step).or_insert((epoch, vec![]));
        assert_eq!(all.0, epoch);
        all.1.extend(clips);
    }
    steps
}

/// How often each clip was shown in each epoch.
fn epochs(record: &Record) -> BTreeMap<u64, BTreeMap<&str, u64>> {
    let mut all: BTreeMap<u64, BTreeMap<&str, u64>> = BTreeMap::new();
    for (epoch, clips) in record.values() {
        for clip in clips {
            *all.entry(*epoch).or_default().entry(clip).or_default() += 1;
        }
    }
    all
}

#[test]
fn every_clip_comes_once_an_epoch_whoever_dies() {
    let job = Counted::new(&[]);
    let straight = job.straight();
    assert_eq!(job.interrupted(), straight, "two and three workers, and a kill in the middle of an epoch");
    let epochs = epochs(&straight);
    // 60 clips are eight steps: two whole epochs and a half.
    for epoch in [0, 1] {
        assert_eq!(epochs[&epoch].len(), 60);
        assert!(epochs[&epoch].values().all(|n| *n == 1), "{:?}", epochs[&epoch]);
    }
    assert_eq!(epochs[&2].values().sum::<u64>(), 32);
    assert!(epochs[&2].values().all(|n| *n == 1));
}

#[test]
fn classes_come_equally_often_and_listed_clips_never() {
    let probe = Counted::new(&[]);
    let all: BTreeSet<String> = probe.straight().into_values().flat_map(|(_, clips)| clips).collect();
    assert_eq!(all.len(), 60);
    // Three of the first class's five clips and one of the second's.
    let table = std::fs::read_to_string(probe.fixture.run("videos").join("labels.csv")).expect("the labels");
    let labels: BTreeMap<&str, &str> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.split(',');
            Some((cells.next()?.strip_suffix(".mp4")?, cells.next()?))
        })
        .collect();
    let class = |id: &str| labels[id].to_string();
    let mut classes: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    all.iter().for_each(|id| classes.entry(class(id)).or_default().push(id));
    assert_eq!(classes.len(), 12, "{classes:?}");
    let mut of = classes.values();
    let (a, b) = (of.next().expect("a class"), of.next().expect("a class"));
    let listed = [a[0], a[1], a[2], b[0]];
    let list = probe
        .fixture
        .config("bad-clips.txt", &format!("# seen to be wrong\n{}\n\n{} \n{}\n{}\n", a[0], a[1], a[2], b[0]));

    let quarantine = format!("data.quarantine={}", text(&list));
    let job = Counted {
        set: ["data.sampling=class_balanced", "data.epoch_clips=30", &quarantine].map(String::from).to_vec(),
        ..probe
    };
    std::fs::remove_dir_all(job.fixture.run("straight")).expect("the probe's run");
    std::fs::remove_dir_all(job.fixture.run("straight-logs")).expect("the probe's logs");
    let straight = job.straight();
    assert_eq!(job.interrupted(), straight);
    let mut total: BTreeMap<&str, u64> = BTreeMap::new();
    for (epoch, counts) in epochs(&straight) {
        assert!(listed.iter().all(|id| !counts.contains_key(id.as_str())), "{counts:?}");
        for (clip, n) in counts {
            *total.entry(clip).or_default() += n;
        }
        // 30 clips are four steps.
        let so_far: u64 = straight.values().filter(|(e, _)| *e <= epoch).map(|(_, c)| c.len() as u64).sum();
        assert_eq!(so_far, 30 * (epoch + 1));
        let mut per_class: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for id in all.iter().filter(|id| !listed.contains(id)) {
            per_class.entry(class(id)).or_default().push(total.get(id.as_str()).copied().unwrap_or(0));
        }
        let sums: Vec<u64> = per_class.values().map(|n| n.iter().sum()).collect();
        assert_eq!(sums.len(), 12);
        assert!(sums.iter().max().expect("some") - sums.iter().min().expect("some") <= 1, "{sums:?}");
        for counts in per_class.values() {
            assert!(
                counts.iter().max().expect("some") - counts.iter().min().expect("some") <= 1,
                "{counts:?}"
            );
        }
    }

    // Another list under the same name is another order.
    std::fs::write(&list, format!("{}\n", a[0])).expect("written");
    let (code, said) = job.job(2, &job.fixture.run("straight"), &job.fixture.run("again")).finish_any();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("data.quarantine is") && said.contains("start a new run"), "{said}");
    std::fs::write(&list, "no-such-clip\n").expect("written");
    let dry = ["train", text(&job.config), "--dry-run", "--set", job.fixture.data(), "--set", &quarantine];
    refused(&dry, &["no-such-clip", "correct the list"]);
}
