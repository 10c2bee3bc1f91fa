//! The coordinator's core among simulated workers, under a seeded scheduler with every fault the protocol
//! must survive. Coordinators die, stand still and come back as stale leaders; workers die, join, leave, get stuck and
//! slow; connections break on one side only, and what a stale leader says comes late; the store fails, loses replies and
//! spoils checkpoints. At every step: one group a generation, one history of steps, no manifest of what was never there,
//! numbers without gaps; and once the faults cease, the job ends.
//!
//! ```text
//! world.rs        time, the queue of events, the job
//! faults.rs       the faults
//! net.rs          connections between workers and coordinators
//! coordinator.rs  a coordinator process: the core with a shell that uses the simulated store
//! worker.rs       a worker process: its session
//! trainer.rs      its trainer: groups, steps, checkpoints
//! store.rs        journal, manifests and objects, with what must be true of them
//! tally.rs        what happened, and what must have
//! ```
//!
//! `MAREY_SEEDS=100000` runs more of them, `MAREY_SEED=7` one, with a trace.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed seed

mod coordinator;
mod faults;
mod net;
mod store;
mod tally;
mod trainer;
mod worker;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tally::Tally;
use world::World;

/// Seeds of a usual run.
const SEEDS: u64 = 1000;

#[test]
fn every_seed_keeps_the_promises_and_ends() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("MAREY_SEED") {
        println!("{}", World::new(seed, true).run());
        return;
    }
    let seeds = number("MAREY_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let total = Mutex::new(Tally::default());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || failed.lock().unwrap().len() >= 5 {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| World::new(seed, false).run())) {
                        Ok(tally) => total.lock().unwrap().add_all(&tally),
                        Err(_) => {
                            eprintln!("seed {seed} failed");
                            failed.lock().unwrap().push(seed);
                        }
                    }
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    println!("{seeds} seeds, {total}");
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "seeds {failed:?} failed; replay one: MAREY_SEED={} cargo nextest run -p coordinator --test simulation --no-capture",
        failed[0]
    );
    assert!(seeds < SEEDS || total.never().is_empty(), "these never happened: {:?}", total.never());
}
