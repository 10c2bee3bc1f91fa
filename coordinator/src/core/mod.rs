//! The coordinator's decisions, as a pure state machine: `handle(now, event) -> actions`.
//!
//! It reads no clock, does no I/O and knows no wire format, so every failure is a unit test. It
//! decides who takes part (generations and ranks), who is lost, when all leave together, when a checkpoint
//! is whole, and when the job is over. A generation is made durable ([`Action::Record`]) before anyone hears
//! of it. Its members keep their state when it ends; the next one agrees on the newest among themselves.
//!
//! ```text
//! door.rs        who says Hello: newcomers, and those who come back to their seats
//! forming.rs     when the next generation begins
//! loss.rs        silence, standstill, failed steps: what ends a generation
//! leave.rs       joins, leavers and the end of the job: leaving together at a step boundary
//! generation.rs  the seats of the running generation
//! membership.rs  everybody who is here
//! seating.rs     which rank whom
//! commit.rs      which checkpoints are whole
//! retention.rs   which of them stay
//! incident.rs    what cost the job time
//! straggler.rs   ranks slower than the others
//! status.rs      where the job stands
//! ```

mod commit;
mod door;
mod forming;
mod generation;
mod incident;
mod leave;
mod loss;
mod membership;
mod reports;
mod retention;
mod seating;
mod status;
mod straggler;
mod types;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use incident::{Incident, What};
pub use loss::MOST_BARREN_GENERATIONS;
pub use reports::*;
pub use retention::{Kept, Retention, Scores};
pub use status::{MemberStatus, Status};
pub use types::*;

use commit::{Commits, Decision, Offer};
use forming::Waiting;
use generation::Running;
use incident::Incidents;
use membership::{Member, Members, Roster};
use std::collections::BTreeSet;
use straggler::Median;

/// The state machine.
#[derive(Clone, Debug)]
pub struct Core {
    settings: Settings,
    epoch: Epoch,
    members: Members,
    commits: Commits,
    incidents: Incidents,
    median: Median,
    /// Hosts and devices whose stragglers were let go to be replaced.
    replaced: BTreeSet<(String, String)>,
    /// The last generation that was recorded, or is being recorded.
    generation: Generation,
    state: State,
    /// The job was told to stop, and is to leave with a checkpoint.
    stopping: Option<Now>,
    /// All have left together, with the checkpoint that was asked for.
    drained: bool,
    /// The furthest step any generation has done.
    furthest: Step,
    /// The last report of rank 0.
    last_step: Option<StepReport>,
    /// Generations in a row that brought nothing.
    barren: u32,
    ticked_at: Now,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // there is one
enum State {
    /// No generation: waiting for workers.
    Waiting(Waiting),
    /// The generation is being made durable; nobody knows of it yet.
    Recording(Roster),
    Running(Running),
    Ended {
        reason: String,
    },
}

impl Core {
    /// Begins with what the run's journal and checkpoints tell.
    pub fn new(settings: Settings, found: Found) -> Self {
        let Found { epoch, last, committed } = found;
        Self {
            settings,
            epoch,
            members: Members::new(&last),
            commits: Commits::new(committed, &last),
            incidents: Incidents::default(),
            median: Median::default(),
            replaced: BTreeSet::new(),
            generation: last.generation,
            state: State::Waiting(Waiting::at_start(&last)),
            stopping: None,
            drained: true,
            furthest: Step(0),
            last_step: None,
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
        if let Some(worker) = event.sender() {
            self.members.heard(now, worker);
        }
        match event {
            Event::Hello { worker, hello } => self.hello(now, worker, hello, &mut out),
            Event::Beat { worker, beat } => self.beat(now, worker, beat, &mut out),
            Event::Step { worker, report } => self.step(now, worker, report, &mut out),
            Event::Eval { worker, report } => {
                if self.running_rank(worker, report.generation) == Some(Rank(0)) {
                    self.commits.evaluated(report.step, Scores::of(&report));
                    out.push(Action::Publish(Notice::Eval(report)));
                }
            }
            Event::Shard { worker, shard } => self.shard(worker, shard, &mut out),
            Event::Log { worker, level, text } => {
                if let Some(m) = self.members.get(worker) {
                    log(&mut out, level, format!("{}: {text}", m.name));
                }
            }
            Event::StepFailed { worker, generation, step, error, fatal } => {
                self.failed(now, worker, generation, (step, error), fatal, &mut out);
            }
            Event::Broken { worker, step, error } => {
                self.give_up(now, vec![(worker, format!("failed after step {step}: {error}"))], &mut out);
            }
            Event::Finished { worker, generation, step } => {
                if let Some(r) = self.running(generation) {
                    r.finished(worker, step);
                    self.members.rests(now, worker);
                }
            }
            Event::Leaving { worker, reason } => self.wants_to_go(now, worker, reason, &mut out),
            Event::Left { worker, generation, step } => {
                if let Some(r) = self.running(generation) {
                    r.left(now, worker, Some(step));
                    self.members.rests(now, worker);
                }
            }
            Event::Release { name, reason } => {
                if let Some(id) = self.members.named(&name).map(|m| m.id) {
                    self.wants_to_go(now, id, reason, &mut out);
                }
            }
            Event::Exited(report) => self.exited(now, report, &mut out),
            Event::Disconnected { worker, why } => self.disconnected(now, worker, why, &mut out),
            Event::Recorded { generation } => self.recorded(now, generation, &mut out),
            Event::Committed { step, bytes, manifest } => {
                let delete = self.commits.committed(step, &self.settings.retention);
                self.to_all(Directive::Committed { step }, &mut out);
                out.push(Action::Publish(Notice::Checkpoint { step, bytes, manifest }));
                out.push(Action::Prune { delete, newest: step });
            }
            Event::CommitFailed { step, error } => self.commit_failed(now, step, error, &mut out),
            Event::Superseded { why } => {
                self.state = State::Ended { reason: why.clone() };
                out.push(Action::Resign { why });
            }
            Event::Fatal { error } => self.end(now, false, error, &mut out),
            Event::Terminate => self.terminate(now, &mut out),
            Event::CheckpointNow => self.checkpoint_now(&mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        self.advance(now, &mut out);
        out
    }

    /// True once [`Action::Exit`] or [`Action::Resign`] was returned.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::Ended { .. })
    }

    /// True if a worker of this name is here.
    pub fn knows(&self, name: &str) -> bool {
        self.members.named(name).is_some()
    }

    fn beat(&mut self, now: Now, worker: WorkerId, beat: Beat, out: &mut Vec<Action>) {
        self.members.beat(now, worker, beat.clone());
        let (State::Running(r), Some(m)) = (&self.state, self.members.get(worker)) else { return };
        let Some(rank) = r.rank_of(worker) else { return };
        let generation = r.generation;
        out.push(Action::Publish(Notice::Beat { worker: m.name.clone(), rank, beat: beat.clone() }));
        if beat.generation == generation {
            self.compare(now, worker, rank, out);
        }
    }

    fn step(&mut self, now: Now, worker: WorkerId, report: StepReport, out: &mut Vec<Action>) {
        if self.running_rank(worker, report.generation) != Some(Rank(0)) {
            let Some(m) = self.members.get(worker) else { return };
            if self.commits.told_late(&m.name, report.generation, report.step) {
                out.push(Action::Publish(Notice::Step(report)));
            }
            return;
        }
        if let State::Running(r) = &mut self.state
            && r.step.replace(report.step).is_none()
        {
            self.members.have_state(r.inside());
        }
        if report.step > self.furthest {
            self.furthest = report.step;
            self.barren = 0;
        }
        self.commits.step(report.generation, report.step);
        self.incidents.step(now);
        self.last_step = Some(report.clone());
        out.push(Action::Publish(Notice::Step(report)));
    }

    fn shard(&mut self, worker: WorkerId, shard: Shard, out: &mut Vec<Action>) {
        let Some(member) = self.members.get(worker) else { return };
        match self.commits.offer(&member.name, shard) {
            Offer::Noted => {}
            Offer::Committed(step) => {
                out.push(Action::Send { to: worker, directive: Directive::Committed { step } });
            }
            Offer::Refused(why) => log(out, Level::Error, why),
        }
    }

    /// A supervisor's word on one of its trainers.
    fn exited(&mut self, now: Now, report: ExitReport, out: &mut Vec<Action>) {
        let again = if report.restarts { "; it is started again" } else { "" };
        let (worker, cause) = (&report.worker, &report.cause);
        log(out, Level::Warn, format!("the trainer {worker} has ended: {cause}{again}"));
        self.incidents.exited(now, report);
    }

    /// Everything that follows from the state rather than from the event.
    fn advance(&mut self, now: Now, out: &mut Vec<Action>) {
        self.look_at_failures(now, out);
        self.look_at_leavers(now, out);
        self.settle_commits(out);
        if let State::Running(r) = &self.state
            && r.all_finished()
            && !self.commits.busy()
        {
            let steps: Vec<String> = self.commits.incomplete(r.generation).map(|s| s.to_string()).collect();
            if !steps.is_empty() {
                let text = format!("the checkpoint of step {} was never whole", steps.join(", "));
                log(out, Level::Warn, text);
            }
            let (n, step) = (r.world(), r.step.unwrap_or_default());
            let s = if n == 1 { "" } else { "s" };
            self.end(now, true, format!("{n} worker{s} finished at step {step}"), out);
        }
        self.try_start(now, out);
        let settled = self.incidents.settled(now);
        out.extend(settled.into_iter().map(|i| Action::Publish(Notice::Incident(i))));
    }

    fn settle_commits(&mut self, out: &mut Vec<Action>) {
        for decision in self.commits.decide() {
            match decision {
                Decision::Commit(whole) => out.push(Action::Commit(whole)),
                Decision::Committed(step) => self.to_all(Directive::Committed { step }, out),
                Decision::Overtaken(generation, step) => log(
                    out,
                    Level::Info,
                    format!(
                        "the checkpoint of step {step} of generation {generation} is left out: the step was done again"
                    ),
                ),
            }
        }
    }

    fn commit_failed(&mut self, now: Now, step: Step, error: String, out: &mut Vec<Action>) {
        self.commits.failed(step);
        let reason = format!("failed to commit the checkpoint of step {step}: {error}");
        match self.commits.newest().filter(|newest| *newest > step) {
            // It may have been swept away as older than that one.
            Some(newest) => {
                log(out, Level::Warn, format!("{reason}; that of step {newest} is there"));
                self.to_all(Directive::Committed { step: newest }, out);
            }
            None => self.end(now, false, reason, out),
        }
    }

    fn end(&mut self, now: Now, ok: bool, reason: String, out: &mut Vec<Action>) {
        let incidents = self.incidents.close(now);
        out.extend(incidents.into_iter().map(|i| Action::Publish(Notice::Incident(i))));
        self.to_all(Directive::Shutdown { ok, reason: reason.clone(), restart: false }, out);
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

    /// The running generation, if it is this one.
    fn running(&mut self, generation: Generation) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(r) if r.generation == generation => Some(r),
            _ => None,
        }
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
