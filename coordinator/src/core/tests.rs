//! Every path of the core, in virtual time.

use super::*;

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
        let core = Core::new(settings, Generation(0), BTreeMap::new());
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
                Action::Record { generation, .. } => Some(Event::Recorded { generation: *generation }),
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
            Action::Send { to, directive: Directive::Assigned { generation, rank, members } } => {
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

#[test]
fn starts_when_all_expected_workers_are_here() {
    let mut job = Job::new(settings());
    job.join(2);
    assert_eq!(job.assigned(), []);
    job.join(1);
    // Ranks by name, whoever came first.
    assert_eq!(job.assigned(), [(1, 1, 0, "w1 w2".into()), (2, 1, 1, "w1 w2".into())]);
}

#[test]
fn starts_with_fewer_when_gathering_takes_too_long() {
    let mut job = Job::new(settings());
    job.pass(Duration::from_secs(100), &[]);
    job.join(1);
    job.pass(Duration::from_secs(29), &[1]);
    assert_eq!(job.assigned(), [], "the time counts from the first worker");
    job.pass(Duration::from_secs(2), &[1]);
    assert_eq!(job.assigned(), [(1, 1, 0, "w1".into())]);

    let mut job = Job::new(Settings { min_workers: 2, ..settings() });
    job.join(1);
    job.pass(Duration::from_secs(100), &[1]);
    assert_eq!(job.assigned(), [], "never below min_workers");
}

#[test]
fn the_generation_is_durable_before_anyone_hears_of_it() {
    let mut core = Core::new(settings(), Generation(41), BTreeMap::new());
    core.handle(Now::default(), Event::Hello { worker: WorkerId(1), hello: hello(1) });
    let actions = core.handle(Now::default(), Event::Hello { worker: WorkerId(2), hello: hello(2) });
    let members = vec!["w1".into(), "w2".into()];
    assert_eq!(actions.last(), Some(&Action::Record { generation: Generation(42), members }));
    assert!(!actions.iter().any(|a| matches!(a, Action::Send { directive: Directive::Assigned { .. }, .. })));
    // A member leaves while it is being written: nobody is assigned, the next one gets its number.
    core.handle(Now::default(), Event::Disconnected { worker: WorkerId(2), why: String::new() });
    let actions = core.handle(Now::default(), Event::Recorded { generation: Generation(42) });
    assert!(!actions.iter().any(|a| matches!(a, Action::Send { .. })), "{actions:?}");
    core.handle(Now::default(), Event::Hello { worker: WorkerId(3), hello: hello(3) });
    let actions = core.handle(Now(Duration::from_secs(1)), Event::Tick);
    assert!(matches!(actions[0], Action::Record { generation: Generation(43), .. }), "{actions:?}");
}

#[test]
fn strangers_are_told_both_digests_and_what_to_do() {
    let refused = |change: fn(&mut Hello)| {
        let mut job = Job::running(settings(), 2);
        job.look();
        let mut hello = hello(3);
        change(&mut hello);
        job.event(Event::Hello { worker: WorkerId(3), hello });
        let seen = job.look();
        let why = seen.iter().find_map(|a| match a {
            Action::Reject { to: WorkerId(3), why } => Some(why.clone()),
            _ => None,
        });
        assert!(!seen.iter().any(|a| matches!(a, Action::Send { .. })));
        why.expect("a rejection")
    };
    let why = refused(|h| h.config_digest = "other".into());
    assert!(
        why.contains("digest other") && why.contains("digest c") && why.contains("start the worker again")
    );
    let why = refused(|h| h.dataset_digest = "other".into());
    assert!(why.contains("digest other") && why.contains("digest d") && why.contains("data.url"));
    let why = refused(|h| h.protocol_version = 9);
    assert!(why.contains('9') && why.contains("the same release"));
}

#[test]
fn a_lost_worker_stops_the_rest_who_go_on_in_order() {
    let mut job = Job::running(Settings { workers: 4, ..settings() }, 4);
    job.step(1, 1, 5);
    job.look();
    job.leave(2);
    let reason = "lost worker w2 (rank 1) at step 5 while joining: its connection broke";
    assert_eq!(job.stops(), [1, 3, 4].map(|n| (n, reason.to_string())));
    let lost = Notice::Lost { worker: "w2".into(), rank: Rank(1), step: Step(5), reason: reason.to_string() };
    assert!(job.seen.contains(&Action::Publish(lost)));
    assert!(job.seen.contains(&Action::DropKeys { generation: Generation(1), reason: reason.into() }));
    assert_eq!(job.assigned(), [], "it settles first");
    job.pass(SETTLE, &[]);
    let names = "w1 w3 w4".to_string();
    assert_eq!(job.assigned(), [(1, 2, 0, names.clone()), (3, 2, 1, names.clone()), (4, 2, 2, names)]);
}

#[test]
fn workers_lost_together_cost_one_generation() {
    let mut job = Job::running(Settings { workers: 4, ..settings() }, 4);
    job.leave(2);
    job.leave(3);
    job.look();
    job.pass(SETTLE, &[]);
    assert_eq!(job.assigned(), [(1, 2, 0, "w1 w4".into()), (4, 2, 1, "w1 w4".into())]);
}

#[test]
fn below_min_workers_the_job_waits() {
    let mut job = Job::running(Settings { min_workers: 2, ..settings() }, 2);
    job.look();
    job.leave(1);
    job.pass(Duration::from_secs(300), &[2]);
    assert_eq!(job.assigned(), []);
    job.join(3);
    // The survivor keeps its place before the newcomer.
    assert_eq!(job.assigned(), [(2, 2, 0, "w2 w3".into()), (3, 2, 1, "w2 w3".into())]);
}

#[test]
fn when_all_are_gone_it_gathers_again() {
    let mut job = Job::running(settings(), 2);
    job.step(1, 1, 5);
    job.leave(1);
    job.leave(2);
    job.look();
    job.join(3);
    job.pass(Duration::from_secs(20), &[3]);
    assert_eq!(job.assigned(), []);
    job.join(4);
    assert_eq!(job.assigned().len(), 2);
}

#[test]
fn silence_and_standstill_are_losses() {
    let mut job = Job::running(settings(), 2);
    job.look();
    job.pass(Duration::from_secs(11), &[1]);
    let stops = job.stops();
    assert_eq!(stops.len(), 1);
    assert!(stops[0].1.contains("w2 (rank 1)") && stops[0].1.contains("no beat for 10.0 s"), "{stops:?}");
    assert!(job.seen.contains(&Action::Close { to: WorkerId(2) }));

    let mut job = Job::running(settings(), 2);
    let mut progress = 0;
    for _ in 0..70 {
        progress += 1;
        job.beat(1, 1, progress);
        job.pass(Duration::from_secs(1), &[2]);
    }
    let stops = job.stops();
    assert_eq!(stops.len(), 1, "{stops:?}");
    assert_eq!(stops[0].0, 1);
    assert!(stops[0].1.contains("no progress for 60.0 s (cluster.step_timeout)"), "{stops:?}");
}

#[test]
fn a_suspended_coordinator_blames_nobody() {
    let mut job = Job::running(settings(), 2);
    job.pass(Duration::from_secs(1), &[1, 2]);
    job.look();
    job.now.0 += Duration::from_secs(3600);
    job.event(Event::Tick);
    assert_eq!(job.look(), []);
}

#[test]
fn a_worker_at_the_door_waits_and_is_not_stuck() {
    let mut job = Job::running(settings(), 2);
    job.look();
    job.join(3);
    for p in 1..200 {
        job.beat(1, 1, p);
        job.beat(2, 1, p);
        job.pass(Duration::from_secs(1), &[1, 2, 3]);
    }
    assert_eq!(job.stops(), []);
    job.leave(2);
    job.pass(SETTLE, &[1, 3]);
    assert_eq!(job.assigned(), [(1, 2, 0, "w1 w3".into()), (3, 2, 1, "w1 w3".into())]);
    // Having waited long is no standstill in the new generation either.
    job.pass(Duration::from_secs(50), &[1, 3]);
    assert_eq!(job.stops(), []);
}

#[test]
fn more_workers_than_lanes_stand_by() {
    let mut job = Job::new(Settings { workers: 2, max_workers: 2, ..settings() });
    (1..=3).for_each(|w| job.join(w));
    assert_eq!(job.assigned().len(), 2);
    job.leave(1);
    job.pass(SETTLE, &[]);
    assert_eq!(job.assigned(), [(2, 2, 0, "w2 w3".into()), (3, 2, 1, "w2 w3".into())]);
}

#[test]
fn a_failed_step_waits_for_the_name_of_the_dead() {
    let mut job = Job::running(settings(), 2);
    job.step(1, 1, 1);
    job.fail(1, 1);
    job.pass(Duration::from_secs(1), &[1, 2]);
    assert_eq!(job.stops(), []);
    job.leave(2);
    assert_eq!(job.stops().len(), 1);
    assert!(job.stops()[0].1.contains("lost worker w2"));
}

#[test]
fn a_failed_step_without_a_loss_restarts_everyone() {
    let mut job = Job::running(settings(), 2);
    job.step(1, 1, 1);
    job.fail(2, 1);
    job.look();
    job.pass(FAILURE_GRACE, &[1, 2]);
    assert_eq!(
        job.stops(),
        [1, 2].map(|n| (n, "worker w2 (rank 1) failed at step 7: timed out".to_string()))
    );
    job.pass(SETTLE, &[1, 2]);
    assert_eq!(job.assigned().len(), 2);
    // Late news of the old generation changes nothing.
    job.fail(1, 1);
    job.pass(Duration::from_secs(5), &[1, 2]);
    assert_eq!(job.stops(), []);
}

#[test]
fn whoever_stood_still_while_its_peers_timed_out_is_lost() {
    let mut job = Job::running(Settings { workers: 3, ..settings() }, 3);
    let mut p = 0;
    for _ in 0..20 {
        p += 1;
        job.beat(1, 1, p);
        job.beat(2, 1, p);
        job.pass(Duration::from_secs(1), &[3]);
    }
    job.fail(1, 1);
    job.fail(2, 1);
    job.look();
    job.pass(FAILURE_GRACE, &[1, 2, 3]);
    let stops = job.stops();
    assert_eq!(stops.iter().map(|s| s.0).collect::<Vec<_>>(), [1, 2]);
    assert!(stops[0].1.contains("lost worker w3 (rank 2)"), "{stops:?}");
}

#[test]
fn failing_again_and_again_at_the_same_step_ends_the_job() {
    let mut job = Job::running(settings(), 2);
    job.step(1, 1, 3);
    for generation in 1..=u64::from(MOST_BARREN_GENERATIONS) {
        // Each generation repeats the steps since the checkpoint and comes no further.
        job.step(1, generation, 3);
        job.fail(1, generation);
        job.pass(FAILURE_GRACE + SETTLE, &[1, 2]);
    }
    let (ok, reason) = job.exit().expect("the end");
    assert!(!ok);
    assert!(reason.contains("5 generations in a row came no further than step 3"), "{reason}");
    assert!(reason.contains("w1 (rank 0) failed at step 7: timed out"), "{reason}");
    job.look();
    job.join(9);
    assert!(matches!(job.look()[..], [Action::Reject { to: WorkerId(9), .. }]));
}

#[test]
fn an_error_that_all_would_meet_ends_the_job() {
    let mut job = Job::running(settings(), 2);
    let worker = WorkerId(2);
    let failed = |generation, step: u64, error: &str| Event::StepFailed {
        worker,
        generation: Generation(generation),
        step: Step(step),
        error: error.into(),
        fatal: true,
    };
    job.event(failed(7, 1, "another generation"));
    assert_eq!(job.exit(), None);
    job.event(failed(1, 3, "the loss is not a number"));
    let reason = "worker w2 (rank 1) failed at step 3: the loss is not a number".to_string();
    assert_eq!(job.exit(), Some((false, reason)));
}

#[test]
fn progress_forgives_earlier_failures() {
    let mut job = Job::running(settings(), 2);
    for generation in 1..=20 {
        job.step(1, generation, generation);
        job.fail(1, generation);
        job.pass(FAILURE_GRACE + SETTLE, &[1, 2]);
    }
    assert_eq!(job.exit(), None);
}

#[test]
fn a_checkpoint_is_committed_once_and_only_whole() {
    let mut job = Job::running(settings(), 2);
    job.look();
    job.shard(1, 1, 10, 0, 2);
    job.shard(1, 1, 10, 0, 2);
    job.shard(1, 1, 10, 1, 2); // not its rank
    job.shard(2, 1, 10, 1, 3); // another world
    job.shard(2, 7, 10, 1, 2); // another generation
    assert_eq!(job.commits, []);
    job.shard(2, 1, 10, 1, 2);
    assert_eq!(job.commits.len(), 1);
    let whole = &job.commits[0];
    assert_eq!((whole.step, whole.attempt.as_str(), whole.replaces), (Step(10), "g1", false));
    assert_eq!(whole.header_json, "{}");
    assert_eq!(whole.files.iter().map(|f| f.key.as_str()).collect::<Vec<_>>(), ["0", "1"]);
    let told = |n| Action::Send { to: WorkerId(n), directive: Directive::Committed { step: Step(10) } };
    assert!(job.seen.contains(&told(1)) && job.seen.contains(&told(2)));
    job.shard(1, 1, 10, 0, 2);
    job.shard(2, 1, 10, 1, 2);
    assert_eq!(job.commits.len(), 1);
}

#[test]
fn the_newest_are_kept() {
    let mut job = Job::running(settings(), 1);
    job.pass(settings().gather, &[1]);
    for step in [10, 20, 30, 40] {
        job.shard(1, 1, step, 0, 1);
    }
    let prunes = job.look().into_iter().filter_map(|a| match a {
        Action::Prune { delete, newest } => Some((delete.iter().map(|s| s.0).collect::<Vec<_>>(), newest.0)),
        _ => None,
    });
    assert_eq!(prunes.collect::<Vec<_>>(), [(vec![], 10), (vec![], 20), (vec![10], 30), (vec![20], 40)]);
}

#[test]
fn refused_checkpoints_are_replaced_and_do_not_push_out_good_ones() {
    let before = [10, 20, 30].map(|s| (Step(s), Scores::default())).into();
    let core = Core::new(Settings { workers: 1, ..settings() }, Generation(3), before);
    let mut job = Job { core, ..Job::new(settings()) };
    job.join(1);
    job.look();
    // 20 and 30 were damaged: the generation started from 10.
    job.shard(1, 4, 15, 0, 1);
    assert!(job.look().contains(&Action::Prune { delete: vec![], newest: Step(15) }));
    job.shard(1, 4, 20, 0, 1);
    assert!(job.commits[1].replaces);
    assert!(job.look().contains(&Action::Prune { delete: vec![Step(10)], newest: Step(20) }));
}

#[test]
fn no_generation_starts_while_a_manifest_is_in_flight() {
    let mut job = Job::running(settings(), 2);
    job.commits_land = false;
    job.shard(1, 1, 10, 0, 2);
    job.shard(2, 1, 10, 1, 2);
    job.leave(2);
    job.look();
    job.pass(Duration::from_secs(3), &[1]);
    assert_eq!(job.assigned(), []);
    job.event(committed(10));
    assert_eq!(job.assigned(), [(1, 2, 0, "w1".into())]);
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_job() {
    let mut job = Job::running(settings(), 2);
    job.event(Event::CommitFailed { step: Step(10), error: "disk full".into() });
    assert_eq!(job.exit(), Some((false, "failed to commit the checkpoint of step 10: disk full".into())));
}

#[test]
fn the_job_ends_when_all_have_finished_and_the_last_manifest_is_written() {
    let mut job = Job::running(settings(), 2);
    job.commits_land = false;
    job.step(1, 1, 20);
    job.shard(1, 1, 20, 0, 2);
    job.finish(1, 1);
    job.leave(1); // done is done
    assert_eq!(job.stops(), []);
    job.shard(2, 1, 20, 1, 2);
    job.finish(2, 1);
    assert_eq!(job.exit(), None);
    job.look();
    job.event(committed(20));
    assert_eq!(job.exit(), Some((true, "2 workers finished at step 20".into())));
    let shutdown = Directive::Shutdown { ok: true, reason: "2 workers finished at step 20".into() };
    assert!(job.seen.contains(&Action::Send { to: WorkerId(2), directive: shutdown }));
}

#[test]
fn a_run_that_was_complete_already_ends_at_its_last_step() {
    let mut job = Job::running(settings(), 2);
    job.finish(1, 1);
    job.finish(2, 1);
    assert_eq!(job.exit(), Some((true, "2 workers finished at step 20".into())));
}

#[test]
fn a_worker_that_comes_back_under_its_name_replaces_itself() {
    let mut job = Job::running(settings(), 2);
    job.look();
    job.event(Event::Hello { worker: WorkerId(8), hello: hello(2) });
    assert!(job.stops()[0].1.contains("it came back with a new session"));
    job.leave(2); // the old stream ends at last
    job.pass(SETTLE, &[1, 8]);
    assert_eq!(job.assigned(), [(1, 2, 0, "w1 w2".into()), (8, 2, 1, "w1 w2".into())]);
}

#[test]
fn one_that_comes_back_too_often_ends_the_job_and_is_told() {
    let mut job = Job::running(settings(), 2);
    for n in 10..10 + u64::from(MOST_BARREN_GENERATIONS) {
        job.look();
        job.event(Event::Hello { worker: WorkerId(n), hello: hello(2) });
        job.pass(SETTLE, &[]);
    }
    assert!(!job.exit().expect("the end").0);
    assert!(matches!(job.seen.last(), Some(Action::Reject { to: WorkerId(14), .. })));
}

#[test]
fn being_told_to_stop_tells_the_workers() {
    let mut job = Job::running(settings(), 2);
    job.look();
    job.event(Event::Terminate);
    let reason = "the coordinator was told to stop".to_string();
    let shutdown = Directive::Shutdown { ok: false, reason: reason.clone() };
    assert_eq!(job.seen[0], Action::Send { to: WorkerId(1), directive: shutdown });
    assert_eq!(job.exit(), Some((false, reason)));
}
