//! Processes that are killed and frozen, and a store that fails at the moments of a commit: after each scenario the
//! ledger says whether anything was lost, seen twice or computed otherwise than in an undisturbed run.

use rustix::process::Signal;
use std::{thread::sleep, time::Duration};
use tests::{
    cluster::Cluster,
    job::{self, Job, kill},
    small::{SLOWFAST, SWIN},
};

/// Jobs of this many steps end by themselves.
const STEPS: u64 = 64;

fn limited(recipe: &str, overrides: &[&str]) -> Cluster {
    let steps = format!("train.max_steps={STEPS}");
    Cluster::new(recipe, &[&["train.epochs=8", &*steps], overrides].concat())
}

/// For scenarios whose length depends on the machine; they are told to stop.
fn endless(recipe: &str, overrides: &[&str]) -> Cluster {
    Cluster::new(recipe, &[&["train.epochs=2000", "train.max_steps=16000"], overrides].concat())
}

/// The trainer of a worker.
fn trainer(worker: &Job) -> i32 {
    worker.find_process(&["marey-worker trainer"]).expect("a trainer")
}

fn finish(workers: Vec<Job>) -> Vec<String> {
    workers.into_iter().map(Job::finish).collect()
}

/// Another coordinator of a run that has one.
fn take_over(cluster: &Cluster, run: &str) -> Job {
    let mut command = cluster.coordinator_command(run, 0, &[]);
    command.arg("--take-over");
    let mut coordinator = cluster.start(0, command);
    coordinator.listening();
    coordinator
}

/// Two workers step on under a coordinator that has taken over, until it is told to stop; nothing shows in the ledger.
fn goes_on_under(mut coordinator: Job, cluster: &Cluster, run: &str, workers: Vec<Job>) {
    coordinator.wait_step();
    coordinator.signal(Signal::TERM);
    coordinator.finish();
    let ledger = cluster.ledger(run, &finish(workers));
    assert_eq!(ledger.worlds(), [2], "the generation went on");
    ledger.equals(&cluster.straight(2, ledger.steps()));
}

/// All processes at once, twice: in the middle of an epoch, and while a checkpoint is on its way.
#[test]
fn all_are_killed_and_started_again() {
    let cluster = limited(
        SLOWFAST,
        &["cluster.workers=2", "cluster.min_workers=2", "checkpoint.every_steps=7", "checkpoint.keep=100"],
    );
    let straight = cluster.straight(2, STEPS);
    let mut said = vec![];
    for until in ["checkpoint of step 14", "step 38 of"] {
        let (mut coordinator, address) = cluster.coordinator("killed", 0, &[]);
        let workers: Vec<Job> = (0..2).map(|_| cluster.worker(0, &address)).collect();
        coordinator.wait_line(&[until]);
        coordinator.kill_all();
        said.extend(workers.into_iter().map(Job::kill_all));
    }
    let (coordinator, address) = cluster.coordinator("killed", 0, &[]);
    let workers = (0..2).map(|_| cluster.worker(0, &address)).collect();
    let end = coordinator.finish();
    assert!(end.contains("resumed from the checkpoint of step"), "{end}");
    said.extend(finish(workers));
    let ledger = cluster.ledger_with_gaps("killed", &said);
    assert_eq!(ledger.worlds(), [2, 2, 2]);
    ledger.equals(&straight);
}

/// Trainer, supervisor and coordinator, shorter than the time-outs: nobody is lost, and nothing is computed again.
#[test]
fn short_freezes_pass_unnoticed() {
    let cluster = limited(SWIN, &["cluster.workers=2", "cluster.min_workers=2", "cluster.beat_timeout=30s"]);
    let straight = cluster.straight(2, STEPS);
    let (mut coordinator, address) = cluster.coordinator("frozen", 0, &[]);
    let workers: Vec<Job> = (0..2).map(|_| cluster.worker(0, &address)).collect();
    coordinator.wait_line(&["step 11 of"]);
    for (freeze, thaw) in [(Signal::STOP, Signal::CONT); 2] {
        job::signal(trainer(&workers[1]), freeze);
        workers[0].signal(freeze);
        coordinator.signal(freeze);
        // The length of the freeze: nothing is awaited.
        sleep(Duration::from_secs(2));
        coordinator.signal(thaw);
        workers[0].signal(thaw);
        job::signal(trainer(&workers[1]), thaw);
        coordinator.wait_step();
    }
    coordinator.finish();
    let ledger = cluster.ledger("frozen", &finish(workers));
    assert_eq!(ledger.worlds(), [2]);
    ledger.equals(&straight);
}

/// A trainer that stands still is given up, is told so when it wakes, and comes back in a new process.
#[test]
fn a_frozen_trainer_is_given_up_and_comes_back() {
    let cluster = endless(SWIN, &["cluster.workers=2"]);
    let (mut coordinator, address) = cluster.coordinator("frozen", 0, &[]);
    let workers: Vec<Job> = (0..2).map(|_| cluster.worker(0, &address)).collect();
    coordinator.wait_line(&["step 11 of"]);
    let victim = trainer(&workers[0]);
    job::signal(victim, Signal::STOP);
    let lost = coordinator.wait_line(&["lost worker"]);
    assert!(lost.contains(&victim.to_string()), "{lost}");
    coordinator.wait_line(&["generation 2: 1 worker"]);
    coordinator.wait_step();
    job::signal(victim, Signal::CONT);
    coordinator.wait_line(&["generation 3: 2 worker"]);
    coordinator.wait_step();
    coordinator.signal(Signal::TERM);
    coordinator.finish();
    let ledger = cluster.ledger("frozen", &finish(workers));
    assert_eq!((ledger.worlds(), ledger.lost().len()), (&[2, 1, 2][..], 1));
    ledger.follows(&cluster.straight(1, ledger.steps()));
}

/// A supervisor takes its trainers with it; others come in their place.
#[test]
fn four_workers_become_two_and_then_three() {
    let cluster = endless(SWIN, &["cluster.workers=4", "cluster.min_workers=2"]);
    let (mut coordinator, address) = cluster.coordinator("elastic", 0, &[]);
    let mut workers: Vec<Job> = (0..4).map(|_| cluster.worker(0, &address)).collect();
    coordinator.wait_line(&["step 11 of"]);
    let mut said = vec![];
    for _ in 0..2 {
        // The supervisor alone.
        let worker = workers.remove(0);
        worker.signal(Signal::KILL);
        let (code, words) = worker.finish_any();
        assert_eq!(code, None, "{words}");
        said.push(words);
    }
    coordinator.wait_line(&[": 2 worker"]);
    coordinator.wait_step();
    workers.push(cluster.worker(0, &address));
    coordinator.wait_line(&[": 3 worker"]);
    coordinator.wait_step();
    coordinator.signal(Signal::TERM);
    coordinator.finish();
    said.extend(finish(workers));
    let ledger = cluster.ledger("elastic", &said);
    let worlds = ledger.worlds();
    // The two may be missed together or one after the other.
    assert!(matches!(worlds, [4, 2, 3] | [4, 3, 2, 3]), "{worlds:?}");
    ledger.follows(&cluster.straight(1, ledger.steps()));
}

/// One that was frozen while another took the run over may not write, and tells nobody anything.
#[test]
fn a_superseded_coordinator_wakes_up_and_stops() {
    let cluster = endless(SWIN, &["cluster.workers=2", "cluster.min_workers=2"]);
    let (mut first, address) = cluster.coordinator("superseded", 0, &[]);
    let workers: Vec<Job> = (0..2).map(|_| cluster.worker(0, &address)).collect();
    first.wait_line(&["step 11 of"]);
    first.signal(Signal::STOP);
    let mut second = take_over(&cluster, "superseded");
    second.wait_step();
    first.signal(Signal::CONT);
    let (code, said) = first.finish_any();
    assert_eq!(code, Some(1), "{said}");
    goes_on_under(second, &cluster, "superseded", workers);
}

/// Two coordinators that are both well: the second one is refused, and then told to take over; who leads, and whom the
/// workers follow, is settled by journal, token and certificates alone.
#[test]
fn a_take_over_among_those_who_show_token_and_certificate() {
    let cluster = endless(SWIN, &["cluster.workers=2", "cluster.min_workers=2"]).guarded();
    let (mut first, address) = cluster.coordinator("taken", 0, &[]);
    let workers: Vec<Job> = (0..2).map(|_| cluster.worker(0, &address)).collect();
    first.wait_line(&["step 11 of"]);
    let (code, said) = cluster.start(0, cluster.coordinator_command("taken", 0, &[])).finish_any();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&address) && said.contains("--take-over"), "{said}");
    let mut second = take_over(&cluster, "taken");
    let (code, said) = first.finish_any();
    assert_eq!(code, Some(1), "{said}");
    second.wait_line(&["goes on under this coordinator"]);
    goes_on_under(second, &cluster, "taken", workers);
}

/// Refused, delayed, reset and answered into the void: while shards, manifests and the journal are written, read back
/// and deleted.
#[test]
fn a_store_that_fails_at_every_point_of_a_commit() {
    let cluster = limited(
        SLOWFAST,
        &["cluster.workers=2", "cluster.min_workers=2", "checkpoint.every_steps=8", "checkpoint.keep=2"],
    )
    .on_s3();
    let straight = cluster.straight(2, STEPS);
    cluster.store_faults(&[
        // A conflict with itself: a retry that meets the first attempt.
        ("put *manifest.json 0.3 answer 409", Some(2)),
        ("put *manifest.json 0.5 lose", None),
        ("put *manifest.json 0.5 answer 503", None),
        ("get,head *manifest.json 0.2 answer 503", None),
        ("get,head *manifest.json 0.2 cut", None),
        ("put *journal* 0.7 lose", Some(3)),
        ("put *journal* 0.7 answer 500", Some(3)),
        ("put *.safetensors 0.2 lose", None),
        ("put,post *.safetensors 0.3 answer 503", None),
        ("put *.safetensors 0.2 reset", None),
        ("head *.safetensors 0.2 answer 503", None),
        ("delete,post * 0.2 answer 500", None),
        ("* *checkpoints* 0.1 delay 300ms", None),
    ]);
    let (mut coordinator, address) = cluster.coordinator("faulty", 0, &[]);
    let workers: Vec<Job> = (0..2).map(|_| cluster.worker(0, &address)).collect();
    coordinator.wait_line(&["checkpoint of step 24"]);
    let faults = cluster.faults();
    for fault in ["lose", "answer", "reset", "delay"] {
        assert!(faults.get(fault).is_some_and(|n| *n > 0), "{faults:?}");
    }
    let victim = trainer(&workers[0]);
    kill(victim);
    coordinator.wait_line(&["lost worker"]);
    coordinator.finish();
    let ledger = cluster.ledger("faulty", &finish(workers));
    assert_eq!(ledger.worlds(), [2, 2]);
    ledger.equals(&straight);
}

/// The manifest is held back while everything dies: the next start goes on from the checkpoint before, or from this one
/// if it was written after all.
#[test]
fn all_die_while_a_manifest_is_written() {
    let cluster = limited(
        SWIN,
        &["cluster.workers=2", "cluster.min_workers=2", "checkpoint.every_steps=10", "checkpoint.keep=100"],
    )
    .on_s3();
    let straight = cluster.straight(2, STEPS);
    let mut said = vec![];
    for fault in ["stall 60s", "lose", "answer 503"] {
        let (mut coordinator, address) = cluster.coordinator("killed", 0, &[]);
        let workers: Vec<Job> = (0..2).map(|_| cluster.worker(0, &address)).collect();
        coordinator.wait_line(&["checkpoint of step"]);
        cluster.store_faults(&[(&format!("put *manifest.json 1 {fault}"), None)]);
        coordinator.wait_line(&["step ", "5 of"]);
        coordinator.wait_line(&["step ", "5 of"]);
        coordinator.kill_all();
        said.extend(workers.into_iter().map(Job::kill_all));
        cluster.store_faults(&[]);
    }
    let (coordinator, address) = cluster.coordinator("killed", 0, &[]);
    let workers = (0..2).map(|_| cluster.worker(0, &address)).collect();
    coordinator.finish();
    said.extend(finish(workers));
    cluster.ledger_with_gaps("killed", &said).equals(&straight);
}
