//! The node cache among processes: writers killed at random points, two jobs at once.
#![allow(clippy::unwrap_used)]

use shards::cache::{Cache, RunKey, Wanted};
use shards::format::crc32c;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

const DIGESTS: [&str; 2] = ["0a0b0c0d0e0f00010203040506070809aabb", "1a0b0c0d0e0f00010203040506070809aabb"];
const LIMIT: u64 = 6 << 20;
const RUNS: u64 = 400;

/// Run `n` of a dataset: some 20 KB that follow from both.
fn run(dataset: usize, n: u64) -> (Wanted, Vec<u8>) {
    let body: Vec<u8> =
        (0..10_000 + n * 53 % 20_000).map(|i| (n * 131 + i * 7 + i / 251) as u8 ^ dataset as u8).collect();
    let key = RunKey { file: 0, offset: n * 100_000 };
    (Wanted { key, bytes: body.len() as u64, crc32c: crc32c(&body) }, body)
}

/// The runs that the cache has, each of them right.
fn held(cache: &Cache, dataset: usize) -> BTreeSet<u64> {
    let wanted = (0..RUNS).map(|n| run(dataset, n).0).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let found = runtime.block_on(cache.get(wanted));
    let right = |(n, found): (u64, Option<bytes::Bytes>)| {
        let found = found?;
        assert!(found == run(dataset, n).1, "run {n} of dataset {dataset} is another's");
        Some(n)
    };
    (0..).zip(found).filter_map(right).collect()
}

fn used(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().metadata().unwrap());
    files.map(|m| (m.blocks() * 512).max(m.len())).sum()
}

/// This program again, as a writer of `dataset` that starts at run `from` and goes on until it is killed.
fn writer(folder: &Path, dataset: usize, from: u64) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "write_until_killed", "--ignored", "--nocapture"])
        .env("CACHE_FOLDER", folder)
        .env("CACHE_DATASET", dataset.to_string())
        .env("CACHE_FROM", from.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

/// Waits until the child has written `count` runs.
fn wait_for(out: &mut BufReader<ChildStdout>, count: u64) {
    let mut line = String::new();
    let mut seen = 0;
    while seen < count {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the writer ended early");
        seen += u64::from(line.starts_with("wrote"));
    }
}

#[test]
#[ignore = "the child of the other tests"]
fn write_until_killed() {
    let Ok(folder) = std::env::var("CACHE_FOLDER") else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let dataset = number("CACHE_DATASET") as usize;
    let cache = Cache::open(folder.as_ref(), LIMIT, DIGESTS[dataset]).unwrap();
    for n in number("CACHE_FROM").. {
        let (wanted, body) = run(dataset, n % RUNS);
        cache.offer(wanted.key, body.into());
        // Some are still being written while the next ones come.
        if n % 3 == 0 {
            cache.flush();
        }
        println!("wrote {n}");
    }
}

#[test]
fn writers_killed_at_any_point_leave_nothing_wrong_and_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut before = BTreeSet::new();
    for round in 0..30u64 {
        let (mut first, mut out) = writer(folder.path(), 0, round * 37 % RUNS);
        // Every third round a second job of another dataset writes at the same time.
        let second = (round % 3 == 2).then(|| writer(folder.path(), 1, round * 91 % RUNS));
        wait_for(&mut out, 1 + round * 7 % 23);
        first.kill().unwrap();
        first.wait().unwrap();
        if let Some((mut second, mut out)) = second {
            wait_for(&mut out, 1 + round * 5 % 11);
            second.kill().unwrap();
            second.wait().unwrap();
        }
        assert!(used(folder.path()) <= LIMIT, "round {round}: {} bytes", used(folder.path()));
        let cache = Cache::open(folder.path(), LIMIT, DIGESTS[0]).unwrap();
        let now = held(&cache, 0);
        // Published runs survive the kill, and a cache that is not yet full has lost none.
        if round < 3 {
            assert!(before.is_subset(&now), "round {round} lost {:?}", before.difference(&now));
            assert!(now.len() > before.len(), "round {round}");
        }
        assert_eq!(cache.stats().damaged, 0, "round {round}");
        held(&Cache::open(folder.path(), LIMIT, DIGESTS[1]).unwrap(), 1);
        before = now;
    }
    // Nothing is leaked: the whole of it can be filled once more by one who has it alone.
    let cache = Cache::open(folder.path(), LIMIT, "ffeeddccbbaa99887766554433221100").unwrap();
    for n in 0..1000 {
        let body = vec![n as u8; 20_000];
        cache.offer(RunKey { file: 1, offset: n * 20_000 }, body.into());
        cache.flush();
    }
    assert!(cache.stats().written_bytes * 10 > LIMIT * 8, "{:?}", cache.stats());
    assert!(used(folder.path()) <= LIMIT);
}

#[test]
fn two_jobs_share_one_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), LIMIT, DIGESTS[0]).unwrap();
    let mut children: Vec<_> =
        [(0, 0), (0, 200), (1, 0)].map(|(d, from)| writer(folder.path(), d, from)).into();
    for (_, out) in &mut children {
        wait_for(out, 60);
        assert!(used(folder.path()) <= LIMIT);
    }
    let shared = held(&cache, 0);
    assert!(shared.len() >= 60, "what other processes wrote is found: {}", shared.len());
    assert!(shared.iter().any(|&n| n < 100) && shared.iter().any(|&n| n >= 200));
    for (mut child, _) in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(used(folder.path()) <= LIMIT);
    assert_eq!(cache.stats().damaged, 0);
}
