//! A job among strangers: workers without its token, silent connections, garbage.
#![allow(clippy::unwrap_used)]

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};
use tests::{
    check_refused,
    job::Job,
    marey, run,
    small::{Fixture, SWIN},
};

const TOKEN: &str = "the-token-that-this-job-alone-has";
/// What a coordinator of two workers needs is a tenth of this.
const MOST_MEMORY: u64 = 200 << 20;

/// The most memory that a process ever had, bytes.
fn peak(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Connects as fast as it can: every other time it says garbage, else nothing, and holds the connection for a while.
fn flood(address: &str, over: &AtomicBool, connections: &AtomicU64) {
    let garbage: Vec<u8> = (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
    let mut held: Vec<TcpStream> = vec![];
    while !over.load(Ordering::Relaxed) {
        // The coordinator has ended with its job.
        let Ok(mut stream) = TcpStream::connect(address) else { return };
        if connections.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            let _ = stream.write_all(&garbage);
        }
        held.push(stream);
        if held.len() == 400 {
            held.drain(..200);
        }
        thread::yield_now();
    }
}

#[test]
fn strangers_neither_join_nor_stop_the_job_nor_grow_its_memory() {
    let fixture = Fixture::new();
    let config = fixture.config("job.toml", SWIN);
    let token = fixture.config("token", TOKEN);
    let other = fixture.config("other-token", "the-token-of-quite-another-job");
    let logs = fixture.run("logs");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);

    let (token, logs) = (token.to_str().unwrap(), logs.to_str().unwrap());
    let data = fixture.data().to_string();
    // Long enough for all that strangers try.
    let long =
        ["--set", "train.epochs=100", "--set", "train.max_steps=300", "--set", "checkpoint.every_steps=50"];
    let more = ["--set", &data, "--listen", &address, "--token-file", token, "--log-dir", logs];
    let more = [&more[..], &long].concat();
    let mut job = Job::train(&config, 2, fixture.run("run").to_str().unwrap(), &more);
    job.wait_line(&["generation 1"]);
    let coordinator = job.find_process(&["marey-coordinator"]).unwrap();

    let (over, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let flooding = {
        let (address, over, connections) = (address.clone(), over.clone(), connections.clone());
        thread::spawn(move || flood(&address, &over, &connections))
    };
    let worker = ["worker", "--coordinator", &address, "--devices", "cpu:1"];
    check_refused(&worker, run(&worker), &["shows no token", "--token-file"]);
    let worker = [&worker[..], &["--token-file", other.to_str().unwrap()]].concat();
    check_refused(&worker, run(&worker), &["not this job's"]);
    let watch = marey(&["watch", "--coordinator", &address]).output().unwrap();
    assert_eq!(watch.status.code(), Some(2), "{}", String::from_utf8_lossy(&watch.stderr));

    job.wait_line(&["checkpoint", "step 250"]);
    let memory = peak(coordinator).unwrap();
    let said = job.finish();
    over.store(true, Ordering::Relaxed);
    flooding.join().unwrap();
    assert!(connections.load(Ordering::Relaxed) > 500, "{connections:?}");
    assert!(memory < MOST_MEMORY, "the coordinator took {memory} bytes");
    let log = std::fs::read_to_string(format!("{logs}/coordinator.log")).unwrap();
    assert!(log.contains("refused 127.0.0.1:") && log.contains("shows no token"), "{log}");
    assert!(!log.contains(TOKEN) && !log.contains("quite-another-job") && !said.contains(TOKEN));
}
