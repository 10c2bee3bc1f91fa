//! Counting right and wrong: top-1, top-5, loss, the confusion matrix, average precision; mergeable over ranks.

use crate::{Error, Result, ranking::Ranking};
use collective::{Group, ReduceOp};
use tch::{Device, Kind, Tensor};

/// What an evaluation counted. Sums only, so that the ranks' tallies add up to the whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    classes: usize,
    /// Labelled clips.
    clips: u64,
    /// Sum over the clips of the cross-entropy, nats.
    loss_sum: f64,
    /// Clips whose label is the most probable class.
    top1: u64,
    /// Clips whose label is among the five most probable classes (all of them where there are fewer).
    top5: u64,
    /// Row-major, true class x predicted class; empty where a clip may bear several.
    confusion: Vec<u64>,
    /// Where a clip may bear several classes.
    ranking: Option<Ranking>,
}

/// One class of a [`Tally`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassCount {
    /// Clips that bear this label.
    pub clips: u64,
    /// Of which were predicted as it.
    pub correct: u64,
}

impl Tally {
    /// Nothing counted yet; a clip bears one class.
    pub fn new(classes: usize) -> Self {
        let confusion = vec![0; classes * classes];
        Self { classes, clips: 0, loss_sum: 0.0, top1: 0, top5: 0, confusion, ranking: None }
    }

    /// Nothing counted yet of `clips` clips, which bear any number of classes.
    pub fn multi_label(classes: usize, clips: usize) -> Self {
        let ranking = Some(Ranking::new(classes, clips));
        Self { classes, clips: 0, loss_sum: 0.0, top1: 0, top5: 0, confusion: vec![], ranking }
    }

    /// Counts the clip at `place` of the split from its scores, in the way that this tally was made for.
    /// `labels`: the classes it bears; none where only one is asked for: it counts for nothing.
    pub fn count(&mut self, place: usize, scores: &[f64], labels: &[usize]) -> Result<()> {
        match self.ranking {
            None => self.add(scores, labels.first().map_or(-1, |&l| l as i64)),
            Some(_) => self.rank(place, scores, labels),
        }
    }

    fn rank(&mut self, place: usize, scores: &[f64], labels: &[usize]) -> Result<()> {
        let fits = scores.len() == self.classes
            && self.ranking.as_mut().is_some_and(|r| r.set(place, scores, labels));
        if !fits {
            return Err(Error::Usage(format!(
                "count clip {place} of labels {labels:?} with {} scores: the tally has {} classes",
                scores.len(),
                self.classes
            )));
        }
        let best = ranked(scores, 5);
        let cross_entropy = |(c, &p): (usize, &f64)| {
            let p = if labels.contains(&c) { p } else { 1.0 - p };
            -p.max(f64::MIN_POSITIVE).ln()
        };
        self.clips += 1;
        self.loss_sum += scores.iter().enumerate().map(cross_entropy).sum::<f64>() / self.classes as f64;
        self.top1 += u64::from(labels.contains(&best[0]));
        self.top5 += u64::from(best.iter().any(|b| labels.contains(b)));
        Ok(())
    }

    /// Counts one clip from its class probabilities. A label below zero (unlabelled) counts for nothing.
    pub fn add(&mut self, probabilities: &[f64], label: i64) -> Result<()> {
        if probabilities.len() != self.classes || label >= self.classes as i64 {
            return Err(Error::Usage(format!(
                "count a clip of label {label} with {} probabilities: the tally has {} classes",
                probabilities.len(),
                self.classes
            )));
        }
        let Ok(label) = usize::try_from(label) else { return Ok(()) };
        let best = ranked(probabilities, 5);
        self.clips += 1;
        // A probability that rounds to zero would make the mean infinite.
        self.loss_sum -= probabilities[label].max(f64::MIN_POSITIVE).ln();
        self.top1 += u64::from(best[0] == label);
        self.top5 += u64::from(best.contains(&label));
        self.confusion[label * self.classes + best[0]] += 1;
        Ok(())
    }

    /// Adds another rank's counts.
    pub fn merge(&mut self, other: &Tally) -> Result<()> {
        if self.classes != other.classes || self.ranking.is_some() != other.ranking.is_some() {
            return Err(Error::Usage(format!(
                "merge tallies of {} and {} classes",
                self.classes, other.classes
            )));
        }
        self.clips += other.clips;
        self.loss_sum += other.loss_sum;
        self.top1 += other.top1;
        self.top5 += other.top5;
        self.confusion.iter_mut().zip(&other.confusion).for_each(|(a, b)| *a += b);
        if let (Some(mine), Some(theirs)) = (&mut self.ranking, &other.ranking) {
            mine.merge(theirs);
        }
        Ok(())
    }

    /// All counts as one float64 vector to be summed over the ranks: 4 + classes², or 4 + 2 x clips x
    /// classes where a clip may bear several. Exact up to 2^53.
    pub fn to_tensor(&self, device: Device) -> Result<Tensor> {
        let mut v = vec![self.clips as f64, self.loss_sum, self.top1 as f64, self.top5 as f64];
        v.extend(self.confusion.iter().map(|&n| n as f64));
        v.extend(self.ranking.iter().flat_map(Ranking::values));
        Ok(Tensor::f_from_slice(&v)?.f_to_device(device)?)
    }

    /// This tally with its counts from what [`Tally::to_tensor`] of one of its kind made.
    pub fn with_counts(mut self, tensor: &Tensor) -> Result<Self> {
        let n = 4 + self.confusion.len() + self.ranking.iter().flat_map(Ranking::values).count();
        if tensor.size() != [n as i64] {
            return Err(Error::Usage(format!(
                "read a tally of {n} counts from a tensor of shape {:?}",
                tensor.size()
            )));
        }
        let mut v = vec![0f64; n];
        tensor.f_copy_data(&mut v, n)?;
        (self.clips, self.loss_sum, self.top1, self.top5) = (v[0] as u64, v[1], v[2] as u64, v[3] as u64);
        let mut rest = v[4..].iter();
        self.confusion.iter_mut().zip(&mut rest).for_each(|(to, from)| *to = *from as u64);
        if let Some(ranking) = &mut self.ranking {
            ranking.values_mut().zip(rest).for_each(|(to, from)| *to = *from);
        }
        Ok(self)
    }

    /// The whole group's tally, on every rank.
    pub fn all_reduce(self, group: &Group, device: Device) -> Result<Self> {
        let sums = self.to_tensor(device)?;
        group.all_reduce(&sums, ReduceOp::Sum)?.wait()?;
        self.with_counts(&sums)
    }

    /// Labelled clips counted.
    pub fn clips(&self) -> u64 {
        self.clips
    }

    /// Mean cross-entropy, nats (of each class on its own where a clip may bear several); 0 where nothing was counted.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.clips.max(1) as f64
    }

    /// Share of the clips whose label is the most probable class, 0..=1.
    pub fn top1(&self) -> f64 {
        self.top1 as f64 / self.clips.max(1) as f64
    }

    /// Share of the clips whose label is among the five most probable classes, 0..=1.
    pub fn top5(&self) -> f64 {
        self.top5 as f64 / self.clips.max(1) as f64
    }

    /// Mean over the classes that occur of the share of their clips that were right, 0..=1; `None` where a
    /// clip may bear several.
    pub fn mean_class_accuracy(&self) -> Option<f64> {
        let found: Vec<f64> = self.per_class().into_iter().filter_map(ClassCount::accuracy).collect();
        (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
    }

    /// Scores and labels of all clips, where a clip may bear several classes.
    pub fn ranking(&self) -> Option<&Ranking> {
        self.ranking.as_ref()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Clips of class `truth` that were predicted as `predicted`.
    pub fn confusion(&self, truth: usize, predicted: usize) -> u64 {
        self.confusion[truth * self.classes + predicted]
    }

    /// Counts of each class; none where a clip may bear several.
    pub fn per_class(&self) -> Vec<ClassCount> {
        (0..if self.confusion.is_empty() { 0 } else { self.classes })
            .map(|c| ClassCount {
                clips: (0..self.classes).map(|p| self.confusion(c, p)).sum(),
                correct: self.confusion(c, c),
            })
            .collect()
    }
}

impl ClassCount {
    /// Share of this class's clips that were right; `None` where there are none.
    pub fn accuracy(self) -> Option<f64> {
        (self.clips > 0).then(|| self.correct as f64 / self.clips as f64)
    }
}

/// The `k` most probable classes, best first; the lower index wins a tie, on every machine.
pub fn ranked(probabilities: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
    order.truncate(k);
    order
}

/// Rows of `scores` (B, classes) in float64.
pub fn rows(scores: &Tensor) -> Result<Vec<Vec<f64>>> {
    let p = scores.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let (rows, classes) = p.size2()?;
    let mut flat = vec![0f64; (rows * classes) as usize];
    let len = flat.len();
    p.f_copy_data(&mut flat, len)?;
    Ok(flat.chunks(classes.max(1) as usize).map(<[f64]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_top1_top5_and_confusion() {
        let mut t = Tally::new(7);
        let p = [0.3, 0.25, 0.2, 0.1, 0.08, 0.05, 0.02];
        for label in [0, 4, 5, -1] {
            t.add(&p, label).unwrap();
        }
        assert_eq!((t.clips, t.top1, t.top5), (3, 1, 2));
        assert_eq!((t.confusion(0, 0), t.confusion(4, 0), t.confusion(5, 0)), (1, 1, 1));
        let want = -(0.3f64.ln() + 0.08f64.ln() + 0.05f64.ln()) / 3.0;
        assert!((t.loss() - want).abs() < 1e-12);
        assert_eq!(t.per_class()[4], ClassCount { clips: 1, correct: 0 });
        assert_eq!(t.per_class()[6].accuracy(), None);
        assert!(t.add(&p, 7).is_err());
    }

    #[test]
    fn fewer_than_five_classes_are_always_within_five() {
        let mut t = Tally::new(3);
        t.add(&[0.9, 0.1, 0.0], 2).unwrap();
        assert_eq!((t.top1, t.top5), (0, 1));
        assert!(t.loss().is_finite());
    }

    #[test]
    fn ranks_add_up() {
        let (mut a, mut b) = (Tally::new(2), Tally::new(2));
        a.add(&[0.8, 0.2], 0).unwrap();
        a.add(&[0.8, 0.2], 1).unwrap();
        b.add(&[0.1, 0.9], 1).unwrap();
        let sum = a.to_tensor(Device::Cpu).unwrap() + b.to_tensor(Device::Cpu).unwrap();
        let mut merged = a.clone();
        merged.merge(&b).unwrap();
        assert_eq!(a.clone().with_counts(&sum).unwrap(), merged);
        assert_eq!((merged.clips, merged.top1), (3, 2));
        assert_eq!(merged.mean_class_accuracy(), Some(0.75));
        assert!(Tally::new(3).with_counts(&sum).is_err());
    }

    #[test]
    fn clips_of_several_classes_are_ranked() {
        let (mut a, mut b) = (Tally::multi_label(3, 3), Tally::multi_label(3, 3));
        a.count(0, &[0.9, 0.8, 0.1], &[0, 1]).unwrap();
        a.count(1, &[0.2, 0.6, 0.5], &[]).unwrap();
        b.count(2, &[0.1, 0.7, 0.3], &[1]).unwrap();
        let sum = a.to_tensor(Device::Cpu).unwrap() + b.to_tensor(Device::Cpu).unwrap();
        let all = a.clone().with_counts(&sum).unwrap();
        a.merge(&b).unwrap();
        assert_eq!(a, all);
        assert_eq!((a.clips(), a.top1(), a.ranking().unwrap().mean()), (3, 2.0 / 3.0, Some(1.0)));
        assert_eq!((a.mean_class_accuracy(), a.per_class()), (None, vec![]));
        let first = -(0.9f64.ln() + 0.8f64.ln() + 0.9f64.ln()) / 3.0;
        let mut one = Tally::multi_label(3, 1);
        one.count(0, &[0.9, 0.8, 0.1], &[0, 1]).unwrap();
        assert!((one.loss() - first).abs() < 1e-12);
        assert!(one.count(1, &[0.9, 0.8, 0.1], &[]).is_err() && one.count(0, &[0.5], &[]).is_err());
        assert!(a.merge(&Tally::new(3)).is_err());
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(ranked(&[0.2, 0.4, 0.4], 5), [1, 2, 0]);
    }

    #[test]
    fn rows_are_read_in_order() {
        let logits = Tensor::from_slice2(&[[0f32, 0.0], [2.0, -1000.0]]);
        assert_eq!(rows(&logits.transpose(0, 1)).unwrap(), [[0.0, 2.0], [0.0, -1000.0]]);
    }
}
