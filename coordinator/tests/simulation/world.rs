//! Time, the queue of events, and the job that a seed brings.

use crate::{
    coordinator::{Coordinator, Op, Reply},
    net::{Cut, Down, Session, Up},
    store::Store,
    tally::Tally,
    trainer::{Group, Inside, Move, State},
    worker::Worker,
};
use coordinator::core::{Generation, Retention, Settings, Step};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

/// Addresses at which coordinators may be.
pub const ADDRESSES: usize = 3;
/// Once the faults have ceased, the job has so long to end.
const PATIENCE: u64 = 1_800_000;

/// Everything that happens.
#[derive(Clone, Debug)]
pub enum Ev {
    ToCoordinator(usize, Up),
    ToWorker(usize, Down),
    CoordinatorSeesEnd(usize),
    WorkerSeesEnd(usize),
    PingCoordinator(usize, u64),
    PingWorker(usize, u64),
    FlushUp(usize),
    FlushDown(usize),
    Heal(usize, usize),
    Tick(usize, u64),
    Look(usize, u64),
    Store(usize, u64, Op),
    StoreReply(usize, u64, Reply),
    AskAgain(usize, u64, Op),
    StartCoordinator(usize),
    Connect(usize, u64),
    Beat(usize, u64),
    Respawn(usize, u64),
    Trainer(usize, u64, u64, Move),
    Uploaded(usize, u64, Inside, State, u32),
    Reunited,
    Fault,
    Peace,
}

/// SplitMix64: the same numbers for the same seed, everywhere.
pub struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Both ends included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.between(1, n) == 1
    }

    pub fn index(&mut self, len: usize) -> usize {
        self.between(0, len as u64 - 1) as usize
    }
}

/// An event in its place: by time, then by when it was planned.
struct Planned(u64, u64, Ev);

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct World {
    /// Virtual milliseconds.
    pub now: u64,
    queue: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    pub rng: Rng,
    pub settings: Settings,
    pub store: Store,
    pub workers: Vec<Worker>,
    pub coordinators: Vec<Coordinator>,
    pub sessions: Vec<Session>,
    pub cuts: BTreeMap<(usize, usize), Cut>,
    pub groups: BTreeMap<Generation, Group>,
    /// What groups have loaded.
    pub loads: BTreeMap<Generation, State>,
    pub dropped: BTreeSet<Generation>,
    /// Steps of the job, and between checkpoints.
    pub total: u64,
    pub every: u64,
    pub step_ms: u64,
    /// Longest delay of a message, and of the store.
    pub latency: u64,
    pub store_latency: u64,
    /// Of a hundred requests to the store so many fail.
    store_faults: u64,
    /// Processes of coordinators so far.
    pub leaders: u64,
    faults_left: u64,
    pub peace_at: u64,
    pub tally: Tally,
    pub tracing: bool,
    seed: u64,
    done: bool,
}

impl World {
    pub fn new(seed: u64, tracing: bool) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x6d61_7265_7921);
        let size = if rng.one_in(20) { rng.between(9, 64) } else { rng.between(1, 8) };
        let min_workers = rng.between(1, size.div_ceil(2));
        let second = Duration::from_secs(1);
        let straggler_factor = rng.one_in(2).then_some(1.5);
        let settings = Settings {
            protocol_version: 1,
            config_digest: String::new(),
            dataset_digest: String::new(),
            workers: size as u32,
            min_workers: min_workers as u32,
            max_workers: (size + rng.between(0, 4)) as u32,
            gather: 20 * second,
            beat_timeout: 10 * second,
            step_timeout: 40 * second,
            collective_timeout: 20 * second,
            join_window: 2 * second,
            stop_grace: 30 * second,
            straggler_factor,
            replace_stragglers: rng.one_in(2),
            retention: Retention { keep: rng.between(1, 3) as usize, keep_every: None, keep_best: None },
        };
        let total = rng.between(20, 120);
        let peace_at = rng.between(20, 240) * 1000;
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            planned: 0,
            settings,
            store: Store::new(total),
            workers: (0..size).map(|_| Worker::default()).collect(),
            coordinators: (0..ADDRESSES).map(|_| Coordinator::default()).collect(),
            sessions: vec![],
            cuts: BTreeMap::new(),
            groups: BTreeMap::new(),
            loads: BTreeMap::new(),
            dropped: BTreeSet::new(),
            total,
            every: rng.between(2, 20),
            step_ms: rng.between(100, 3000),
            latency: rng.between(1, 200),
            store_latency: rng.between(1, 1000),
            store_faults: [0, 0, 3, 20][rng.index(4)],
            leaders: 0,
            faults_left: rng.between(0, 30),
            peace_at,
            tally: Tally::of_job(size as usize),
            rng,
            tracing,
            seed,
            done: false,
        };
        world.at(0, Ev::StartCoordinator(0));
        for w in 0..world.workers.len() {
            world.spawn_worker(w, format!("w{w}"));
        }
        for _ in 0..world.faults_left {
            let at = world.rng.between(100, world.peace_at);
            world.at(at, Ev::Fault);
        }
        world.at(peace_at, Ev::Peace);
        world
    }

    /// Runs the job to its end.
    pub fn run(mut self) -> Tally {
        while let Some(Reverse(Planned(at, number, event))) = self.queue.pop() {
            assert!(at < self.peace_at + PATIENCE, "the job does not end: {}", self.describe());
            self.now = self.now.max(at);
            if let Some(until) = self.asleep(&event).filter(|until| *until > self.now) {
                self.queue.push(Reverse(Planned(until, number, event)));
                continue;
            }
            self.happen(event);
            if self.done {
                self.tally.add("virtual seconds", self.now / 1000);
                return self.tally;
            }
        }
        panic!("nothing happens any more");
    }

    pub fn at(&mut self, at: u64, event: Ev) {
        self.planned += 1;
        self.queue.push(Reverse(Planned(at, self.planned, event)));
    }

    pub fn trace(&self, text: impl FnOnce() -> String) {
        if self.tracing {
            println!("[{} {:9.3}] {}", self.seed, self.now as f64 / 1e3, text());
        }
    }

    /// Until when the process that this event concerns is stopped.
    fn asleep(&self, event: &Ev) -> Option<u64> {
        let (w, c) = match event {
            Ev::ToCoordinator(s, _)
            | Ev::CoordinatorSeesEnd(s)
            | Ev::PingCoordinator(s, _)
            | Ev::FlushUp(s) => (None, Some(self.sessions[*s].coordinator)),
            Ev::ToWorker(s, _) | Ev::WorkerSeesEnd(s) | Ev::PingWorker(s, _) | Ev::FlushDown(s) => {
                (Some(self.sessions[*s].worker), None)
            }
            Ev::Tick(c, _) | Ev::Look(c, _) | Ev::StoreReply(c, ..) | Ev::AskAgain(c, ..) => (None, Some(*c)),
            Ev::Connect(w, _) | Ev::Beat(w, _) | Ev::Trainer(w, ..) | Ev::Uploaded(w, ..) => (Some(*w), None),
            _ => return None,
        };
        w.map(|w| self.workers[w].paused_until).or_else(|| c.map(|c| self.coordinators[c].paused_until))
    }

    fn happen(&mut self, event: Ev) {
        let worker_lives =
            |world: &Self, w: usize, life: u64| world.workers[w].life == life && world.workers[w].alive;
        match event {
            Ev::ToCoordinator(session, message) => self.arrive_up(session, message),
            Ev::ToWorker(session, message) => self.arrive_down(session, message),
            Ev::CoordinatorSeesEnd(session) => self.session_ended(session),
            Ev::WorkerSeesEnd(session) => self.connection_broke(session),
            Ev::PingCoordinator(session, since) if self.still_cut(session, since) => {
                self.session_ended(session)
            }
            Ev::PingWorker(session, since) if self.still_cut(session, since) => {
                self.connection_broke(session)
            }
            Ev::PingCoordinator(..) | Ev::PingWorker(..) => {}
            Ev::FlushUp(session) => self.flush_up(session),
            Ev::FlushDown(session) => self.flush_down(session),
            Ev::Heal(w, c) => self.heal(w, c),
            Ev::Tick(c, life) if self.coordinators[c].life == life => self.tick(c),
            Ev::Look(c, life) if self.coordinators[c].life == life => self.look(c),
            Ev::Tick(..) | Ev::Look(..) => {}
            Ev::Store(c, life, op) => self.store_does(c, life, op),
            Ev::StoreReply(c, life, reply) if self.coordinators[c].life == life => self.store_said(c, reply),
            Ev::AskAgain(c, life, op) if self.coordinators[c].life == life => self.ask_again(c, op),
            Ev::StoreReply(..) | Ev::AskAgain(..) => {}
            Ev::StartCoordinator(c) => self.start_coordinator(c),
            Ev::Connect(w, life) if worker_lives(self, w, life) => self.connect(w),
            Ev::Beat(w, life) if worker_lives(self, w, life) => self.beat(w),
            Ev::Respawn(w, life) if self.workers[w].life == life && !self.workers[w].alive => self.respawn(w),
            Ev::Trainer(w, life, token, what) if worker_lives(self, w, life) => {
                self.trainer_moves(w, token, what)
            }
            Ev::Uploaded(w, life, inside, state, world) if worker_lives(self, w, life) => {
                self.uploaded(w, inside, state, world);
            }
            Ev::Connect(..) | Ev::Beat(..) | Ev::Respawn(..) | Ev::Trainer(..) | Ev::Uploaded(..) => {}
            Ev::Reunited => {
                let generations: Vec<_> = self.groups.keys().copied().collect();
                generations.into_iter().for_each(|g| self.look_at_group(g));
            }
            Ev::Fault => self.fault(),
            Ev::Peace => self.peace(),
        }
    }

    fn respawn(&mut self, w: usize) {
        // In a container, a new process has the name of the old one.
        let life = self.workers[w].life;
        let name = if self.rng.one_in(3) { format!("w{w}") } else { format!("w{w}-{life}") };
        self.spawn_worker(w, name);
    }

    /// Whether this request fails: `Some(true)`: it was done, and only its answer is lost.
    pub fn store_fails(&mut self) -> Option<bool> {
        if self.now >= self.peace_at || self.rng.between(1, 100) > self.store_faults {
            return None;
        }
        let lost = self.rng.one_in(2);
        self.tally.add(if lost { "store: a reply lost" } else { "store: a request failed" }, 1);
        Some(lost)
    }

    pub fn step_ms(&mut self, w: usize) -> u64 {
        let slow = if w % 5 == 3 { 2 } else { 1 };
        slow * self.workers[w].slowness.max(1) * self.rng.between(self.step_ms / 2, self.step_ms)
    }

    /// A coordinator has ended the job, for good or not.
    pub fn coordinator_ended(&mut self, c: usize, ok: bool, reason: &str) {
        self.kill_coordinator(c);
        if let Some(step) = reason.strip_prefix("stopped at step ") {
            let step: u64 = step.split(';').next().unwrap().parse().unwrap();
            assert!(self.store.manifests.contains_key(&Step(step)), "stopped without a checkpoint");
        }
        if ok && !reason.starts_with("stopped") {
            let last = self.store.manifests.last_key_value().map(|(step, _)| step.0);
            assert_eq!(last, Some(self.total), "the job is done: {reason}");
            self.done = true;
            return;
        }
        self.tally.add(if ok { "jobs stopped" } else { "jobs given up" }, 1);
        // Whoever looks after the job starts it again.
        let delay = self.rng.between(1000, 10_000);
        self.at(self.now + delay, Ev::StartCoordinator(c));
    }

    /// For whoever must find out why it does not end.
    fn describe(&self) -> String {
        let workers: Vec<String> = self
            .workers
            .iter()
            .map(|w| format!("{} alive {} session {:?} {:?}", w.name, w.alive, w.session, w.trainer))
            .collect();
        let cores: Vec<_> = self
            .coordinators
            .iter()
            .filter_map(|c| c.core.as_ref())
            .map(|c| c.status(coordinator::core::Now::default()))
            .map(|s| (s.coordinator, s.generation, s.state, s.committed, s.members.len()))
            .collect();
        format!("{workers:#?} {cores:?}, steps {}, last {:?}", self.total, self.store.last())
    }
}
