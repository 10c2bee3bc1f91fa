//! The learning rate as a function of the fractional epoch: pure, so that a resumed run follows the
//! same curve. The shapes are PySlowFast's `slowfast/utils/lr_policy.py`.

use configs::{Job, Schedule, ScheduleKind};
use std::f64::consts::PI;

/// The rate of the step at fractional epoch `at` of a job, scaled to its global batch.
pub fn lr_of_step(job: &Job, at: f64) -> f64 {
    let (schedule, epochs) = (job.schedule_of_stages(), job.total_epochs() as f64);
    // PySlowFast's rates of the long cycle are multiplied before the warm-up aims at one of them.
    let shape = |at| job.rate_factor(at) * shape(&schedule, job.optimizer.lr(), epochs, at);
    batch_scale(job) * warmed_up(&schedule, at, shape)
}

/// What all rates of the job are multiplied by: its global batch over the one that they are meant for
/// (Goyal et al. 2017, section 2.1).
pub fn batch_scale(job: &Job) -> f64 {
    let batch = job.train.global_batch;
    f64::from(batch) / f64::from(job.optimizer.reference_batch().unwrap_or(batch))
}

/// The rate at fractional epoch `at` of `epochs`. `base_lr` is the rate that the schedule shapes.
///
/// The warm-up is linear from `warmup_start_lr` at 0 to the schedule's own value at
/// `warmup_epochs`, which for a cosine is a little below the base rate.
pub fn lr(schedule: &Schedule, base_lr: f64, epochs: f64, at: f64) -> f64 {
    warmed_up(schedule, at, |at| shape(schedule, base_lr, epochs, at))
}

fn warmed_up(schedule: &Schedule, at: f64, shape: impl Fn(f64) -> f64) -> f64 {
    let end = schedule.warmup_epochs;
    match at < end {
        true => schedule.warmup_start_lr + (shape(end) - schedule.warmup_start_lr) * at / end,
        false => shape(at),
    }
}

fn shape(schedule: &Schedule, base_lr: f64, epochs: f64, at: f64) -> f64 {
    match schedule.kind {
        ScheduleKind::Constant => base_lr,
        ScheduleKind::Cosine => {
            // Past the last epoch the cosine would rise again.
            let part = if epochs > 0.0 { (at / epochs).clamp(0.0, 1.0) } else { 1.0 };
            schedule.end_lr + (base_lr - schedule.end_lr) * ((PI * part).cos() + 1.0) * 0.5
        }
        ScheduleKind::Steps => {
            let relative = schedule.steps.iter().zip(&schedule.relative_lrs);
            base_lr * relative.take_while(|(step, _)| at >= **step).last().map_or(1.0, |(_, r)| *r)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    /// Golden values: PySlowFast's formula, evaluated in Python.
    ///
    /// ```python
    /// import math
    /// def cosine(at, base, end, n): return end + (base - end) * (math.cos(math.pi * at / n) + 1.0) * 0.5
    /// def lr(at, base=1.6, end=0.0, n=196, warm=34.0, start=0.01):
    ///     if at < warm: return at * (cosine(warm, base, end, n) - start) / warm + start
    ///     return cosine(at, base, end, n)
    /// [lr(x) for x in (0, 0.25, 17, 33.999, 34, 98, 150.5, 195.99, 196)]
    /// ```
    #[test]
    fn the_kinetics_recipe() {
        let s = Schedule { warmup_epochs: 34.0, warmup_start_lr: 0.01, ..Schedule::default() };
        for (at, want) in GOLDEN {
            close(lr(&s, 1.6, 196.0, at), want);
        }
    }

    const GOLDEN: [(f64, f64); 9] = [
        (0.0, 0.01),
        (0.25, 0.02083907507650204),
        (17.0, 0.7470571052021385),
        (33.999, 1.484070854103971),
        (34.0, 1.484114210404277),
        (98.0, 0.8),
        (150.5, 0.20348626809346754),
        (195.99, 1.0276555961752365e-08),
        (196.0, 0.0),
    ];

    #[test]
    fn a_cosine_ends_at_its_end_and_stays_there() {
        let s = Schedule { end_lr: 0.02, ..Schedule::default() };
        close(lr(&s, 0.1, 10.0, 0.0), 0.1);
        close(lr(&s, 0.1, 10.0, 5.0), 0.06);
        close(lr(&s, 0.1, 10.0, 10.0), 0.02);
        close(lr(&s, 0.1, 10.0, 11.0), 0.02);
    }

    /// PySlowFast's SLOWFAST_8x8_R50_stepwise_multigrid.yaml: `SOLVER.STEPS` and `SOLVER.LRS` after
    /// `init_multigrid`, which its formulas give in Python:
    /// [0, 73, 110, 142, 158, 205, 228, 248, 259, 291, 308, 322, 329, 343] and
    /// [8, 4, 2, 1, .8, .4, .2, .1, .08, .04, .02, .01, .01, .001], times the base rate of 0.1.
    #[test]
    fn the_multigrid_recipe() {
        let text = include_str!("../../configs/slowfast_8x8_r50_multigrid_k400.toml");
        let job = configs::Config::parse("multigrid", text, &[]).unwrap();
        for (at, want) in [
            (0.0, 0.01),
            // Warm-up towards the 0.8 of epoch 34.
            (17.0, 0.405),
            (34.0, 0.8),
            (72.99, 0.8),
            (73.0, 0.4),
            (110.0, 0.2),
            (142.0, 0.1),
            (158.0, 0.08),
            (205.0, 0.04),
            (258.99, 0.01),
            (259.0, 0.008),
            (322.0, 0.001),
            (329.0, 0.001),
            (342.99, 0.001),
            (343.0, 0.0001),
            (358.0, 0.0001),
        ] {
            close(lr_of_step(&job, at), want);
        }
    }

    /// TimeSformer's recipe: a tenth at 11, a hundredth at 14 of 15 epochs.
    #[test]
    fn steps_change_at_their_epoch() {
        let s = Schedule {
            kind: ScheduleKind::Steps,
            steps: vec![11.0, 14.0],
            relative_lrs: vec![0.1, 0.01],
            ..Schedule::default()
        };
        for (at, want) in
            [(0.0, 5e-3), (10.999, 5e-3), (11.0, 5e-4), (13.9, 5e-4), (14.0, 5e-5), (15.0, 5e-5)]
        {
            close(lr(&s, 5e-3, 15.0, at), want);
        }
    }

    #[test]
    fn constant_after_its_warm_up() {
        let s = Schedule { kind: ScheduleKind::Constant, warmup_epochs: 2.0, ..Schedule::default() };
        close(lr(&s, 0.4, 9.0, 0.5), 0.1);
        close(lr(&s, 0.4, 9.0, 2.0), 0.4);
        close(lr(&s, 0.4, 9.0, 9.0), 0.4);
    }
}
