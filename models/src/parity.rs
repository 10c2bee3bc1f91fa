//! Compares a network with the numbers that its reference implementation wrote.
//!
//! A reference is a set of tensors: `w.*` the weights under the reference's names, `in.0`, `in.1`, ... the
//! inputs, `out` the logits in evaluation mode, `g.*` the gradients of the mean of the squared logits, and `train`
//! the frames and the crop of training where they are not the inputs'. `scripts/reference.py` writes them.

use crate::{Error, Model, Result, named::Role, presets};
use std::collections::HashMap;
use tch::{Device, Kind, TchError, Tensor, no_grad};

/// How far a network is from its reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Every tensor that was compared, the worst first.
    pub errors: Vec<Deviation>,
}

/// One tensor's difference.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// `out`, or `g.` and the parameter's name.
    pub name: String,
    /// Largest absolute difference over the reference's largest absolute value. Not a number counts as infinite.
    /// A bias's gradient is measured by its layer's weight if that is larger: it may be zero but for rounding, as
    /// that of keys is, which a softmax over them cannot see.
    pub relative: f64,
}

impl Report {
    /// The largest relative error of all; zero if nothing was compared.
    pub fn worst(&self) -> f64 {
        self.errors.first().map_or(0.0, |e| e.relative)
    }
}

/// Builds the preset `name` for the reference's number of classes and compares it on `device`, computing in
/// float64 with `double`.
pub fn check(
    name: &str,
    reference: HashMap<String, Tensor>,
    grad: bool,
    double: bool,
    device: Device,
) -> Result<Report> {
    let cfg = presets(name)?;
    let out = tensor(&reference, "out")?;
    let classes = out.size().get(1).copied().unwrap_or(0);
    let clip = inputs(&reference)?.pop().ok_or_else(|| Error::Reference("it has no in.0".into()))?;
    let size = |axis: usize| clip.size().get(axis).copied().unwrap_or(0);
    let [frames, crop] = match reference.get("train") {
        None => [size(2), size(3).min(size(4))],
        Some(train) => Vec::<i64>::try_from(train)
            .ok()
            .and_then(|v| v.try_into().ok())
            .ok_or_else(|| Error::Reference("train is not [frames, crop]".into()))?,
    };
    let mut model = Model::new(&cfg, classes, frames, crop, device)?;
    if double {
        model.to_double()?;
    }
    compare(&mut model, reference, grad)
}

/// Loads `w.*` into `model`, runs it in evaluation mode on `in.*` and compares `out`, and with `grad` also `g.*`.
pub fn compare(model: &mut Model, mut reference: HashMap<String, Tensor>, grad: bool) -> Result<Report> {
    let names: Vec<String> = reference.keys().filter(|k| k.starts_with("w.")).cloned().collect();
    let weights = names.iter().filter_map(|k| Some((k[2..].to_string(), reference.remove(k)?))).collect();
    model.load(weights)?;
    let device = model.device();
    let inputs = inputs(&reference)?
        .iter()
        .map(|t| t.f_to_device(device)?.f_to_kind(model.kind()))
        .collect::<std::result::Result<Vec<_>, TchError>>()
        .map_err(Error::torch("move the inputs"))?;
    let out = tensor(&reference, "out")?;
    let mut errors = vec![];
    if !grad {
        let ours = no_grad(|| model.forward_pathways(&inputs, false))?;
        errors.push(deviation("out", &ours, out, None)?);
    } else {
        let ours = model.forward_pathways(&inputs, false)?;
        errors.push(deviation("out", &ours, out, None)?);
        ours.f_square()
            .and_then(|s| s.f_mean(None::<Kind>)?.f_backward())
            .map_err(Error::torch("run the backward pass"))?;
        for named in model.tensors() {
            if let Role::Weight { .. } = named.role {
                let key = format!("g.{}", named.name);
                let beside = key.strip_suffix(".bias").and_then(|l| reference.get(&format!("{l}.weight")));
                let theirs = tensor(&reference, &key)?;
                errors.push(deviation(&key, &named.tensor.grad(), theirs, beside)?);
            }
        }
    }
    errors.sort_by(|a, b| b.relative.total_cmp(&a.relative).then_with(|| a.name.cmp(&b.name)));
    Ok(Report { errors })
}

fn tensor<'a>(reference: &'a HashMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
    reference.get(name).ok_or_else(|| Error::Reference(format!("it has no {name}")))
}

/// `in.0`, `in.1`, ...
fn inputs(reference: &HashMap<String, Tensor>) -> Result<Vec<Tensor>> {
    let inputs: Vec<Tensor> =
        (0..).map_while(|i| reference.get(&format!("in.{i}"))).map(Tensor::shallow_clone).collect();
    if inputs.is_empty() {
        return Err(Error::Reference("it has no in.0".into()));
    }
    Ok(inputs)
}

fn deviation(name: &str, ours: &Tensor, theirs: &Tensor, beside: Option<&Tensor>) -> Result<Deviation> {
    if !ours.defined() {
        return Err(Error::Reference(format!("{name}: the network gives this parameter no gradient")));
    }
    if ours.size() != theirs.size() {
        let (a, b) = (ours.size(), theirs.size());
        return Err(Error::Reference(format!("{name} has the shape {a:?} here and {b:?} in the reference")));
    }
    let measure = || {
        let wide = |t: &Tensor| t.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double);
        let (ours, theirs) = (wide(ours)?, wide(theirs)?);
        let largest = |t: &Tensor| t.f_abs()?.f_max()?.f_double_value(&[]);
        let beside = beside.map_or(Ok(0.0), largest)?;
        Ok((largest(&(ours - &theirs))?, largest(&theirs)?.max(beside)))
    };
    let (gap, largest) = measure().map_err(Error::torch(format!("measure {name}")))?;
    let relative = if gap == 0.0 { 0.0 } else { gap / largest };
    let relative = if relative.is_nan() { f64::INFINITY } else { relative };
    Ok(Deviation { name: name.into(), relative })
}
