//! Counting right and wrong: top-1, top-5, loss and the confusion matrix, mergeable over ranks.

use crate::{Error, Result};
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
    /// Row-major, true class x predicted class.
    confusion: Vec<u64>,
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
    /// Nothing counted yet.
    pub fn new(classes: usize) -> Self {
        Self { classes, clips: 0, loss_sum: 0.0, top1: 0, top5: 0, confusion: vec![0; classes * classes] }
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
        if self.classes != other.classes {
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
        Ok(())
    }

    /// All counts as one float64 vector (4 + classes²) to be summed over the ranks. Exact up to 2^53.
    pub fn to_tensor(&self, device: Device) -> Result<Tensor> {
        let mut v = vec![self.clips as f64, self.loss_sum, self.top1 as f64, self.top5 as f64];
        v.extend(self.confusion.iter().map(|&n| n as f64));
        Ok(Tensor::f_from_slice(&v)?.f_to_device(device)?)
    }

    /// The reverse of [`Tally::to_tensor`].
    pub fn from_tensor(classes: usize, tensor: &Tensor) -> Result<Self> {
        let n = 4 + classes * classes;
        if tensor.size() != [n as i64] {
            return Err(Error::Usage(format!(
                "read a tally of {classes} classes from a tensor of shape {:?}",
                tensor.size()
            )));
        }
        let mut v = vec![0f64; n];
        tensor.f_copy_data(&mut v, n)?;
        Ok(Self {
            classes,
            clips: v[0] as u64,
            loss_sum: v[1],
            top1: v[2] as u64,
            top5: v[3] as u64,
            confusion: v[4..].iter().map(|&x| x as u64).collect(),
        })
    }

    /// The whole group's tally, on every rank.
    pub fn all_reduce(&self, group: &Group, device: Device) -> Result<Self> {
        let sums = self.to_tensor(device)?;
        group.all_reduce(&sums, ReduceOp::Sum)?.wait()?;
        Self::from_tensor(self.classes, &sums)
    }

    /// Labelled clips counted.
    pub fn clips(&self) -> u64 {
        self.clips
    }

    /// Mean cross-entropy, nats; 0 where nothing was counted.
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

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Clips of class `truth` that were predicted as `predicted`.
    pub fn confusion(&self, truth: usize, predicted: usize) -> u64 {
        self.confusion[truth * self.classes + predicted]
    }

    /// Counts of each class.
    pub fn per_class(&self) -> Vec<ClassCount> {
        (0..self.classes)
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

/// How many rows of `logits` (B, classes) are largest at their label (B, int64).
pub fn correct(logits: &Tensor, labels: &Tensor) -> Result<i64> {
    let hits = logits.f_argmax(-1, false)?.f_eq_tensor(labels)?.f_sum(Kind::Int64)?;
    Ok(hits.f_int64_value(&[])?)
}

/// Softmax of `logits` (B, classes) in float64: one row of probabilities for each view.
pub fn probabilities(logits: &Tensor) -> Result<Vec<Vec<f64>>> {
    let p = logits.f_to_kind(Kind::Double)?.f_softmax(-1, Kind::Double)?.f_to_device(Device::Cpu)?;
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
        assert_eq!(Tally::from_tensor(2, &sum).unwrap(), merged);
        assert_eq!((merged.clips, merged.top1), (3, 2));
        assert!(Tally::from_tensor(3, &sum).is_err());
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(ranked(&[0.2, 0.4, 0.4], 5), [1, 2, 0]);
    }

    #[test]
    fn softmax_rows_and_correct_counts() {
        let logits = Tensor::from_slice2(&[[0f32, 0.0], [2.0, -1000.0]]);
        let p = probabilities(&logits).unwrap();
        assert_eq!(p[0], [0.5, 0.5]);
        assert_eq!(p[1][0], 1.0);
        assert_eq!(correct(&logits, &Tensor::from_slice(&[1i64, 0])).unwrap(), 1);
    }
}
