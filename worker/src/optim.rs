//! SGD and AdamW: the arithmetic of `torch.optim.SGD` and `torch.optim.AdamW`, in place on the
//! parameters, with named state that a checkpoint can hold.
//!
//! libtorch's fused kernels do the work: one call for each group of weights that learn alike.

use crate::{Error, Result};
use configs::{AdamW, Optimizer as Rule, Sgd};
use models::{Named, Role};
use std::collections::{BTreeMap, HashMap};
use tch::Tensor;

/// An optimizer over a model's parameters and its state.
pub struct Optimizer {
    rule: Rule,
    slots: Vec<Slot>,
    /// What learns alike, and the places of its slots.
    groups: Vec<(Group, Vec<usize>)>,
    /// Steps taken.
    step: i64,
}

/// One parameter and what the optimizer remembers about it, in the parameter's memory format.
struct Slot {
    name: String,
    weight: Tensor,
    /// As many as [`state_names`] has.
    state: Vec<Tensor>,
}

/// How a group of parameters learns.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Group {
    /// Relative to the step's.
    lr: f64,
    decay: bool,
}

/// Parallel lists for one kernel call: the parameters of one group that have a gradient.
struct Call {
    lr: f64,
    weight_decay: f64,
    weights: Vec<Tensor>,
    grads: Vec<Tensor>,
    /// `state[k][i]` belongs to `weights[i]`; empty where the rule keeps fewer than two.
    state: [Vec<Tensor>; 2],
}

impl Optimizer {
    /// State of zeros for every parameter among `tensors`; buffers are left alone. Norms, biases
    /// and bias tables (`decay: false`) get no weight decay; each layer's rate follows `rule.groups()`.
    pub fn new(rule: &Rule, tensors: &[Named]) -> Result<Self> {
        let (mut slots, mut groups) = (vec![], BTreeMap::<_, (Group, Vec<usize>)>::new());
        let layers = models::layers(tensors);
        for (t, layer) in tensors.iter().zip(layers) {
            if let Role::Weight { decay } = t.role {
                let group = Group { lr: rate_of(rule.groups(), layer), decay };
                // The shallowest first, and what decays before what does not.
                groups.entry((group.lr.to_bits(), !decay)).or_insert((group, vec![])).1.push(slots.len());
                let zeros = |_| Ok(t.tensor.f_detach()?.f_zeros_like()?);
                let state = state_names(rule).iter().map(zeros).collect::<Result<_>>()?;
                slots.push(Slot { name: t.name.clone(), weight: t.tensor.shallow_clone(), state });
            }
        }
        Ok(Self { rule: rule.clone(), slots, groups: groups.into_values().collect(), step: 0 })
    }

    /// One step along the parameters' gradients, at learning rate `lr` for the classifier. Parameters
    /// without a gradient are left alone. Gradients may be views of reducer buckets: they are only read.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.step += 1;
        for call in self.calls(lr)? {
            call.fused(&self.rule, self.step)?;
        }
        Ok(())
    }

    /// The whole state under fixed names in a fixed order: `step` (int64), then
    /// `momentum.<parameter>`, or `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`. All but
    /// `step` are the state itself, not copies.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut all = vec![("step".to_string(), Tensor::from(self.step))];
        for slot in &self.slots {
            for (kind, tensor) in state_names(&self.rule).iter().zip(&slot.state) {
                all.push((format!("{kind}.{}", slot.name), tensor.shallow_clone()));
            }
        }
        all
    }

    /// Takes over a saved state. Strict: every name of [`Optimizer::state`] and no other, each with
    /// its shape and type; on an error nothing is changed.
    pub fn load(&mut self, mut saved: HashMap<String, Tensor>) -> Result<()> {
        let mut pairs = vec![];
        for (name, to) in self.state() {
            let from = saved.remove(&name).ok_or_else(|| {
                refused(format!("the checkpoint has no {name}; it was made by another optimizer or model"))
            })?;
            let (a, b) = ((from.f_kind()?, from.size()), (to.f_kind()?, to.size()));
            if a != b {
                return Err(refused(format!("{name} is {a:?} in the checkpoint and {b:?} in this job")));
            }
            pairs.push((name, from, to));
        }
        if let Some(name) = saved.keys().min() {
            return Err(refused(format!(
                "the checkpoint has {} tensors that this job's optimizer lacks, {name} first",
                saved.len()
            )));
        }
        let _no_grad = tch::no_grad_guard();
        for (name, from, mut to) in pairs {
            match name.as_str() {
                "step" => self.step = from.f_int64_value(&[])?,
                _ => to.f_copy_(&from)?,
            }
        }
        Ok(())
    }

    fn calls(&mut self, lr: f64) -> Result<Vec<Call>> {
        let decay = match &self.rule {
            Rule::Sgd(r) => r.weight_decay,
            Rule::Adamw(r) => r.weight_decay,
        };
        let mut calls = vec![];
        for (group, members) in &self.groups {
            let weight_decay = if group.decay { decay } else { 0.0 };
            let lr = lr * group.lr;
            let mut call = Call { lr, weight_decay, weights: vec![], grads: vec![], state: [vec![], vec![]] };
            for &i in members {
                let slot = &mut self.slots[i];
                let grad = slot.weight.f_grad()?;
                if !grad.defined() {
                    continue;
                }
                call.grads.push(laid_out_as(&slot.weight, grad)?);
                call.weights.push(slot.weight.shallow_clone());
                for (state, list) in slot.state.iter_mut().zip(&mut call.state) {
                    *state = laid_out_as(&slot.weight, state.shallow_clone())?;
                    list.push(state.shallow_clone());
                }
            }
            if !call.weights.is_empty() {
                calls.push(call);
            }
        }
        Ok(calls)
    }
}

/// A layer's rate, relative to the classifier's.
fn rate_of(groups: configs::Groups, layer: models::Layer) -> f64 {
    let backbone = if layer.classifier { 1.0 } else { groups.backbone };
    backbone * groups.layer_decay.powi(layer.below_classifier as i32)
}

fn state_names(rule: &Rule) -> &'static [&'static str] {
    match rule {
        Rule::Sgd(r) if r.momentum == 0.0 => &[],
        Rule::Sgd(_) => &["momentum"],
        Rule::Adamw(_) => &["exp_avg", "exp_avg_sq"],
    }
}

/// `tensor` in the memory format of `weight`. The fused kernels walk the memory of weight, gradient
/// and state side by side, so another format would pair the wrong elements.
fn laid_out_as(weight: &Tensor, tensor: Tensor) -> Result<Tensor> {
    let same = weight
        .size()
        .iter()
        .zip(weight.stride().iter().zip(tensor.stride()))
        .all(|(&n, (&a, b))| n <= 1 || a == b);
    if same {
        return Ok(tensor);
    }
    let mut copy = weight.f_detach()?.f_empty_like()?;
    copy.f_copy_(&tensor)?;
    Ok(copy)
}

fn refused(what: String) -> Error {
    Error::Usage(format!("restore the optimizer: {what}"))
}

impl Call {
    fn fused(&self, rule: &Rule, step: i64) -> Result<()> {
        let (lr, weight_decay, [first, second]) = (self.lr, self.weight_decay, &self.state);
        match rule {
            Rule::Adamw(AdamW { betas, eps, .. }) => {
                let o = collective::AdamW { step, lr, betas: *betas, weight_decay, eps: *eps };
                collective::fused_adamw(&self.weights, &self.grads, first, second, o)?;
            }
            Rule::Sgd(Sgd { momentum, nesterov, .. }) => {
                let nesterov = *nesterov && *momentum != 0.0;
                let o = collective::Sgd { lr, momentum: *momentum, weight_decay, nesterov };
                collective::fused_sgd(&self.weights, &self.grads, first, o)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    impl Call {
        /// The kernels' work in plain tensor operations, in the order of `torch.optim`'s single-tensor loops.
        fn plain(&self, rule: &Rule, step: i64) -> Result<()> {
            let lr = self.lr;
            for (i, weight) in self.weights.iter().enumerate() {
                let mut w = weight.shallow_clone();
                match rule {
                    Rule::Sgd(Sgd { momentum, nesterov, .. }) => {
                        let mut grad = &self.grads[i] + &w * self.weight_decay;
                        if let Some(buffer) = self.state[0].get(i) {
                            let mut b = buffer.shallow_clone();
                            b.f_copy_(&(&b * *momentum + &grad))?;
                            grad = if *nesterov { grad + &b * *momentum } else { b };
                        }
                        let _ = w.f_sub_(&(grad * lr))?;
                    }
                    Rule::Adamw(AdamW { betas: [b1, b2], eps, .. }) => {
                        let g = &self.grads[i];
                        let (mut m, mut v) =
                            (self.state[0][i].shallow_clone(), self.state[1][i].shallow_clone());
                        let _ = w.f_mul_scalar_(1.0 - lr * self.weight_decay)?;
                        let _ = m.f_lerp_(g, 1.0 - b1)?;
                        let _ = v.f_mul_scalar_(*b2)?;
                        let _ = v.f_add_(&(g * g * (1.0 - b2)))?;
                        let (c1, c2) = (1.0 - b1.powi(step as i32), 1.0 - b2.powi(step as i32));
                        let denominator = v.f_sqrt()? / c2.sqrt() + *eps;
                        let _ = w.f_sub_(&(&m / denominator * (lr / c1)))?;
                    }
                }
            }
            Ok(())
        }
    }

    fn sgd(momentum: f64, nesterov: bool) -> Rule {
        Rule::Sgd(Sgd {
            lr: 0.01,
            momentum,
            nesterov,
            weight_decay: 0.1,
            reference_batch: None,
            groups: Default::default(),
        })
    }

    fn adamw() -> Rule {
        Rule::Adamw(AdamW {
            lr: 0.01,
            betas: [0.8, 0.95],
            eps: 1e-6,
            weight_decay: 0.2,
            reference_batch: None,
            groups: Default::default(),
        })
    }

    /// A weight that decays and a bias that does not, with exactly representable values.
    fn problem() -> Vec<Named> {
        let range = |n: i64| Tensor::arange(n, (Kind::Float, Device::Cpu));
        let leaf = |t: Tensor| t.set_requires_grad(true);
        vec![
            Named {
                name: "w".into(),
                tensor: leaf(((range(12) - 6.0) / 4.0).reshape([3, 4])),
                role: Role::Weight { decay: true },
            },
            Named {
                name: "b".into(),
                tensor: leaf((range(4) - 1.0) / 2.0),
                role: Role::Weight { decay: false },
            },
            Named { name: "running_mean".into(), tensor: range(4), role: Role::Buffer },
        ]
    }

    /// Leaves the gradient of step `s` in each parameter.
    fn backward(tensors: &[Named], s: i64) {
        for t in tensors.iter().filter(|t| t.role != Role::Buffer) {
            let n = t.tensor.numel() as i64;
            let g: Vec<f32> = (0..n).map(|i| ((i * 7 + s * 5) % 11 - 5) as f32 / 8.0).collect();
            let mut old = t.tensor.grad();
            if old.defined() {
                let _ = old.zero_();
            }
            (&t.tensor * Tensor::from_slice(&g).reshape(t.tensor.size())).sum(Kind::Float).backward();
        }
    }

    fn values(tensors: &[Named]) -> Vec<f32> {
        let flat: Vec<Tensor> = tensors[..2].iter().map(|t| t.tensor.detach().reshape([-1])).collect();
        Vec::try_from(&Tensor::cat(&flat, 0)).unwrap()
    }

    fn five_steps(rule: &Rule) -> Vec<f32> {
        let tensors = problem();
        let mut o = Optimizer::new(rule, &tensors).unwrap();
        for s in 1..=5 {
            backward(&tensors, s);
            o.step(0.01 * s as f64).unwrap();
        }
        values(&tensors)
    }

    /// Golden values: torch 2.13.
    ///
    /// ```python
    /// import torch
    /// def run(make):
    ///     w = (torch.arange(12, dtype=torch.float32) - 6).reshape(3, 4) / 4
    ///     b = (torch.arange(4, dtype=torch.float32) - 1) / 2
    ///     o = make(w, b)
    ///     for s in range(1, 6):
    ///         for p in (w, b):
    ///             i = torch.arange(p.numel(), dtype=torch.float32)
    ///             p.grad = ((((i * 7 + s * 5) % 11) - 5) / 8).reshape(p.shape)
    ///         for g in o.param_groups: g["lr"] = 0.01 * s
    ///         o.step()
    ///     return [f"{x:.9g}" for x in torch.cat([w.flatten(), b]).tolist()]
    /// groups = lambda w, b, wd: [{"params": [w], "weight_decay": wd}, {"params": [b], "weight_decay": 0.0}]
    /// print(run(lambda w, b: torch.optim.SGD(groups(w, b, 0.1), lr=0.01, momentum=0.9, nesterov=True)))
    /// print(run(lambda w, b: torch.optim.SGD(groups(w, b, 0.1), lr=0.01, momentum=0.9)))
    /// print(run(lambda w, b: torch.optim.SGD(groups(w, b, 0.1), lr=0.01)))
    /// print(run(lambda w, b: torch.optim.AdamW(groups(w, b, 0.2), lr=0.01, betas=(0.8, 0.95), eps=1e-6)))
    /// ```
    #[test]
    #[rustfmt::skip]
    fn equals_pytorch() {
        let golden: [(Rule, [f64; 16]); 4] = [
            (sgd(0.9, true), [-1.50976717, -1.12057447, -0.923960149, -0.731365383, -0.513141096, -0.145558342, 0.0470365137, 0.113025747, 0.473648816, 0.82543838, 0.891427517, 1.08402228, -0.596434355, 0.0601673685, 0.519197464, 0.975372374]),
            (sgd(0.9, false), [-1.51815307, -1.11433649, -0.942782879, -0.744724989, -0.486542463, -0.169354796, 0.0287030693, 0.131506756, 0.48747319, 0.802131116, 0.904934764, 1.10299265, -0.589093685, 0.0779637471, 0.510219395, 0.969858229]),
            (sgd(0.0, false), [-1.49366152, -1.24156415, -0.975154877, -0.736203849, -0.524986088, -0.217697203, 0.0212538019, 0.218913063, 0.485035419, 0.778711379, 0.976370692, 1.21532166, -0.516249955, -0.00999999978, 0.50999999, 1.00250006]),
            (adamw(), [-1.52457416, -1.15339005, -0.966083944, -0.747878313, -0.487803727, -0.195032537, 0.0277983174, 0.165478364, 0.489229113, 0.798763931, 0.929177821, 1.14385617, -0.569926381, 0.0606356896, 0.504027426, 0.979649067]),
        ];
        for (rule, want) in golden {
            for (got, want) in five_steps(&rule).iter().zip(want) {
                assert!((f64::from(*got) - want).abs() < 1e-6, "{rule:?}: {got} is not {want}");
            }
        }
    }

    #[test]
    fn kernels_equal_the_plain_loops() {
        for rule in [sgd(0.9, true), sgd(0.9, false), sgd(0.0, false), adamw()] {
            let tensors = problem();
            let mut o = Optimizer::new(&rule, &tensors).unwrap();
            for s in 1..=5 {
                backward(&tensors, s);
                let _no_grad = tch::no_grad_guard();
                for call in o.calls(0.01 * s as f64).unwrap() {
                    call.plain(&rule, s).unwrap();
                }
            }
            for (plain, fused) in values(&tensors).iter().zip(five_steps(&rule)) {
                assert!((plain - fused).abs() < 1e-6, "{rule:?}: {plain} is not {fused}");
            }
        }
    }

    #[test]
    fn a_restored_state_goes_on_bit_identically() {
        for rule in [sgd(0.9, true), sgd(0.0, false), adamw()] {
            let tensors = problem();
            let mut o = Optimizer::new(&rule, &tensors).unwrap();
            for s in 1..=5 {
                if s == 3 {
                    let saved = o.state().into_iter().map(|(n, t)| (n, t.copy())).collect();
                    o = Optimizer::new(&rule, &tensors).unwrap();
                    o.load(saved).unwrap();
                }
                backward(&tensors, s);
                o.step(0.01 * s as f64).unwrap();
            }
            assert_eq!(values(&tensors), five_steps(&rule), "{rule:?}");
        }
    }

    #[test]
    fn loading_is_strict() {
        let tensors = problem();
        let mut o = Optimizer::new(&adamw(), &tensors).unwrap();
        let names: Vec<String> = o.state().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["step", "exp_avg.w", "exp_avg_sq.w", "exp_avg.b", "exp_avg_sq.b"]);

        let other = Optimizer::new(&sgd(0.9, true), &tensors).unwrap();
        let error = |o: &mut Optimizer, s: Vec<(String, Tensor)>| {
            o.load(s.into_iter().collect()).unwrap_err().to_string()
        };
        assert!(error(&mut o, other.state()).contains("no exp_avg.w"));
        let mut more = o.state();
        more.push(("exp_avg.v".into(), Tensor::from(1.0)));
        assert!(error(&mut o, more).contains("exp_avg.v"));
        let mut reshaped = o.state();
        reshaped[1].1 = reshaped[1].1.reshape([4, 3]);
        assert!(error(&mut o, reshaped).contains("exp_avg.w is"));
    }

    /// The kernels walk raw memory: gradients in another memory format than the weight must be re-laid.
    #[test]
    fn memory_formats_may_differ() {
        let plain = Tensor::arange(48, (Kind::Float, Device::Cpu)).reshape([2, 3, 2, 2, 2]) / 48.0;
        let run = |w: Tensor| {
            let w = w.set_requires_grad(true);
            let named =
                [Named { name: "w".into(), tensor: w.shallow_clone(), role: Role::Weight { decay: true } }];
            let mut o = Optimizer::new(&adamw(), &named).unwrap();
            for _ in 0..3 {
                (&w * &plain).sum(Kind::Float).backward();
                o.step(0.1).unwrap();
            }
            w.detach().contiguous()
        };
        // (O, T, H, W, I) memory, seen as (O, I, T, H, W).
        let last = plain.permute([0, 2, 3, 4, 1]).contiguous().permute([0, 4, 1, 2, 3]);
        assert!(!last.is_contiguous());
        assert!(run(plain.copy()).allclose(&run(last), 1e-6, 1e-7, false));
    }

    #[test]
    fn a_parameter_without_gradient_stays() {
        let tensors = problem();
        let before = values(&tensors);
        Optimizer::new(&sgd(0.9, true), &tensors).unwrap().step(0.1).unwrap();
        assert_eq!(values(&tensors), before);
    }

    /// Without momentum and decay a step is the group's rate times the gradient, so rates can be read off.
    #[test]
    fn layers_learn_at_their_own_rate() {
        let rule = Rule::Sgd(Sgd {
            lr: 1.0,
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            reference_batch: None,
            groups: configs::Groups { backbone: 0.5, layer_decay: 0.1 },
        });
        let names = ["patch_embed.proj.weight", "features.0.0.mlp.0.weight", "norm.weight", "head.weight"];
        let tensors: Vec<Named> = names
            .iter()
            .map(|name| Named {
                name: name.to_string(),
                tensor: Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true),
                role: Role::Weight { decay: true },
            })
            .collect();
        let mut o = Optimizer::new(&rule, &tensors).unwrap();
        tensors.iter().for_each(|t| t.tensor.sum(Kind::Float).backward());
        o.step(1.0).unwrap();
        let moved: Vec<f64> = tensors.iter().map(|t| -t.tensor.double_value(&[0])).collect();
        for (moved, want) in moved.iter().zip([0.005, 0.05, 0.5, 1.0]) {
            assert!((moved - want).abs() < 1e-7, "{moved} is not {want}");
        }
    }
}
