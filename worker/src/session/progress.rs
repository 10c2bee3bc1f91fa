//! Where the trainer is: written by the training loop, read by the task that sends beats.

use proto::v1;
use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// How long a rank's last step took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    pub step: Duration,
    /// Of which it waited for clips.
    pub data_wait: Duration,
    /// Of which it waited for other ranks.
    pub exchange_wait: Duration,
}

/// Shared between the trainer and the session's task.
#[derive(Debug, Default)]
pub struct Progress {
    generation: AtomicU64,
    epoch: AtomicU64,
    step: AtomicU64,
    ticks: AtomicU64,
    rest: Mutex<Rest>,
}

/// What is told in words, and timings.
#[derive(Debug, Default)]
struct Rest {
    phase: &'static str,
    timing: Timing,
    /// The collective that the trainer is in; empty: none.
    collective: &'static str,
    /// So many has it begun in this generation.
    collectives: u64,
    /// Over which it failed.
    clip: String,
}

impl Progress {
    /// Notes a new phase or step; each call counts as progress.
    pub fn at(&self, phase: &'static str, generation: u64, epoch: u64, step: u64) {
        let mut rest = self.rest();
        if self.generation.swap(generation, Relaxed) != generation {
            rest.collectives = 0;
        }
        (rest.phase, rest.collective) = (phase, "");
        rest.clip.clear();
        drop(rest);
        self.epoch.store(epoch, Relaxed);
        self.step.store(step, Relaxed);
        self.tick();
    }

    /// A step is done.
    pub fn took(&self, timing: Timing) {
        let mut rest = self.rest();
        (rest.timing, rest.collective) = (timing, "");
        drop(rest);
        self.tick();
    }

    /// The trainer is about to meet the other ranks in this collective; it is over with the next phase or step.
    pub fn meets(&self, collective: &'static str) {
        let mut rest = self.rest();
        rest.collective = collective;
        rest.collectives += 1;
        drop(rest);
        self.tick();
    }

    /// The trainer failed over this clip.
    pub fn failed_over(&self, clip: &str) {
        self.rest().clip = clip.into();
    }

    /// The trainer moved.
    pub fn tick(&self) {
        self.ticks.fetch_add(1, Relaxed);
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step.load(Relaxed)
    }

    pub(super) fn beat(&self) -> v1::Beat {
        let rest = self.rest();
        let Rest { phase, timing, collective, collectives, .. } = *rest;
        let collective = match collective {
            "" => String::new(),
            name => format!("{name}, number {collectives} of its generation"),
        };
        v1::Beat {
            generation: self.generation.load(Relaxed),
            epoch: self.epoch.load(Relaxed),
            step: self.step.load(Relaxed),
            phase: phase.into(),
            progress: self.ticks.load(Relaxed),
            step_seconds: timing.step.as_secs_f64(),
            data_wait_seconds: timing.data_wait.as_secs_f64(),
            exchange_wait_seconds: timing.exchange_wait.as_secs_f64(),
            collective,
            clip: rest.clip.clone(),
        }
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(|e| e.into_inner())
    }
}
