//! Mean average precision: how well each class's scores rank the clips that bear it.

/// The scores and labels of every clip of a split, by place; what other ranks judged is zero until merged.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    classes: usize,
    /// Row-major, clip x class.
    scores: Vec<f64>,
    /// The same, 1 where the clip bears the class.
    truth: Vec<f64>,
}

impl Ranking {
    /// Room for `clips` clips.
    pub fn new(classes: usize, clips: usize) -> Self {
        Self { classes, scores: vec![0.0; clips * classes], truth: vec![0.0; clips * classes] }
    }

    /// Sets one clip's row. `scores` has a value for each class; `labels` are classes. `false` where the
    /// place or a label lies outside.
    #[must_use]
    pub fn set(&mut self, place: usize, scores: &[f64], labels: &[usize]) -> bool {
        let row = place * self.classes..(place + 1) * self.classes;
        if row.end > self.scores.len() || labels.iter().any(|&l| l >= self.classes) {
            return false;
        }
        self.scores[row.clone()].copy_from_slice(scores);
        labels.iter().for_each(|l| self.truth[row.start + l] = 1.0);
        true
    }

    /// Adds what another rank judged.
    pub fn merge(&mut self, other: &Self) {
        self.values_mut().zip(other.values()).for_each(|(a, b)| *a += b);
    }

    /// Scores, then truth: to be summed over the ranks, each of which judged other clips.
    pub fn values(&self) -> impl Iterator<Item = &f64> {
        self.scores.iter().chain(&self.truth)
    }

    /// The same, to be replaced.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        self.scores.iter_mut().chain(&mut self.truth)
    }

    /// Average precision of each class; `None` for one that no clip bears.
    pub fn per_class(&self) -> Vec<Option<f64>> {
        let column = |values: &[f64], c| values.iter().skip(c).step_by(self.classes).copied().collect();
        (0..self.classes)
            .map(|c| {
                let (scores, truth): (Vec<f64>, Vec<f64>) = (column(&self.scores, c), column(&self.truth, c));
                average_precision(&scores, &truth.iter().map(|&t| t > 0.0).collect::<Vec<_>>())
            })
            .collect()
    }

    /// The mean over the classes that some clip bears (PySlowFast, `slowfast/utils/meters.py::get_map`);
    /// `None` where there are none.
    pub fn mean(&self) -> Option<f64> {
        let found: Vec<f64> = self.per_class().into_iter().flatten().collect();
        (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
    }
}

/// The sum over thresholds of precision times the recall gained there, equal scores being one threshold
/// (scikit-learn's `average_precision_score`). `None` without a positive.
pub fn average_precision(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let all = positive.iter().filter(|p| **p).count();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let (mut sum, mut found, mut seen) = (0.0, 0, 0);
    for tied in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let gained = tied.iter().filter(|&&i| positive[i]).count();
        (found, seen) = (found + gained, seen + tied.len());
        sum += gained as f64 * found as f64 / seen as f64;
    }
    (all > 0).then(|| sum / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values, which are scikit-learn's definition in numpy:
    ///
    /// ```python
    /// def ap(y, s):
    ///     o = np.argsort(-s, kind="stable"); y, s = y[o], s[o]
    ///     last = np.r_[s[1:] != s[:-1], True]           # ties count as one threshold
    ///     tp, n = np.cumsum(y)[last], (np.arange(len(y)) + 1)[last]
    ///     return float(np.sum(np.diff(np.r_[0, tp / y.sum()]) * tp / n))
    /// i, k = np.arange(12)[:, None], np.arange(4)[None]
    /// s = ((i * 37 + k * 11) % 10) / 10                 # with ties
    /// y = ((i * 7 + k * k * 3 + i * k) % 3 == 0).astype(int); y[:, 3] = 0
    /// ap of columns 0, 1, 2; their mean
    /// ```
    #[test]
    fn the_mean_is_that_of_scikit_learn() {
        let mut whole = Ranking::new(4, 12);
        let mut halves = [Ranking::new(4, 12), Ranking::new(4, 12)];
        for i in 0..12 {
            let scores: Vec<f64> = (0..4).map(|k| ((i * 37 + k * 11) % 10) as f64 / 10.0).collect();
            let labels: Vec<usize> = (0..3).filter(|k| (i * 7 + k * k * 3 + i * k) % 3 == 0).collect();
            assert!(whole.set(i, &scores, &labels) && halves[i % 2].set(i, &scores, &labels));
        }
        let want = [0.24513888888888885, 0.2724567099567099, 1.0];
        for (got, want) in whole.per_class().iter().zip(want) {
            assert!((got.unwrap() - want).abs() < 1e-12, "{got:?} is not {want}");
        }
        assert_eq!(whole.per_class()[3], None, "nothing bears the class: left out");
        assert!((whole.mean().unwrap() - 0.5058651996151996).abs() < 1e-12);
        let [mut first, second] = halves;
        assert_ne!(first.mean(), whole.mean());
        first.merge(&second);
        assert_eq!(first, whole);
    }

    #[test]
    fn perfect_and_empty() {
        assert_eq!(average_precision(&[0.9, 0.8, 0.1], &[true, true, false]), Some(1.0));
        assert_eq!(average_precision(&[0.5, 0.5], &[true, false]), Some(0.5));
        assert_eq!(average_precision(&[0.5], &[false]), None);
        assert_eq!(Ranking::new(2, 1).mean(), None);
        assert!(!Ranking::new(2, 1).set(1, &[0.0; 2], &[]) && !Ranking::new(2, 1).set(0, &[0.0; 2], &[2]));
    }
}
