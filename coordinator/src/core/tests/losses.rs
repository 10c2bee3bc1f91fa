//! Who is here, who is lost, and what the others do then.

use super::*;
use crate::core::{forming::SETTLE, loss::FAILURE_GRACE};

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
    let last = Membership { generation: Generation(41), ..Default::default() };
    let mut core = Core::new(settings(), Found { last, ..Default::default() });
    core.handle(Now::default(), Event::Hello { worker: WorkerId(1), hello: hello(1) });
    let actions = core.handle(Now::default(), Event::Hello { worker: WorkerId(2), hello: hello(2) });
    let Some(Action::Record(m)) = actions.last() else { panic!("{actions:?}") };
    assert_eq!((m.generation, m.names.join(" ").as_str()), (Generation(42), "w1 w2"));
    assert!(!actions.iter().any(|a| matches!(a, Action::Send { directive: Directive::Assigned { .. }, .. })));
    // A member leaves while it is being written: nobody is assigned, the next one gets its number.
    core.handle(Now::default(), Event::Disconnected { worker: WorkerId(2), why: String::new() });
    let actions = core.handle(Now::default(), Event::Recorded { generation: Generation(42) });
    assert!(!actions.iter().any(|a| matches!(a, Action::Send { .. })), "{actions:?}");
    core.handle(Now::default(), Event::Hello { worker: WorkerId(3), hello: hello(3) });
    let actions = core.handle(Now(Duration::from_secs(1)), Event::Tick);
    assert!(matches!(&actions[0], Action::Record(m) if m.generation == Generation(43)), "{actions:?}");
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
    let mut job = Job::running(Settings { max_workers: 2, ..settings() }, 2);
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
fn an_error_of_one_worker_costs_that_worker_alone() {
    let mut job = Job::running(settings(), 2);
    job.step(1, 1, 3);
    job.look();
    let error = "access /fast: no space left on device".to_string();
    job.event(Event::Broken { worker: WorkerId(2), step: Step(3), error });
    assert_eq!(job.exit(), None);
    let told = job.seen.iter().find_map(|a| match a {
        Action::Send { to: WorkerId(2), directive: Directive::Shutdown { ok, restart, .. } } => {
            Some((*ok, *restart))
        }
        _ => None,
    });
    assert_eq!(told, Some((false, true)), "its supervisor may start it again");
    assert_eq!(job.stops().len(), 1, "at once");
    assert!(
        job.stops()[0].1.contains("lost worker w2 (rank 1)") && job.stops()[0].1.contains("no space left")
    );
    job.leave(2);
    job.pass(SETTLE, &[1]);
    assert_eq!(job.assigned(), [(1, 2, 0, "w1".into())]);
    job.step(1, 2, 4);
    job.pass(Duration::from_secs(4), &[1]);
    let cause = job.incidents().into_iter().map(|i| i.cause).collect::<Vec<_>>();
    assert!(cause.len() == 1 && cause[0].contains("failed after step 3: access /fast"), "{cause:?}");
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
fn a_rank_0_that_was_cut_off_tells_later_what_was_done() {
    let mut job = Job::running(settings(), 2);
    job.step(1, 1, 5);
    job.leave(1);
    job.pass(SETTLE, &[2]);
    job.look();
    // Back by another connection.
    job.event(Event::Hello { worker: WorkerId(7), hello: Hello { generation: Generation(1), ..hello(1) } });
    job.step(7, 1, 5);
    job.step(7, 1, 6);
    job.step(2, 2, 7);
    let told: Vec<_> = job
        .look()
        .into_iter()
        .filter_map(|a| match a {
            Action::Publish(Notice::Step(r)) => Some((r.generation.0, r.step.0)),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(1, 6), (2, 7)], "what was heard of is left out");
}

/// Rank 0 was cut off, and is gone with what it had to tell.
#[test]
fn a_survivor_tells_the_steps_that_rank_0_could_not() {
    let mut job = Job::running(settings(), 2);
    (1..=3).for_each(|step| job.step(1, 1, step));
    job.leave(1);
    job.pass(Duration::from_secs(1), &[2]);
    job.look();
    let mut told = |n, generation, steps: std::ops::RangeInclusive<u64>| {
        steps.for_each(|step| job.step(n, generation, step));
        let seen = job.look();
        let steps = seen.iter().filter_map(|a| match a {
            Action::Publish(Notice::Step(r)) => Some(r.step.0),
            _ => None,
        });
        steps.collect::<Vec<u64>>()
    };
    assert_eq!(told(2, 1, 2..=5), [4, 5]);
    assert!(told(2, 1, 4..=5).is_empty(), "once is enough");
    assert_eq!(told(2, 2, 6..=7), [6, 7], "its own");
    assert!(told(3, 1, 6..=7).is_empty(), "a stranger to that generation");
}
