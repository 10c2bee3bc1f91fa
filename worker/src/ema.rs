//! An exponential moving average of the weights (Polyak and Juditsky 1992), kept beside the model.

use crate::{Error, Result};
use collective::{foreach_copy, foreach_lerp};
use models::{Model, Role};
use std::collections::HashMap;
use tch::Tensor;

/// The averaged weights, under the model's names; running statistics are not averaged.
pub struct Ema {
    decay: f64,
    names: Vec<String>,
    weights: Vec<Tensor>,
    average: Vec<Tensor>,
}

/// While it lives, the model holds the averaged weights.
#[must_use = "the model's own weights come back when it is dropped"]
pub struct Swapped<'a> {
    ema: &'a Ema,
    own: Vec<Tensor>,
}

impl Ema {
    /// Starts from the weights as they are.
    pub fn new(config: configs::Ema, model: &Model) -> Result<Self> {
        let trained = model.tensors().into_iter().filter(|t| matches!(t.role, Role::Weight { .. }));
        let (names, weights): (Vec<String>, Vec<Tensor>) = trained
            .map(|t| Ok((t.name, t.tensor.f_detach()?)))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        let average = weights.iter().map(|w| w.f_zeros_like()).collect::<std::result::Result<Vec<_>, _>>()?;
        foreach_copy(&average, &weights)?;
        Ok(Self { decay: config.decay, names, weights, average })
    }

    /// After an optimizer step: `average = decay x average + (1 - decay) x weights`.
    pub fn update(&self) -> Result<()> {
        Ok(foreach_lerp(&self.average, &self.weights, 1.0 - self.decay)?)
    }

    /// Forgets the past: the average becomes the weights as they are.
    pub fn restart(&self) -> Result<()> {
        Ok(foreach_copy(&self.average, &self.weights)?)
    }

    /// Puts the averages into the model until the guard is dropped.
    pub fn swap_in(&self) -> Result<Swapped<'_>> {
        let own =
            self.weights.iter().map(|w| w.f_zeros_like()).collect::<std::result::Result<Vec<_>, _>>()?;
        foreach_copy(&own, &self.weights)?;
        foreach_copy(&self.weights, &self.average)?;
        Ok(Swapped { ema: self, own })
    }

    /// The averages themselves under the weights' names, in the model's order.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.names.iter().cloned().zip(self.average.iter().map(Tensor::shallow_clone)).collect()
    }

    /// Takes over a checkpoint's averages: every name and no other, each with its shape.
    pub fn load(&self, mut saved: HashMap<String, Tensor>) -> Result<()> {
        let refused = |why: String| Error::Usage(format!("restore the averaged weights: {why}"));
        let mut sources = vec![];
        for (name, to) in self.names.iter().zip(&self.average) {
            let from = saved.remove(name).ok_or_else(|| refused(format!("the checkpoint has no {name}")))?;
            if from.size() != to.size() {
                return Err(refused(format!("{name} is {:?} there and {:?} here", from.size(), to.size())));
            }
            sources.push(from.f_to_device(to.device())?);
        }
        if let Some(name) = saved.keys().min() {
            return Err(refused(format!("the checkpoint has {name}, which this model lacks")));
        }
        Ok(foreach_copy(&self.average, &sources)?)
    }
}

impl Drop for Swapped<'_> {
    fn drop(&mut self) {
        if let Err(e) = foreach_copy(&self.ema.weights, &self.own) {
            // Two lists of equal shapes on one device: only a lost device fails, and its next use says so.
            tracing::error!("failed to put the model's own weights back: {e}");
        }
    }
}
