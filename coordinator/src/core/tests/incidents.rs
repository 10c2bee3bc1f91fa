//! What an incident tells, and which ranks are called slow.

use super::*;
use crate::core::forming::SETTLE;

fn exit_of(n: u64) -> Event {
    Event::Exited(ExitReport {
        worker: format!("w{n}"),
        cause: "killed by SIGKILL; the kernel's out-of-memory count has grown".into(),
        last_lines: vec!["step 7".into()],
        ..Default::default()
    })
}

#[test]
fn a_loss_is_told_with_its_cause_and_cost_once_the_job_goes_on() {
    for report_first in [true, false] {
        let mut job = Job::running(settings(), 2);
        job.step(1, 1, 7);
        if report_first {
            job.event(exit_of(2));
        }
        job.leave(2);
        job.pass(SETTLE, &[1]);
        job.pass(Duration::from_secs(1), &[1]);
        if !report_first {
            job.event(exit_of(2));
        }
        assert_eq!(job.incidents(), []);
        job.step(1, 2, 8);
        let told = job.incidents();
        assert_eq!(told.len(), 1);
        let i = &told[0];
        assert_eq!((i.what, i.worker.as_str(), i.rank, i.step), (What::Lost, "w2", Some(Rank(1)), Step(7)));
        assert!(i.cause.contains("its connection broke") && i.cause.contains("SIGKILL"), "{}", i.cause);
        assert_eq!(i.last_lines, ["step 7"]);
        // Half a second settled in ticks of 200 ms, then a second.
        assert!((1.5..2.0).contains(&i.seconds), "{}", i.seconds);
    }
}

#[test]
fn a_loss_without_a_supervisors_word_is_told_a_moment_later() {
    let mut job = Job::running(settings(), 2);
    job.leave(2);
    job.pass(SETTLE, &[1]);
    job.step(1, 2, 1);
    assert_eq!(job.incidents(), []);
    job.pass(Duration::from_secs(4), &[1]);
    let told = job.incidents();
    assert_eq!((told.len(), told[0].cause.as_str()), (1, "its connection broke"));
    assert!(told[0].seconds < 1.0, "the cost is that of the step");
}

#[test]
fn what_was_open_is_told_when_the_job_ends() {
    let mut job = Job::running(settings(), 2);
    job.leave(2);
    job.event(Event::Fatal { error: "no store".into() });
    assert_eq!(job.incidents().len(), 1);
}

/// Beats of three ranks, the last of which takes `slow` seconds a step of its own; all wait for it.
fn paced(settings: Settings, slow: f64, beats: u64) -> Job {
    let mut job = Job::running(Settings { workers: 3, ..settings }, 3);
    job.look();
    pace(&mut job, 1, [1, 2, 3], slow, 1..=beats);
    job
}

/// Beats of three workers for each of these steps.
fn pace(job: &mut Job, generation: u64, workers: [u64; 3], slow: f64, steps: std::ops::RangeInclusive<u64>) {
    for step in steps {
        job.now.0 += Duration::from_secs(1);
        for (n, own) in workers.into_iter().zip([0.5, 0.6, slow]) {
            let beat = Beat {
                generation: Generation(generation),
                step: Step(step),
                progress: step,
                step_seconds: slow,
                exchange_wait_seconds: slow - own,
                ..Default::default()
            };
            job.event(Event::Beat { worker: WorkerId(n), beat });
        }
        job.event(Event::Tick);
    }
}

#[test]
fn a_rank_that_keeps_the_others_waiting_is_named_once() {
    let job = paced(settings(), 1.3, 60);
    let told = job.incidents();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].what, told[0].worker.as_str()), (What::Straggler, "w3"));
    assert!(told[0].cause.contains("1.300 s") && told[0].cause.contains("0.600 s"), "{}", told[0].cause);
    assert_eq!(paced(settings(), 1.3, 19).incidents(), [], "not for a few slow steps");
    assert_eq!(paced(settings(), 1.1, 60).incidents(), []);
    assert_eq!(paced(Settings { straggler_factor: None, ..settings() }, 9.0, 60).incidents(), []);
}

#[test]
fn a_straggler_is_let_go_where_enough_others_are_here() {
    let replace = Settings { replace_stragglers: true, ..settings() };
    let mut job = paced(replace.clone(), 1.3, 60);
    assert_eq!(job.leaves().len(), 3);
    // The others go on without it, and a fresh process is welcome.
    let gone = |job: &mut Job, n: u64, generation: u64| {
        for worker in [1, 2, n] {
            job.left(worker, generation, 61);
        }
        let told = job.look().into_iter().find_map(|a| match a {
            Action::Send { to, directive: Directive::Shutdown { ok, restart, .. } } => {
                Some((to.0, ok, restart))
            }
            _ => None,
        });
        told.expect("it is let go")
    };
    assert_eq!(gone(&mut job, 3, 1), (3, true, true));
    // The next process on that device is as slow: it is the host, and nobody is sent again.
    job.join(4);
    job.pass(Duration::from_secs(3), &[1, 2, 4]);
    job.left(1, 2, 62);
    job.left(2, 2, 62);
    job.look();
    pace(&mut job, 3, [1, 2, 4], 1.3, 62..=122);
    assert_eq!(job.leaves().len(), 3);
    assert_eq!(gone(&mut job, 4, 3), (4, true, false));
    let mut job = paced(Settings { min_workers: 3, ..replace }, 1.3, 60);
    assert_eq!(job.leaves(), []);
}

/// As its last word before the failure told; what it says of itself while it waits is no part of it.
#[test]
fn a_failure_tells_the_collective_and_the_clip() {
    let at = |phase: &str, collective: &str, clip: &str| Event::Beat {
        worker: WorkerId(1),
        beat: Beat {
            generation: Generation(1),
            phase: phase.into(),
            collective: collective.into(),
            clip: clip.into(),
            ..Beat::default()
        },
    };
    let mut job = Job::running(settings(), 2);
    job.event(at("training", "vote, number 3 of its generation", ""));
    job.fail(1, 1);
    job.event(at("waiting", "", ""));
    job.fail(2, 1);
    job.pass(Duration::from_secs(3), &[1, 2]);
    job.step(1, 2, 8);
    job.pass(Duration::from_secs(4), &[1, 2]);
    let told = job.incidents();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].what, told[0].phase.as_str()), (What::Failed, "training"));
    assert_eq!(told[0].collective, "vote, number 3 of its generation");

    // Nobody can go on from there.
    job.event(at("training", "", "clip-7"));
    job.event(Event::StepFailed {
        worker: WorkerId(1),
        generation: Generation(2),
        step: Step(8),
        error: "read clip \"clip-7\"".into(),
        fatal: true,
    });
    let told = job.incidents();
    assert_eq!((told.len(), told[1].what, told[1].clip.as_str()), (2, What::Failed, "clip-7"));
}
