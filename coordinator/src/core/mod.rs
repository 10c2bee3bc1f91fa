//! The coordinator's decisions, as a pure state machine: `handle(now, event) -> actions`.
//!
//! It reads no clock, does no I/O and knows no wire format, so every failure is a unit test. It
//! decides who takes part (generations and ranks), who is lost, when a checkpoint is whole, and
//! when the job is over. A generation is made durable ([`Action::Record`]) before anyone hears of
//! it. In this version a lost worker ends the generation and the next one starts from the newest
//! checkpoint; going on without one needs only another way from `Running` to `Recording`.

mod commit;
mod generation;
mod membership;
mod retention;
mod seating;
mod types;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use retention::{Retention, Scores};
pub use types::*;

use commit::{Commits, Offer};
use generation::Running;
use membership::Members;
use std::{collections::BTreeMap, time::Duration};

/// After a generation ended the next waits this long, so that workers lost together (one host)
/// cost one generation, not one each.
const SETTLE: Duration = Duration::from_millis(500);
/// A failed collective is usually a dead peer whose stream ends a moment later: wait for the name.
const FAILURE_GRACE: Duration = Duration::from_secs(2);
/// So many generations in a row without progress end the job.
pub const MOST_BARREN_GENERATIONS: u32 = 5;
/// A pause between ticks longer than this means that the coordinator itself stood still.
const STALLED: Duration = Duration::from_secs(2);

/// The state machine.
#[derive(Clone, Debug)]
pub struct Core {
    settings: Settings,
    members: Members,
    commits: Commits,
    /// The last generation that was recorded, or is being recorded.
    generation: Generation,
    state: State,
    /// The furthest step any generation has done.
    furthest: Step,
    /// Generations in a row that brought nothing.
    barren: u32,
    ticked_at: Now,
}

#[derive(Clone, Debug)]
enum State {
    /// No generation: waiting for workers.
    Waiting(Waiting),
    /// The generation is being made durable; nobody knows of it yet.
    Recording {
        roster: Vec<WorkerId>,
    },
    Running(Running),
    Ended {
        reason: String,
    },
}

#[derive(Clone, Debug)]
struct Waiting {
    /// Nobody is left of an earlier generation: wait for `workers` up to `gather`, as at the start.
    fresh: bool,
    /// When the first worker came.
    first_at: Option<Now>,
    not_before: Now,
}

impl Core {
    /// `last` is the run's newest recorded generation, `committed` the steps that have a manifest, with
    /// what was measured at them.
    pub fn new(settings: Settings, last: Generation, committed: BTreeMap<Step, Scores>) -> Self {
        Self {
            settings,
            members: Members::default(),
            commits: Commits::new(committed),
            generation: last,
            state: State::Waiting(Waiting { fresh: true, first_at: None, not_before: Now::default() }),
            furthest: Step(0),
            barren: 0,
            ticked_at: Now::default(),
        }
    }

    /// Takes one event, returns what must be done, in order.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        if let State::Ended { reason } = &self.state {
            if let Event::Hello { worker, .. } = event {
                out.push(Action::Reject { to: worker, why: format!("the job has ended: {reason}") });
            }
            return out;
        }
        match event {
            Event::Hello { worker, hello } => self.hello(now, worker, hello, &mut out),
            Event::Beat { worker, beat } => self.beat(now, worker, beat, &mut out),
            Event::Step { worker, report } => self.step(now, worker, report, &mut out),
            Event::Eval { worker, report } => {
                self.members.heard(now, worker);
                if self.running_rank(worker, report.generation) == Some(Rank(0)) {
                    self.commits.evaluated(report.step, Scores::of(&report));
                    out.push(Action::Publish(Notice::Eval(report)));
                }
            }
            Event::Shard { worker, shard } => self.shard(now, worker, shard, &mut out),
            Event::Log { worker, level, text } => {
                self.members.heard(now, worker);
                if let Some(m) = self.members.get(worker) {
                    log(&mut out, level, format!("{}: {text}", m.name));
                }
            }
            Event::StepFailed { worker, generation, step, error, fatal } => {
                self.members.heard(now, worker);
                if let State::Running(r) = &mut self.state
                    && r.generation == generation
                {
                    r.failed(now, worker, step, error);
                    if let Some(reason) = r.failure_of(worker).filter(|_| fatal) {
                        self.end(false, reason, &mut out);
                    }
                }
            }
            Event::Finished { worker, generation, step } => {
                self.members.heard(now, worker);
                if let State::Running(r) = &mut self.state
                    && r.generation == generation
                {
                    r.finished(worker, step);
                }
            }
            Event::Disconnected { worker, why } => self.lose(now, vec![(worker, why)], &mut out),
            Event::Recorded { generation } => self.recorded(now, generation, &mut out),
            Event::Committed { step, bytes, manifest } => {
                let delete = self.commits.committed(step, &self.settings.retention);
                self.to_all(Directive::Committed { step }, &mut out);
                out.push(Action::Publish(Notice::Checkpoint { step, bytes, manifest }));
                out.push(Action::Prune { delete, newest: step });
            }
            Event::CommitFailed { step, error } => {
                self.commits.failed(step);
                self.end(false, format!("failed to commit the checkpoint of step {step}: {error}"), &mut out);
            }
            Event::Fatal { error } => self.end(false, error, &mut out),
            Event::Terminate => self.end(false, "the coordinator was told to stop".into(), &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        self.advance(now, &mut out);
        out
    }

    /// True once [`Action::Exit`] was returned.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    fn hello(&mut self, now: Now, worker: WorkerId, hello: Hello, out: &mut Vec<Action>) {
        if self.members.get(worker).is_some() {
            return;
        }
        if let Some(why) = self.objection(&hello) {
            log(out, Level::Warn, format!("refused {}: {why}", hello.name));
            return out.push(Action::Reject { to: worker, why });
        }
        // The same worker again: its old session is dead, whether or not its stream knows.
        if let Some(old) = self.members.named(&hello.name).map(|m| m.id) {
            out.push(Action::Close { to: old });
            self.lose(now, vec![(old, "it came back with a new session".into())], out);
            if let State::Ended { reason } = &self.state {
                let why = format!("the job has ended: {reason}");
                return out.push(Action::Reject { to: worker, why });
            }
        }
        self.members.admit(now, worker, &hello);
        out.push(Action::Send { to: worker, directive: Directive::Welcome { name: hello.name.clone() } });
        let waits = match &self.state {
            State::Waiting(_) => String::new(),
            _ => format!("; it waits for the generation after {}", self.generation),
        };
        log(out, Level::Info, format!("{} ({}) is here{waits}", hello.name, hello.device));
    }

    /// Why this worker may not take part.
    fn objection(&self, hello: &Hello) -> Option<String> {
        let s = &self.settings;
        if hello.protocol_version != s.protocol_version {
            return Some(format!(
                "worker {} speaks protocol version {}, the coordinator {}; install the same release on both",
                hello.name, hello.protocol_version, s.protocol_version
            ));
        }
        if hello.config_digest != s.config_digest {
            return Some(format!(
                "worker {} has the configuration with digest {}, the coordinator the one with digest {}; \
                 start the worker again so that it takes the coordinator's",
                hello.name, hello.config_digest, s.config_digest
            ));
        }
        if hello.dataset_digest != s.dataset_digest {
            return Some(format!(
                "worker {} reads the dataset with digest {}, the coordinator the one with digest {}; \
                 make data.url mean the same dataset.json on every machine and start again",
                hello.name, hello.dataset_digest, s.dataset_digest
            ));
        }
        None
    }

    fn beat(&mut self, now: Now, worker: WorkerId, beat: Beat, out: &mut Vec<Action>) {
        self.members.heard(now, worker);
        self.members.beat(now, worker, beat.clone());
        if let (State::Running(r), Some(m)) = (&self.state, self.members.get(worker))
            && let Some(rank) = r.rank_of(worker)
        {
            out.push(Action::Publish(Notice::Beat { worker: m.name.clone(), rank, beat }));
        }
    }

    fn step(&mut self, now: Now, worker: WorkerId, report: StepReport, out: &mut Vec<Action>) {
        self.members.heard(now, worker);
        if self.running_rank(worker, report.generation) != Some(Rank(0)) {
            return;
        }
        if let State::Running(r) = &mut self.state {
            r.step = Some(report.step);
        }
        if report.step > self.furthest {
            self.furthest = report.step;
            self.barren = 0;
        }
        out.push(Action::Publish(Notice::Step(report)));
    }

    fn shard(&mut self, now: Now, worker: WorkerId, shard: Shard, out: &mut Vec<Action>) {
        self.members.heard(now, worker);
        // A part of an earlier generation comes too late: the next one may stand before its step.
        let Some(rank) = self.running_rank(worker, shard.generation) else { return };
        let State::Running(r) = &self.state else { return };
        if rank != shard.rank {
            let text = format!("rank {rank} reported a checkpoint part of rank {}", shard.rank);
            return log(out, Level::Error, text);
        }
        match self.commits.offer(shard, r.world()) {
            Offer::Noted => {}
            Offer::Whole(whole) => out.push(Action::Commit(whole)),
            Offer::Refused(why) => log(out, Level::Error, why),
        }
    }

    fn recorded(&mut self, now: Now, generation: Generation, out: &mut Vec<Action>) {
        let State::Recording { roster } = &self.state else { return };
        if generation != self.generation {
            return;
        }
        let roster = roster.clone();
        if roster.iter().any(|id| self.members.get(*id).is_none()) {
            log(out, Level::Warn, format!("generation {generation} was over before it began: a worker left"));
            return self.wait(now);
        }
        self.members.seat(now, &roster);
        let names: Vec<String> =
            roster.iter().filter_map(|id| self.members.get(*id)).map(|m| m.name.clone()).collect();
        out.push(Action::Publish(Notice::Generation { generation, members: names.clone() }));
        for (rank, &to) in roster.iter().enumerate() {
            let rank = Rank(rank as u32);
            let directive = Directive::Assigned { generation, rank, members: names.clone() };
            out.push(Action::Send { to, directive });
        }
        self.state = State::Running(Running::new(generation, roster.into_iter().zip(names)));
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        let gap = now.since(self.ticked_at);
        self.ticked_at = now;
        if gap > STALLED {
            self.members.forgive(gap);
        }
        let mut lost = self.members.silent(now, &self.settings);
        if let State::Running(r) = &self.state {
            let s = &self.settings;
            for id in r.unfinished().filter(|id| self.members.stands_still(now, *id, s.step_timeout)) {
                if !lost.iter().any(|(l, _)| *l == id) {
                    let seconds = s.step_timeout.as_secs_f64();
                    lost.push((id, format!("no progress for {seconds:.1} s (cluster.step_timeout)")));
                }
            }
        }
        self.give_up(now, lost, out);
    }

    /// Lets workers go whose stream is still open.
    fn give_up(&mut self, now: Now, lost: Vec<(WorkerId, String)>, out: &mut Vec<Action>) {
        for (to, why) in &lost {
            let reason = format!("the coordinator gave this worker up: {why}");
            out.push(Action::Send { to: *to, directive: Directive::Shutdown { ok: false, reason } });
            out.push(Action::Close { to: *to });
        }
        self.lose(now, lost, out);
    }

    /// Removes workers; if the running generation needed one of them it is over.
    fn lose(&mut self, now: Now, lost: Vec<(WorkerId, String)>, out: &mut Vec<Action>) {
        let mut reasons = Vec::new();
        for (id, why) in lost {
            let Some(member) = self.members.remove(id) else { continue };
            let needed = match &self.state {
                State::Running(r) => r.rank_of(id).filter(|_| r.needs(id)).map(|rank| (rank, r.step)),
                _ => None,
            };
            let Some((rank, step)) = needed else {
                log(out, Level::Info, format!("{} has left: {why}", member.name));
                continue;
            };
            let step = step.unwrap_or_default().max(member.beat.step);
            let phase = if member.beat.phase.is_empty() { "joining" } else { &member.beat.phase };
            let reason =
                format!("lost worker {} (rank {rank}) at step {step} while {phase}: {why}", member.name);
            out.push(Action::Publish(Notice::Lost {
                worker: member.name,
                rank,
                step,
                reason: reason.clone(),
            }));
            reasons.push(reason);
        }
        if !reasons.is_empty() {
            let barren = matches!(&self.state, State::Running(r) if r.step.is_none());
            self.end_generation(now, reasons.join("; "), barren, out);
        }
    }

    /// Everything that follows from the state rather than from the event.
    fn advance(&mut self, now: Now, out: &mut Vec<Action>) {
        if let State::Running(r) = &self.state
            && let Some((since, reason)) = r.failure()
            && now.since(since) >= FAILURE_GRACE
        {
            // Peers whose collective timed out were waiting for whoever has not moved since.
            let limit = self.settings.collective_timeout / 2;
            let stuck: Vec<_> = r
                .silent_in_failure()
                .filter(|id| self.members.stands_still(now, *id, limit))
                .map(|id| {
                    let seconds = limit.as_secs_f64();
                    (id, format!("its peers' collective failed and it made no progress for {seconds:.1} s"))
                })
                .collect();
            if stuck.is_empty() {
                // A loss is announced by itself; this has no other notice.
                log(out, Level::Warn, format!("generation {} is over: {reason}", r.generation));
                self.end_generation(now, reason, true, out);
            } else {
                self.give_up(now, stuck, out);
            }
        }
        if let State::Running(r) = &self.state
            && r.all_finished()
            && !self.commits.busy()
        {
            let steps: Vec<String> = self.commits.incomplete().map(|s| s.to_string()).collect();
            if !steps.is_empty() {
                let text = format!("the checkpoint of step {} was never whole", steps.join(", "));
                log(out, Level::Warn, text);
            }
            let (n, step) = (r.world(), r.step.unwrap_or_default());
            let s = if n == 1 { "" } else { "s" };
            self.end(true, format!("{n} worker{s} finished at step {step}"), out);
        }
        self.try_start(now, out);
    }

    /// Starts a generation if enough workers are here.
    fn try_start(&mut self, now: Now, out: &mut Vec<Action>) {
        let State::Waiting(w) = &mut self.state else { return };
        let (here, s) = (self.members.len(), &self.settings);
        // The last survivor may leave while the job waits.
        w.fresh |= !self.members.iter().any(|m| m.rank.is_some());
        if here == 0 {
            w.first_at = None;
            return;
        }
        let first = *w.first_at.get_or_insert(now);
        let enough = here >= s.min_workers as usize;
        let ready = if w.fresh {
            here >= s.workers.min(s.max_workers) as usize || now.since(first) >= s.gather
        } else {
            true
        };
        // A manifest in flight decides where the generation starts: let it land first.
        if !enough || !ready || now < w.not_before || self.commits.busy() {
            return;
        }
        let roster = self.members.roster(s.max_workers);
        if here > roster.len() {
            let text = format!("{} workers stand by: data.lanes = {}", here - roster.len(), s.max_workers);
            log(out, Level::Warn, text);
        }
        self.generation = self.generation.next();
        let members = roster.iter().filter_map(|id| self.members.get(*id)).map(|m| m.name.clone()).collect();
        out.push(Action::Record { generation: self.generation, members });
        self.state = State::Recording { roster };
    }

    fn end_generation(&mut self, now: Now, reason: String, barren: bool, out: &mut Vec<Action>) {
        let State::Running(r) = &self.state else { return };
        let generation = r.generation;
        for to in r.workers().filter(|id| self.members.get(*id).is_some()) {
            let directive = Directive::Stop { generation, reason: reason.clone() };
            out.push(Action::Send { to, directive });
        }
        out.push(Action::DropKeys { generation, reason: reason.clone() });
        self.commits.generation_over();
        self.members.dismiss(now);
        if barren {
            self.barren += 1;
        }
        if self.barren >= MOST_BARREN_GENERATIONS {
            let n = self.barren;
            let step = self.furthest;
            return self.end(
                false,
                format!("{n} generations in a row came no further than step {step}; the last one: {reason}"),
                out,
            );
        }
        self.wait(now);
        let (here, least) = (self.members.len(), self.settings.min_workers);
        if here < least as usize {
            let text = format!("waiting for workers: {here} here, cluster.min_workers = {least}");
            log(out, Level::Warn, text);
        }
    }

    fn wait(&mut self, now: Now) {
        self.state =
            State::Waiting(Waiting { fresh: false, first_at: None, not_before: Now(now.0 + SETTLE) });
    }

    fn end(&mut self, ok: bool, reason: String, out: &mut Vec<Action>) {
        self.to_all(Directive::Shutdown { ok, reason: reason.clone() }, out);
        out.extend(self.members.iter().map(|m| Action::Close { to: m.id }));
        if let State::Running(r) = &self.state {
            out.push(Action::DropKeys {
                generation: r.generation,
                reason: format!("the job ended: {reason}"),
            });
        }
        out.push(Action::Publish(Notice::Ended { ok, reason: reason.clone() }));
        out.push(Action::Exit { ok, reason: reason.clone() });
        self.state = State::Ended { reason };
    }

    fn to_all(&self, directive: Directive, out: &mut Vec<Action>) {
        out.extend(self.members.iter().map(|m| Action::Send { to: m.id, directive: directive.clone() }));
    }

    /// The worker's rank, if it belongs to the running generation and means that one.
    fn running_rank(&self, worker: WorkerId, generation: Generation) -> Option<Rank> {
        match &self.state {
            State::Running(r) if r.generation == generation => r.rank_of(worker),
            _ => None,
        }
    }
}

fn log(out: &mut Vec<Action>, level: Level, text: String) {
    out.push(Action::Publish(Notice::Log { level, text }));
}
