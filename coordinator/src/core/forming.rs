//! When the next generation begins, and with whom.

use super::{Action, Core, Directive, Generation, Level, Membership, Notice, Now, Rank, Running, State, log};
use std::time::Duration;

/// After a generation ended the next waits this long, so that workers lost together (one host)
/// cost one generation, not one each.
pub(super) const SETTLE: Duration = Duration::from_millis(500);

/// No generation runs.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// Nobody is left of an earlier generation: wait for `workers` up to `gather`, as at the start.
    pub fresh: bool,
    /// When the first worker came.
    first_at: Option<Now>,
    not_before: Now,
    /// A generation of the coordinator before this one, which may be running: its members are waited for.
    pub restored: Option<Running>,
}

impl Waiting {
    pub fn at_start(last: &Membership) -> Self {
        let restored = (!last.names.is_empty()).then(|| Running::restored(last));
        Self { fresh: true, first_at: None, not_before: Now::default(), restored }
    }

    /// For the generation after one that this coordinator knew.
    pub fn until(not_before: Now) -> Self {
        Self { fresh: false, first_at: None, not_before, restored: None }
    }
}

impl Core {
    /// Starts a generation if enough workers are here.
    pub(super) fn try_start(&mut self, now: Now, out: &mut Vec<Action>) {
        let State::Waiting(w) = &mut self.state else { return };
        let (here, s) = (self.members.len(), &self.settings);
        // The last survivor may leave while the job waits.
        w.fresh = w.fresh || !self.members.iter().any(|m| m.rank.is_some());
        if here == 0 {
            w.first_at = None;
            return;
        }
        let first = *w.first_at.get_or_insert(now);
        let mut all_back = false;
        if let Some(r) = &w.restored {
            // It goes on as soon as one of its members says so: none has, and all are here or had their time.
            all_back = r.names.iter().all(|name| self.members.named(name).is_some());
            if !all_back && now.since(first) < s.beat_timeout {
                return;
            }
        }
        let enough = here >= s.min_workers as usize;
        let gathered = here >= s.workers.min(s.max_workers) as usize || now.since(first) >= s.gather;
        if !enough || !(gathered || all_back || !w.fresh) || now < w.not_before {
            return;
        }
        // A manifest in flight decides where the generation starts, unless one of them has newer state.
        if self.commits.busy() && !self.members.iter().any(|m| m.has_state) {
            return;
        }
        let roster = self.members.roster(self.generation.next(), s.max_workers);
        let stand_by = here - roster.workers.len();
        if stand_by > 0 {
            let text = format!("{stand_by} workers stand by: at most {} take part", s.max_workers);
            log(out, Level::Warn, text);
        }
        self.generation = self.generation.next();
        out.push(Action::Record(roster.membership.clone()));
        self.state = State::Recording(roster);
    }

    /// The generation is durable: it is announced.
    pub(super) fn recorded(&mut self, now: Now, generation: Generation, out: &mut Vec<Action>) {
        let State::Recording(roster) = &self.state else { return };
        if generation != self.generation {
            return;
        }
        if roster.workers.iter().any(|id| self.members.get(*id).is_none()) {
            log(out, Level::Warn, format!("generation {generation} was over before it began: a worker left"));
            return self.wait(Now(now.0 + SETTLE));
        }
        let roster = roster.clone();
        let names = &roster.membership.names;
        self.members.seat(now, &roster);
        self.drained = false;
        self.commits.announced(generation, names.clone(), false);
        out.push(Action::Publish(Notice::Generation { generation, members: names.to_vec() }));
        let committed = self.commits.last();
        for (rank, &to) in roster.workers.iter().enumerate() {
            let (rank, members) = (Rank(rank as u32), names.clone());
            let directive = Directive::Assigned { generation, rank, members, committed };
            out.push(Action::Send { to, directive });
        }
        self.state = State::Running(Running::new(generation, &roster.workers, names.clone()));
        self.leave_at_once(out);
    }

    /// No generation runs from now on.
    pub(super) fn wait(&mut self, not_before: Now) {
        self.state = State::Waiting(Waiting::until(not_before));
    }
}
