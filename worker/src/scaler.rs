//! Loss scaling for fp16, whose smallest gradients would vanish: the loss is multiplied before the
//! backward pass, the gradients divided after it (Micikevicius et al. 2018; `torch.amp.GradScaler`).

use crate::{Error, Result};
use std::collections::HashMap;
use tch::{Kind, Tensor};

/// Steps without overflow after which the scale is doubled.
const GROWTH_INTERVAL: i64 = 2000;
/// Names in a checkpoint's optimizer files.
const NAMES: [&str; 2] = ["scaler.scale", "scaler.good_steps"];

/// The scale and when it last changed; the same on every rank, because all see the same gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaler {
    scale: f64,
    good_steps: i64,
}

impl Default for LossScaler {
    fn default() -> Self {
        Self { scale: 65536.0, good_steps: 0 }
    }
}

impl LossScaler {
    /// What to multiply the loss by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Takes note of a step's gradients. True: they overflowed, the step must be skipped, and the scale
    /// is half of what it was.
    pub fn update(&mut self, finite: bool) -> bool {
        if !finite {
            *self = Self { scale: self.scale / 2.0, good_steps: 0 };
            return true;
        }
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            *self = Self { scale: self.scale * 2.0, good_steps: 0 };
        }
        false
    }

    /// As named tensors for a checkpoint.
    pub fn state(&self) -> [(String, Tensor); 2] {
        let [scale, good] = NAMES.map(String::from);
        [(scale, Tensor::from(self.scale)), (good, Tensor::from(self.good_steps))]
    }

    /// Takes its own tensors out of a checkpoint's; without them it stays as it is.
    pub fn take(&mut self, saved: &mut HashMap<String, Tensor>) -> Result<()> {
        if let [Some(scale), Some(good)] = NAMES.map(|n| saved.remove(n)) {
            let refused =
                |name: &str| Error::Usage(format!("restore the loss scaler: {name} is no single number"));
            if scale.numel() != 1 || scale.kind() != Kind::Double {
                return Err(refused(NAMES[0]));
            }
            if good.numel() != 1 || good.kind() != Kind::Int64 {
                return Err(refused(NAMES[1]));
            }
            *self = Self { scale: scale.f_double_value(&[])?, good_steps: good.f_int64_value(&[])? };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_on_overflow_and_doubles_after_good_steps() {
        let mut s = LossScaler::default();
        assert!(s.update(false) && s.scale() == 32768.0);
        for _ in 0..GROWTH_INTERVAL - 1 {
            assert!(!s.update(true) && s.scale() == 32768.0);
        }
        assert!(!s.update(true) && s.scale() == 65536.0);
    }

    #[test]
    fn goes_into_a_checkpoint_and_comes_back() {
        let mut s = LossScaler::default();
        s.update(false);
        s.update(true);
        let mut saved: HashMap<String, Tensor> = s.state().into_iter().collect();
        saved.insert("step".into(), Tensor::from(3i64));
        let mut other = LossScaler::default();
        other.take(&mut saved).unwrap();
        assert_eq!(other, s);
        assert_eq!(saved.keys().collect::<Vec<_>>(), ["step"]);
        let mut wrong: HashMap<String, Tensor> = s.state().into_iter().collect();
        wrong.insert(NAMES[1].into(), Tensor::from(1.5));
        assert!(other.take(&mut wrong).unwrap_err().to_string().contains(NAMES[1]));
    }
}
