//! Which checkpoints stay: the newest, every nth, the best. Pure.

use super::{EvalReport, Generation, Step};
use configs::Metric;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What an evaluation said of a checkpoint's step; kept in its manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<f64>,
}

/// A checkpoint whose manifest exists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// That wrote it.
    pub generation: Generation,
    /// That its manifest names.
    pub attempt: String,
    pub scores: Scores,
}

impl From<&str> for Kept {
    fn from(attempt: &str) -> Self {
        Self { attempt: attempt.into(), ..Self::default() }
    }
}

/// The job's rules.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The newest so many; at least one.
    pub keep: usize,
    /// Besides, the steps that are multiples of this.
    pub keep_every: Option<u64>,
    /// Besides, the one with the best figure; of equals the newest.
    pub keep_best: Option<Metric>,
}

impl Scores {
    /// Of a report.
    pub fn of(report: &EvalReport) -> Self {
        Self { top1: Some(report.top1), map: report.mean_average_precision }
    }

    /// Nothing was measured.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn get(&self, metric: Metric) -> Option<f64> {
        let value = match metric {
            Metric::Top1 => self.top1,
            Metric::Map => self.map,
        };
        value.filter(|v| v.is_finite())
    }
}

impl Retention {
    /// The steps up to `newest` that need not stay.
    pub fn outdated(&self, committed: &BTreeMap<Step, Kept>, newest: Step) -> Vec<Step> {
        let steps = || committed.range(..=newest);
        let recent: BTreeSet<Step> = steps().rev().take(self.keep.max(1)).map(|(s, _)| *s).collect();
        let best = self.keep_best.and_then(|metric| {
            let measured = steps().filter_map(|(step, kept)| Some((kept.scores.get(metric)?, *step)));
            measured.max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, step)| step)
        });
        let stays = |s: &Step| {
            recent.contains(s) || best == Some(*s) || self.keep_every.is_some_and(|n| s.0.is_multiple_of(n))
        };
        steps().map(|(s, _)| *s).filter(|s| !stays(s)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outdated(rules: Retention, newest: u64) -> Vec<u64> {
        let top1 = |step: u64| match step {
            10 => Some(0.5),
            30 | 40 => Some(0.9),
            50 => Some(f64::NAN),
            _ => None,
        };
        let kept = |step| Kept { scores: Scores { top1: top1(step), map: None }, ..Default::default() };
        let all = (1..=6).map(|i| (Step(10 * i), kept(10 * i))).collect();
        rules.outdated(&all, Step(newest)).into_iter().map(|s| s.0).collect()
    }

    #[test]
    fn the_newest_every_nth_and_the_best_stay() {
        let rules = Retention { keep: 2, keep_every: None, keep_best: None };
        assert_eq!(outdated(rules, 60), [10, 20, 30, 40]);
        assert_eq!(outdated(Retention { keep: 0, ..rules }, 60), [10, 20, 30, 40, 50]);
        assert_eq!(outdated(Retention { keep_every: Some(20), ..rules }, 60), [10, 30]);
        let best = Retention { keep_best: Some(Metric::Top1), ..rules };
        assert_eq!(outdated(best, 60), [10, 20, 30], "of equals the newest");
        assert_eq!(outdated(Retention { keep_best: Some(Metric::Map), ..rules }, 60), [10, 20, 30, 40]);
        // What lies beyond was refused by those who went on from here: it neither counts nor goes.
        assert_eq!(outdated(best, 20), [] as [u64; 0]);
        assert_eq!(outdated(Retention { keep: 1, ..best }, 20), [] as [u64; 0], "10 is the best so far");
    }
}
