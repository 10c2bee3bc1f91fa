//! Where the trainer is: written by the training loop, read by the task that sends beats.

use proto::v1;
use std::{
    sync::{
        Mutex,
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
    rest: Mutex<(&'static str, Timing)>,
}

impl Progress {
    /// Notes a new phase or step; each call counts as progress.
    pub fn at(&self, phase: &'static str, generation: u64, epoch: u64, step: u64) {
        self.generation.store(generation, Relaxed);
        self.epoch.store(epoch, Relaxed);
        self.step.store(step, Relaxed);
        self.rest.lock().unwrap_or_else(|e| e.into_inner()).0 = phase;
        self.tick();
    }

    /// A step is done.
    pub fn took(&self, timing: Timing) {
        self.rest.lock().unwrap_or_else(|e| e.into_inner()).1 = timing;
        self.tick();
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
        let (phase, timing) = *self.rest.lock().unwrap_or_else(|e| e.into_inner());
        v1::Beat {
            generation: self.generation.load(Relaxed),
            epoch: self.epoch.load(Relaxed),
            step: self.step.load(Relaxed),
            phase: phase.into(),
            progress: self.ticks.load(Relaxed),
            step_seconds: timing.step.as_secs_f64(),
            data_wait_seconds: timing.data_wait.as_secs_f64(),
            exchange_wait_seconds: timing.exchange_wait.as_secs_f64(),
        }
    }
}
