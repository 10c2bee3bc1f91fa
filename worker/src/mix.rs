//! Soft targets, and the mixing of a rank's clips: mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019)
//! by batch, as timm's `data/mixup.py` and PySlowFast's `datasets/mixup.py`.

use crate::{Error, Result};
use configs::{Loss, LossKind, Mix};
use rand_distr::{Beta, Distribution};
use shards::{random::Keyed, stream::Batch};
use std::ops::Range;
use tch::{Device, Tensor};

/// What the network should answer for each of these `views` of `batch`: (B, classes) float32 on `device`.
///
/// `cross_entropy`: 1 - s + s/C for the first label and s/C for all others, s being the label smoothing.
/// `bce`: 1 for every label that the clip has; none is an answer too.
///
/// # Errors
/// With `cross_entropy`, a clip without a label; a label that is no class. Names the clip's place in the split.
pub fn targets(
    batch: &Batch,
    views: Range<usize>,
    classes: i64,
    loss: Loss,
    device: Device,
) -> Result<Tensor> {
    let bad = |view: usize, why: String| {
        let place = batch.clips.get(view).copied().unwrap_or_default();
        Error::Usage(format!("learn from clip {place} of the training split: {why}"))
    };
    let width = classes as usize;
    let (off, on) = match loss.kind {
        LossKind::CrossEntropy => {
            let off = loss.label_smoothing / classes as f64;
            (off, 1.0 - loss.label_smoothing + off)
        }
        LossKind::Bce => (0.0, 1.0),
    };
    let mut rows = vec![off as f32; views.len() * width];
    for (row, view) in views.clone().enumerate() {
        let labels = batch.label_sets.get(view).map(Vec::as_slice).unwrap_or_default();
        let shown = match loss.kind {
            LossKind::CrossEntropy if labels.is_empty() => {
                return Err(bad(view, "it has no label; give it one, or put it into another split".into()));
            }
            LossKind::CrossEntropy => &labels[..1],
            LossKind::Bce => labels,
        };
        for &label in shown {
            let class = usize::try_from(label).ok().filter(|c| *c < width);
            let class =
                class.ok_or_else(|| bad(view, format!("its label {label} is none of {width} classes")))?;
            rows[row * width + class] = on as f32;
        }
    }
    let rows = Tensor::f_from_slice(&rows)?.f_view([views.len() as i64, classes])?;
    Ok(rows.f_to_device(device)?)
}

/// Mixes `clips` (B, 3, T, H, W) and their `targets` (B, classes) with the same batch in the opposite
/// order. Memory format and kind are kept. One clip or none has no partner and stays as it is.
///
/// What is drawn is a function of (seed, step, rank), and one draw counts for the whole batch.
///
/// # Errors
/// Torch's own: shapes that do not fit.
pub fn mix(
    clips: &Tensor,
    targets: &Tensor,
    cfg: &Mix,
    (seed, step, rank): (u64, u64, u64),
) -> Result<(Tensor, Tensor)> {
    let (b, _, _, h, w) = clips.size5()?;
    let drawn = Drawn::draw(cfg, (h, w), &mut Keyed::new("mix", "", &[seed, step, rank]));
    if b < 2 {
        return Ok((clips.shallow_clone(), targets.shallow_clone()));
    }
    let (mixed, share) = match drawn {
        Drawn::Nothing => return Ok((clips.shallow_clone(), targets.shallow_clone())),
        Drawn::Mixup { share } => (blend(clips, share)?, share),
        Drawn::Cutmix(pasted) => {
            let part =
                |x: &Tensor| x.f_narrow(3, pasted.top, pasted.height)?.f_narrow(4, pasted.left, pasted.width);
            let mut mixed = clips.f_empty_like()?;
            mixed.f_copy_(clips)?;
            part(&mixed)?.f_copy_(&part(clips)?.f_flip([0])?)?;
            (mixed, pasted.share(h, w))
        }
    };
    Ok((mixed, blend(targets, share)?))
}

/// `share` of each row and the rest of its partner's.
fn blend(x: &Tensor, share: f64) -> Result<Tensor> {
    let partner = x.f_flip([0])?.f_mul_scalar_(1.0 - share)?;
    Ok(x.f_mul_scalar(share)?.f_add_(&partner)?)
}

/// What happens to one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Drawn {
    Nothing,
    /// The part that a clip keeps of itself.
    Mixup {
        share: f64,
    },
    Cutmix(Pasted),
}

/// The box of every frame that comes from the partner, pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pasted {
    top: i64,
    left: i64,
    height: i64,
    width: i64,
}

impl Drawn {
    fn draw(cfg: &Mix, (h, w): (i64, i64), random: &mut Keyed) -> Self {
        if random.unit() >= cfg.prob {
            return Drawn::Nothing;
        }
        let cut = match (cfg.mixup_alpha > 0.0, cfg.cutmix_alpha > 0.0) {
            (true, true) => random.unit() < cfg.switch_prob,
            (_, cutmix) => cutmix,
        };
        let alpha = if cut { cfg.cutmix_alpha } else { cfg.mixup_alpha };
        // The configuration has refused an alpha that no distribution has.
        let Ok(beta) = Beta::new(alpha, alpha) else { return Drawn::Nothing };
        let share = beta.sample(random.generator());
        match cut {
            false => Drawn::Mixup { share },
            true => {
                Drawn::Cutmix(Pasted::around(share, (h, w), [random.below(h as u64), random.below(w as u64)]))
            }
        }
    }
}

impl Pasted {
    /// A box of 1 - `share` of the frame around a point, cut at the border (timm's `rand_bbox`).
    fn around(share: f64, (h, w): (i64, i64), [y, x]: [u64; 2]) -> Self {
        let side = (1.0 - share).sqrt();
        let extent = |whole: i64, middle: i64| {
            let cut = (whole as f64 * side) as i64;
            ((middle - cut / 2).clamp(0, whole), (middle + (cut + 1) / 2).clamp(0, whole))
        };
        let ((top, bottom), (left, right)) = (extent(h, y as i64), extent(w, x as i64));
        Self { top, left, height: bottom - top, width: right - left }
    }

    /// The part of the frame that stays.
    fn share(&self, h: i64, w: i64) -> f64 {
        1.0 - (self.height * self.width) as f64 / (h * w) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tch::Kind;

    const BOTH: Mix = Mix { mixup_alpha: 0.8, cutmix_alpha: 1.0, prob: 1.0, switch_prob: 0.5 };
    const MIXUP: Mix = Mix { cutmix_alpha: 0.0, ..BOTH };
    const CUTMIX: Mix = Mix { mixup_alpha: 0.0, ..BOTH };
    const PLAIN: Loss = Loss { kind: LossKind::CrossEntropy, label_smoothing: 0.0 };

    fn all(batch: &Batch, classes: i64, loss: Loss) -> Result<Tensor> {
        targets(batch, 0..batch.label_sets.len(), classes, loss, Device::Cpu)
    }

    fn batch(label_sets: &[&[i32]]) -> Batch {
        let n = label_sets.len();
        Batch {
            epoch: 0,
            step: 0,
            frames: Vec::new(),
            shape: [n, 1, 1, 1, 3],
            labels: label_sets.iter().map(|l| l.first().map_or(-1, |&l| i64::from(l))).collect(),
            label_sets: label_sets.iter().map(|l| l.to_vec()).collect(),
            clips: (10..10 + n as u32).collect(),
            positions: (0..n as u64).collect(),
            views: vec![0; n],
            waited: Duration::ZERO,
            global_clips: n,
            missing: vec![],
        }
    }

    /// Clip i is i everywhere; (B, 3, 4, 20, 30), channels last.
    fn clips(b: i64) -> Tensor {
        let numbers = Tensor::arange(b, (Kind::Float, Device::Cpu)).view([b, 1, 1, 1, 1]);
        (Tensor::zeros([b, 4, 20, 30, 3], (Kind::Float, Device::Cpu)) + numbers).permute([0, 4, 1, 2, 3])
    }

    fn one_hot(b: i64) -> Tensor {
        Tensor::eye(b, (Kind::Float, Device::Cpu))
    }

    fn values(x: &Tensor) -> Vec<f64> {
        Vec::try_from(x.contiguous().view([-1]).to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn smoothed_targets_are_timms() {
        let loss = Loss { label_smoothing: 0.1, ..PLAIN };
        let found = all(&batch(&[&[2], &[0, 3]]), 4, loss).unwrap();
        assert_eq!((found.size(), found.kind()), (vec![2, 4], Kind::Float));
        let expected = [0.025, 0.025, 0.925, 0.025, 0.925, 0.025, 0.025, 0.025];
        assert!(values(&found).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7), "{found:?}");
    }

    #[test]
    fn a_clip_may_have_any_number_of_labels_with_bce() {
        let bce = Loss { kind: LossKind::Bce, ..PLAIN };
        let found = all(&batch(&[&[2, 0], &[], &[1]]), 3, bce).unwrap();
        assert_eq!(values(&found), [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(all(&batch(&[]), 3, bce).unwrap().size(), [0, 3]);
    }

    #[test]
    fn labels_that_cannot_be_learnt_name_their_clip() {
        let refused = |sets: &[&[i32]]| all(&batch(sets), 3, PLAIN).unwrap_err().to_string();
        assert!(refused(&[&[0], &[]]).contains("clip 11 of the training split: it has no label"));
        assert!(refused(&[&[3]]).contains("label 3 is none of 3 classes"));
        assert!(refused(&[&[-1]]).contains("label -1 is none"));
    }

    #[test]
    fn targets_sum_to_one_and_tell_what_is_seen() {
        let (clips, targets) = (clips(6), one_hot(6));
        let (mut cut, mut blended) = (0, 0);
        for step in 0..60 {
            let (mixed, soft) = mix(&clips, &targets, &BOTH, (7, step, 0)).unwrap();
            assert_eq!(mixed.stride(), clips.stride(), "the memory format is kept");
            let sums = values(&soft.sum_dim_intlist([1i64].as_slice(), false, Kind::Double));
            assert!(sums.iter().all(|s| (s - 1.0).abs() < 1e-6), "{sums:?}");
            // The mean over a clip's pixels is what its target says of the clips' numbers.
            let seen = values(&mixed.mean_dim([1i64, 2, 3, 4].as_slice(), false, Kind::Double));
            let said = values(&soft.matmul(&Tensor::arange(6, (Kind::Float, Device::Cpu))));
            assert!(seen.iter().zip(&said).all(|(a, b)| (a - b).abs() < 1e-5), "{seen:?}, {said:?}");
            let first = mixed.get(0);
            assert!(first.get(0).get(0).equal(&first.get(2).get(3)), "the same for channels and frames");
            let share = soft.double_value(&[0, 0]);
            let whole = values(&first).iter().all(|v| v.fract() == 0.0);
            match whole {
                true => cut += 1,
                false => blended += 1,
            }
            assert!((0.0..=1.0).contains(&share));
        }
        assert!(cut > 15 && blended > 15, "{cut} cut, {blended} blended");
    }

    #[test]
    fn one_clip_or_none_stays_as_it_is() {
        for b in [0, 1] {
            for cfg in [BOTH, MIXUP, CUTMIX] {
                let (mixed, soft) = mix(&clips(b), &one_hot(b), &cfg, (7, 0, 0)).unwrap();
                assert!(mixed.equal(&clips(b)) && soft.equal(&one_hot(b)));
            }
        }
    }

    #[test]
    fn an_odd_batch_leaves_its_middle_clip() {
        let (mixed, soft) = mix(&clips(3), &one_hot(3), &MIXUP, (7, 3, 0)).unwrap();
        assert!((mixed.get(1) - clips(3).get(1)).abs().max().double_value(&[]) < 1e-6);
        assert!((soft.double_value(&[1, 1]) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn draws_depend_on_their_key_and_come_at_their_rates() {
        let of = |cfg: &Mix, step| Drawn::draw(cfg, (224, 224), &mut Keyed::new("mix", "", &[7, step, 0]));
        let rare = Mix { prob: 0.3, ..BOTH };
        let draws: Vec<Drawn> = (0..2000).map(|step| of(&rare, step)).collect();
        assert_eq!(draws[5], of(&rare, 5));
        let nothing = draws.iter().filter(|d| **d == Drawn::Nothing).count();
        let cut = draws.iter().filter(|d| matches!(d, Drawn::Cutmix(_))).count();
        assert!((1320..1480).contains(&nothing) && (240..360).contains(&cut), "{nothing}, {cut}");
        assert!((0..200).all(|s| matches!(of(&MIXUP, s), Drawn::Mixup { .. })));
        assert!((0..200).all(|s| matches!(of(&CUTMIX, s), Drawn::Cutmix(_))));
        // Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
        let share = |d: Drawn| if let Drawn::Mixup { share } = d { share } else { f64::NAN };
        let shares: Vec<f64> = (0..4000).map(|s| share(of(&MIXUP, s))).collect();
        let mean = shares.iter().sum::<f64>() / 4000.0;
        let variance = shares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.02 && (variance - 1.0 / 10.4).abs() < 0.005, "{mean}, {variance}");
    }

    #[test]
    fn boxes_are_timms() {
        // timm.data.mixup.rand_bbox((3, 20, 31), lam) with (cy, cx) = np.random.randint
        let at = |share, y, x| {
            let b = Pasted::around(share, (20, 31), [y, x]);
            [b.top, b.top + b.height, b.left, b.left + b.width]
        };
        assert_eq!(at(0.5, 10, 15), [3, 17, 5, 26]);
        assert_eq!(at(0.5, 2, 30), [0, 9, 20, 31]);
        assert_eq!(at(0.91, 19, 0), [17, 20, 0, 5]);
        assert_eq!(at(0.0, 0, 0), [0, 10, 0, 16]);
        let all_but = Pasted { top: 0, left: 5, height: 10, width: 6 };
        assert!((all_but.share(20, 30) - 0.9).abs() < 1e-12, "the share is the area");
    }
}
