//! The stages of multigrid training equal PySlowFast's.
#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use configs::{Config, StepShape};

const RECIPE: &str = include_str!("../slowfast_8x8_r50_multigrid_k400.toml");

fn job(overrides: &[&str]) -> Config {
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    Config::parse("multigrid", RECIPE, &overrides).unwrap()
}

/// (interval, batch, T, side, end) of every stage.
fn stages(job: &Config) -> Vec<(usize, u32, u32, u32, u64)> {
    job.stages().iter().map(|s| (s.interval, s.base().batch, s.base().frames, s.base().crop, s.end)).collect()
}

/// What `MultigridSchedule.get_long_cycle_schedule` (`slowfast/utils/multigrid.py`) returns for
/// SLOWFAST_8x8_R50_stepwise_multigrid.yaml: its formulas evaluated in Python.
#[test]
fn the_long_cycle_of_the_published_recipe() {
    let published = [
        (0, 8, 8, 158, 73),
        (0, 4, 16, 158, 110),
        (0, 2, 16, 224, 142),
        (0, 1, 32, 224, 158),
        (1, 8, 8, 158, 205),
        (1, 4, 16, 158, 228),
        (1, 2, 16, 224, 248),
        (1, 1, 32, 224, 259),
        (2, 8, 8, 158, 291),
        (2, 4, 16, 158, 308),
        (2, 2, 16, 224, 322),
        (2, 1, 32, 224, 329),
        (3, 1, 32, 224, 358),
    ];
    let job = job(&[]);
    assert_eq!(stages(&job), published);
    assert_eq!(job.total_epochs(), 358);
    // cfg.SOLVER.STEPS and LRS: a rate of gamma^interval x batch, the fine-tuning's first half at the rate before.
    assert_eq!(job.schedule_of_stages().steps, [158.0, 259.0, 343.0]);
    assert_eq!(job.schedule_of_stages().relative_lrs, job.schedule.relative_lrs);
    let factors = [0.0, 72.9, 73.0, 110.0, 142.0, 158.0, 259.0, 329.0, 357.9, 400.0];
    assert_eq!(factors.map(|at| job.rate_factor(at)), [8.0, 8.0, 4.0, 2.0, 1.0, 8.0, 8.0, 1.0, 1.0, 1.0]);
}

#[test]
fn the_long_cycle_alone() {
    let job = job(&["train.multigrid={ short_cycle = false }"]);
    let ends: Vec<u64> = job.stages().iter().map(|s| s.end).collect();
    assert_eq!(ends, [87, 130, 152, 162, 218, 245, 259, 266, 305, 324, 334, 339, 358]);
    assert_eq!(job.schedule_of_stages().steps, [162.0, 266.0, 348.0]);
    assert!(job.stages().iter().all(|s| s.cycle.len() == 1));
}

/// `ShortCycleBatchSampler`: factors of round((side of the long cycle / (factor x side))^2).
#[test]
fn the_short_cycles_steps() {
    let shape = |batch, short, frames, crop| StepShape { batch, short, frames, crop };
    let cycles = job(&[]).stages();
    assert_eq!(cycles[0].cycle, [shape(16, 2, 8, 112), shape(8, 1, 8, 158), shape(8, 1, 8, 158)]);
    assert_eq!(cycles[2].cycle, [shape(8, 4, 16, 112), shape(4, 2, 16, 158), shape(2, 1, 16, 224)]);
    assert_eq!(cycles[12].cycle, [shape(4, 4, 32, 112), shape(2, 2, 32, 158), shape(1, 1, 32, 224)]);
    let alone = job(&["train.multigrid={ long_cycle = false }"]);
    assert_eq!(stages(&alone), [(0, 1, 32, 224, 358)]);
    assert_eq!(alone.stages()[0].cycle, cycles[12].cycle);
    assert_eq!(alone.schedule_of_stages().steps, [141.0, 231.0, 294.0]);
}

/// PySlowFast has steps only: here all epochs of a cosine are one interval.
#[test]
fn a_cosine_goes_through_the_cycle_once() {
    let cosine = job(&["schedule={ kind = \"cosine\" }", "train.epochs=46"]);
    let ends: Vec<(u32, u64)> = cosine.stages().iter().map(|s| (s.base().batch, s.end)).collect();
    // 69 epochs by 32 : 16 : 14 : 7 of 69.
    assert_eq!(ends, [(8, 32), (4, 48), (2, 62), (1, 69)]);
    assert_eq!(cosine.schedule_of_stages(), cosine.schedule);
}

#[test]
fn a_plain_job_has_one_stage() {
    let plain = Config::parse("demo", include_str!("../demo.toml"), &[]).unwrap();
    assert_eq!(stages(&plain), [(0, 1, 16, 64, plain.train.epochs)]);
    assert_eq!((plain.total_epochs(), plain.rate_factor(1.0)), (plain.train.epochs, 1.0));
    assert_eq!(plain.schedule_of_stages(), plain.schedule);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for (set, words) in [
        ("{ epoch_factor = 0.0 }", "train.multigrid.epoch_factor"),
        ("{ long_cycle = false, short_cycle = false }", "neither cycle"),
        ("{ short_cycle_factors = [0.5, 1.5] }", "at most 1"),
        ("{ long_cycle_factors = [[0.5, 0.5]] }", "the last must be [1.0, 1.0]"),
        (
            "{ long_cycle_factors = [[0.1, 1.0], [1.0, 1.0]] }",
            "3 frames are not a multiple of model.alpha = 4",
        ),
        ("{ epoch_factor = 0.0001 }", "leaves no epoch"),
    ] {
        let set = [format!("train.multigrid={set}")];
        let said = Config::parse("multigrid", RECIPE, &set).unwrap_err().to_string();
        assert!(said.contains(words), "{set:?}: {said}");
    }
}
