//! Broken streams, restarted coordinators, superseded ones.

use super::*;

/// A coordinator that finds generation 3 of w1, w2, w3 in the journal.
fn restarted(settings: Settings) -> Job {
    let names: Vec<String> = (1..=3).map(|n| format!("w{n}")).collect();
    let last = Membership { generation: Generation(3), names: names.into(), ..Default::default() };
    Job::of(Core::new(settings, Found { epoch: Epoch(9), last, ..Default::default() }))
}

impl Job {
    /// Worker `n` says by session `id` that it is in this generation, as its own rank there.
    fn back(&mut self, id: u64, n: u64, generation: u64) {
        let rank = Rank(n as u32 - 1);
        let hello = Hello { generation: Generation(generation), rank, ..hello(n) };
        self.event(Event::Hello { worker: WorkerId(id), hello });
    }
}

#[test]
fn a_generation_goes_on_under_a_restarted_coordinator() {
    let mut job = restarted(settings());
    job.back(11, 1, 3);
    job.back(13, 3, 3);
    job.pass(Duration::from_secs(9), &[11, 13]);
    job.back(12, 2, 3);
    job.pass(Duration::from_secs(60), &[]);
    assert_eq!(job.stops().len(), 0, "beats are another matter: {:?}", job.stops());
}

#[test]
fn members_that_do_not_report_in_time_are_lost() {
    let mut job = restarted(settings());
    job.back(11, 1, 3);
    job.back(13, 3, 3);
    job.look();
    job.pass(Duration::from_secs(9), &[11, 13]);
    assert_eq!(job.stops(), []);
    job.pass(Duration::from_secs(1), &[11, 13]);
    let stops = job.stops();
    assert_eq!(stops.iter().map(|s| s.0).collect::<Vec<_>>(), [11, 13]);
    assert!(stops[0].1.contains("lost worker w2 (rank 1) of generation 3"), "{stops:?}");
    job.pass(Duration::from_secs(1), &[11, 13]);
    assert_eq!(job.assigned(), [(11, 4, 0, "w1 w3".into()), (13, 4, 1, "w1 w3".into())]);
}

#[test]
fn where_all_are_in_no_generation_a_new_one_is_formed() {
    let mut job = restarted(settings());
    job.join(1);
    job.join(2);
    job.pass(Duration::from_secs(5), &[1, 2]);
    assert_eq!(job.assigned(), [], "w3 may say that generation 3 goes on");
    job.join(3);
    assert_eq!(job.assigned().len(), 3);

    let mut job = restarted(settings());
    job.join(7);
    job.join(8);
    job.pass(Duration::from_secs(9), &[7, 8]);
    assert_eq!(job.assigned(), [], "all of it may yet come back");
    job.pass(Duration::from_secs(2), &[7, 8]);
    assert_eq!(job.assigned(), [(7, 4, 0, "w7 w8".into()), (8, 4, 1, "w7 w8".into())]);
    // Too late: it must leave its group.
    job.back(11, 1, 3);
    assert!(job.stops()[0].0 == 11);
}

#[test]
fn a_member_that_had_left_before_the_restart_is_no_loss() {
    let mut job = restarted(settings());
    job.join(2);
    job.left(2, 3, 7); // sent again: the dead coordinator may not have heard it
    job.back(11, 1, 3);
    job.back(13, 3, 3);
    job.look();
    job.left(11, 3, 7);
    job.left(13, 3, 7);
    assert_eq!(job.stops(), []);
    assert_eq!(job.assigned().len(), 3);
}

#[test]
fn the_end_of_the_job_is_heard_by_a_restarted_coordinator() {
    let mut job = restarted(settings());
    for n in 1..=3 {
        job.back(10 + n, n, 3);
    }
    for n in 1..=3 {
        job.finish(10 + n, 3);
    }
    assert_eq!(job.exit(), Some((true, "3 workers finished at step 20".into())));
}

#[test]
fn a_new_connection_of_a_member_changes_nothing() {
    let mut job = Job::running(settings(), 2);
    job.join(3);
    job.pass(Duration::from_secs(3), &[1, 2, 3]);
    job.look();
    job.back(12, 2, 1);
    assert_eq!(job.stops(), []);
    assert!(job.seen.contains(&Action::Close { to: WorkerId(2) }));
    let leave = Directive::Leave { generation: Generation(1), reason: "w3 joins".into(), checkpoint: false };
    assert!(job.seen.contains(&Action::Send { to: WorkerId(12), directive: leave }), "it may have missed it");
    // The old stream ends at last.
    job.leave(2);
    assert_eq!(job.stops(), []);
    job.left(1, 1, 4);
    job.left(12, 1, 4);
    assert_eq!(job.assigned().len(), 3);
}

#[test]
fn whoever_was_cut_off_too_long_is_stopped_and_keeps_its_state_for_the_next() {
    let mut job = Job::running(settings(), 2);
    job.step(1, 1, 5);
    job.leave(2);
    job.pass(Duration::from_secs(1), &[1]);
    job.look();
    job.back(12, 2, 1);
    assert_eq!(job.stops(), [(12, "it ended while this worker was cut off".into())]);
    job.pass(Duration::from_secs(3), &[1, 12]);
    job.left(1, 2, 6);
    assert_eq!(job.assigned().len(), 2);
}

#[test]
fn whoever_obeys_a_newer_coordinator_makes_this_one_look() {
    let mut job = restarted(settings());
    let newer = Hello { coordinator: Epoch(10), ..hello(1) };
    job.event(Event::Hello { worker: WorkerId(11), hello: newer });
    let seen = job.look();
    assert!(seen.contains(&Action::Verify) && seen.contains(&Action::Close { to: WorkerId(11) }));
    job.back(12, 2, 3);
    job.look();
    job.event(Event::Superseded { why: "another leads".into() });
    assert_eq!(job.look(), [Action::Resign { why: "another leads".into() }], "without a word to the workers");
    job.event(Event::Tick);
    assert_eq!(job.look(), []);
}

#[test]
fn a_stream_that_ends_after_silence_ends_nothing_before_the_silence_does() {
    // In the midst of beats it is the worker's own end.
    let mut job = Job::running(settings(), 2);
    job.pass(Duration::from_secs(2), &[1, 2]);
    job.leave(2);
    assert_eq!(job.stops().len(), 1);
    // Cut off, then the old stream ends, then it comes back by another.
    let mut job = Job::running(settings(), 2);
    job.pass(Duration::from_secs(5), &[1]);
    job.leave(2);
    job.pass(Duration::from_secs(3), &[1]);
    job.back(12, 2, 1);
    job.pass(Duration::from_secs(60), &[1, 12]);
    assert_eq!(job.stops(), []);
    // The generation ends meanwhile: the next one is formed without it.
    let mut job = Job::running(Settings { workers: 3, ..settings() }, 3);
    job.pass(Duration::from_secs(5), &[1, 3]);
    job.leave(2);
    job.leave(3);
    job.pass(Duration::from_secs(1), &[1]);
    assert_eq!(job.assigned().last(), Some(&(1, 2, 0, "w1".into())));
    // It does not come back.
    let mut job = Job::running(settings(), 2);
    job.pass(Duration::from_secs(5), &[1]);
    job.leave(2);
    job.pass(Duration::from_secs(6), &[1]);
    assert_eq!(job.stops().len(), 1);
    let told = job.seen.iter().filter(|a| matches!(a, Action::Publish(Notice::Lost { .. }))).count();
    assert_eq!(told, 1);
}
