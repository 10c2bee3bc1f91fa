//! The faults that a seed brings, and their end.

use crate::{
    net::Session,
    world::{ADDRESSES, Ev, World},
};
use coordinator::core::Event;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    WorkerDies,
    ManyWorkersDie,
    CoordinatorDies,
    /// Perhaps until another leads.
    CoordinatorStandsStill,
    /// `--take-over` while another is well.
    TakeOver,
    WorkerStandsStill,
    /// It beats, but does not move.
    TrainerStuck,
    CutUp,
    CutDown,
    Cut,
    ManyCut,
    /// Cut off from its peers, not from the coordinator.
    Isolated,
    WorkerTold,
    JobTold,
    CheckpointAsked,
    Released,
    Slow,
    /// A bit of the newest checkpoint has changed.
    Flipped,
    /// An object of the newest checkpoint is gone.
    Missing,
}

/// Each is as likely as it stands here often.
pub const FAULTS: [Fault; 24] = [
    Fault::WorkerDies,
    Fault::WorkerDies,
    Fault::WorkerDies,
    Fault::ManyWorkersDie,
    Fault::ManyWorkersDie,
    Fault::CoordinatorDies,
    Fault::CoordinatorDies,
    Fault::CoordinatorStandsStill,
    Fault::CoordinatorStandsStill,
    Fault::TakeOver,
    Fault::WorkerStandsStill,
    Fault::TrainerStuck,
    Fault::CutUp,
    Fault::CutDown,
    Fault::Cut,
    Fault::ManyCut,
    Fault::Isolated,
    Fault::WorkerTold,
    Fault::JobTold,
    Fault::CheckpointAsked,
    Fault::Released,
    Fault::Slow,
    Fault::Flipped,
    Fault::Missing,
];

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::WorkerDies => "fault: a worker dies",
            Fault::ManyWorkersDie => "fault: many workers die",
            Fault::CoordinatorDies => "fault: the coordinator dies",
            Fault::CoordinatorStandsStill => "fault: the coordinator stands still",
            Fault::TakeOver => "fault: another coordinator takes over",
            Fault::WorkerStandsStill => "fault: a worker stands still",
            Fault::TrainerStuck => "fault: a trainer is stuck",
            Fault::CutUp => "fault: what a worker says is lost",
            Fault::CutDown => "fault: what a worker is told is lost",
            Fault::Cut => "fault: a worker is cut off",
            Fault::ManyCut => "fault: many workers are cut off",
            Fault::Isolated => "fault: a worker is cut off from its peers",
            Fault::WorkerTold => "fault: a worker is told to stop",
            Fault::JobTold => "fault: the job is told to stop",
            Fault::CheckpointAsked => "fault: a checkpoint is asked for",
            Fault::Released => "fault: a worker is released",
            Fault::Slow => "fault: a worker is slow from now on",
            Fault::Flipped => "fault: a bit of the newest checkpoint changes",
            Fault::Missing => "fault: a part of the newest checkpoint is gone",
        }
    }
}

impl World {
    /// One fault, whichever the seed brings; some need what is not there at the moment.
    pub fn fault(&mut self) {
        let (w, c) = (self.rng.index(self.workers.len()), self.rng.index(ADDRESSES));
        let leader = self.store.last().map_or(0, |(_, e)| e.address);
        let fault = FAULTS[self.rng.index(FAULTS.len())];
        let until = self.now + self.rng.between(500, 60_000);
        self.trace(|| format!("{fault:?} (worker {w}, address {c}, leader {leader}, until {until})"));
        let alive = self.workers[w].alive;
        match fault {
            Fault::WorkerDies if alive => self.worker_died(w),
            Fault::ManyWorkersDie => {
                for w in 0..self.workers.len() {
                    if self.workers[w].alive && self.rng.one_in(2) {
                        self.worker_died(w);
                    }
                }
            }
            Fault::CoordinatorDies => {
                self.kill_coordinator(leader);
                let elsewhere = if self.rng.one_in(3) { c } else { leader };
                let delay = self.rng.between(100, 30_000);
                self.at(self.now + delay, Ev::StartCoordinator(elsewhere));
            }
            Fault::CoordinatorStandsStill => self.coordinator_stands_still(leader, c, until),
            Fault::TakeOver if c != leader => self.start_coordinator(c),
            Fault::WorkerStandsStill => {
                let worker = &mut self.workers[w];
                worker.paused_until = worker.paused_until.max(until.min(self.now + 30_000));
            }
            Fault::TrainerStuck => self.workers[w].stuck = true,
            Fault::CutUp => self.cut(w, leader, true, false, until),
            Fault::CutDown => self.cut(w, leader, false, true, until),
            Fault::Cut => self.cut(w, leader, true, true, until),
            Fault::ManyCut => {
                for w in 0..self.workers.len() {
                    if self.rng.one_in(2) {
                        self.cut(w, leader, true, true, until);
                    }
                }
            }
            Fault::Isolated => {
                self.workers[w].isolated_until = until;
                self.at(until, Ev::Reunited);
            }
            Fault::WorkerTold if alive => self.ask_to_go(w),
            Fault::JobTold => self.give(leader, Event::Terminate),
            Fault::CheckpointAsked => self.give(leader, Event::CheckpointNow),
            Fault::Released => {
                let name = self.workers[w].name.clone();
                self.give(leader, Event::Release { name, reason: "repairs".into() });
            }
            // Its peers still wait for it, if only just.
            Fault::Slow => self.workers[w].slowness = (7000 / self.step_ms).clamp(2, 5),
            Fault::Flipped | Fault::Missing => {
                let in_flight = self.commits_in_flight();
                let which = self.rng.index(64);
                if self.settings.retention.keep < 2
                    || !self.store.damage_newest(which, fault == Fault::Missing, &in_flight)
                {
                    return;
                }
            }
            _ => return,
        }
        self.tally.add(fault.name(), 1);
    }

    fn coordinator_stands_still(&mut self, leader: usize, other: usize, until: u64) {
        self.coordinators[leader].paused_until = until;
        let delay = self.rng.between(1000, 30_000);
        if other != leader && self.rng.one_in(2) {
            self.at(self.now + delay, Ev::StartCoordinator(other));
        }
        let of_it = |s: &Session| s.coordinator == leader && s.worker_open;
        for s in (0..self.sessions.len()).filter(|s| of_it(&self.sessions[*s])).collect::<Vec<_>>() {
            let at = self.now + 15_000 + self.rng.between(0, 3000);
            if at < until {
                self.at(at, Ev::WorkerSeesEnd(s));
            }
        }
    }

    /// The faults cease; whoever looks after the job starts what is missing.
    pub fn peace(&mut self) {
        self.trace(|| "peace".into());
        for (w, c) in self.cuts.keys().copied().collect::<Vec<_>>() {
            self.heal(w, c);
        }
        self.coordinators.iter_mut().for_each(|c| c.paused_until = 0);
        for w in 0..self.workers.len() {
            let worker = &mut self.workers[w];
            worker.paused_until = 0;
            worker.isolated_until = 0;
            worker.slowness = 1;
            if worker.stuck && worker.alive {
                self.worker_died(w);
            } else if !worker.alive {
                let life = worker.life;
                self.at(self.now + 1000, Ev::Respawn(w, life));
            }
        }
        self.at(self.now, Ev::Reunited);
        if !self.coordinators.iter().any(|c| c.core.is_some()) {
            self.at(self.now + 1000, Ev::StartCoordinator(0));
        }
    }
}
