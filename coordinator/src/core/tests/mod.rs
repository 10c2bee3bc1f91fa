//! Every path of the core, in virtual time.

mod commits;
mod incidents;
mod leave;
mod losses;
mod restart;

pub use super::*;
pub use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

pub fn settings() -> Settings {
    Settings {
        protocol_version: 1,
        config_digest: "c".into(),
        dataset_digest: "d".into(),
        workers: 2,
        min_workers: 1,
        max_workers: 4,
        gather: Duration::from_secs(30),
        beat_timeout: Duration::from_secs(10),
        step_timeout: Duration::from_secs(60),
        collective_timeout: Duration::from_secs(20),
        join_window: Duration::from_secs(2),
        stop_grace: Duration::from_secs(30),
        straggler_factor: Some(2.0),
        replace_stragglers: false,
        retention: Retention { keep: 2, keep_every: None, keep_best: None },
    }
}

pub fn hello(n: u64) -> Hello {
    Hello {
        protocol_version: 1,
        name: format!("w{n}"),
        node: String::new(),
        device: "cpu:0".into(),
        config_digest: "c".into(),
        dataset_digest: "d".into(),
        generation: Generation(0),
        rank: Rank(0),
        coordinator: Epoch(0),
    }
}

/// A core with a clock that plays journal and store: records and commits succeed at once.
struct Job {
    core: Core,
    now: Now,
    /// Everything since the last look.
    seen: Vec<Action>,
    commits: Vec<WholeCheckpoint>,
    commits_land: bool,
}

impl Job {
    fn new(settings: Settings) -> Self {
        Self::of(Core::new(settings, Found::default()))
    }

    fn of(core: Core) -> Self {
        Self { core, now: Now::default(), seen: vec![], commits: vec![], commits_land: true }
    }

    /// Workers 1..=n have joined and a generation runs.
    fn running(settings: Settings, n: u64) -> Self {
        let mut job = Self::new(settings);
        (1..=n).for_each(|w| job.join(w));
        job
    }

    fn event(&mut self, event: Event) {
        for action in self.core.handle(self.now, event) {
            let answer = match &action {
                Action::Record(m) => Some(Event::Recorded { generation: m.generation }),
                Action::Commit(whole) => {
                    self.commits.push(whole.clone());
                    self.commits_land.then(|| committed(whole.step.0))
                }
                _ => None,
            };
            self.seen.push(action);
            if let Some(answer) = answer {
                self.event(answer);
            }
        }
    }

    fn join(&mut self, n: u64) {
        self.event(Event::Hello { worker: WorkerId(n), hello: hello(n) });
    }

    fn leave(&mut self, n: u64) {
        self.event(Event::Disconnected { worker: WorkerId(n), why: "its connection broke".into() });
    }

    fn step(&mut self, n: u64, generation: u64, step: u64) {
        let report =
            StepReport { generation: Generation(generation), step: Step(step), ..Default::default() };
        self.event(Event::Step { worker: WorkerId(n), report });
    }

    fn beat(&mut self, n: u64, generation: u64, progress: u64) {
        let phase = "training".into();
        let beat = Beat {
            generation: Generation(generation),
            phase,
            progress,
            step: Step(progress),
            ..Beat::default()
        };
        self.event(Event::Beat { worker: WorkerId(n), beat });
    }

    fn fail(&mut self, n: u64, generation: u64) {
        self.event(Event::StepFailed {
            worker: WorkerId(n),
            generation: Generation(generation),
            step: Step(7),
            error: "timed out".into(),
            fatal: false,
        });
    }

    fn finish(&mut self, n: u64, generation: u64) {
        let (worker, generation) = (WorkerId(n), Generation(generation));
        self.event(Event::Finished { worker, generation, step: Step(20) });
    }

    fn shard(&mut self, n: u64, generation: u64, step: u64, rank: u32, world_size: u32) {
        self.event(Event::Shard {
            worker: WorkerId(n),
            shard: Shard {
                generation: Generation(generation),
                step: Step(step),
                rank: Rank(rank),
                world_size,
                attempt: format!("g{generation}"),
                files: vec![CheckpointFile { key: format!("{rank}"), bytes: 1, sha256: String::new() }],
                header_json: if rank == 0 { "{}".into() } else { String::new() },
            },
        });
    }

    /// Time passes; the workers in `beating` keep sending beats without progress.
    fn pass(&mut self, time: Duration, beating: &[u64]) {
        let until = Now(self.now.0 + time);
        while self.now < until {
            self.now.0 += 200 * MS;
            for n in beating {
                let beat = self.core.members.get(WorkerId(*n)).map(|m| m.beat.clone()).unwrap_or_default();
                self.event(Event::Beat { worker: WorkerId(*n), beat });
            }
            self.event(Event::Tick);
        }
    }

    fn look(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.seen)
    }

    /// (worker, generation, rank, members) of each assignment since the last look.
    fn assigned(&mut self) -> Vec<(u64, u64, u32, String)> {
        let found = self.seen.iter().filter_map(|a| match a {
            Action::Send { to, directive: Directive::Assigned { generation, rank, members, .. } } => {
                Some((to.0, generation.0, rank.0, members.join(" ")))
            }
            _ => None,
        });
        let found = found.collect();
        self.seen.clear();
        found
    }

    fn stops(&self) -> Vec<(u64, String)> {
        let stop = |a: &Action| match a {
            Action::Send { to, directive: Directive::Stop { reason, .. } } => Some((to.0, reason.clone())),
            _ => None,
        };
        self.seen.iter().filter_map(stop).collect()
    }

    /// (worker, reason, with a checkpoint) of each request to leave since the last look.
    fn leaves(&mut self) -> Vec<(u64, String, bool)> {
        let found = self.seen.iter().filter_map(|a| match a {
            Action::Send { to, directive: Directive::Leave { reason, checkpoint, .. } } => {
                Some((to.0, reason.clone(), *checkpoint))
            }
            _ => None,
        });
        let found = found.collect();
        self.seen.clear();
        found
    }

    /// The worker has left its generation.
    fn left(&mut self, n: u64, generation: u64, step: u64) {
        let (worker, generation, step) = (WorkerId(n), Generation(generation), Step(step));
        self.event(Event::Left { worker, generation, step });
    }

    fn leaving(&mut self, n: u64) {
        self.event(Event::Leaving { worker: WorkerId(n), reason: "SIGTERM".into() });
    }

    /// Since the last look, this worker was told that it may go.
    fn released(&self, n: u64) -> bool {
        self.seen.iter().any(|a| {
            matches!(a, Action::Send { to, directive: Directive::Shutdown { ok: true, .. } } if to.0 == n)
        })
    }

    fn incidents(&self) -> Vec<Incident> {
        let incident = |a: &Action| match a {
            Action::Publish(Notice::Incident(i)) => Some(i.clone()),
            _ => None,
        };
        self.seen.iter().filter_map(incident).collect()
    }

    fn exit(&self) -> Option<(bool, String)> {
        self.seen.iter().find_map(|a| match a {
            Action::Exit { ok, reason } => Some((*ok, reason.clone())),
            _ => None,
        })
    }
}

fn committed(step: u64) -> Event {
    Event::Committed { step: Step(step), bytes: 1, manifest: "m".into() }
}
