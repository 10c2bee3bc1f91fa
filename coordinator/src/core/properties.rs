//! Random histories against the invariants of the core.

use super::{
    tests::{hello, settings},
    *,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// What the world does; the journal and the store answer when their turn comes.
#[derive(Clone, Debug)]
enum Move {
    Join(u64),
    Disconnect(u64),
    /// Its stream breaks and it is back before the coordinator notices.
    Reconnect(u64),
    Leaving(u64),
    Left(u64),
    Beat(u64, u64),
    Step(u64),
    Shard(u64, u64),
    Fail(u64),
    Finish(u64),
    Answer,
    CommitFails,
    Terminate,
    Pass(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let w = 0..5u64;
    let one = prop_oneof![
        6 => w.clone().prop_map(Move::Join),
        2 => w.clone().prop_map(Move::Disconnect),
        2 => w.clone().prop_map(Move::Reconnect),
        1 => w.clone().prop_map(Move::Leaving),
        4 => w.clone().prop_map(Move::Left),
        3 => (w.clone(), 0..9u64).prop_map(|(w, p)| Move::Beat(w, p)),
        4 => w.clone().prop_map(Move::Step),
        8 => (w.clone(), 1..4u64).prop_map(|(w, s)| Move::Shard(w, 10 * s)),
        1 => w.clone().prop_map(Move::Fail),
        1 => w.prop_map(Move::Finish),
        8 => Just(Move::Answer),
        1 => Just(Move::CommitFails),
        1 => prop_oneof![9 => Just(Move::Answer), 1 => Just(Move::Terminate)],
        4 => (1..15u64).prop_map(|n| Move::Pass(100 * n)),
    ];
    prop::collection::vec(one, 0..200)
}

/// The world around the core, and what it has promised so far.
struct World {
    core: Core,
    settings: Settings,
    now: Now,
    sessions: BTreeMap<u64, WorkerId>,
    next_session: u64,
    answers: VecDeque<Event>,
    recorded: u64,
    durable: BTreeSet<Generation>,
    /// The assignment each session last heard and was not stopped from.
    seats: BTreeMap<WorkerId, (Generation, Rank, usize)>,
    commits: BTreeSet<(Generation, Step)>,
    manifests: BTreeSet<Step>,
    step: u64,
    exits: u32,
}

impl World {
    fn give(&mut self, event: Event) {
        if let Event::Recorded { generation } = &event {
            self.durable.insert(*generation);
        }
        let mut ranks: BTreeMap<Generation, (Vec<Rank>, usize)> = BTreeMap::new();
        for action in self.core.handle(self.now, event) {
            let refusal = matches!(action, Action::Reject { .. });
            assert!(self.exits == 0 || refusal, "nothing follows the end but refusals: {action:?}");
            match action {
                Action::Record(Membership { generation, names: members, .. }) => {
                    self.recorded += 1;
                    assert_eq!(generation.0, self.recorded, "numbers have no gaps");
                    let (least, most) = (self.settings.min_workers, self.settings.max_workers);
                    assert!((least..=most).contains(&(members.len() as u32)), "{members:?}");
                    self.answers.push_back(Event::Recorded { generation });
                }
                Action::Send { to, directive: Directive::Assigned { generation, rank, members, .. } } => {
                    assert!(self.durable.contains(&generation), "durable before announced");
                    assert!(!self.seats.contains_key(&to), "{to} was not stopped before {generation}");
                    assert_eq!(members.iter().collect::<BTreeSet<_>>().len(), members.len());
                    let all = ranks.entry(generation).or_insert((vec![], members.len()));
                    all.0.push(rank);
                    self.seats.insert(to, (generation, rank, members.len()));
                }
                // One that was cut off does not hear it.
                Action::Send { to, directive: Directive::Leave { generation, .. } }
                    if self.sessions.values().any(|id| *id == to) =>
                {
                    assert_eq!(self.seats.get(&to).map(|s| s.0), Some(generation));
                }
                Action::Send { to, directive: Directive::Stop { generation, .. } } => {
                    assert_eq!(self.seats.remove(&to).map(|s| s.0), Some(generation));
                }
                Action::Commit(whole) => {
                    assert!(self.commits.insert((whole.generation, whole.step)), "one commit a step");
                    assert_eq!(whole.replaces, self.manifests.contains(&whole.step));
                    self.answers.push_back(Event::Committed {
                        step: whole.step,
                        bytes: 0,
                        manifest: String::new(),
                    });
                }
                Action::Prune { delete, newest } => {
                    self.manifests.insert(newest);
                    for step in delete {
                        assert!(self.manifests.remove(&step) && step < newest);
                    }
                    let kept = self.manifests.range(..=newest).count();
                    assert!((1..=self.settings.retention.keep).contains(&kept));
                }
                Action::Close { to } => {
                    self.sessions.retain(|_, id| *id != to);
                    self.seats.remove(&to);
                }
                Action::Exit { .. } => self.exits += 1,
                _ => {}
            }
        }
        for (generation, (mut got, world)) in ranks {
            got.sort();
            let want: Vec<Rank> = (0..world as u32).map(Rank).collect();
            assert_eq!(got, want, "ranks of {generation} are a permutation");
        }
    }

    fn make(&mut self, m: Move) {
        let seat = |w: &World, n: u64| {
            let id = *w.sessions.get(&n)?;
            w.seats.get(&id).map(|(g, r, world)| (id, *g, *r, *world))
        };
        match m {
            Move::Join(n) => {
                let id = WorkerId(self.next_session);
                self.next_session += 1;
                self.sessions.insert(n, id);
                self.give(Event::Hello { worker: id, hello: hello(n) });
            }
            Move::Reconnect(n) => {
                if let Some((worker, generation, rank, world)) = seat(self, n) {
                    let id = WorkerId(self.next_session);
                    self.next_session += 1;
                    self.sessions.insert(n, id);
                    self.seats.remove(&worker);
                    self.seats.insert(id, (generation, rank, world));
                    let hello = Hello { generation, rank, ..hello(n) };
                    self.give(Event::Hello { worker: id, hello });
                }
            }
            Move::Leaving(n) => {
                if let Some(&worker) = self.sessions.get(&n) {
                    self.give(Event::Leaving { worker, reason: "SIGTERM".into() });
                }
            }
            Move::Left(n) => {
                if let Some((worker, generation, ..)) = seat(self, n) {
                    self.seats.remove(&worker);
                    self.give(Event::Left { worker, generation, step: Step(self.step) });
                }
            }
            Move::Terminate => self.give(Event::Terminate),
            Move::Disconnect(n) => {
                if let Some(worker) = self.sessions.remove(&n) {
                    self.seats.remove(&worker);
                    self.give(Event::Disconnected { worker, why: "left".into() });
                }
            }
            Move::Beat(n, progress) => {
                if let Some(&worker) = self.sessions.get(&n) {
                    self.give(Event::Beat { worker, beat: Beat { progress, ..Beat::default() } });
                }
            }
            Move::Step(n) => {
                if let Some((worker, generation, ..)) = seat(self, n) {
                    self.step += 1;
                    let report = StepReport { generation, step: Step(self.step), ..Default::default() };
                    self.give(Event::Step { worker, report });
                }
            }
            Move::Shard(n, step) => {
                if let Some((worker, generation, rank, world)) = seat(self, n) {
                    let shard = Shard {
                        generation,
                        step: Step(step),
                        rank,
                        world_size: world as u32,
                        attempt: format!("g{generation}"),
                        files: vec![],
                        header_json: String::new(),
                    };
                    self.give(Event::Shard { worker, shard });
                }
            }
            Move::Fail(n) => {
                if let Some((worker, generation, ..)) = seat(self, n) {
                    let (step, error) = (Step(0), "no".into());
                    self.give(Event::StepFailed { worker, generation, step, error, fatal: false });
                }
            }
            Move::Finish(n) => {
                if let Some((worker, generation, ..)) = seat(self, n) {
                    self.seats.remove(&worker);
                    self.give(Event::Finished { worker, generation, step: Step(self.step) });
                }
            }
            Move::Answer => {
                if let Some(event) = self.answers.pop_front() {
                    self.give(event);
                }
            }
            Move::CommitFails => {
                if let Some(Event::Committed { step, .. }) = self.answers.front().cloned() {
                    self.answers.pop_front();
                    self.give(Event::CommitFailed { step, error: "no".into() });
                }
            }
            Move::Pass(ms) => {
                self.now.0 += Duration::from_millis(ms);
                self.give(Event::Tick);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_history_keeps_the_promises(moves in moves(), min_workers in 1..3u32, keep in 1..3usize) {
        let retention = Retention { keep, ..settings().retention };
        let settings = Settings { min_workers, retention, max_workers: 3, ..settings() };
        let mut world = World {
            core: Core::new(settings.clone(), Found::default()),
            settings,
            now: Now::default(),
            sessions: BTreeMap::new(),
            next_session: 1,
            answers: VecDeque::new(),
            recorded: 0,
            durable: BTreeSet::new(),
            seats: BTreeMap::new(),
            commits: BTreeSet::new(),
            manifests: BTreeSet::new(),
            step: 0,
            exits: 0,
        };
        for m in moves {
            if world.exits > 0 {
                break;
            }
            world.make(m);
        }
    }
}
