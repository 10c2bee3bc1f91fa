//! When a checkpoint is whole, which are kept, and when the job is done.

use super::*;
use crate::core::forming::SETTLE;

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
    let third = Kept { generation: Generation(3), ..Kept::from("g3") };
    let committed = [10, 20, 30].map(|s| (Step(s), third.clone())).into();
    let last = Membership { generation: Generation(3), ..Default::default() };
    let found = Found { last, committed, ..Default::default() };
    let mut job = Job::of(Core::new(Settings { workers: 1, ..settings() }, found));
    job.join(1);
    job.look();
    // 20 and 30 were damaged: the generation started from 10.
    job.step(1, 4, 11);
    job.shard(1, 4, 15, 0, 1);
    assert!(job.look().contains(&Action::Prune { delete: vec![], newest: Step(15) }));
    job.shard(1, 4, 20, 0, 1);
    assert!(job.commits[1].replaces);
    assert!(job.look().contains(&Action::Prune { delete: vec![Step(10)], newest: Step(20) }));
}

#[test]
fn nobody_reads_checkpoints_while_a_manifest_is_in_flight() {
    let mut job = Job::running(settings(), 2);
    job.commits_land = false;
    job.step(1, 1, 10);
    job.shard(1, 1, 10, 0, 2);
    job.shard(2, 1, 10, 1, 2);
    job.leave(2);
    job.look();
    // The survivor has newer state: it need not wait.
    job.pass(Duration::from_secs(1), &[1]);
    assert_eq!(job.assigned(), [(1, 2, 0, "w1".into())]);
    job.leave(1);
    job.join(3);
    job.join(4);
    job.pass(Duration::from_secs(3), &[3, 4]);
    assert_eq!(job.assigned(), []);
    job.event(committed(10));
    assert_eq!(job.assigned().len(), 2);
}

#[test]
fn a_set_that_becomes_whole_after_its_generation_counts_unless_its_step_was_done_again() {
    for (first, commits) in [(11, true), (10, false)] {
        let mut job = Job::running(settings(), 2);
        job.step(1, 1, 10);
        job.shard(1, 1, 10, 0, 2);
        job.look();
        job.event(Event::Hello { worker: WorkerId(8), hello: hello(2) }); // a new session of w2
        job.pass(SETTLE, &[1, 8]);
        assert_eq!(job.assigned().len(), 2);
        job.shard(8, 1, 10, 1, 2);
        assert_eq!(job.commits, [], "held: the new generation may have begun before step 10");
        job.step(1, 2, first);
        assert_eq!(job.commits.len(), usize::from(commits));
        assert!(job.commits.iter().all(|w| w.generation == Generation(1) && !w.replaces));
    }
}

#[test]
fn a_part_whose_manifest_is_there_is_answered_at_once() {
    let names = vec!["w1".to_string(), "w2".into()].into();
    let last = Membership { generation: Generation(3), names, ..Default::default() };
    let third = Kept { generation: Generation(3), ..Kept::from("g3") };
    let committed = [(Step(10), third)].into();
    let mut job = Job::of(Core::new(settings(), Found { last, committed, ..Default::default() }));
    job.join(1);
    job.join(2);
    job.shard(1, 3, 10, 0, 2);
    let told = Action::Send { to: WorkerId(1), directive: Directive::Committed { step: Step(10) } };
    assert!(job.look().contains(&told));
    // What came before it in its history may have been deleted.
    job.shard(1, 3, 5, 0, 2);
    job.shard(2, 3, 5, 1, 2);
    assert!(job.look().contains(&told) && job.commits.is_empty());
    // Another attempt at it, in the same history, is as good as the manifest that is there.
    job.step(1, 4, 11);
    job.shard(1, 4, 10, 0, 2);
    job.shard(2, 4, 10, 1, 2);
    assert!(job.look().contains(&told));
    assert_eq!(job.commits, []);
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
fn members_hear_what_is_committed_in_the_history_that_counts() {
    let kept = |generation| Kept { generation: Generation(generation), ..Kept::default() };
    // Step 30 was refused by generation 3, which went on from before 15.
    let committed =
        [(10, 2), (15, 3), (30, 2)].map(|(step, generation)| (Step(step), kept(generation))).into();
    let last = Membership { generation: Generation(3), ..Default::default() };
    let mut job = Job::of(Core::new(
        Settings { workers: 1, ..settings() },
        Found { last, committed, ..Default::default() },
    ));
    let heard = |job: &mut Job| {
        let found = job.look().into_iter().find_map(|a| match a {
            Action::Send { directive: Directive::Assigned { committed, .. }, .. } => Some(committed),
            _ => None,
        });
        found.expect("an assignment")
    };
    job.join(1);
    assert_eq!(heard(&mut job), Some((Generation(3), Step(15))));
    let mut job = Job::new(Settings { workers: 1, ..settings() });
    job.join(1);
    assert_eq!(heard(&mut job), None);
}
