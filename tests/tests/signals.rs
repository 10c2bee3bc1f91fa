//! SIGTERM at a worker's worst moments: before it has joined, in an evaluation, while a checkpoint is on its way.

use rustix::process::Signal;
use std::{net::TcpListener, process::Command};
use tests::{
    cluster::Cluster,
    job::{self, Job, events},
    program,
    small::SWIN,
};

/// A job of one worker with its run and its clips on S3, where a request can be held up.
fn cluster(overrides: &[&str]) -> Cluster {
    Cluster::new(SWIN, &[&["cluster.workers=1"], overrides].concat()).on_s3().with_data_on_s3()
}

#[test]
fn one_that_has_not_joined_yet_ends_well() {
    // Takes connections, and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let run = tempfile::tempdir().expect("a folder");
    let mut trainer = Command::new(program("marey-worker"));
    trainer.args(["trainer", "--coordinator", &address, "--device", "cpu:0", "--grace", "600", "--run"]);
    trainer.arg(run.path());
    for command in [job::worker(&address), trainer] {
        let started = Job::start(command);
        let _connection = listener.accept().expect("a connection");
        started.signal(Signal::TERM);
        started.finish();
    }
}

#[test]
fn an_evaluation_that_gave_way_is_done_first_by_the_next_start() {
    let cluster = cluster(&["train.epochs=1", "train.max_steps=8", "schedule.warmup_epochs=0.5"]);
    let (mut coordinator, address) = cluster.coordinator("evaluated", 0, &[]);
    let worker = cluster.worker(0, &address);
    // All training clips have been read by now.
    coordinator.wait_line(&["step 4 of 8"]);
    cluster.store_faults(&[("GET clips/* 1 stall 3s", None)]);
    coordinator.wait_line(&["step 8 of 8"]);
    worker.signal(Signal::TERM);
    coordinator.wait_line(&["checkpoint of step 8"]);
    let said = worker.finish();
    assert!(said.contains("told to stop (SIGTERM)"), "{said}");
    let evaluations = || events(&cluster.folder("evaluated")).iter().filter(|e| e["kind"] == "eval").count();
    assert_eq!(evaluations(), 0, "it was not finished");

    cluster.store_faults(&[]);
    let worker = cluster.worker(0, &address);
    let end = coordinator.finish();
    assert!(end.contains("resumed from the checkpoint of step 8") && end.contains("of 12 clips"), "{end}");
    worker.finish();
    assert_eq!(evaluations(), 1);
}

#[test]
fn a_save_under_way_is_finished_and_a_second_signal_ends_at_once() {
    let cluster = cluster(&["train.epochs=2000", "train.max_steps=16000", "checkpoint.every_steps=5"]);
    let (mut coordinator, address) = cluster.coordinator("saved", 0, &[]);
    cluster.store_faults(&[("PUT *-of-1.safetensors 1 stall 3s", Some(2))]);
    let mut worker = cluster.worker(0, &address);
    worker.wait_line(&["checkpoint of step 5:", "copied"]);
    worker.signal(Signal::TERM);
    let said = worker.finish();
    let last = said.lines().rfind(|l| l.contains("checkpoint of step ")).expect("a checkpoint");
    let step = last.split("checkpoint of step ").nth(1).and_then(|l| l.split(':').next()).expect("a step");
    coordinator.wait_line(&[&format!("checkpoint of step {step}:")]);

    // Longer than anybody waits.
    cluster.store_faults(&[("PUT *-of-1.safetensors 1 stall 3600s", None)]);
    let mut worker = cluster.worker(0, &address);
    worker.wait_line(&["checkpoint of step ", "copied"]);
    worker.signal(Signal::TERM);
    worker.wait_line(&["told to stop (SIGTERM)"]);
    worker.signal(Signal::TERM);
    let (code, said) = worker.finish_any();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("exit status 143"), "{said}");
    coordinator.kill_all();
}
