//! Connections: messages in order, delays, cuts of one direction or both, ends that only one side sees.

use crate::world::{Ev, World};
use coordinator::core::{Directive, Epoch, Event, Hello};
use std::collections::VecDeque;

/// Pings go unanswered for so long before a side gives a connection up.
const KEEPALIVE: u64 = 15_000;

/// What a worker says; the sender of an event is filled in where it arrives.
#[derive(Clone, Debug)]
pub enum Up {
    Hello(Hello),
    Say(Event),
}

/// What a coordinator says, or that it closes the session.
#[derive(Clone, Debug)]
pub enum Down {
    Directive(Epoch, Directive),
    Rejected,
    Closed,
}

/// One stream between a worker process and a coordinator process.
#[derive(Debug)]
pub struct Session {
    pub worker: usize,
    pub worker_life: u64,
    pub coordinator: usize,
    pub coordinator_life: u64,
    pub worker_open: bool,
    pub coordinator_open: bool,
    /// Nothing arrives earlier than what was sent before.
    last_up: u64,
    last_down: u64,
    /// What a cut keeps back.
    held_up: VecDeque<Up>,
    held_down: VecDeque<Down>,
}

/// What is cut between a worker and a coordinator's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    pub up: bool,
    pub down: bool,
    /// When it began.
    pub since: u64,
}

impl Cut {
    pub fn any(self) -> bool {
        self.up || self.down
    }
}

impl World {
    /// A new stream; the caller has made sure that both ends can talk.
    pub fn open(&mut self, worker: usize, coordinator: usize) -> usize {
        self.sessions.push(Session {
            worker,
            worker_life: self.workers[worker].life,
            coordinator,
            coordinator_life: self.coordinators[coordinator].life,
            worker_open: true,
            coordinator_open: true,
            last_up: 0,
            last_down: 0,
            held_up: VecDeque::new(),
            held_down: VecDeque::new(),
        });
        self.sessions.len() - 1
    }

    pub fn send_up(&mut self, session: usize, message: Up) {
        let at = self.now + self.rng.between(1, self.latency);
        let s = &mut self.sessions[session];
        s.last_up = s.last_up.max(at);
        let at = s.last_up;
        self.at(at, Ev::ToCoordinator(session, message));
    }

    pub fn send_down(&mut self, session: usize, message: Down) {
        let at = self.now + self.rng.between(1, self.latency);
        let s = &mut self.sessions[session];
        s.last_down = s.last_down.max(at);
        let at = s.last_down;
        self.at(at, Ev::ToWorker(session, message));
    }

    pub fn cut_between(&self, worker: usize, coordinator: usize) -> Cut {
        self.cuts.get(&(worker, coordinator)).copied().unwrap_or_default()
    }

    pub fn arrive_up(&mut self, session: usize, message: Up) {
        let s = &self.sessions[session];
        if self.cut_between(s.worker, s.coordinator).up || !s.held_up.is_empty() {
            return self.sessions[session].held_up.push_back(message);
        }
        self.deliver_up(session, message);
    }

    pub fn arrive_down(&mut self, session: usize, message: Down) {
        let s = &self.sessions[session];
        if self.cut_between(s.worker, s.coordinator).down || !s.held_down.is_empty() {
            return self.sessions[session].held_down.push_back(message);
        }
        self.deliver_down(session, message);
    }

    fn deliver_up(&mut self, session: usize, message: Up) {
        let s = &self.sessions[session];
        if s.coordinator_open && self.coordinators[s.coordinator].life == s.coordinator_life {
            self.hear_worker(session, message);
        } else {
            // What is sent to a connection that is gone is answered by a reset.
            self.at(self.now + 1, Ev::WorkerSeesEnd(session));
        }
    }

    fn deliver_down(&mut self, session: usize, message: Down) {
        let s = &self.sessions[session];
        let (worker, lives) = (s.worker, self.workers[s.worker].life == s.worker_life);
        if s.worker_open && lives {
            self.hear_coordinator(session, message);
        } else {
            self.at(self.now + 1, Ev::CoordinatorSeesEnd(session));
            // Worse than any network: what a superseded coordinator says comes through although the worker has
            // closed that connection.
            if let (true, Down::Directive(epoch, directive)) = (lives, message) {
                self.hear_late(worker, epoch, directive);
            }
        }
    }

    /// What a cut kept back, once it is healed.
    pub fn flush_up(&mut self, session: usize) {
        for message in std::mem::take(&mut self.sessions[session].held_up) {
            self.arrive_up(session, message);
        }
    }

    pub fn flush_down(&mut self, session: usize) {
        for message in std::mem::take(&mut self.sessions[session].held_down) {
            self.arrive_down(session, message);
        }
    }

    /// The worker's end is closed; the other side sees it soon, or when its pings go unanswered.
    pub fn close_worker_end(&mut self, session: usize) {
        let s = &mut self.sessions[session];
        if std::mem::replace(&mut s.worker_open, false) && s.coordinator_open {
            let (w, c) = (s.worker, s.coordinator);
            let delay = if self.cut_between(w, c).up { KEEPALIVE } else { self.rng.between(1, 100) };
            // After what was sent before.
            let at = self.sessions[session].last_up.max(self.now + delay);
            self.at(at, Ev::CoordinatorSeesEnd(session));
        }
    }

    /// The coordinator's end is closed.
    pub fn close_coordinator_end(&mut self, session: usize) {
        let s = &mut self.sessions[session];
        if std::mem::replace(&mut s.coordinator_open, false) && s.worker_open {
            let (w, c) = (s.worker, s.coordinator);
            if self.cut_between(w, c).down {
                let at = self.now + KEEPALIVE;
                self.at(at, Ev::WorkerSeesEnd(session));
            } else {
                self.send_down(session, Down::Closed);
            }
        }
    }

    /// Cuts a worker off from a coordinator's address, for a while.
    pub fn cut(&mut self, worker: usize, coordinator: usize, up: bool, down: bool, until: u64) {
        self.cuts.insert((worker, coordinator), Cut { up, down, since: self.now });
        self.at(until, Ev::Heal(worker, coordinator));
        // Both ends give up a connection over which pings get no answer, each in its own time.
        for session in self.sessions_between(worker, coordinator) {
            let (a, b) = (self.rng.between(0, 3000), self.rng.between(0, 3000));
            self.at(self.now + KEEPALIVE + a, Ev::PingWorker(session, self.now));
            self.at(self.now + KEEPALIVE + b, Ev::PingCoordinator(session, self.now));
        }
    }

    pub fn heal(&mut self, worker: usize, coordinator: usize) {
        self.cuts.remove(&(worker, coordinator));
        for session in self.sessions_between(worker, coordinator) {
            self.at(self.now, Ev::FlushUp(session));
            self.at(self.now, Ev::FlushDown(session));
        }
    }

    /// True if the cut that began at `since` is still there.
    pub fn still_cut(&self, session: usize, since: u64) -> bool {
        let s = &self.sessions[session];
        let cut = self.cut_between(s.worker, s.coordinator);
        cut.any() && cut.since == since
    }

    fn sessions_between(&self, worker: usize, coordinator: usize) -> Vec<usize> {
        let of = |s: &Session| s.worker == worker && s.coordinator == coordinator;
        let open = |s: &Session| s.worker_open || s.coordinator_open;
        (0..self.sessions.len()).filter(|i| of(&self.sessions[*i]) && open(&self.sessions[*i])).collect()
    }
}
