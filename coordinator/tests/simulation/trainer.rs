//! The trainer of a simulated worker: it keeps its state from generation to generation, agrees with its peers on
//! the newest, steps, votes, and takes checkpoints, as the protocol says.

use crate::{
    store::digest_after,
    worker::NOBODY,
    world::{Ev, World},
};
use coordinator::core::{CheckpointFile, Event, Generation, Rank, Shard, Step, StepReport};

/// The longest that a collective may take.
const COLLECTIVE: u64 = 20_000;

/// Weights, optimizer and position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// That took its last step, or a checkpoint of it.
    pub generation: Generation,
    pub step: u64,
    pub digest: u64,
    /// A checkpoint of this step is due and not known to be committed.
    pub owed: bool,
}

/// Its place in the world's generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inside {
    pub generation: Generation,
    pub rank: Rank,
    /// The newest checkpoint, as the coordinator says.
    pub committed: Option<(Generation, Step)>,
}

#[derive(Debug, Default)]
pub struct Trainer {
    pub inside: Option<Inside>,
    pub state: Option<State>,
    /// What it is doing; whatever was planned under another number is void.
    token: u64,
    pub leave: bool,
    pub checkpoint: bool,
    /// It may leave only when that checkpoint is committed.
    pub last_checkpoint: bool,
    pub committed: u64,
    /// How long it works on its step, whoever it waits for.
    pub own: u64,
    waits: Option<Wait>,
    /// The step of which it has taken its part in this generation.
    saved: Option<u64>,
}

/// For a manifest, before it says its last word.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wait {
    Left(u64),
    Finished(u64),
}

/// What a trainer does next.
#[derive(Clone, Debug)]
pub enum Move {
    Enter,
    /// The group is there, and this is what it has agreed on.
    Ready(Option<State>),
    Arrive,
    Voted(Vote),
    /// A peer is gone.
    Broken,
    TimedOut,
}

/// What all ranks learn of a step.
#[derive(Clone, Copy, Debug)]
pub struct Vote {
    position: u64,
    leave: bool,
    checkpoint: bool,
}

/// A collective group.
#[derive(Debug, Default)]
pub struct Group {
    /// By rank: the worker and its process.
    entered: Vec<Option<(usize, u64)>>,
    formed: bool,
    broken: bool,
    position: u64,
    /// By rank, what it votes.
    arrived: Vec<Option<(bool, bool)>>,
}

impl State {
    /// A later generation may have gone back in steps, and counts all the same.
    fn age(&self) -> (Generation, Step) {
        (self.generation, Step(self.step))
    }
}

impl Trainer {
    pub fn waits_for_commit(&self) -> bool {
        self.waits.is_some()
    }
}

impl World {
    fn plan(&mut self, w: usize, delay: u64, what: Move) {
        let worker = &self.workers[w];
        let (life, token) = (worker.life, worker.trainer.token);
        self.at(self.now + delay, Ev::Trainer(w, life, token, what));
    }

    pub fn enter_soon(&mut self, w: usize, inside: Inside) {
        let trainer = &mut self.workers[w].trainer;
        let (state, committed) = (trainer.state, trainer.committed);
        let token = trainer.token + 1;
        *trainer = Trainer { inside: Some(inside), state, committed, token, ..Default::default() };
        let delay = self.rng.between(10, 800);
        self.plan(w, delay, Move::Enter);
    }

    /// It leaves its group, if it is in one, whose other members see that.
    pub fn drop_out(&mut self, w: usize) {
        let trainer = &mut self.workers[w].trainer;
        trainer.token += 1;
        trainer.waits = None;
        if let Some(inside) = trainer.inside.take() {
            self.break_group(inside.generation);
        }
    }

    fn break_group(&mut self, generation: Generation) {
        let Some(group) = self.groups.get_mut(&generation) else { return };
        group.broken = true;
        for (w, life) in group.entered.clone().into_iter().flatten() {
            let peer = &self.workers[w];
            let inside = peer.trainer.inside.is_some_and(|i| i.generation == generation);
            if peer.life == life && inside && peer.isolated_until <= self.now {
                let delay = self.rng.between(5, 300);
                self.plan(w, delay, Move::Broken);
            }
        }
    }

    pub fn trainer_moves(&mut self, w: usize, token: u64, what: Move) {
        let worker = &mut self.workers[w];
        if worker.trainer.token != token || worker.stuck {
            return;
        }
        let Some(inside) = worker.trainer.inside else { return };
        worker.progress += 1;
        match what {
            Move::Enter => self.enter(w, inside),
            Move::Ready(state) => self.ready(w, inside, state),
            Move::Arrive => self.arrive(w, inside),
            Move::Voted(vote) => {
                // A result that is half way when a peer goes reaches some and not others.
                match self.groups[&inside.generation].broken && self.rng.one_in(2) {
                    true => self.fail(w, inside),
                    false => self.take_step(w, inside, vote),
                }
            }
            Move::Broken | Move::TimedOut => self.fail(w, inside),
        }
    }

    fn enter(&mut self, w: usize, inside: Inside) {
        let Inside { generation, rank, .. } = inside;
        if self.dropped.contains(&generation) {
            return self.fail(w, inside);
        }
        let world = self.store.recorded(generation).unwrap().membership.names.len();
        let life = self.workers[w].life;
        let group = self.groups.entry(generation).or_insert_with(|| Group {
            entered: vec![None; world],
            arrived: vec![None; world],
            ..Default::default()
        });
        let seat = &mut group.entered[rank.0 as usize];
        assert_eq!(*seat, None, "two workers as rank {rank} of generation {generation}");
        *seat = Some((w, life));
        if group.broken {
            return self.fail(w, inside);
        }
        self.plan(w, COLLECTIVE, Move::TimedOut);
        self.look_at_group(generation);
    }

    /// Whether the group can form, or a step's vote be completed.
    pub fn look_at_group(&mut self, generation: Generation) {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&generation) else { return };
        let Some(members) = group.entered.iter().copied().collect::<Option<Vec<_>>>() else { return };
        let apart = members.len() > 1 && members.iter().any(|(w, _)| self.workers[*w].isolated_until > now);
        if group.broken || apart {
            return;
        }
        if !group.formed {
            group.formed = true;
            let first = &self.workers[members[0].0].trainer;
            let committed = first.inside.and_then(|inside| inside.committed);
            let states = members.iter().filter_map(|(w, _)| self.workers[*w].trainer.state);
            // The newest wins; of those who hold it, the first rank's.
            let newest = states.reduce(|a, b| if b.age() > a.age() { b } else { a });
            // One that was cut off for long may have less than a checkpoint has; which may be damaged.
            let whole = self.store.newest_whole();
            let agreed = newest.filter(|n| committed <= Some(n.age()) || whole <= Some(n.age()));
            let saved = newest.is_some() && agreed.is_none();
            self.tally.add("checkpoints newer than all memory", saved.into());
            for (w, _) in members {
                let delay = self.rng.between(20, 1500);
                self.workers[w].trainer.token += 1;
                self.plan(w, delay, Move::Ready(agreed));
            }
            return;
        }
        let Some(votes) = group.arrived.iter().copied().collect::<Option<Vec<_>>>() else { return };
        let vote = Vote {
            position: group.position,
            leave: votes.iter().any(|v| v.0),
            checkpoint: votes.iter().any(|v| v.1),
        };
        group.position += 1;
        group.arrived.fill(None);
        for (w, _) in members {
            let delay = self.rng.between(1, 60);
            self.workers[w].trainer.token += 1;
            self.plan(w, delay, Move::Voted(vote));
        }
    }

    /// The group stands and has agreed; where nobody has state, it is read from the newest checkpoint.
    fn ready(&mut self, w: usize, inside: Inside, agreed: Option<State>) {
        let mine = self.workers[w].trainer.state;
        let state = agreed.unwrap_or_else(|| self.loaded(inside.generation));
        self.check_state(state);
        if agreed.is_none() {
            self.tally.add("loads", (inside.rank == Rank(0)).into());
        } else if mine.is_none_or(|m| m.step != state.step) {
            self.tally.add("heals", 1);
        }
        self.workers[w].trainer.state = Some(state);
        let group = self.groups.get_mut(&inside.generation).unwrap();
        group.position = state.step;
        if group.broken {
            return self.fail(w, inside);
        }
        if state.owed {
            self.save(w, inside);
        }
        self.go_on(w, false);
    }

    /// The state in the newest checkpoint that can be read, the same for the whole group.
    fn loaded(&mut self, generation: Generation) -> State {
        if let Some(state) = self.loads.get(&generation) {
            return *state;
        }
        let whole = self.store.newest_whole();
        assert!(whole.is_some() || !self.store.ever_committed || self.store.replacing.is_some());
        let last = self.store.manifests.last_key_value();
        let newer = last.is_some_and(|(last, _)| Some(*last) > whole.map(|(_, step)| step));
        self.tally.add("loads past a damaged checkpoint", newer.into());
        let (of, Step(step)) = whole.unwrap_or((Generation(0), Step(0)));
        let digest = self.store.expected[step as usize];
        let state = State { generation: of, step, digest, owed: false };
        self.loads.insert(generation, state);
        state
    }

    fn arrive(&mut self, w: usize, inside: Inside) {
        let trainer = &self.workers[w].trainer;
        let vote = (trainer.leave, trainer.checkpoint);
        let group = self.groups.get_mut(&inside.generation).unwrap();
        group.arrived[inside.rank.0 as usize] = Some(vote);
        self.plan(w, COLLECTIVE, Move::TimedOut);
        self.look_at_group(inside.generation);
    }

    fn take_step(&mut self, w: usize, inside: Inside, vote: Vote) {
        let Some(state) = &mut self.workers[w].trainer.state else { panic!("no state") };
        assert_eq!(state.step, vote.position, "a rank at another step than its group");
        let step = state.step + 1;
        let due = step.is_multiple_of(self.every) || step == self.total || vote.checkpoint;
        let digest = digest_after(state.digest, vote.position);
        *state = State { generation: inside.generation, step, digest, owed: due };
        let state = *state;
        self.check_state(state);
        self.tally.add("steps", (inside.rank == Rank(0)).into());
        if inside.rank == Rank(0) {
            let report = StepReport { generation: inside.generation, step: Step(step), ..Default::default() };
            self.say(w, Event::Step { worker: NOBODY, report });
        }
        self.workers[w].trainer.checkpoint &= !vote.checkpoint;
        if due {
            self.save(w, inside);
        }
        // All learn of it by the vote, though not all were told; and whoever was told later goes by the vote.
        self.workers[w].trainer.last_checkpoint = vote.leave && vote.checkpoint;
        self.go_on(w, vote.leave);
    }

    /// After a step and what was due at its boundary.
    fn go_on(&mut self, w: usize, leave: bool) {
        let trainer = &mut self.workers[w].trainer;
        let step = trainer.state.unwrap().step;
        if step == self.total {
            let until = if trainer.saved == Some(step) { step } else { 0 };
            trainer.waits = Some(Wait::Finished(until));
            self.commit_heard(w);
        } else if leave {
            // Where no checkpoint was asked for, none is waited for.
            let until = if trainer.last_checkpoint { step } else { 0 };
            trainer.waits = Some(Wait::Left(until));
            self.commit_heard(w);
        } else {
            let delay = self.step_ms(w);
            self.workers[w].trainer.own = delay;
            self.plan(w, delay, Move::Arrive);
        }
    }

    /// A manifest was written: was it the one that was waited for?
    pub fn commit_heard(&mut self, w: usize) {
        let trainer = &mut self.workers[w].trainer;
        if let Some(state) = &mut trainer.state {
            state.owed &= state.step > trainer.committed;
        }
        let (Some(wait), Some(Inside { generation, .. })) = (trainer.waits, trainer.inside) else { return };
        let step = Step(trainer.state.unwrap().step);
        let (until, last_word) = match wait {
            Wait::Left(until) => (until, Event::Left { worker: NOBODY, generation, step }),
            Wait::Finished(until) => (until, Event::Finished { worker: NOBODY, generation, step }),
        };
        if trainer.committed >= until {
            trainer.waits = None;
            trainer.inside = None;
            trainer.token += 1;
            self.insist(w, last_word);
        }
    }

    /// Its collective failed: it waits for another generation, with what it has.
    fn fail(&mut self, w: usize, inside: Inside) {
        self.drop_out(w);
        let step = Step(self.workers[w].trainer.state.map_or(0, |s| s.step));
        let (generation, error) = (inside.generation, "the collective failed".into());
        self.insist(w, Event::StepFailed { worker: NOBODY, generation, step, error, fatal: false });
    }

    /// Its part of a checkpoint: copied now, uploaded behind the next steps.
    fn save(&mut self, w: usize, inside: Inside) {
        let life = self.workers[w].life;
        let trainer = &mut self.workers[w].trainer;
        let state = trainer.state.as_mut().unwrap();
        if trainer.saved == Some(state.step) {
            return;
        }
        trainer.saved = Some(state.step);
        state.generation = inside.generation;
        let state = *state;
        let world = self.groups[&inside.generation].entered.len() as u32;
        let delay = self.rng.between(10, 2500);
        self.at(self.now + delay, Ev::Uploaded(w, life, inside, state, world));
    }

    pub fn uploaded(&mut self, w: usize, inside: Inside, state: State, world: u32) {
        let Inside { generation, rank, .. } = inside;
        let (step, attempt) = (Step(state.step), format!("g{generation}"));
        let key = format!("{attempt}/{rank}");
        self.store.put_object(step, key.clone(), state.digest);
        let files = vec![CheckpointFile { key, bytes: 1, sha256: String::new() }];
        let shard =
            Shard { generation, step, rank, world_size: world, attempt, files, header_json: String::new() };
        self.insist(w, Event::Shard { worker: NOBODY, shard });
    }
}
