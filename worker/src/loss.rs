//! What is minimised: one loss a clip from logits and soft targets.

use crate::Result;
use configs::LossKind;
use tch::{Kind, Tensor};

/// The loss of each clip, (B), from logits (B, classes) and targets (B, classes), float32.
///
/// Cross-entropy: `-sum(target x log softmax)`, so that a row of zeros (an unlabelled clip) costs
/// nothing. Binary cross-entropy: the mean over the classes (`BCEWithLogitsLoss`).
pub fn of_each_clip(logits: &Tensor, targets: &Tensor, kind: LossKind) -> Result<Tensor> {
    let logits = logits.f_to_kind(Kind::Float)?;
    let over_classes = [1i64];
    Ok(match kind {
        LossKind::CrossEntropy => {
            let log = logits.f_log_softmax(1, Kind::Float)?;
            log.f_mul(targets)?.f_sum_dim_intlist(&over_classes[..], false, Kind::Float)?.f_neg()?
        }
        LossKind::Bce => logits
            .f_binary_cross_entropy_with_logits::<Tensor>(targets, None, None, tch::Reduction::None)?
            .f_mean_dim(&over_classes[..], false, Kind::Float)?,
    })
}

/// Clips whose most probable class is one of their labels; of a mixed clip, the one with the larger share.
pub fn hits(logits: &Tensor, targets: &Tensor) -> Result<f64> {
    let best = logits.f_argmax(1, true)?;
    let (largest, _) = targets.f_max_dim(1, true)?;
    let hit = targets.f_gather(1, &best, false)?.f_ge_tensor(&largest)?.f_logical_and(&largest.f_gt(0.0)?)?;
    Ok(hit.f_sum(Kind::Double)?.f_double_value(&[])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &Tensor, b: &[f64]) {
        let a = Vec::<f64>::try_from(a.to_kind(Kind::Double)).unwrap();
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} is not {b:?}");
    }

    fn logits() -> Tensor {
        Tensor::from_slice2(&[[1f32, 2.0, 0.5], [0.0, -1.0, 3.0], [1.0, 1.0, 1.0]])
    }

    /// ```python
    /// import torch, torch.nn.functional as F
    /// x = torch.tensor([[1, 2, .5], [0, -1, 3], [1, 1, 1]])
    /// t = torch.tensor([[0, 1, 0], [.25, 0, .75], [0, 0, 0]])
    /// print(torch.sum(-t * F.log_softmax(x, 1), 1), F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1))
    /// ```
    #[test]
    fn equals_pytorch() {
        let targets = Tensor::from_slice2(&[[0f32, 1.0, 0.0], [0.25, 0.0, 0.75], [0.0, 0.0, 0.0]]);
        let ce = of_each_clip(&logits(), &targets, LossKind::CrossEntropy).unwrap();
        close(&ce, &[0.46436879, 0.81588387, 0.0]);
        let bce = of_each_clip(&logits(), &targets, LossKind::Bce).unwrap();
        close(&bce, &[0.80475551, 0.60166544, 1.31326175]);
    }

    #[test]
    fn a_hit_is_any_of_the_labels_and_never_an_unlabelled_clip() {
        let targets = Tensor::from_slice2(&[[0f32, 1.0, 1.0], [0.9, 0.0, 0.1], [0.0, 0.0, 0.0]]);
        assert_eq!(hits(&logits(), &targets).unwrap(), 1.0);
    }
}
