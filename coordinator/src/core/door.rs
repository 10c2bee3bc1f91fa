//! Who says Hello: newcomers, workers that were here before, and members of a generation that goes on
//! while their session, or the coordinator, was replaced.

use super::{Action, Core, Directive, Event, Generation, Hello, Level, Now, State, WorkerId, incident, log};

impl Event {
    /// The session that it came by.
    pub(super) fn sender(&self) -> Option<WorkerId> {
        match self {
            Event::Beat { worker, .. }
            | Event::Step { worker, .. }
            | Event::Eval { worker, .. }
            | Event::Shard { worker, .. }
            | Event::Log { worker, .. }
            | Event::StepFailed { worker, .. }
            | Event::Broken { worker, .. }
            | Event::Finished { worker, .. }
            | Event::Leaving { worker, .. }
            | Event::Left { worker, .. } => Some(*worker),
            _ => None,
        }
    }
}

impl Core {
    pub(super) fn hello(&mut self, now: Now, worker: WorkerId, hello: Hello, out: &mut Vec<Action>) {
        if self.members.get(worker).is_some() {
            return;
        }
        if let Some(why) = self.objection(&hello) {
            log(out, Level::Warn, format!("refused {}: {why}", hello.name));
            return out.push(Action::Reject { to: worker, why });
        }
        if hello.coordinator > self.epoch || hello.generation > self.generation {
            // It obeys another coordinator. The journal says which of the two leads; meanwhile it may ask
            // again, here or there.
            let text = format!(
                "{} has heard of coordinator {} and generation {}; this is coordinator {} and generation {}",
                hello.name, hello.coordinator, hello.generation, self.epoch, self.generation
            );
            log(out, Level::Warn, text);
            out.push(Action::Close { to: worker });
            return out.push(Action::Verify);
        }
        let was = self.members.named(&hello.name).map(|m| (m.id, m.rank, m.has_state));
        if let Some((before, ..)) = was {
            out.push(Action::Close { to: before });
            if self.is_in_seat(before, &hello) {
                return self.change_session(now, before, worker, out);
            }
            // A new process, or one that fell out of its generation: its old session is dead, whether or not
            // its stream knows.
            self.lose(now, vec![(before, "it came back with a new session".into())], out);
            if let State::Ended { reason } = &self.state {
                let why = format!("the job has ended: {reason}");
                return out.push(Action::Reject { to: worker, why });
            }
        }
        self.members.admit(now, worker, &hello);
        if let (Some((_, rank, has_state)), Some(m)) = (was, self.members.get_mut(worker)) {
            (m.rank, m.has_state) = (rank, m.has_state || has_state);
        }
        out.push(Action::Send { to: worker, directive: Directive::Welcome { name: hello.name.clone() } });
        if self.takes_its_seat(now, worker, &hello, out) {
            return;
        }
        if hello.generation > Generation(0) {
            let (generation, reason) = (hello.generation, "it ended while this worker was cut off".into());
            out.push(Action::Send { to: worker, directive: Directive::Stop { generation, reason } });
        }
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

    /// True if the session `before` sits where this Hello says that its worker does.
    fn is_in_seat(&self, before: WorkerId, hello: &Hello) -> bool {
        hello.generation > Generation(0) && self.running_rank(before, hello.generation) == Some(hello.rank)
    }

    /// A member's stream broke, and it came back before the coordinator noticed: nothing has happened.
    fn change_session(&mut self, now: Now, from: WorkerId, to: WorkerId, out: &mut Vec<Action>) {
        self.members.moved(now, from, to);
        let Some(member) = self.members.get(to) else { return };
        let name = member.name.clone();
        out.push(Action::Send { to, directive: Directive::Welcome { name: name.clone() } });
        if let State::Running(r) = &mut self.state
            && let Some(rank) = r.rank_of(from)
        {
            r.occupy(rank, to);
            self.say_leave_again(to, out);
            log(out, Level::Info, format!("{name} (rank {rank}) is back by a new connection"));
        }
    }

    /// After a restart of the coordinator: a member of the generation that goes on, or one that has come out
    /// of it. True if it sits.
    fn takes_its_seat(&mut self, now: Now, id: WorkerId, hello: &Hello, out: &mut Vec<Action>) -> bool {
        if let State::Waiting(w) = &mut self.state
            && w.restored
                .as_ref()
                .is_some_and(|r| r.generation == hello.generation && r.name_of(hello.rank) == hello.name)
            && let Some(mut running) = w.restored.take()
        {
            running.absent_until = Some(Now(now.0 + self.settings.beat_timeout));
            let cause = format!("the coordinator was started again; it is number {}", self.epoch);
            let what = incident::What::Coordinator;
            self.incidents.note(now, incident::Incident::of_generation(&running, what, String::new(), cause));
            let text = format!("generation {} goes on under this coordinator", running.generation);
            log(out, Level::Info, text);
            self.state = State::Running(running);
            // Those who came before it and are in no generation have come out of this one.
            let others: Vec<_> = self.members.iter().filter(|m| m.id != id).map(|m| m.id).collect();
            others.into_iter().for_each(|other| self.came_out(now, other));
        }
        let State::Running(r) = &mut self.state else { return false };
        if r.absent_named(&hello.name).is_none() {
            return false;
        }
        let sits = hello.generation == r.generation && r.name_of(hello.rank) == hello.name;
        if sits {
            r.occupy(hello.rank, id);
            self.members.sits(id, hello.rank);
            self.say_leave_again(id, out);
            log(out, Level::Info, format!("{} (rank {}) is back", hello.name, hello.rank));
        } else {
            self.came_out(now, id);
        }
        sits
    }

    /// A worker whose seat nobody has taken since the restart says that it is in no generation.
    fn came_out(&mut self, now: Now, id: WorkerId) {
        let (State::Running(r), Some(m)) = (&mut self.state, self.members.get(id)) else { return };
        if let Some(rank) = r.absent_named(&m.name) {
            r.occupy(rank, id);
            r.left(now, id, None);
        }
    }

    /// What a member may have missed while it was cut off.
    fn say_leave_again(&self, to: WorkerId, out: &mut Vec<Action>) {
        let State::Running(r) = &self.state else { return };
        if let (Some(leave), true) = (&r.leave, r.needs(to)) {
            let (generation, reason, checkpoint) = (r.generation, leave.reason.clone(), leave.checkpoint);
            out.push(Action::Send { to, directive: Directive::Leave { generation, reason, checkpoint } });
        }
    }
}
