//! The control plane alone with 10,000 workers on one core: what its decisions cost. Measures; run it by hand:
//! `cargo nextest run -p coordinator --test scale --run-ignored only --no-capture`.
#![allow(clippy::unwrap_used)]

use coordinator::core::*;
use std::time::{Duration, Instant};

const WORKERS: u64 = 10_000;
/// Seconds of beats, one a worker and second.
const SECONDS: u64 = 10;
/// Workers that are lost, one after the other.
const LOSSES: u64 = 30;

fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        protocol_version: 1,
        config_digest: String::new(),
        dataset_digest: String::new(),
        workers: WORKERS as u32,
        min_workers: 1,
        max_workers: WORKERS as u32,
        gather: 600 * second,
        beat_timeout: 10 * second,
        step_timeout: 600 * second,
        collective_timeout: 60 * second,
        join_window: 2 * second,
        stop_grace: 30 * second,
        straggler_factor: Some(2.0),
        replace_stragglers: false,
        retention: Retention { keep: 3, keep_every: None, keep_best: None },
    }
}

fn hello(n: u64) -> Event {
    let hello = Hello {
        protocol_version: 1,
        name: format!("node{:04}-{n}-cuda:{}", n / 8, n % 8),
        node: format!("node{:04}", n / 8),
        device: format!("cuda:{}", n % 8),
        config_digest: String::new(),
        dataset_digest: String::new(),
        generation: Generation(0),
        rank: Rank(0),
        coordinator: Epoch(0),
    };
    Event::Hello { worker: WorkerId(n), hello }
}

fn beat(n: u64, generation: Generation, step: u64) -> Event {
    let beat = Beat {
        generation,
        step: Step(step),
        progress: step,
        phase: "training".into(),
        step_seconds: 1.0,
        exchange_wait_seconds: 0.2,
        ..Default::default()
    };
    Event::Beat { worker: WorkerId(n), beat }
}

/// The core, with the time that it takes.
struct Timed {
    core: Core,
    now: Now,
}

impl Timed {
    fn give(&mut self, event: Event) -> (Vec<Action>, Duration) {
        let began = clock();
        let actions = self.core.handle(self.now, event);
        (actions, began.elapsed())
    }

    /// Until the generation that is being recorded is announced; its size and the time that took.
    fn form(&mut self, record: &[Action]) -> (usize, Duration) {
        let generation = record
            .iter()
            .find_map(|a| match a {
                Action::Record(m) => Some(m.generation),
                _ => None,
            })
            .expect("a generation to record");
        let (actions, took) = self.give(Event::Recorded { generation });
        let assigned = |a: &&Action| matches!(a, Action::Send { directive: Directive::Assigned { .. }, .. });
        (actions.iter().filter(assigned).count(), took)
    }
}

#[test]
#[ignore = "measures"]
fn ten_thousand_workers_on_one_core() {
    let mut job = Timed { core: Core::new(settings(), Found::default()), now: Now::default() };
    let mut last = vec![];
    let mut hellos = Duration::ZERO;
    for n in 1..=WORKERS {
        let (actions, took) = job.give(hello(n));
        (last, hellos) = (actions, hellos + took);
    }
    let (world, forming) = job.form(&last);
    assert_eq!(world as u64, WORKERS);
    println!(
        "hello: {:.1} us each; a generation of {world} announced in {:.1} ms",
        micros(hellos) / WORKERS as f64,
        micros(forming) / 1e3
    );

    let (mut beats, mut others) = (vec![], vec![]);
    let before = cpu();
    for second in 1..=SECONDS {
        for n in 1..=WORKERS {
            beats.push(job.give(beat(n, Generation(1), second)).1);
            if n % (WORKERS / 5) == 0 {
                job.now.0 += Duration::from_millis(200);
                others.push(job.give(Event::Tick).1);
            }
        }
    }
    println!("beat: {:.2} us on average, {:.2} us p99", mean(&beats), p99(&mut beats));
    println!("tick: {:.0} us on average, {:.0} us p99", mean(&others), p99(&mut others));
    let busy = cpu() - before;
    println!("one beat a second of all: {:.1} % of a core", 100.0 * busy.as_secs_f64() / SECONDS as f64);

    // One after the other is lost: the stops of all others, then the next generation.
    let (mut stops, mut forms) = (vec![], vec![]);
    for n in 1..=LOSSES {
        let (actions, took) = job.give(Event::Disconnected { worker: WorkerId(n), why: "killed".into() });
        let stopped = |a: &&Action| matches!(a, Action::Send { directive: Directive::Stop { .. }, .. });
        assert_eq!(actions.iter().filter(stopped).count() as u64, WORKERS - n);
        stops.push(took);
        job.now.0 += Duration::from_secs(1);
        let (record, deciding) = job.give(Event::Tick);
        let (_, forming) = job.form(&record);
        forms.push(deciding + forming);
        let generation = Generation(n + 1);
        let report = StepReport { generation, step: Step(1000 + n), ..Default::default() };
        let first = record.iter().find_map(|a| match a {
            Action::Record(m) => Some(m.names[0].clone()),
            _ => None,
        });
        let first: u64 = first.unwrap().split('-').nth(1).unwrap().parse().unwrap();
        job.give(Event::Step { worker: WorkerId(first), report });
        if n % 8 == 0 {
            (1..=WORKERS).for_each(|w| drop(job.give(beat(w, generation, 100 + n))));
        }
    }
    println!("a loss and what follows: {:.1} ms of CPU", micros(cpu() - before) / 1e3 / LOSSES as f64);
    println!(
        "loss to the last stop: {:.1} ms on average, {:.1} ms p99",
        mean(&stops) / 1e3,
        p99(&mut stops) / 1e3
    );
    println!(
        "next generation, deciding and announcing: {:.1} ms on average, {:.1} ms p99",
        mean(&forms) / 1e3,
        p99(&mut forms) / 1e3
    );
}

fn micros(d: Duration) -> f64 {
    d.as_secs_f64() * 1e6
}

/// In microseconds.
fn mean(all: &[Duration]) -> f64 {
    micros(all.iter().sum()) / all.len() as f64
}

/// In microseconds.
fn p99(all: &mut [Duration]) -> f64 {
    all.sort();
    micros(all[all.len() * 99 / 100])
}

/// This thread's time on a core, whoever else wants it.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[allow(clippy::disallowed_methods)] // it measures
fn clock() -> Instant {
    Instant::now()
}
