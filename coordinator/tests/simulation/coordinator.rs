//! A coordinator process: the real core, with a shell that does what the real one does.

use crate::{
    net::{Down, Up},
    store::{Entry, Manifest},
    world::{Ev, World},
};
use coordinator::core::{
    Action, Core, Epoch, Event, Found, Kept, Membership, Notice, Now, Step, What, WholeCheckpoint, WorkerId,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

const TICK: u64 = 200;
const LOOK: u64 = 5000;
const RETRY: u64 = 1000;

/// One address at which a coordinator may be served.
#[derive(Default)]
pub struct Coordinator {
    /// Counts its processes; a process that is gone hears nothing.
    pub life: u64,
    /// Unlike any other process.
    leader: u64,
    pub core: Option<Core>,
    pub epoch: Epoch,
    next: u64,
    started: u64,
    pub paused_until: u64,
    /// Core's name of a session, and the session.
    by_id: BTreeMap<WorkerId, usize>,
    ids: BTreeMap<usize, WorkerId>,
    sessions: u64,
    jobs: VecDeque<Job>,
    working: bool,
}

#[derive(Clone, Debug)]
enum Job {
    Commit(WholeCheckpoint),
    Prune(Vec<Step>, Step),
}

/// What is asked of the store; it happens a moment later, whatever becomes of the process meanwhile.
#[derive(Clone, Debug)]
pub enum Op {
    ReadLast,
    Append(u64, Entry),
    ReadManifests(Membership),
    /// For a job of the keeper, or by itself.
    Lead(bool),
    PutManifest(WholeCheckpoint),
    /// After a manifest was put: are its files there still?
    CheckFiles(WholeCheckpoint),
    /// After a manifest was put, or could not be: does this coordinator lead?
    LeadAfter(WholeCheckpoint, Put),
    /// After a sweep: manifests that were written of the swept meanwhile.
    Recheck(Vec<(Step, String)>),
    DeleteManifest(WholeCheckpoint),
    DeleteOld(Vec<Step>, Step),
    Sweep(Vec<(Step, String)>),
}

/// What became of a manifest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Put {
    Written,
    /// Another attempt's is there.
    Other,
    /// Of its files, some are not there.
    Incomplete,
}

#[derive(Clone, Debug)]
pub enum Reply {
    Last(Option<(u64, Membership)>),
    Appended(Entry, bool),
    Manifests(Membership, BTreeMap<Step, Kept>),
    Leads(bool, bool),
    Written(WholeCheckpoint),
    Put(WholeCheckpoint, Put),
    LeadsAfter(WholeCheckpoint, Put, bool),
    Rechecked,
    Deleted(WholeCheckpoint),
    Strays(Vec<(Step, String)>),
    Swept(Vec<(Step, String)>),
    /// The request failed, or only its answer.
    Failed(Op),
}

impl World {
    /// A new process at this address: it claims the run.
    pub fn start_coordinator(&mut self, c: usize) {
        self.kill_coordinator(c);
        self.leaders += 1;
        let (life, leader) = (self.coordinators[c].life, self.leaders);
        self.coordinators[c] = Coordinator { life, leader, ..Default::default() };
        self.trace(|| format!("coordinator {c} starts"));
        self.ask(c, Op::ReadLast);
    }

    /// SIGKILL: its sockets close, what it asked of the store still happens.
    pub fn kill_coordinator(&mut self, c: usize) {
        self.coordinators[c].life += 1;
        self.coordinators[c].core = None;
        self.coordinators[c].paused_until = 0;
        for session in 0..self.sessions.len() {
            if self.sessions[session].coordinator == c {
                self.close_coordinator_end(session);
            }
        }
    }

    /// True if somebody answers here now.
    pub fn answers(&self, c: usize) -> bool {
        let it = &self.coordinators[c];
        it.core.is_some() && it.paused_until <= self.now
    }

    fn ask(&mut self, c: usize, op: Op) {
        let (delay, life) = (self.rng.between(1, self.store_latency), self.coordinators[c].life);
        self.at(self.now + delay, Ev::Store(c, life, op));
    }

    /// The store does what was asked, or fails, or fails to say that it did.
    pub fn store_does(&mut self, c: usize, life: u64, op: Op) {
        let fault = self.store_fails();
        let reply =
            if fault == Some(false) { Reply::Failed(op.clone()) } else { self.perform_op(c, life, &op) };
        let reply = if fault == Some(true) { Reply::Failed(op) } else { reply };
        let delay = self.rng.between(1, self.store_latency);
        self.at(self.now + delay, Ev::StoreReply(c, life, reply));
    }

    fn perform_op(&mut self, c: usize, life: u64, op: &Op) -> Reply {
        match op.clone() {
            Op::ReadLast => Reply::Last(self.store.last().map(|(n, e)| (n, e.membership.clone()))),
            Op::Append(number, entry) => {
                let ours = self.store.append(number, entry.clone());
                Reply::Appended(entry, ours)
            }
            Op::ReadManifests(membership) => {
                let all = self.store.manifests.iter().map(|(s, m)| (*s, m.origin.clone())).collect();
                Reply::Manifests(membership, all)
            }
            Op::Lead(for_job) => Reply::Leads(for_job, self.leads(c, life)),
            Op::LeadAfter(whole, put) => Reply::LeadsAfter(whole, put, self.leads(c, life)),
            Op::PutManifest(whole) => {
                let files: Vec<String> = whole.files.iter().map(|f| f.key.clone()).collect();
                let objects = &self.store.objects;
                let there = files.iter().all(|f| objects.contains_key(&(whole.step, f.clone())));
                let origin = Kept { generation: whole.generation, ..whole.attempt.as_str().into() };
                let stale = !self.leads(c, life);
                let put = match there {
                    true if self.store.put_manifest(whole.step, Manifest { origin, files, stale }) => {
                        Put::Written
                    }
                    true => Put::Other,
                    false => Put::Incomplete,
                };
                match put {
                    Put::Written => Reply::Written(whole),
                    _ => Reply::Put(whole, put),
                }
            }
            Op::CheckFiles(whole) => {
                let there = |f: &coordinator::core::CheckpointFile| {
                    self.store.objects.contains_key(&(whole.step, f.key.clone()))
                };
                let put = if whole.files.iter().all(there) { Put::Written } else { Put::Incomplete };
                if put == Put::Incomplete {
                    self.store.manifests.remove(&whole.step);
                }
                Reply::Put(whole, put)
            }
            Op::Recheck(swept) => {
                let names = |step: &Step, m: &Manifest| {
                    swept.iter().any(|(s, key)| s == step && m.files.contains(key))
                };
                self.store.manifests.retain(|step, m| !names(step, m));
                Reply::Rechecked
            }
            Op::DeleteManifest(whole) => {
                self.store.replacing = Some(whole.step);
                self.store.manifests.remove(&whole.step);
                Reply::Deleted(whole)
            }
            Op::DeleteOld(old, newest) => {
                old.iter().for_each(|step| drop(self.store.manifests.remove(step)));
                self.store.check();
                Reply::Strays(self.store.strays(&old, newest))
            }
            Op::Sweep(strays) => {
                self.store.objects.retain(|key, _| !strays.contains(key));
                self.store.check();
                Reply::Swept(strays)
            }
        }
    }

    /// What the store answered.
    pub fn store_said(&mut self, c: usize, reply: Reply) {
        let (epoch, next) = (self.coordinators[c].epoch, self.coordinators[c].next);
        match reply {
            Reply::Failed(op) => {
                let life = self.coordinators[c].life;
                match op {
                    // The periodic look comes again by itself.
                    Op::Lead(false) => {}
                    // What was not deleted now is deleted another time.
                    Op::DeleteOld(..) | Op::Sweep(_) | Op::Recheck(_) => self.job_done(c),
                    op => self.at(self.now + RETRY, Ev::AskAgain(c, life, op)),
                }
            }
            Reply::Last(last) => {
                let (number, membership) = last.unwrap_or_default();
                let it = &mut self.coordinators[c];
                (it.next, it.epoch) = (number + 1, Epoch(number + 1));
                let (number, entry) = (it.next, self.entry(c, true, membership));
                self.ask(c, Op::Append(number, entry));
            }
            Reply::Appended(entry, ours) => match (ours, entry.claim) {
                (true, claim) => {
                    self.coordinators[c].next = next + 1;
                    match claim {
                        true => self.ask(c, Op::ReadManifests(entry.membership)),
                        false => self.give(c, Event::Recorded { generation: entry.membership.generation }),
                    }
                }
                // The race for the claim was lost: try the next number.
                (false, true) => self.ask(c, Op::ReadLast),
                (false, false) => self.give(c, Event::Superseded { why: "its entry is taken".into() }),
            },
            Reply::Manifests(last, committed) => {
                let found = Found { epoch, last, committed };
                let now = self.now;
                let it = &mut self.coordinators[c];
                it.core = Some(Core::new(self.settings.clone(), found));
                it.started = now;
                let life = it.life;
                self.trace(|| format!("coordinator {c} leads as number {epoch}"));
                self.at(self.now + TICK, Ev::Tick(c, life));
                self.at(self.now + LOOK, Ev::Look(c, life));
            }
            Reply::Leads(_, false) => self.give(c, Event::Superseded { why: "another leads".into() }),
            Reply::Leads(false, true) => {}
            Reply::Leads(true, true) => match self.coordinators[c].jobs.front().cloned() {
                Some(Job::Commit(whole)) => self.ask(c, Op::PutManifest(whole)),
                Some(Job::Prune(old, newest)) => self.ask(c, Op::DeleteOld(old, newest)),
                None => {}
            },
            Reply::Put(whole, put) => self.ask(c, Op::LeadAfter(whole, put)),
            Reply::Written(whole) => self.ask(c, Op::CheckFiles(whole)),
            Reply::LeadsAfter(_, _, false) => {
                self.give(c, Event::Superseded { why: "another leads".into() });
            }
            Reply::LeadsAfter(whole, Put::Written, true) => {
                self.job_done(c);
                let step = whole.step;
                self.tally.add("checkpoints", 1);
                self.give(c, Event::Committed { step, bytes: 0, manifest: String::new() });
            }
            Reply::LeadsAfter(whole, Put::Other, true) if whole.replaces => {
                self.ask(c, Op::DeleteManifest(whole))
            }
            // Another attempt is there although this coordinator knew of none.
            Reply::LeadsAfter(mut whole, Put::Other, true) => {
                whole.replaces = true;
                self.coordinators[c].jobs[0] = Job::Commit(whole.clone());
                self.ask(c, Op::PutManifest(whole));
            }
            Reply::LeadsAfter(whole, Put::Incomplete, true) => {
                // It may have been swept, but then a later one is there.
                let step = whole.step;
                assert!(
                    self.store.newest_whole().is_some_and(|(_, newest)| newest > step)
                        || self.store.is_damaged(step),
                    "files of step {step}, {}, are gone",
                    whole.attempt
                );
                self.job_done(c);
                self.give(c, Event::CommitFailed { step, error: "swept".into() });
            }
            Reply::Deleted(whole) => self.ask(c, Op::PutManifest(whole)),
            Reply::Strays(strays) => self.ask(c, Op::Sweep(strays)),
            Reply::Swept(swept) => self.ask(c, Op::Recheck(swept)),
            Reply::Rechecked => self.job_done(c),
        }
    }

    /// Steps of which a coordinator is at a manifest.
    pub fn commits_in_flight(&self) -> Vec<Step> {
        let jobs = self.coordinators.iter().flat_map(|c| &c.jobs);
        let step = |job: &Job| match job {
            Job::Commit(whole) => Some(whole.step),
            Job::Prune(..) => None,
        };
        jobs.filter_map(step).collect()
    }

    /// True if the journal names no other leader; a process that is gone does not care.
    fn leads(&self, c: usize, life: u64) -> bool {
        let it = &self.coordinators[c];
        it.life != life || self.store.journal.get(&it.next).is_none_or(|e| e.leader == it.leader)
    }

    fn entry(&self, c: usize, claim: bool, membership: Membership) -> Entry {
        let it = &self.coordinators[c];
        Entry { leader: it.leader, epoch: it.epoch, address: c, claim, membership }
    }

    pub fn ask_again(&mut self, c: usize, op: Op) {
        self.ask(c, op);
    }

    fn add_job(&mut self, c: usize, job: Job) {
        self.coordinators[c].jobs.push_back(job);
        self.work(c);
    }

    fn work(&mut self, c: usize) {
        let it = &mut self.coordinators[c];
        if !it.working && !it.jobs.is_empty() {
            it.working = true;
            self.ask(c, Op::Lead(true));
        }
    }

    fn job_done(&mut self, c: usize) {
        let it = &mut self.coordinators[c];
        it.working = false;
        it.jobs.pop_front();
        self.work(c);
    }

    pub fn tick(&mut self, c: usize) {
        let life = self.coordinators[c].life;
        self.at(self.now + TICK, Ev::Tick(c, life));
        self.give(c, Event::Tick);
    }

    pub fn look(&mut self, c: usize) {
        let life = self.coordinators[c].life;
        self.at(self.now + LOOK, Ev::Look(c, life));
        self.ask(c, Op::Lead(false));
    }

    /// A message of a worker has arrived.
    pub fn hear_worker(&mut self, session: usize, message: Up) {
        let c = self.sessions[session].coordinator;
        match message {
            Up::Hello(hello) => {
                let it = &mut self.coordinators[c];
                it.sessions += 1;
                let id = WorkerId(it.sessions);
                it.by_id.insert(id, session);
                it.ids.insert(session, id);
                self.give(c, Event::Hello { worker: id, hello });
            }
            Up::Say(event) => {
                if let Some(id) = self.coordinators[c].ids.get(&session).copied() {
                    self.give(c, from(id, event));
                }
            }
        }
    }

    /// The stream of a session has ended, says the coordinator's side of it.
    pub fn session_ended(&mut self, session: usize) {
        let s = &mut self.sessions[session];
        let (c, life) = (s.coordinator, s.coordinator_life);
        if !std::mem::replace(&mut s.coordinator_open, false) || self.coordinators[c].life != life {
            return;
        }
        if let Some(worker) = self.forget(c, session) {
            self.give(c, Event::Disconnected { worker, why: "its connection broke".into() });
        }
    }

    fn forget(&mut self, c: usize, session: usize) -> Option<WorkerId> {
        let it = &mut self.coordinators[c];
        let id = it.ids.remove(&session)?;
        it.by_id.remove(&id);
        Some(id)
    }

    pub fn give(&mut self, c: usize, event: Event) {
        let it = &mut self.coordinators[c];
        let now = Now(Duration::from_millis(self.now - it.started));
        let Some(core) = &mut it.core else { return };
        for action in core.handle(now, event) {
            self.act(c, action);
        }
    }

    fn act(&mut self, c: usize, action: Action) {
        let epoch = self.coordinators[c].epoch;
        match action {
            Action::Send { to, directive } => {
                if let Some(session) = self.coordinators[c].by_id.get(&to).copied() {
                    self.send_down(session, Down::Directive(epoch, directive));
                }
            }
            Action::Reject { to, .. } => {
                if let Some(session) = self.coordinators[c].by_id.get(&to).copied() {
                    self.send_down(session, Down::Rejected);
                    self.close(c, session);
                }
            }
            Action::Close { to } => {
                if let Some(session) = self.coordinators[c].by_id.get(&to).copied() {
                    self.close(c, session);
                }
            }
            Action::Record(membership) => {
                self.tally.add("generations", 1);
                let (number, entry) = (self.coordinators[c].next, self.entry(c, false, membership));
                self.ask(c, Op::Append(number, entry));
            }
            Action::Commit(whole) => self.add_job(c, Job::Commit(whole)),
            Action::Prune { delete, newest } => self.add_job(c, Job::Prune(delete, newest)),
            Action::DropKeys { generation, .. } => {
                self.dropped.insert(generation);
            }
            Action::Publish(notice) => {
                if let Notice::Incident(incident) = &notice {
                    self.tally.add("incidents", 1);
                    self.tally.add("incidents: stragglers", (incident.what == What::Straggler).into());
                }
                if self.tracing && !matches!(notice, Notice::Beat { .. }) {
                    self.trace(|| format!("coordinator {c} (number {epoch}): {notice:?}"));
                }
            }
            Action::Verify => self.ask(c, Op::Lead(false)),
            Action::Exit { ok, reason } => {
                self.trace(|| format!("coordinator {c} (number {epoch}) ends, ok: {ok}: {reason}"));
                self.coordinator_ended(c, ok, &reason);
            }
            Action::Resign { why } => {
                self.trace(|| format!("coordinator {c} (number {epoch}) resigns: {why}"));
                self.tally.add("superseded coordinators", 1);
                assert!(self.store.last().is_some_and(|(_, e)| e.epoch > epoch), "nobody has superseded it");
                self.kill_coordinator(c);
            }
        }
    }

    fn close(&mut self, c: usize, session: usize) {
        self.forget(c, session);
        self.close_coordinator_end(session);
    }
}

/// The event as the session `id` brings it.
fn from(id: WorkerId, mut event: Event) -> Event {
    match &mut event {
        Event::Beat { worker, .. }
        | Event::Step { worker, .. }
        | Event::Shard { worker, .. }
        | Event::StepFailed { worker, .. }
        | Event::Finished { worker, .. }
        | Event::Leaving { worker, .. }
        | Event::Left { worker, .. } => *worker = id,
        other => panic!("a worker does not say {other:?}"),
    }
    event
}
