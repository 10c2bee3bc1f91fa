//! Leaving together at a step boundary: so that others can join, that some can go, or that the job can stop.
//!
//! Nobody is to blame then. Where a checkpoint is asked for, it is committed before anyone has left; if all
//! left without one (it was asked for too late), they meet again and leave once more.

use super::{
    Action, Core, Directive, Level, Member, Now, Rank, Running, State, WorkerId,
    generation::Leave,
    incident::{Incident, What},
    log,
};

impl Core {
    /// A worker wants to go, or a person wants it to: at the next step boundary.
    pub(super) fn wants_to_go(&mut self, now: Now, id: WorkerId, reason: String, out: &mut Vec<Action>) {
        let Some(name) = self.members.get(id).map(|m| m.name.clone()) else { return };
        let text = format!("{name} wants to leave: {reason}");
        if self.members.leaves(id, reason) {
            log(out, Level::Info, text);
        }
        match &self.state {
            State::Running(r) if r.needs(id) => {
                let checkpoint = self.too_few_would_stay();
                self.ask_to_leave(format!("{name} leaves"), checkpoint, out);
            }
            // One that has left with the others goes when the last of them has.
            State::Running(r) if r.rank_of(id).is_some() => {}
            // It might be the one that holds the newest state: `look_at_leavers` decides, or the generation to
            // come is left at once.
            State::Waiting(_) => {}
            State::Recording(_) if self.is_needed_for_checkpoint() => {}
            _ => self.let_go(now, id, out),
        }
    }

    /// The job was told to stop; the second time, at once.
    pub(super) fn terminate(&mut self, now: Now, out: &mut Vec<Action>) {
        let going_on = match &self.state {
            State::Running(_) => true,
            State::Recording(_) => self.members.iter().any(|m| m.has_state),
            State::Waiting(w) => {
                let enough = self.members.len() >= self.settings.min_workers as usize;
                !w.fresh && enough && self.members.iter().any(|m| m.has_state)
            }
            State::Ended { .. } => return,
        };
        if self.stopping.is_some() {
            let text = format!("the job was told twice to stop; {}", self.next_start());
            return self.end(now, false, text, out);
        }
        if !going_on {
            return self.end(now, true, format!("stopped; {}", self.next_start()), out);
        }
        self.stopping = Some(now);
        let text = "the job was told to stop: it takes a checkpoint first".into();
        log(out, Level::Info, text);
        self.ask_to_leave("the job is to stop".into(), true, out);
    }

    /// Where the next start begins, in words.
    fn next_start(&self) -> String {
        match self.commits.newest() {
            Some(step) => format!("start it again to go on from the checkpoint of step {step}"),
            None => "there is no checkpoint yet, so the next start begins anew".into(),
        }
    }

    /// Asks rank 0 for a checkpoint at the next step boundary.
    pub(super) fn checkpoint_now(&mut self, out: &mut Vec<Action>) {
        let first = match &self.state {
            State::Running(r) => r.worker_at(Rank(0)),
            _ => None,
        };
        match first {
            Some(to) => {
                out.push(Action::Send { to, directive: Directive::CheckpointNow });
                log(out, Level::Info, "a checkpoint was asked for: at the next step".into());
            }
            None => log(out, Level::Warn, "a checkpoint was asked for, but no generation runs".into()),
        }
    }

    /// A generation that begins while somebody wants to go, or the job to stop, is only for one step.
    pub(super) fn leave_at_once(&mut self, out: &mut Vec<Action>) {
        let leaver = self.members.iter().find(|m| m.leaving.is_some()).map(|m| m.name.clone());
        if self.stopping.is_some() {
            self.ask_to_leave("the job is to stop".into(), true, out);
        } else if let Some(name) = leaver {
            self.ask_to_leave(format!("{name} leaves"), self.too_few_would_stay(), out);
        }
    }

    /// Makes room for those who have waited long enough at the door of the running generation.
    pub(super) fn look_at_the_door(&mut self, now: Now, out: &mut Vec<Action>) {
        let State::Running(r) = &self.state else { return };
        let busy = r.leave.is_some() || r.is_failing() || r.any_finished() || r.absent().next().is_some();
        if busy || r.half_left_since().is_some() || r.world() >= self.settings.max_workers {
            return;
        }
        let Some((first, waiting)) = self.members.at_the_door(r) else { return };
        if now.since(first) < self.settings.join_window {
            return;
        }
        let names: Vec<&str> = waiting.iter().map(|m| m.name.as_str()).collect();
        let s = if names.len() == 1 { "s" } else { "" };
        let reason = format!("{} join{s}", names.join(", "));
        log(out, Level::Info, format!("room is made: {reason}"));
        self.ask_to_leave(reason, false, out);
    }

    /// Whoever has come out of the generation, and whoever may go now.
    pub(super) fn look_at_leavers(&mut self, now: Now, out: &mut Vec<Action>) {
        if let State::Running(r) = &self.state
            && r.all_out()
        {
            self.left_together(now, out);
        }
        if let State::Waiting(_) = &self.state
            && self.members.any_leaving()
            && !self.is_needed_for_checkpoint()
        {
            let gone: Vec<_> = self.members.iter().filter(|m| m.leaving.is_some()).map(|m| m.id).collect();
            gone.into_iter().for_each(|id| self.let_go(now, id, out));
        }
        if let Some(since) = self.stopping
            && now.since(since) > self.settings.stop_grace
            && !matches!(self.state, State::Ended { .. })
        {
            let seconds = self.settings.stop_grace.as_secs_f64();
            let text = format!(
                "the job was told to stop, and had no checkpoint within {seconds:.0} s (cluster.stop_grace); {}",
                self.next_start()
            );
            self.end(now, false, text, out);
        }
    }

    /// The generation is over without blame.
    fn left_together(&mut self, now: Now, out: &mut Vec<Action>) {
        let State::Running(r) = &self.state else { return };
        let wanted = r.leave.as_ref().is_some_and(|l| l.checkpoint);
        let step = r.left_at();
        self.drained = wanted && step.is_some_and(|s| self.commits.has(s));
        let generation = r.generation;
        let reason = r.leave.as_ref().map_or("its members left it".to_string(), |l| l.reason.clone());
        for incident in self.changes(r, &reason) {
            self.incidents.note(now, incident);
        }
        log(out, Level::Info, format!("generation {generation} was left together: {reason}"));
        out.push(Action::DropKeys { generation, reason });
        self.commits.generation_over(generation);
        self.members.dismiss(now);
        self.wait(now);
        if self.stopping.is_some() && self.drained {
            let step = step.unwrap_or_default();
            self.end(now, true, format!("stopped at step {step}; start it again to go on"), out);
        }
    }

    /// Who goes, and who comes: an incident each.
    fn changes(&self, r: &Running, reason: &str) -> Vec<Incident> {
        let change = |m: &Member| match (&m.leaving, r.rank_of(m.id)) {
            (Some(why), rank) => Some(Incident::of_member(r, What::Left, m, rank, why.clone())),
            (None, None) => Some(Incident::of_member(r, What::Joined, m, None, reason.to_string())),
            (None, Some(_)) => None,
        };
        self.members.iter().filter_map(change).collect()
    }

    fn ask_to_leave(&mut self, reason: String, checkpoint: bool, out: &mut Vec<Action>) {
        let State::Running(r) = &mut self.state else { return };
        if let Some(asked) = &mut r.leave {
            // Asked already; a checkpoint may be new.
            if asked.checkpoint >= checkpoint {
                return;
            }
            asked.checkpoint = true;
        } else {
            r.leave = Some(Leave { reason, checkpoint });
        }
        let Some(Leave { reason, checkpoint }) = r.leave.clone() else { return };
        let generation = r.generation;
        for to in r.inside() {
            let (reason, checkpoint) = (reason.clone(), checkpoint);
            out.push(Action::Send { to, directive: Directive::Leave { generation, reason, checkpoint } });
        }
    }

    /// True if those who want to go stay for a checkpoint that cannot be taken without them.
    fn is_needed_for_checkpoint(&self) -> bool {
        let enough = self.members.len() >= self.settings.min_workers as usize;
        let newer = !self.drained && self.members.iter().any(|m| m.has_state);
        newer && enough && self.too_few_would_stay()
    }

    /// True if those who stay could not go on by themselves.
    fn too_few_would_stay(&self) -> bool {
        self.members.staying() < self.settings.min_workers as usize
    }

    /// Says goodbye to a worker that is in no generation.
    fn let_go(&mut self, now: Now, id: WorkerId, out: &mut Vec<Action>) {
        let Some(reason) = self.members.get(id).and_then(|m| m.leaving.clone()) else { return };
        let restart = self.members.get(id).is_some_and(|m| m.replaced);
        let directive = Directive::Shutdown { ok: true, reason: reason.clone(), restart };
        out.push(Action::Send { to: id, directive });
        out.push(Action::Close { to: id });
        self.lose(now, vec![(id, reason)], out);
    }
}
