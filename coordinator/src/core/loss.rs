//! What ends a generation that should have gone on: broken streams, silence, standstill, failed steps.

use super::{
    Action, Beat, Core, Directive, Generation, Level, Notice, Now, Rank, State, Step, WorkerId,
    forming::SETTLE,
    generation::Failure,
    incident::{Incident, What},
    log,
};
use std::time::Duration;

/// A failed collective is usually a dead peer whose stream ends a moment later: wait for the name.
pub(super) const FAILURE_GRACE: Duration = Duration::from_secs(2);
/// Beats come every second: a worker that was silent for longer before its stream ended was cut off from here.
pub(super) const QUIET: Duration = Duration::from_secs(3);
/// So many generations in a row without progress end the job.
pub const MOST_BARREN_GENERATIONS: u32 = 5;
/// A pause between ticks longer than this means that the coordinator itself stood still.
const STALLED: Duration = Duration::from_secs(2);

impl Core {
    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        let gap = now.since(self.ticked_at);
        self.ticked_at = now;
        if gap > STALLED {
            self.members.forgive(gap);
            if let State::Running(r) = &mut self.state
                && let Some(until) = &mut r.absent_until
            {
                until.0 += gap;
            }
        }
        let mut lost = self.members.silent(now, &self.settings);
        if let State::Running(r) = &self.state {
            let limit = self.settings.step_timeout;
            let silent: std::collections::BTreeSet<_> = lost.iter().map(|(id, _)| *id).collect();
            let stuck = r.inside().filter(|id| self.members.stands_still(now, *id, limit));
            let seconds = limit.as_secs_f64();
            let why = || format!("no progress for {seconds:.1} s (cluster.step_timeout)");
            lost.extend(stuck.filter(|id| !silent.contains(id)).map(|id| (id, why())));
        }
        self.give_up(now, lost, out);
        self.look_for_absent(now, out);
        self.look_at_the_door(now, out);
    }

    /// A stream that ends in the midst of beats is a worker that ends. One that was silent before tells nothing of its
    /// worker, which may go on stepping and come back by another: its silence has its own limit.
    pub(super) fn disconnected(&mut self, now: Now, id: WorkerId, why: String, out: &mut Vec<Action>) {
        let inside = matches!(&self.state, State::Running(r) if r.needs(id));
        if let Some(m) = self.members.get_mut(id).filter(|m| inside && m.silent_for(now) > QUIET) {
            m.cut_off = true;
            let seconds = m.silent_for(now).as_secs_f64();
            let text = format!("{} was cut off {seconds:.1} s ago, and now {why}; it may come back", m.name);
            return log(out, Level::Warn, text);
        }
        self.lose(now, vec![(id, why)], out);
    }

    /// A worker's collective failed, and it waits for an assignment; or nobody could go on from here.
    pub(super) fn failed(
        &mut self,
        now: Now,
        worker: WorkerId,
        generation: Generation,
        (step, error): (Step, String),
        fatal: bool,
        out: &mut Vec<Action>,
    ) {
        let beat = self.members.get(worker).map(|m| m.beat.clone()).unwrap_or_default();
        let Some(r) = self.running(generation) else { return };
        r.failed(now, worker, Failure { step, error, beat });
        if let Some(reason) = r.failure_of(worker).filter(|_| fatal) {
            if let (State::Running(r), Some(m)) = (&self.state, self.members.get(worker)) {
                let incident = Incident::of_member(r, What::Failed, m, r.rank_of(worker), reason.clone());
                self.incidents.note(now, incident);
            }
            self.end(now, false, reason, out);
        }
    }

    /// Lets workers go whose stream is still open.
    pub(super) fn give_up(&mut self, now: Now, lost: Vec<(WorkerId, String)>, out: &mut Vec<Action>) {
        for (to, why) in &lost {
            let reason = format!("the coordinator gave this worker up: {why}");
            let directive = Directive::Shutdown { ok: false, reason, restart: true };
            out.push(Action::Send { to: *to, directive });
            out.push(Action::Close { to: *to });
        }
        self.lose(now, lost, out);
    }

    /// Removes workers; if the running generation needed one of them it is over.
    pub(super) fn lose(&mut self, now: Now, lost: Vec<(WorkerId, String)>, out: &mut Vec<Action>) {
        let mut reasons = Vec::new();
        for (id, why) in lost {
            let Some(member) = self.members.remove(id) else { continue };
            let seat = match &self.state {
                State::Running(r) => r.rank_of(id).filter(|_| r.needs(id)).map(|rank| (r, rank)),
                _ => None,
            };
            let Some((r, rank)) = seat else {
                log(out, Level::Info, format!("{} has left: {why}", member.name));
                continue;
            };
            let incident = Incident::of_member(r, What::Lost, &member, Some(rank), why.clone());
            let (name, step, phase) = (member.name, incident.step, &incident.phase);
            let reason = format!("lost worker {name} (rank {rank}) at step {step} while {phase}: {why}");
            out.push(Action::Publish(Notice::Lost { worker: name, rank, step, reason: reason.clone() }));
            self.incidents.note(now, incident);
            reasons.push(reason);
        }
        if !reasons.is_empty() {
            let barren = matches!(&self.state, State::Running(r) if r.step.is_none());
            self.end_generation(now, reasons.join("; "), barren, out);
        }
    }

    /// After a restart: members that did not report in time are lost.
    fn look_for_absent(&mut self, now: Now, out: &mut Vec<Action>) {
        let State::Running(r) = &mut self.state else { return };
        if r.absent_until.is_none_or(|until| now < until) {
            return;
        }
        r.absent_until = None;
        let absent: Vec<Rank> = r.absent().collect();
        let (generation, step) = (r.generation, r.step.unwrap_or_default());
        let why = "it did not report to the coordinator that was started again";
        let mut reasons = Vec::new();
        for rank in absent {
            let worker = r.name_of(rank).to_string();
            let reason = format!("lost worker {worker} (rank {rank}) of generation {generation}: {why}");
            let incident = Incident::of_generation(r, What::Lost, worker.clone(), why.into());
            self.incidents.note(now, Incident { rank: Some(rank), ..incident });
            out.push(Action::Publish(Notice::Lost { worker, rank, step, reason: reason.clone() }));
            reasons.push(reason);
        }
        if !reasons.is_empty() {
            self.end_generation(now, reasons.join("; "), false, out);
        }
    }

    /// A generation in which somebody failed, or that some have left and others not, is over after a while.
    pub(super) fn look_at_failures(&mut self, now: Now, out: &mut Vec<Action>) {
        let State::Running(r) = &self.state else { return };
        let limit = self.settings.collective_timeout;
        if let Some((since, rank, failure, reason)) = r.failure()
            && now.since(since) >= FAILURE_GRACE
        {
            // Peers whose collective timed out were waiting for whoever has not moved since.
            let limit = limit / 2;
            let stuck: Vec<_> = r
                .silent_in_failure()
                .filter(|id| self.members.stands_still(now, *id, limit))
                .map(|id| {
                    let seconds = limit.as_secs_f64();
                    (id, format!("its peers' collective failed and it made no progress for {seconds:.1} s"))
                })
                .collect();
            if !stuck.is_empty() {
                return self.give_up(now, stuck, out);
            }
            if let Some(m) = r.worker_at(rank).and_then(|id| self.members.get(id)) {
                let Beat { phase, collective, clip, .. } = failure.beat.clone();
                let incident = Incident::of_member(r, What::Failed, m, Some(rank), reason.clone());
                self.incidents.note(since, Incident { phase, collective, clip, ..incident });
            }
            // A loss is announced by itself; this has no other notice.
            log(out, Level::Warn, format!("generation {} is over: {reason}", r.generation));
            self.end_generation(now, reason, true, out);
        } else if let Some(since) = r.half_left_since()
            && now.since(since) >= limit
        {
            let reason = "some of its members have left it".to_string();
            log(out, Level::Warn, format!("generation {} is over: {reason}", r.generation));
            self.end_generation(now, reason, false, out);
        }
    }

    fn end_generation(&mut self, now: Now, reason: String, barren: bool, out: &mut Vec<Action>) {
        let State::Running(r) = &self.state else { return };
        let generation = r.generation;
        // The next one does not wait for those who cannot hear of it.
        let cut_off: Vec<WorkerId> = self.members.iter().filter(|m| m.cut_off).map(|m| m.id).collect();
        for member in cut_off.into_iter().filter_map(|id| self.members.remove(id)) {
            let (rank, why) = (r.rank_of(member.id), "it was cut off when its generation ended".into());
            self.incidents.note(now, Incident::of_member(r, What::Lost, &member, rank, why));
        }
        for to in r.inside().filter(|id| self.members.get(*id).is_some()) {
            let directive = Directive::Stop { generation, reason: reason.clone() };
            out.push(Action::Send { to, directive });
        }
        out.push(Action::DropKeys { generation, reason: reason.clone() });
        self.commits.generation_over(generation);
        self.members.dismiss(now);
        if barren {
            self.barren += 1;
        }
        if self.barren >= MOST_BARREN_GENERATIONS {
            let n = self.barren;
            let step = self.furthest;
            return self.end(
                now,
                false,
                format!("{n} generations in a row came no further than step {step}; the last one: {reason}"),
                out,
            );
        }
        self.wait(Now(now.0 + SETTLE));
        let (here, least) = (self.members.len(), self.settings.min_workers);
        if here < least as usize {
            let text = format!("waiting for workers: {here} here, cluster.min_workers = {least}");
            log(out, Level::Warn, text);
        }
    }
}
