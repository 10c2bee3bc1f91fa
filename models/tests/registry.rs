//! The registry's figures: parameters and multiply-adds against the references' and the papers', and its recipes.
#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use models::{CLASSES, Model, PRESETS, presets};

#[test]
fn parameter_counts_are_the_references() {
    for (name, expected) in [
        ("slowfast_r50", 34_566_488),
        ("slowfast_r101", 62_826_968),
        ("slowfast_16x8_r101_50_50", 53_774_808),
        ("slow_r50", 32_454_096),
        ("i3d_r50", 28_043_472),
        ("c2d_r50", 24_327_632),
        ("slowfast_16x8_r101_nl", 60_080_088),
        ("i3d_nln_r50", 35_401_936),
        ("c2d_nln_r50", 31_686_096),
        ("swin3d_t", 28_158_070),
        ("swin3d_s", 49_816_678),
        ("swin3d_b", 88_048_984),
        // The paper's 197.0 and 200.0 million.
        ("swin3d_l", 196_953_916),
        ("swin3d_l_384", 199_999_516),
    ] {
        let preset = PRESETS.iter().find(|p| p.name == name).unwrap();
        assert_eq!(preset.parameters().unwrap(), expected, "{name}");
    }
}

#[test]
fn costs_are_the_papers() {
    for (name, published) in [
        // Feichtenhofer et al. 2019, tables 2, 5a: 256 pixels. The paper's R101 are the 101_50_50.
        ("slowfast_4x16_r50", 36.1),
        ("slowfast_r50", 65.7),
        ("slowfast_r101_50_50", 106.0),
        ("slowfast_16x8_r101_50_50", 213.0),
        ("slowfast_16x8_r101_nl", 234.0),
        ("slow_4x16_r50", 27.3),
        ("slow_r50", 54.5),
        // 37 in the list of models that the project reproduces.
        ("i3d_r50", 37.0),
        // Liu et al. 2022, tables 1 and 3.
        ("swin3d_t", 88.0),
        ("swin3d_s", 166.0),
        ("swin3d_b", 282.0),
        ("swin3d_l", 604.0),
        ("swin3d_l_384", 2107.0),
        ("swin3d_b_16x7x7", 321.0),
    ] {
        let ours = PRESETS.iter().find(|p| p.name == name).unwrap().gflops().unwrap();
        assert!((ours / published - 1.0).abs() < 0.01, "{name}: {ours:.2} here, {published} in the paper");
    }
}

/// From fvcore 0.1.5 on the references, convolutions, linear layers and matrix products:
///
/// ```python
/// def count(model, *inputs):
///     for pool in (m for m in model.modules() if isinstance(m, torch.nn.AvgPool3d)):
///         pool.kernel_size = (pool.kernel_size[0], 2, 2)
///     operators = FlopCountAnalysis(model.eval(), inputs).by_operator()
///     return sum(operators[k] for k in ("conv", "linear", "matmul") if k in operators)
///
/// clip = lambda t, h, w: torch.zeros(1, 3, t, h, w)
/// count(hub.slowfast_r50(), [clip(8, 64, 96), clip(32, 64, 96)])
/// count(hub.slow_r50(), clip(8, 65, 90))
/// count(video.swin3d_t(), clip(11, 90, 70))
/// ```
#[test]
fn costs_are_fvcores_to_the_last_one() {
    for (name, [frames, height, width], expected) in [
        ("slowfast_r50", [32, 64, 96], 6_161_965_056_u64),
        ("slowfast_16x8_r101_50_50", [64, 64, 64], 13_314_691_072),
        ("slow_r50", [8, 65, 90], 6_256_684_544),
        ("i3d_r50", [8, 65, 90], 3_965_724_160),
        ("c2d_r50", [8, 65, 90], 2_814_340_608),
        // Patches, windows and mergings are padded, windows are clamped in time.
        ("swin3d_t", [11, 90, 70], 5_040_703_488),
        ("swin3d_b", [32, 64, 64], 24_563_367_936),
    ] {
        // Trained on 64 pixels: the head pools 2 x 2.
        let model = Model::outline(&presets(name).unwrap(), CLASSES, frames, 64).unwrap();
        let ours = (model.gflops(frames, height, width) * 1e9).round();
        assert_eq!(ours as u64, expected, "{name}");
    }
}

#[test]
fn an_outline_has_the_network_s_names_and_shapes() {
    let cfg = presets("swin3d_t").unwrap();
    let outline = Model::outline(&cfg, 7, 32, 224).unwrap();
    let model = Model::new(&cfg, 7, 32, 224, tch::Device::Cpu).unwrap();
    let shapes = |m: &Model| m.tensors().into_iter().map(|n| (n.name, n.tensor.size())).collect::<Vec<_>>();
    assert_eq!(shapes(&outline), shapes(&model));
    assert_eq!(outline.parameters(), model.parameters());
}

#[test]
fn names_are_unique_and_recipes_are_of_that_network() {
    for (i, preset) in PRESETS.iter().enumerate() {
        assert!(PRESETS[..i].iter().all(|p| p.name != preset.name), "{} twice", preset.name);
        let Some(recipe) = preset.recipe else { continue };
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(recipe);
        let recipe = configs::Config::read(&path, &[]).unwrap();
        let shapes = |cfg: &configs::Model| {
            let model = Model::outline(cfg, CLASSES, preset.frames, preset.crop).unwrap();
            let cost = model.gflops(preset.frames, preset.test_crop, preset.test_crop);
            let shapes = model.tensors().into_iter().map(|n| (n.name, n.tensor.size()));
            (shapes.collect::<Vec<_>>(), cost)
        };
        assert_eq!(shapes(&recipe.model), shapes(&preset.config()), "{}", preset.name);
        assert_eq!(i64::from(recipe.data.augment.crop), preset.crop, "{}", preset.name);
        assert_eq!(i64::from(recipe.data.frames), preset.frames, "{}", preset.name);
    }
}
