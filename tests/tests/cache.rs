//! The node's cache in real jobs on object storage, behind a proxy that counts: what two workers that share it ask of
//! the store is what `marey data simulate` said before, and its files never exceed the limit.

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tests::{
    job::{self, Job},
    marey,
    proxy::{Fault, Proxy, Rule},
    small::SWIN,
};
use xtask::{motion, s3::Server};

/// Three epochs of 60 clips in global batches of 8.
const EPOCHS: u64 = 3;
const STEPS: u64 = 24;

/// A dataset of clips of four runs on a server, and a proxy before it.
struct Bench {
    folder: tempfile::TempDir,
    server: Server,
    proxy: Proxy,
    config: PathBuf,
}

/// What went over the wire for clips.
#[derive(Debug)]
struct Asked {
    gets: u64,
    bytes: u64,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::start(&folder.path().join("s3"), "marey").expect("an S3 server");
        let videos = folder.path().join("videos");
        let spec = motion::Spec { train: 60, val: 0, size: 48, frames: 50, seed: 1 };
        motion::write_set(&videos, &spec).expect("the sample videos are set up: run `make setup`");
        let labels = videos.join("labels.csv");
        let proxy = Proxy::start(&server.endpoint(), 1, vec![]).expect("a proxy");
        // It does nothing to the requests for clips but to count them.
        proxy.set_rules(vec![Rule::gets("k/data/*", 1.0, Fault::Delay(Duration::ZERO))]);
        let config = folder.path().join("job.toml");
        fs::write(&config, SWIN).expect("written");
        let bench = Self { folder, server, proxy, config };
        bench.ok(&[
            "ingest",
            text(&videos),
            "--labels",
            text(&labels),
            "--out",
            "s3://marey/k",
            "--no-progress",
        ]);
        bench
    }

    /// Runs `marey ARGS` straight on the server.
    fn ok(&self, args: &[&str]) -> String {
        let said = marey(args).envs(self.server.env()).output().expect("marey starts");
        assert!(said.status.success(), "marey {args:?}\n{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// The overrides of a job with a cache of `limit` bytes, which shows 8 frames `rate` apart.
    fn job(&self, workers: usize, limit: u64, rate: u32) -> Vec<String> {
        let cache = self.cache(limit);
        [
            "data.url=s3://marey/k",
            &format!("data.cache={{ folder = {:?}, limit = \"{limit} B\" }}", text(&cache)),
            &format!("data.sampling_rate={rate}"),
            // Second copies of slow requests would count.
            "data.requests={ hedge_share = 0.0 }",
            // About two steps ahead.
            "data.prefetch=1 MiB",
            &format!("train.epochs={EPOCHS}"),
            &format!("train.max_steps={STEPS}"),
            &format!("cluster.workers={workers}"),
            &format!("cluster.min_workers={workers}"),
        ]
        .map(String::from)
        .to_vec()
    }

    /// One cache for each limit.
    fn cache(&self, limit: u64) -> PathBuf {
        self.folder.path().join(format!("cache-{limit}"))
    }

    /// What the simulator says of each epoch.
    fn simulated(&self, workers: usize, limit: u64, rate: u32) -> Vec<Value> {
        let (workers, epochs) = (workers.to_string(), EPOCHS.to_string());
        let mut args = vec!["data", "simulate", text(&self.config), "--json", "--epochs", &epochs];
        args.extend(["--workers", &workers, "--workers-per-node", &workers]);
        let set = self.job(1, limit, rate);
        args.extend(set.iter().flat_map(|s| ["--set", s]));
        let report: Value = serde_json::from_str(&self.ok(&args)).expect("JSON");
        report["worlds"][0]["epochs"].as_array().expect("epochs").clone()
    }

    /// What a real job asks for before the first step of its second epoch is done, and after. The cache's files are
    /// measured at every step.
    fn real(&self, run: &str, workers: usize, limit: u64, rate: u32) -> [Asked; 2] {
        let run = self.folder.path().join(run);
        let set = self.job(workers, limit, rate);
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let start = |mut command: Command| {
            command.envs(self.server.env()).env("AWS_ENDPOINT_URL", self.proxy.endpoint());
            Job::start(command)
        };
        self.proxy.take_counts();
        let mut coordinator = start(job::coordinator(&self.config, text(&run), "127.0.0.1:0", &set));
        let address = coordinator.listening();
        let all: Vec<Job> = (0..workers).map(|_| start(job::worker(&address))).collect();
        let mut asked = vec![];
        for step in 1..=STEPS {
            coordinator.wait_line(&[&format!("step {step} of")]);
            let bytes = size(&self.cache(limit));
            assert!(bytes <= limit, "step {step}: {bytes} bytes in a cache of {limit}");
            if step == STEPS / EPOCHS + 1 {
                asked.push(self.asked());
            }
        }
        coordinator.finish();
        for worker in all {
            let said = worker.finish();
            assert!(said.contains("the node's cache since this worker's start"), "{said}");
            assert!(!said.contains("goes on without a cache"), "{said}");
        }
        asked.push(self.asked());
        let bytes = size(&self.cache(limit));
        assert!(0 < bytes && bytes <= limit, "{bytes} bytes in a cache of {limit}");
        asked.try_into().expect("two")
    }

    fn asked(&self) -> Asked {
        let counts = self.proxy.take_counts();
        assert_eq!(counts.methods.get("PUT"), None, "the run is in a folder");
        Asked { gets: counts.faults.get("delay").copied().unwrap_or(0), bytes: counts.bytes }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|e| match e.file_type() {
            Ok(kind) if kind.is_dir() => size(&e.path()),
            // One that is gone since is no bytes.
            _ => e.metadata().map_or(0, |m| m.len()),
        })
        .sum()
}

/// The sum of a count over epochs.
fn sum(epochs: &[Value], key: &str) -> u64 {
    epochs.iter().map(|e| e[key].as_u64().expect(key)).sum()
}

#[track_caller]
fn near(what: &str, real: f64, said: f64, most: f64) {
    println!("{what}: {real}, simulated {said}");
    assert!((real - said).abs() <= most, "{what}: {real}, and the simulator says {said}");
}

#[test]
fn a_real_job_asks_the_store_what_the_simulator_said() {
    let bench = Bench::new();

    // Windows over the whole of every clip, and room for all: from the second epoch on there is nothing to ask.
    let (roomy, all) = (64 << 20, 7);
    let said = bench.simulated(2, roomy, all);
    assert_eq!(said.iter().map(|e| e["requests"].as_u64()).collect::<Vec<_>>(), [Some(60), Some(0), Some(0)]);
    let [first, later] = bench.real("roomy", 2, roomy, all);
    let bytes = sum(&said, "bytes") as f64;
    // A clip that comes last in one epoch and first in the next may be asked for before it is kept.
    assert!((60..=63).contains(&(first.gets + later.gets)) && later.gets <= 3, "{first:?}, then {later:?}");
    near("bytes", (first.bytes + later.bytes) as f64, bytes, 0.05 * bytes);
    // One worker alone owns the lanes of both: it finds what either of them kept.
    let [first, later] = bench.real("alone", 1, roomy, all);
    assert_eq!((first.gets, later.gets), (0, 0));

    // Windows of one or two runs anywhere in a clip, and room for a part of them.
    let (tight, some) = (2 << 20, 2);
    let said = bench.simulated(2, tight, some);
    let (gets, bytes) = (sum(&said, "requests") as f64, sum(&said, "bytes") as f64);
    let wanted = bytes + sum(&said, "hit_bytes") as f64;
    let rate = said[2]["hit_rate"].as_f64().expect("a rate");
    assert!((0.1..0.8).contains(&rate), "neither all nor nothing is found: {rate}");
    let [first, later] = bench.real("tight", 2, tight, some);
    let real = (first.bytes + later.bytes) as f64;
    near("GETs", (first.gets + later.gets) as f64, gets, 0.05 * gets);
    near("bytes", real, bytes, 0.05 * bytes);
    near("hit rate", 1.0 - real / wanted, 1.0 - bytes / wanted, 0.05);
}
