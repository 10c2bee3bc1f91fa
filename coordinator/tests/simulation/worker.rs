//! A worker process: its session, what it remembers between two connections, and its end.

use crate::{
    net::{Down, Up},
    trainer::{Inside, State, Trainer},
    world::{Ev, World},
};
use coordinator::core::{Beat, Directive, Epoch, Event, Generation, Hello, Rank, Shard, Step, WorkerId};

const BEAT: u64 = 1000;
const PAUSES: [u64; 2] = [200, 5000];
/// Filled in where a message arrives.
pub const NOBODY: WorkerId = WorkerId(0);

#[derive(Default)]
pub struct Worker {
    pub name: String,
    /// Counts its processes.
    pub life: u64,
    pub alive: bool,
    pub paused_until: u64,
    /// Its trainer does not move, though it beats.
    pub stuck: bool,
    /// Its steps take so many times as long as they should.
    pub slowness: u64,
    /// Cut off from its peers.
    pub isolated_until: u64,
    pub session: Option<usize>,
    /// The address that it believes in.
    pub home: usize,
    pause: u64,
    /// The newest coordinator that it has heard of.
    pub epoch: Epoch,
    /// The newest whose word has come to this process, whatever it made of it.
    newest_word: Epoch,
    pub trainer: Trainer,
    pub progress: u64,
    /// Kept until they are answered.
    shards: Vec<Shard>,
    last_word: Option<Event>,
    leaving: bool,
}

impl World {
    pub fn spawn_worker(&mut self, w: usize, name: String) {
        let worker = &mut self.workers[w];
        let (life, home) = (worker.life + 1, worker.home);
        *worker = Worker { name, life, home, alive: true, pause: PAUSES[0], ..Default::default() };
        self.trace(|| format!("worker {w} starts"));
        // It reads configuration and dataset first.
        let delay = self.rng.between(50, 1500);
        self.at(self.now + delay, Ev::Connect(w, life));
        self.at(self.now + delay + BEAT, Ev::Beat(w, life));
    }

    /// The process is gone from one moment to the next.
    pub fn kill_worker(&mut self, w: usize) {
        self.drop_out(w);
        self.workers[w].alive = false;
        self.workers[w].life += 1;
        if let Some(session) = self.workers[w].session.take() {
            self.close_worker_end(session);
        }
    }

    /// It ended and its supervisor starts it again.
    pub fn worker_died(&mut self, w: usize) {
        self.kill_worker(w);
        let delay = self.rng.between(1000, 8000);
        let life = self.workers[w].life;
        self.at(self.now + delay, Ev::Respawn(w, life));
    }

    pub fn connect(&mut self, w: usize) {
        if self.workers[w].session.is_some() {
            return;
        }
        let mut addresses = vec![self.workers[w].home];
        addresses.extend(self.store.last().map(|(_, e)| e.address));
        let reached = addresses.into_iter().find(|c| self.answers(*c) && !self.cut_between(w, *c).any());
        let Some(c) = reached else {
            let worker = &mut self.workers[w];
            let (pause, life) = (worker.pause, worker.life);
            worker.pause = (2 * pause).min(PAUSES[1]);
            return self.at(self.now + pause, Ev::Connect(w, life));
        };
        let session = self.open(w, c);
        let worker = &mut self.workers[w];
        (worker.session, worker.home, worker.pause) = (Some(session), c, PAUSES[0]);
        let inside = worker.trainer.inside;
        let mut opening = vec![Up::Hello(Hello {
            protocol_version: 1,
            name: worker.name.clone(),
            node: format!("h{w}"),
            device: String::new(),
            config_digest: String::new(),
            dataset_digest: String::new(),
            generation: inside.map_or(Generation(0), |i| i.generation),
            rank: inside.map_or(Rank(0), |i| i.rank),
            coordinator: worker.epoch,
        })];
        let shards = worker.shards.iter().cloned().map(|shard| Event::Shard { worker: NOBODY, shard });
        opening.extend(shards.chain(worker.last_word.clone()).map(Up::Say));
        if worker.leaving {
            opening.push(Up::Say(Event::Leaving { worker: NOBODY, reason: "SIGTERM".into() }));
        }
        opening.into_iter().for_each(|message| self.send_up(session, message));
    }

    pub fn beat(&mut self, w: usize) {
        let worker = &mut self.workers[w];
        // A trainer that waits for a manifest looks up from time to time.
        worker.progress += u64::from(worker.trainer.waits_for_commit() && !worker.stuck);
        let beat = Beat {
            generation: worker.trainer.inside.map_or(Generation(0), |i| i.generation),
            step: Step(worker.trainer.state.map_or(0, |s| s.step)),
            progress: worker.progress,
            step_seconds: worker.trainer.own as f64 / 1e3,
            ..Default::default()
        };
        let life = worker.life;
        self.at(self.now + BEAT, Ev::Beat(w, life));
        self.say(w, Event::Beat { worker: NOBODY, beat });
    }

    /// Sends what may be lost.
    pub fn say(&mut self, w: usize, event: Event) {
        if let Some(session) = self.workers[w].session {
            self.send_up(session, Up::Say(event));
        }
    }

    /// Sends what must be heard: again after each new connection, until it is answered.
    pub fn insist(&mut self, w: usize, event: Event) {
        match &event {
            Event::Shard { shard, .. } => self.workers[w].shards.push(shard.clone()),
            Event::Leaving { .. } => self.workers[w].leaving = true,
            _ => self.workers[w].last_word = Some(event.clone()),
        }
        self.say(w, event);
    }

    /// SIGTERM.
    pub fn ask_to_go(&mut self, w: usize) {
        self.insist(w, Event::Leaving { worker: NOBODY, reason: "SIGTERM".into() });
    }

    /// The worker's side of a session has ended.
    pub fn connection_broke(&mut self, session: usize) {
        let s = &self.sessions[session];
        let (w, life) = (s.worker, s.worker_life);
        if self.workers[w].life != life || self.workers[w].session != Some(session) {
            return;
        }
        self.workers[w].session = None;
        self.close_worker_end(session);
        self.at(self.now + PAUSES[0], Ev::Connect(w, life));
    }

    pub fn hear_coordinator(&mut self, session: usize, message: Down) {
        let w = self.sessions[session].worker;
        if self.workers[w].session != Some(session) {
            return;
        }
        match message {
            Down::Directive(epoch, directive) => self.obey(w, epoch, directive),
            // Another job, or one that has ended: a person starts it again.
            Down::Rejected => self.worker_died(w),
            Down::Closed => {
                self.sessions[session].worker_open = false;
                self.connection_broke(session);
            }
        }
    }

    /// A directive from a connection that is closed.
    pub fn hear_late(&mut self, w: usize, epoch: Epoch, directive: Directive) {
        if self.workers[w].alive && epoch < self.workers[w].epoch {
            self.obey(w, epoch, directive);
        }
    }

    fn obey(&mut self, w: usize, epoch: Epoch, directive: Directive) {
        let worker = &mut self.workers[w];
        worker.newest_word = worker.newest_word.max(epoch);
        if epoch < worker.epoch {
            self.tally.add("directives disobeyed", 1);
            return;
        }
        assert_eq!(epoch, worker.newest_word, "a superseded coordinator was obeyed");
        worker.epoch = epoch;
        match directive {
            Directive::Welcome { .. } | Directive::CheckpointNow => {
                worker.trainer.checkpoint |= matches!(directive, Directive::CheckpointNow);
            }
            Directive::Assigned { generation, rank, members, committed } => {
                let recorded = self.store.recorded(generation).expect("durable before it is announced");
                assert_eq!(recorded.epoch, epoch, "another coordinator's generation");
                assert_eq!(recorded.membership.names, members, "one membership a generation");
                let worker = &mut self.workers[w];
                assert_eq!(members[rank.0 as usize], worker.name);
                worker.last_word = None;
                self.drop_out(w);
                self.enter_soon(w, Inside { generation, rank, committed });
            }
            Directive::Stop { generation, .. } => {
                if worker.trainer.inside.is_some_and(|i| i.generation == generation) {
                    self.drop_out(w);
                }
            }
            Directive::Leave { generation, checkpoint, .. } => {
                if worker.trainer.inside.is_some_and(|i| i.generation == generation) {
                    worker.trainer.leave = true;
                    worker.trainer.checkpoint |= checkpoint;
                }
            }
            Directive::Committed { step } => {
                assert!(step.0 < self.store.expected.len() as u64);
                let worker = &mut self.workers[w];
                worker.shards.retain(|s| s.step > step);
                worker.trainer.committed = worker.trainer.committed.max(step.0);
                self.commit_heard(w);
            }
            Directive::Shutdown { ok: true, .. } => {
                self.kill_worker(w);
                // A scheduler that takes a node gives another one later.
                let (delay, life) = (self.rng.between(5_000, 60_000), self.workers[w].life);
                self.at(self.now + delay, Ev::Respawn(w, life));
            }
            Directive::Shutdown { ok: false, .. } => self.worker_died(w),
        }
    }

    /// What a worker has, checked against the one history that there may be.
    pub fn check_state(&self, state: State) {
        assert_eq!(
            state.digest, self.store.expected[state.step as usize],
            "another history of step {}",
            state.step
        );
    }
}
