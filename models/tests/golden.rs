//! The networks against their reference implementations, without Python: weights and inputs come from a formula
//! of name and index, the expected numbers from tests/golden/*.json, which tests/golden.py wrote with
//! pytorchvideo and torchvision.
#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use models::{Model, Role, presets};
use serde_json::Value;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// Largest relative error allowed, in float32.
const TOLERANCE: f64 = 1e-4;

#[test]
fn slowfast_r50_small() {
    compare("slowfast_r50_32x64");
}

#[test]
fn slowfast_r50_published_size() {
    compare("slowfast_r50_32x224");
}

#[test]
fn swin3d_t() {
    compare("swin3d_t_16x112");
}

#[test]
fn swin3d_t_padded_and_clamped() {
    compare("swin3d_t_11x90");
}

#[test]
fn the_comparison_notices_a_wrong_weight() {
    let golden = read("swin3d_t_11x90");
    let (mut model, inputs) = prepare(&golden);
    let name = "features.4.3.attn.relative_position_bias_table";
    let mut weights = formula_weights(&model);
    let broken = weights[name].g_mul_scalar(-1.0);
    weights.insert(name.into(), broken);
    model.load(weights).unwrap();
    let logits = tch::no_grad(|| model.forward_pathways(&inputs, false)).unwrap();
    assert!(logits_error(&logits, &golden) > TOLERANCE, "a flipped bias table went unnoticed");
}

fn compare(name: &str) {
    let golden = read(name);
    let (model, inputs) = prepare(&golden);
    assert_eq!(model.parameters() as u64, golden["parameters"].as_u64().unwrap());
    let gradients = golden["gradients"].as_object().unwrap();
    if gradients.is_empty() {
        let logits = tch::no_grad(|| model.forward_pathways(&inputs, false)).unwrap();
        let error = logits_error(&logits, &golden);
        assert!(error < TOLERANCE, "{name}: logits are off by {error:e}");
        return;
    }
    let logits = model.forward_pathways(&inputs, false).unwrap();
    let error = logits_error(&logits, &golden);
    assert!(error < TOLERANCE, "{name}: logits are off by {error:e}");
    logits.square().mean(Kind::Float).backward();
    let mut compared = 0;
    for named in model.tensors() {
        if named.role == Role::Buffer {
            continue;
        }
        let expected =
            gradients.get(&named.name).unwrap_or_else(|| panic!("{} is not the reference's", named.name));
        let gap = gradient_error(&named.tensor.grad(), expected);
        assert!(gap < TOLERANCE, "{name}: the gradient of {} is off by {gap:e}", named.name);
        compared += 1;
    }
    assert_eq!(compared, gradients.len(), "{name}: parameters of the reference are missing");
}

fn read(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The model with the formula's weights, and the reference's inputs.
fn prepare(golden: &Value) -> (Model, Vec<Tensor>) {
    let name = golden["model"].as_str().unwrap();
    let (frames, size) = (golden["frames"].as_i64().unwrap(), golden["size"].as_i64().unwrap());
    let mut model = Model::new(&presets(name).unwrap(), 400, frames, size, Device::Cpu).unwrap();
    let weights = formula_weights(&model);
    model.load(weights).unwrap();
    let lengths = if name.starts_with("slowfast") { vec![frames / 4, frames] } else { vec![frames] };
    let input = |(i, &t): (usize, &i64)| value(&format!("in.{i}"), &[1, 3, t, size, size]);
    (model, lengths.iter().enumerate().map(input).collect())
}

fn formula_weights(model: &Model) -> HashMap<String, Tensor> {
    model.tensors().into_iter().map(|n| (n.name.clone(), value(&n.name, &n.tensor.size()))).collect()
}

/// The tensor of that name, as `value` in golden.py.
fn value(name: &str, shape: &[i64]) -> Tensor {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    let of_kind = |u: f64| {
        if name.ends_with("running_var") {
            u + 0.5
        } else if name.starts_with("in.") {
            (2.0 * u - 1.0) * 1.75
        } else if name.ends_with("bias_table") {
            (2.0 * u - 1.0) * 1.5
        } else if let [_, inputs] = shape {
            (2.0 * u - 1.0) * (3.0 / *inputs as f64).sqrt()
        } else if shape.len() > 2 {
            (2.0 * u - 1.0) * 0.035
        } else {
            (2.0 * u - 1.0) * 0.175 + if name.ends_with("weight") { 1.0 } else { 0.0 }
        }
    };
    let n = shape.iter().product::<i64>() as u64;
    let values: Vec<f32> = (1..=n)
        .map(|i| {
            let mut z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            of_kind((z >> 40) as f64 / (1u64 << 24) as f64) as f32
        })
        .collect();
    Tensor::from_slice(&values).view(shape)
}

fn logits_error(logits: &Tensor, golden: &Value) -> f64 {
    let ours = Vec::<f32>::try_from(logits.flatten(0, -1)).unwrap();
    let theirs: Vec<f64> = golden["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(ours.len(), theirs.len());
    let gaps = ours.iter().zip(&theirs).map(|(a, b)| f64::from(*a) - b);
    largest(gaps) / largest(theirs.iter().copied())
}

/// The worst of: the sum and the norm, relative to the norm; the largest value and the elements, relative to it.
fn gradient_error(gradient: &Tensor, expected: &Value) -> f64 {
    let g = gradient.to_kind(Kind::Double).contiguous().flatten(0, -1);
    let n = g.numel() as i64;
    let number = |key: &str| expected[key].as_f64().unwrap();
    let (norm, max) = (number("norm"), number("max"));
    let mut gaps = vec![
        (g.sum(Kind::Double).double_value(&[]) - number("sum")) / norm,
        (g.norm().double_value(&[]) - norm) / norm,
        (g.abs().max().double_value(&[]) - max) / max,
    ];
    for (i, at) in [0, n / 3, 2 * n / 3, n - 1].into_iter().enumerate() {
        gaps.push((g.double_value(&[at]) - expected["elements"][i].as_f64().unwrap()) / max);
    }
    largest(gaps)
}

/// The largest absolute value; not a number counts as infinite.
fn largest(gaps: impl IntoIterator<Item = f64>) -> f64 {
    gaps.into_iter().map(|g| if g.is_nan() { f64::INFINITY } else { g.abs() }).fold(0.0, f64::max)
}
