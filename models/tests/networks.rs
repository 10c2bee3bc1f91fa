//! Sizes, names, shapes and loading of the networks, without a reference.
#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use models::{Error, Model, Named, PRESETS, Role, parity, presets};
use std::collections::{HashMap, HashSet};
use tch::{Device, Kind, Tensor};

/// A SlowFast small enough to train in a test.
fn tiny_slowfast(depth: u32) -> configs::Model {
    configs::Model::Slowfast(configs::SlowFast { depth, beta: 4, width: 8, ..Default::default() })
}

fn tiny_swin() -> configs::Model {
    configs::Model::VideoSwin(configs::VideoSwin {
        embed_dim: 12,
        depths: vec![2, 2],
        heads: vec![2, 4],
        window: [2, 3, 3],
        mlp_ratio: 2.0,
        dropout: 0.1,
        drop_path: 0.2,
        ..Default::default()
    })
}

fn build(cfg: &configs::Model, seed: i64) -> Model {
    tch::manual_seed(seed);
    Model::new(cfg, 5, 8, 32, Device::Cpu).unwrap()
}

fn clip(size: [i64; 5]) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu))
}

#[test]
fn parameter_counts_are_the_references() {
    let counts = [34_566_488, 62_826_968, 28_158_070, 49_816_678, 88_048_984];
    for (name, expected) in PRESETS.into_iter().zip(counts) {
        let model = Model::new(&presets(name).unwrap(), 400, 32, 224, Device::Cpu).unwrap();
        assert_eq!(model.parameters(), expected, "{name}");
    }
}

#[test]
fn names_are_unique_and_roles_follow_them() {
    for cfg in [tiny_slowfast(18), tiny_slowfast(50), tiny_swin()] {
        let model = build(&cfg, 0);
        let names: HashSet<String> = model.tensors().into_iter().map(|n| n.name).collect();
        assert_eq!(names.len(), model.tensors().len());
        for Named { name, tensor, role } in model.tensors() {
            let kernel = tensor.dim() > 1 && name.ends_with(".weight");
            match role {
                Role::Weight { decay } => {
                    assert!(tensor.requires_grad() && tensor.is_leaf(), "{name}");
                    assert_eq!(decay, kernel, "{name}");
                }
                Role::Buffer => assert!(name.contains("running_") && !tensor.requires_grad(), "{name}"),
            }
        }
        let all: HashSet<String> = model.state_dict().into_iter().map(|(n, _)| n).collect();
        assert!(all.is_superset(&names) && all.len() > names.len());
    }
}

#[test]
fn every_parameter_learns() {
    for cfg in [tiny_slowfast(18), tiny_slowfast(50), tiny_swin()] {
        let model = build(&cfg, 1);
        let before: Vec<Tensor> = model.tensors().iter().map(|n| n.tensor.detach().copy()).collect();
        let logits = model.forward(&clip([2, 3, 8, 32, 32]), true).unwrap();
        assert_eq!(logits.size(), [2, 5]);
        logits.cross_entropy_for_logits(&Tensor::from_slice(&[1i64, 4])).backward();
        for (named, before) in model.tensors().iter().zip(before) {
            match named.role {
                Role::Weight { .. } => {
                    assert!(named.tensor.grad().defined(), "{} has no gradient", named.name)
                }
                Role::Buffer => assert!(!named.tensor.equal(&before), "{} did not move", named.name),
            }
        }
    }
}

#[test]
fn any_multiple_of_alpha_and_any_size_runs() {
    let slowfast = build(&tiny_slowfast(18), 2);
    let swin = build(&tiny_swin(), 2);
    for size in [[1, 3, 4, 32, 32], [1, 3, 16, 48, 40], [2, 3, 12, 65, 33]] {
        assert_eq!(slowfast.forward(&clip(size), false).unwrap().size(), [size[0], 5]);
        assert_eq!(swin.forward(&clip(size), false).unwrap().size(), [size[0], 5]);
    }
    assert_eq!(swin.forward(&clip([1, 3, 1, 5, 7]), false).unwrap().size(), [1, 5]);
}

#[test]
fn the_last_norm_of_a_block_starts_at_zero_if_asked() {
    let zeros = |model: &Model| {
        let is_zero =
            |n: &&Named| n.name.ends_with("weight") && n.tensor.abs().max().double_value(&[]) == 0.0;
        model.tensors().iter().filter(is_zero).map(|n| n.name.clone()).collect::<Vec<_>>()
    };
    let with = zeros(&build(&tiny_slowfast(50), 0));
    assert_eq!(with.len(), 2 * 16);
    assert!(with.iter().all(|n| n.ends_with("branch2.norm_c.weight")), "{with:?}");
    let configs::Model::Slowfast(mut cfg) = tiny_slowfast(50) else { unreachable!() };
    cfg.zero_init_last_norm = false;
    assert!(zeros(&build(&configs::Model::Slowfast(cfg), 0)).is_empty());
}

#[test]
fn slow_frames_are_the_references() {
    // A clip whose frames differ only in their number: with 0, 10, 20, 31 picked, others may change freely.
    let configs::Model::Slowfast(mut cfg) = tiny_slowfast(18) else { unreachable!() };
    cfg.alpha = 8;
    let model = build(&configs::Model::Slowfast(cfg), 3);
    let fast = clip([1, 3, 32, 32, 32]);
    let picked = fast.index_select(2, &Tensor::from_slice(&[0i64, 10, 20, 31]));
    let explicit = model.forward_pathways(&[picked, fast.shallow_clone()], false).unwrap();
    assert!(model.forward(&fast, false).unwrap().equal(&explicit));
    let stride = fast.slice(2, 0, 32, 8);
    let strided = model.forward_pathways(&[stride, fast], false).unwrap();
    assert!(!strided.equal(&explicit), "a plain stride must differ");
}

#[test]
fn channels_last_gives_the_same_numbers_in_its_own_layout() {
    for cfg in [tiny_slowfast(18), tiny_swin()] {
        let mut model = build(&cfg, 4);
        let x = clip([2, 3, 8, 32, 32]);
        let plain = model.forward(&x, false).unwrap();
        let before = model.tensors();
        model.to_channels_last().unwrap();
        for (old, new) in before.iter().zip(model.tensors()) {
            assert!(old.tensor.equal(&new.tensor), "earlier handles see the new layout of {}", new.name);
            if let [o, i, t, h, w] = new.tensor.size()[..] {
                assert_eq!(new.tensor.stride(), [i * t * h * w, 1, h * w * i, w * i, i], "{}", new.name);
                assert!(o > 0 && new.tensor.requires_grad() && new.tensor.is_leaf());
            }
        }
        let x = x.permute([0, 2, 3, 4, 1]).contiguous().permute([0, 4, 1, 2, 3]);
        let laid = model.forward(&x, false).unwrap();
        let gap = (&laid - &plain).abs().max().double_value(&[]);
        assert!(gap < 1e-5 * (1.0 + plain.abs().max().double_value(&[])), "{gap}");
    }
}

#[test]
fn weights_go_out_and_in_again() {
    for cfg in [tiny_slowfast(18), tiny_swin()] {
        let (from, mut to) = (build(&cfg, 5), build(&cfg, 6));
        let x = clip([1, 3, 8, 32, 32]);
        let expected = from.forward(&x, false).unwrap();
        to.load(from.state_dict().into_iter().collect()).unwrap();
        assert!(to.forward(&x, false).unwrap().equal(&expected));
        let saved = from.tensors().into_iter().map(|n| (n.name, n.tensor)).collect();
        to.load(saved).unwrap();
    }
}

#[test]
fn loading_names_what_does_not_fit_and_changes_nothing() {
    let (from, mut to) = (build(&tiny_slowfast(18), 5), build(&tiny_slowfast(18), 6));
    let before: Vec<Tensor> = to.tensors().iter().map(|n| n.tensor.detach().copy()).collect();
    let mut weights: HashMap<String, Tensor> = from.state_dict().into_iter().collect();
    weights.remove("blocks.6.proj.bias");
    weights.insert("head.weight".into(), clip([1, 1, 1, 1, 1]));
    weights.insert("blocks.6.proj.weight".into(), clip([1, 1, 1, 400, 2]));
    let message = to.load(weights).unwrap_err().to_string();
    for part in
        ["1 missing: blocks.6.proj.bias", "1 unexpected: head.weight", "1 wrong: blocks.6.proj.weight"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert!(to.tensors().iter().zip(before).all(|(n, b)| n.tensor.equal(&b)));
}

#[test]
fn another_window_s_index_table_is_refused() {
    let mut model = build(&tiny_swin(), 0);
    let mut weights: HashMap<String, Tensor> = model.state_dict().into_iter().collect();
    let key = "features.0.0.attn.relative_position_index";
    let shifted = weights[key].g_add_scalar(1);
    weights.insert(key.into(), shifted);
    assert!(model.load(weights).unwrap_err().to_string().contains(key));
}

#[test]
fn wrong_inputs_are_errors_that_say_why() {
    let slowfast = build(&tiny_slowfast(18), 0);
    let swin = build(&tiny_swin(), 0);
    for bad in [
        clip([1, 4, 8, 32, 32]),
        clip([1, 3, 0, 32, 32]),
        clip([3, 8, 32, 32, 1]),
        Tensor::randn([3, 8], (Kind::Float, Device::Cpu)),
    ] {
        for model in [&slowfast, &swin] {
            let e = model.forward(&bad, true).unwrap_err();
            assert!(matches!(e, Error::Input { .. }), "{e}");
        }
    }
    let e = slowfast.forward(&clip([1, 3, 6, 32, 32]), true).unwrap_err();
    assert!(e.to_string().contains("6 frames are not a multiple of alpha = 4"), "{e}");
    // Pathways that do not fit together: the layer that meets them is named.
    let e = slowfast.forward_pathways(&[clip([1, 3, 4, 32, 32]), clip([1, 3, 8, 32, 32])], true).unwrap_err();
    assert!(e.to_string().contains("blocks.0.multipathway_fusion"), "{e}");
    let e = slowfast.forward(&clip([1, 3, 8, 32, 32]).to_kind(Kind::Int64), true).unwrap_err();
    assert!(e.to_string().contains("blocks.0"), "{e}");
    assert!(swin.forward_pathways(&[clip([1, 3, 4, 32, 32]), clip([1, 3, 8, 32, 32])], true).is_err());
}

#[test]
fn impossible_configurations_name_the_key() {
    let slowfast = |change: fn(&mut configs::SlowFast)| {
        let configs::Model::Slowfast(mut cfg) = tiny_slowfast(18) else { unreachable!() };
        change(&mut cfg);
        configs::Model::Slowfast(cfg)
    };
    let swin = |change: fn(&mut configs::VideoSwin)| {
        let configs::Model::VideoSwin(mut cfg) = tiny_swin() else { unreachable!() };
        change(&mut cfg);
        configs::Model::VideoSwin(cfg)
    };
    for (cfg, key) in [
        (slowfast(|c| c.depth = 34), "depth"),
        (slowfast(|c| c.alpha = 3), "alpha"),
        (slowfast(|c| c.alpha = 0), "alpha"),
        (slowfast(|c| c.beta = 3), "beta"),
        (slowfast(|c| c.fusion_kernel = 4), "fusion_kernel"),
        (slowfast(|c| c.dropout = 1.5), "dropout"),
        (swin(|c| c.heads = vec![5, 4]), "heads"),
        (swin(|c| c.depths = vec![2]), "heads"),
        (swin(|c| c.window = [0, 3, 3]), "window"),
        (swin(|c| c.drop_path = 1.0), "drop_path"),
    ] {
        let e = Model::new(&cfg, 5, 8, 32, Device::Cpu).unwrap_err().to_string();
        assert!(e.contains(&format!("model.{key}")), "{key}: {e}");
    }
    assert!(Model::new(&tiny_swin(), 0, 8, 32, Device::Cpu).is_err());
    assert!(presets("slowfast_r51").unwrap_err().to_string().contains("slowfast_r50"));
}

#[test]
fn parity_finds_what_was_changed() {
    let mut model = build(&tiny_swin(), 9);
    let x = clip([1, 3, 8, 32, 32]);
    let out = model.forward(&x, false).unwrap();
    out.square().mean(Kind::Float).backward();
    let reference = || {
        let mut r: HashMap<String, Tensor> =
            model.state_dict().into_iter().map(|(n, t)| (format!("w.{n}"), t.copy())).collect();
        for n in model.tensors() {
            r.insert(format!("g.{}", n.name), n.tensor.grad().copy());
        }
        r.insert("in.0".into(), x.shallow_clone());
        r.insert("out".into(), out.detach().copy());
        r
    };
    let (same, mut broken) = (reference(), reference());
    let halved = &broken["g.head.bias"] * 0.5;
    broken.insert("g.head.bias".into(), halved);
    let mut fresh = build(&tiny_swin(), 10);
    assert_eq!(parity::compare(&mut fresh, same, true).unwrap().worst(), 0.0);
    let mut fresh = build(&tiny_swin(), 10);
    let report = parity::compare(&mut fresh, broken, true).unwrap();
    assert_eq!(report.errors[0].name, "g.head.bias");
    assert!((report.worst() - 1.0).abs() < 1e-6);
    model = build(&tiny_swin(), 9);
    assert!(parity::compare(&mut model, HashMap::new(), false).is_err());
}
