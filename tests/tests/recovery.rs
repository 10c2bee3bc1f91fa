//! Workers and coordinators that die, come and go: the job goes on as if nothing had happened.

use rustix::process::Signal;
use std::{collections::BTreeMap, path::Path};
use tests::{
    job::{self, Job, checkpoint, clips, events, kill},
    small::{Fixture, SLOWFAST, SWIN},
};

/// Twelve epochs of 60 clips.
const STEPS: u64 = 96;

/// Epoch and clips of each step.
type Shown = BTreeMap<u64, (u64, Vec<String>)>;

struct Case {
    fixture: Fixture,
    config: std::path::PathBuf,
    overrides: Vec<String>,
}

impl Case {
    /// One checkpoint, at the end, unless the overrides say otherwise.
    fn new(recipe: &str, overrides: &[&str]) -> Self {
        let fixture = Fixture::new();
        let config = fixture.config("job.toml", recipe);
        let common = [
            fixture.data(),
            "train.epochs=12",
            &format!("train.max_steps={STEPS}"),
            "checkpoint.every_steps=10000",
            "cluster.beat_timeout=5s",
            "cluster.join_window=0.1s",
            "cluster.gather=60s",
        ];
        let overrides = common.iter().chain(overrides).map(|s| s.to_string()).collect();
        Self { fixture, config, overrides }
    }

    fn coordinator(&self, run: &str, listen: &str, more: &[&str]) -> (Job, String) {
        let all: Vec<&str> = self.overrides.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Job::coordinator(&self.config, &self.fixture.run(run), listen, &all)
    }

    /// A run of `workers` that nothing disturbs: losses, and the clips of each step.
    fn straight(&self, workers: usize, steps: u64) -> (BTreeMap<u64, f64>, Shown) {
        let more = [&*format!("cluster.workers={workers}"), &*format!("train.max_steps={steps}")];
        let (coordinator, address) = self.coordinator("straight", "127.0.0.1:0", &more);
        let all: Vec<Job> = (0..workers).map(|_| Job::worker(&address)).collect();
        coordinator.finish();
        let said: Vec<String> = all.into_iter().map(Job::finish).collect();
        (losses(&self.fixture.run("straight"), steps), clips(said.iter().map(String::as_str)))
    }
}

/// Of every step of the job.
#[track_caller]
fn losses(run: &Path, steps: u64) -> BTreeMap<u64, f64> {
    let losses = job::losses(run);
    assert_eq!(losses.keys().copied().collect::<Vec<_>>(), (1..=steps).collect::<Vec<_>>());
    losses
}

#[track_caller]
fn close(a: &BTreeMap<u64, f64>, b: &BTreeMap<u64, f64>) {
    for (step, a) in a {
        assert!((a - b[step]).abs() <= 1e-5 * a.abs(), "step {step}: {a} and {}", b[step]);
    }
}

/// How many workers each generation had.
fn worlds(run: &Path) -> Vec<usize> {
    let started = events(run).into_iter().filter(|e| e["kind"] == "generation");
    started.map(|e| e["members"].as_array().expect("members").len()).collect()
}

/// The trainer of a worker.
fn trainer(worker: &Job) -> i32 {
    worker.find_process(&["marey-worker trainer"]).expect("a trainer")
}

#[test]
fn survivors_go_on_from_what_they_have() {
    let case = Case::new(SWIN, &["cluster.min_workers=1"]);
    let (want, shown) = case.straight(1, STEPS);
    let (mut coordinator, address) = case.coordinator("killed", "127.0.0.1:0", &["cluster.workers=3"]);
    let mut workers: Vec<Job> = (0..3).map(|_| Job::worker(&address)).collect();
    coordinator.wait_line(&["step 11 of"]);
    // With its supervisor, so that it does not come back.
    let killed = workers.remove(1).kill_all();
    coordinator.wait_line(&["lost worker"]);
    coordinator.finish();
    let mut said: Vec<String> = workers.into_iter().map(Job::finish).collect();
    assert!(said.iter().all(|s| !s.contains("resumed from the checkpoint")), "{said:?}");
    assert!(said.iter().any(|s| s.contains("with the state in memory of rank")), "{said:?}");
    said.push(killed);
    assert_eq!(worlds(&case.fixture.run("killed")), [3, 2]);
    close(&losses(&case.fixture.run("killed"), STEPS), &want);
    assert_eq!(clips(said.iter().map(String::as_str)), shown);
}

/// Batch norm, dropout and momentum: whatever a replaced worker is not given over the group would show.
#[test]
fn a_replaced_worker_leaves_no_trace() {
    let case = Case::new(SLOWFAST, &["cluster.workers=2", "cluster.min_workers=2"]);
    let (want, _) = case.straight(2, STEPS);
    let (mut coordinator, address) = case.coordinator("replaced", "127.0.0.1:0", &[]);
    let workers: Vec<Job> = (0..2).map(|_| Job::worker(&address)).collect();
    coordinator.wait_line(&["step 11 of"]);
    // Rank 0's running statistics are the ones that count: the other one goes.
    let members = events(&case.fixture.run("replaced"))
        .into_iter()
        .find(|e| e["kind"] == "generation")
        .map(|e| e["members"][1].as_str().expect("a name").to_string())
        .expect("a generation");
    let victim =
        workers.iter().map(trainer).find(|pid| members.contains(&format!("-{pid}-"))).expect("rank 1");
    kill(victim);
    coordinator.wait_line(&["lost worker"]);
    coordinator.finish();
    let said: Vec<String> = workers.into_iter().map(Job::finish).collect();
    assert!(said.iter().any(|s| s.contains("killed by SIGKILL") && s.contains("started again")), "{said:?}");
    assert!(said.iter().any(|s| s.contains("takes over the state of rank 0")), "{said:?}");
    assert_eq!(worlds(&case.fixture.run("replaced")), [2, 2]);
    assert_eq!(losses(&case.fixture.run("replaced"), STEPS), want);
    let saved = |run: &str| checkpoint(&case.fixture.run(run), STEPS);
    assert!(saved("replaced") == saved("straight"), "the last checkpoints differ");
}

/// The job is long enough for the newcomer to start on any machine, and then cut short.
#[test]
fn workers_join_and_leave_in_mid_epoch() {
    let case = Case::new(SWIN, &["cluster.min_workers=1", "train.epochs=2000", "train.max_steps=16000"]);
    let run = case.fixture.run("elastic");
    let (mut coordinator, address) = case.coordinator("elastic", "127.0.0.1:0", &["cluster.workers=1"]);
    let first = Job::worker(&address);
    coordinator.wait_line(&["step 5 of"]);
    let second = Job::worker(&address);
    coordinator.wait_line(&["generation 2: 2 worker"]);
    coordinator.wait_step();
    first.signal(Signal::TERM);
    let mut said = vec![first.finish()];
    coordinator.wait_line(&["generation 3: 1 worker"]);
    coordinator.wait_step();
    coordinator.signal(Signal::TERM);
    coordinator.finish();
    said.push(second.finish());
    assert_eq!(worlds(&run), [1, 2, 1]);
    let lost = events(&run).into_iter().filter(|e| e["kind"] == "lost").count();
    assert_eq!(lost, 0, "nobody is to blame");

    let steps = *job::losses(&run).keys().last().expect("steps");
    let (want, shown) = case.straight(1, steps);
    close(&losses(&run, steps), &want);
    assert_eq!(clips(said.iter().map(String::as_str)), shown);
}

#[test]
fn a_stopped_job_resumes_where_it_stopped() {
    let case = Case::new(SWIN, &["cluster.workers=2", "cluster.min_workers=2"]);
    let (want, shown) = case.straight(2, STEPS);
    let run = case.fixture.run("stopped");
    let mut said = vec![];
    for signal in [Some(Signal::TERM), None] {
        let (mut coordinator, address) = case.coordinator("stopped", "127.0.0.1:0", &[]);
        let workers: Vec<Job> = (0..2).map(|_| Job::worker(&address)).collect();
        if let Some(signal) = signal {
            coordinator.wait_line(&["step 11 of"]);
            workers[0].signal(Signal::USR1);
            coordinator.wait_line(&["checkpoint of step"]);
            coordinator.signal(signal);
            let end = coordinator.finish();
            assert!(end.contains("stopped at step"), "{end}");
        } else {
            coordinator.finish();
        }
        said.extend(workers.into_iter().map(Job::finish));
    }
    assert!(said.iter().any(|s| s.contains("resumed from the checkpoint of step")), "{said:?}");
    assert_eq!(losses(&run, STEPS), want);
    assert_eq!(clips(said.iter().map(String::as_str)), shown);
}

#[test]
fn workers_step_on_while_their_coordinator_is_replaced() {
    let case = Case::new(SWIN, &["cluster.workers=2", "cluster.min_workers=2"]);
    let (want, shown) = case.straight(2, STEPS);
    let run = case.fixture.run("replaced");
    let (mut coordinator, address) = case.coordinator("replaced", "127.0.0.1:0", &[]);
    let workers: Vec<Job> = (0..2).map(|_| Job::worker(&address)).collect();
    coordinator.wait_line(&["step 11 of"]);
    coordinator.kill_all();
    let (coordinator, _) = case.coordinator("replaced", &address, &[]);
    coordinator.finish();
    let said: Vec<String> = workers.into_iter().map(Job::finish).collect();
    assert!(said.iter().any(|s| s.contains("the coordinator is at")), "{said:?}");
    assert!(said.iter().all(|s| !s.contains("is over")), "no generation ended: {said:?}");
    assert_eq!(losses(&run, STEPS), want);
    assert_eq!(clips(said.iter().map(String::as_str)), shown);
}
