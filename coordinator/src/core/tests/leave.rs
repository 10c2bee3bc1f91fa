//! Joining, leaving and stopping, always at a step boundary.

use super::*;
use crate::core::forming::SETTLE;

const WHY: &str = "SIGTERM";

#[test]
fn a_newcomer_is_let_in_at_a_step_boundary() {
    let mut job = Job::running(settings(), 2);
    job.step(1, 1, 5);
    job.look();
    job.join(3);
    job.pass(Duration::from_secs(1), &[1, 2, 3]);
    job.join(4);
    assert_eq!(job.leaves(), [], "others may come along");
    job.pass(Duration::from_secs(2), &[1, 2, 3, 4]);
    let reason = "w3, w4 join".to_string();
    assert_eq!(job.leaves(), [1, 2].map(|n| (n, reason.clone(), false)));
    job.pass(Duration::from_secs(5), &[1, 2, 3, 4]);
    assert_eq!(job.leaves(), [], "asked once");
    job.left(1, 1, 7);
    assert_eq!(job.assigned(), []);
    job.left(2, 1, 7);
    assert_eq!(job.stops(), [], "nobody is to blame");
    let assigned = job.assigned();
    assert_eq!(
        assigned.iter().map(|a| (a.0, a.1, a.2)).collect::<Vec<_>>(),
        [(1, 2, 0), (2, 2, 1), (3, 2, 2), (4, 2, 3)]
    );
    job.step(1, 2, 8);
    let told: Vec<_> = job.incidents().into_iter().map(|i| (i.what, i.worker)).collect();
    assert_eq!(told, [(What::Joined, "w3".into()), (What::Joined, "w4".into())]);
}

#[test]
fn nobody_makes_room_where_all_places_are_taken_or_the_end_is_near() {
    let mut job = Job::running(Settings { max_workers: 2, ..settings() }, 2);
    job.join(3);
    job.look();
    job.pass(Duration::from_secs(9), &[1, 2, 3]);
    assert_eq!(job.leaves(), []);

    let mut job = Job::running(settings(), 2);
    job.finish(1, 1);
    job.join(3);
    job.look();
    job.pass(Duration::from_secs(9), &[1, 2, 3]);
    assert_eq!(job.leaves(), []);
}

#[test]
fn a_member_that_dies_while_all_leave_is_a_loss() {
    let mut job = Job::running(settings(), 2);
    job.join(3);
    job.pass(Duration::from_secs(3), &[1, 2, 3]);
    job.left(1, 1, 7);
    job.look();
    job.leave(2);
    assert_eq!(job.stops(), [], "the one who has left needs no stop");
    job.pass(SETTLE, &[1, 3]);
    assert_eq!(job.assigned(), [(1, 2, 0, "w1 w3".into()), (3, 2, 1, "w1 w3".into())]);
}

#[test]
fn one_that_has_left_may_die_without_harm() {
    let mut job = Job::running(Settings { workers: 3, ..settings() }, 3);
    job.join(4);
    job.pass(Duration::from_secs(3), &[1, 2, 3, 4]);
    job.left(1, 1, 7);
    job.leave(1);
    job.look();
    job.left(2, 1, 7);
    job.left(3, 1, 7);
    assert_eq!(job.assigned().iter().map(|a| a.0).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn a_leaver_goes_with_good_will_and_the_others_go_on() {
    let mut job = Job::running(Settings { workers: 3, ..settings() }, 3);
    job.step(1, 1, 5);
    job.look();
    job.leaving(2);
    assert_eq!(job.leaves(), [1, 2, 3].map(|n| (n, "w2 leaves".to_string(), false)));
    (1..=3).for_each(|n| job.left(n, 1, 6));
    assert!(job.released(2) && job.seen.contains(&Action::Close { to: WorkerId(2) }));
    assert_eq!(job.assigned(), [(1, 2, 0, "w1 w3".into()), (3, 2, 1, "w1 w3".into())]);
    job.step(1, 2, 7);
    let incidents = job.incidents();
    assert_eq!(incidents.len(), 1);
    assert_eq!((incidents[0].what, incidents[0].cause.as_str()), (What::Left, WHY));
}

#[test]
fn where_too_few_would_stay_a_checkpoint_comes_first() {
    let mut job = Job::running(Settings { min_workers: 2, ..settings() }, 2);
    job.look();
    job.leaving(1);
    assert_eq!(job.leaves(), [1, 2].map(|n| (n, "w1 leaves".to_string(), true)));
    job.shard(1, 1, 6, 0, 2);
    job.shard(2, 1, 6, 1, 2);
    job.left(1, 1, 6);
    assert!(!job.released(1));
    job.left(2, 1, 6);
    assert!(job.released(1) && !job.released(2));
    job.pass(Duration::from_secs(100), &[2]);
    assert_eq!(job.assigned(), [], "it waits for another");
}

#[test]
fn all_meet_again_if_they_left_without_the_checkpoint() {
    let mut job = Job::running(settings(), 2);
    job.join(3);
    job.pass(Duration::from_secs(3), &[1, 2, 3]);
    assert_eq!(job.leaves().len(), 2);
    // The vote was cast already when the stop came.
    job.event(Event::Terminate);
    assert_eq!(job.leaves(), [1, 2].map(|n| (n, "w3 joins".to_string(), true)));
    job.left(1, 1, 6);
    job.left(2, 1, 6);
    assert_eq!(job.exit(), None);
    assert_eq!(job.leaves().len(), 3, "in the next generation");
    (0..3).for_each(|rank| job.shard(u64::from(rank) + 1, 2, 7, rank, 3));
    (1..=3).for_each(|n| job.left(n, 2, 7));
    assert_eq!(job.exit(), Some((true, "stopped at step 7; start it again to go on".into())));
}

#[test]
fn a_worker_in_no_generation_may_go_at_once() {
    let mut job = Job::new(settings());
    job.join(1);
    job.leaving(1);
    assert!(job.released(1));

    let mut job = Job::running(settings(), 2);
    job.join(3);
    job.leaving(3);
    assert!(job.released(3) && job.stops().is_empty());
    job.event(Event::Release { name: "w9".into(), reason: "unknown".into() });
    job.look();
    job.event(Event::Release { name: "w2".into(), reason: "maintenance".into() });
    assert_eq!(job.leaves().len(), 2);
    job.left(1, 1, 3);
    job.left(2, 1, 3);
    assert!(job.released(2) && !job.released(1));
    let directive = Directive::Shutdown { ok: true, reason: "maintenance".into(), restart: false };
    assert!(job.seen.contains(&Action::Send { to: WorkerId(2), directive }));
}

#[test]
fn a_leaver_goes_while_its_generation_is_being_recorded() {
    let mut core = Core::new(settings(), Found::default());
    let hello = |n| Event::Hello { worker: WorkerId(n), hello: hello(n) };
    core.handle(Now::default(), hello(1));
    core.handle(Now::default(), hello(2));
    let out = core.handle(Now::default(), Event::Leaving { worker: WorkerId(2), reason: WHY.into() });
    let directive = Directive::Shutdown { ok: true, reason: WHY.into(), restart: false };
    assert!(out.contains(&Action::Send { to: WorkerId(2), directive }));
    let out = core.handle(Now::default(), Event::Recorded { generation: Generation(1) });
    assert!(!out.iter().any(|a| matches!(a, Action::Send { .. })), "{out:?}");
}

#[test]
fn being_told_to_stop_takes_a_checkpoint_and_ends_well() {
    let mut job = Job::running(settings(), 2);
    job.step(1, 1, 5);
    job.look();
    job.event(Event::Terminate);
    assert_eq!(job.leaves(), [1, 2].map(|n| (n, "the job is to stop".to_string(), true)));
    job.shard(1, 1, 6, 0, 2);
    job.left(1, 1, 6);
    assert_eq!(job.exit(), None);
    job.shard(2, 1, 6, 1, 2);
    job.left(2, 1, 6);
    let reason = "stopped at step 6; start it again to go on".to_string();
    assert_eq!(job.exit(), Some((true, reason.clone())));
    let directive = Directive::Shutdown { ok: true, reason, restart: false };
    assert!(job.seen.contains(&Action::Send { to: WorkerId(1), directive }));
}

#[test]
fn a_job_without_a_generation_stops_at_once() {
    let mut job = Job::new(settings());
    job.join(1);
    job.event(Event::Terminate);
    let (ok, reason) = job.exit().expect("the end");
    assert!(ok && reason.contains("there is no checkpoint yet"), "{reason}");
}

#[test]
fn a_stop_between_two_generations_saves_what_the_survivors_have() {
    let mut job = Job::running(Settings { workers: 3, ..settings() }, 3);
    job.step(1, 1, 5);
    job.leave(3);
    job.event(Event::Terminate);
    assert_eq!(job.exit(), None);
    job.look();
    job.pass(SETTLE, &[1, 2]);
    assert_eq!(job.leaves().len(), 2);
    job.shard(1, 2, 6, 0, 2);
    job.shard(2, 2, 6, 1, 2);
    job.left(1, 2, 6);
    job.left(2, 2, 6);
    assert!(job.exit().expect("the end").0);
}

#[test]
fn a_stop_that_takes_too_long_or_is_repeated_fails_and_says_from_where_to_go_on() {
    let start = || {
        let mut job = Job::running(settings(), 2);
        job.shard(1, 1, 4, 0, 2);
        job.shard(2, 1, 4, 1, 2);
        job.event(Event::Terminate);
        job
    };
    let mut job = start();
    job.pass(Duration::from_secs(29), &[1, 2]);
    assert_eq!(job.exit(), None);
    job.pass(Duration::from_secs(2), &[1, 2]);
    let (ok, reason) = job.exit().expect("the end");
    assert!(!ok && reason.contains("cluster.stop_grace") && reason.contains("step 4"), "{reason}");

    let mut job = start();
    job.event(Event::Terminate);
    let (ok, reason) = job.exit().expect("the end");
    assert!(!ok && reason.contains("twice") && reason.contains("step 4"), "{reason}");
}

#[test]
fn a_checkpoint_is_asked_of_the_first_rank() {
    let mut job = Job::running(settings(), 2);
    job.event(Event::CheckpointNow);
    assert!(job.seen.contains(&Action::Send { to: WorkerId(1), directive: Directive::CheckpointNow }));
}
