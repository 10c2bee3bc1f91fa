//! The optimizer and its learning rate over time.

use serde::Deserialize;

/// The optimizer and its learning rate at the end of the warm-up.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Optimizer {
    Sgd(Sgd),
    Adamw(AdamW),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sgd {
    pub lr: f64,
    /// The global batch that `lr` and the schedule's rates are meant for: they are scaled in proportion to
    /// the job's own (Goyal et al. 2017). Absent: taken as they are.
    #[serde(default)]
    pub reference_batch: Option<u32>,
    #[serde(default)]
    pub groups: Groups,
    #[serde(default = "point_nine")]
    pub momentum: f64,
    #[serde(default = "yes")]
    pub nesterov: bool,
    /// Not applied to norms and biases.
    #[serde(default)]
    pub weight_decay: f64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamW {
    pub lr: f64,
    /// As for SGD.
    #[serde(default)]
    pub reference_batch: Option<u32>,
    #[serde(default)]
    pub groups: Groups,
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    #[serde(default = "eps")]
    pub eps: f64,
    /// Decoupled; not applied to norms and biases.
    #[serde(default)]
    pub weight_decay: f64,
}

/// Parts of the network that learn more slowly than its head.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    /// The rate of everything but the classifier, relative to the classifier's.
    #[serde(default = "one_f64")]
    pub backbone: f64,
    /// Each layer below the classifier learns at this part of the rate of the one above it (Clark et al. 2020).
    #[serde(default = "one_f64")]
    pub layer_decay: f64,
}

/// Learning rate over fractional epochs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Linear warm-up from `warmup_start_lr` to the schedule's value at its end.
    #[serde(default)]
    pub warmup_epochs: f64,
    #[serde(default)]
    pub warmup_start_lr: f64,
    /// `cosine`: the rate at the end. `steps`: unused.
    #[serde(default)]
    pub end_lr: f64,
    /// `steps`: the epochs at which the rate changes.
    #[serde(default)]
    pub steps: Vec<f64>,
    /// `steps`: the rate after each of them, relative to the base rate.
    #[serde(default)]
    pub relative_lrs: Vec<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    #[default]
    Cosine,
    Steps,
    Constant,
}

impl Optimizer {
    /// The base learning rate: the one at the end of the warm-up.
    pub fn lr(&self) -> f64 {
        match self {
            Optimizer::Sgd(o) => o.lr,
            Optimizer::Adamw(o) => o.lr,
        }
    }

    /// The global batch that the rates are meant for, if it was named.
    pub fn reference_batch(&self) -> Option<u32> {
        match self {
            Optimizer::Sgd(o) => o.reference_batch,
            Optimizer::Adamw(o) => o.reference_batch,
        }
    }

    /// What learns more slowly.
    pub fn groups(&self) -> Groups {
        match self {
            Optimizer::Sgd(o) => o.groups,
            Optimizer::Adamw(o) => o.groups,
        }
    }
}

fn yes() -> bool {
    true
}
fn one_f64() -> f64 {
    1.0
}
fn point_nine() -> f64 {
    0.9
}
fn betas() -> [f64; 2] {
    [0.9, 0.999]
}
fn eps() -> f64 {
    1e-8
}

impl Default for Groups {
    fn default() -> Self {
        Self { backbone: 1.0, layer_decay: 1.0 }
    }
}
impl Default for Schedule {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            warmup_epochs: 0.0,
            warmup_start_lr: 0.0,
            end_lr: 0.0,
            steps: vec![],
            relative_lrs: vec![],
        }
    }
}
