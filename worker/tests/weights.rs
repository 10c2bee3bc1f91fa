//! `marey-worker import` and `export` against the real packages: tests/weights.py writes their models and logits.
#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use models::Model;
use serde_json::Value;
use std::{
    collections::HashMap,
    path::Path,
    process::{Command, Output},
};
use storage::Location;
use tch::{Device, Tensor, no_grad};
use worker::checkpoint::load::{self, tensors_of};

#[test]
fn image_models_are_inflated() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    python("images", dir.path());
    let file = at("pretrained/model.safetensors");
    std::fs::rename(file, at("transformers_swin_file.safetensors")).unwrap();
    std::fs::copy(at("transformers_swin.io"), at("transformers_swin_file.io")).unwrap();

    // On a clip of equal frames an inflated network sees what the image network saw. C2D: exactly, at every
    // frame. Swin: a window holds all frames, whose keys are the same, so its attention is the image's.
    let swin = "arch = \"video_swin\"";
    let small_swin = &format!("{swin}\nembed_dim = 24\nheads = [1, 2, 4, 8]");
    let c2d = "arch = \"resnet3d\"\nkind = \"c2d\"";
    for (name, model, source) in [
        ("torchvision_resnet50", c2d, "torchvision/timm resnet50 (2D), 10 classes"),
        ("timm_resnet18", &format!("{c2d}\ndepth = 18"), "torchvision/timm resnet18 (2D), 10 classes"),
        ("transformers_resnet50", &format!("{c2d}\nwidth = 16"), "transformers resnet50 (2D), 10 classes"),
        ("torchvision_swin_t", swin, "torchvision swin_t (2D), 10 classes"),
        ("timm_swin", small_swin, "timm swin of [2, 2, 6, 2] blocks, width 24 (2D), 10 classes"),
        (
            "transformers_swin",
            small_swin,
            "transformers swin of [2, 2, 6, 2] blocks, width 24 (2D), 10 classes",
        ),
        (
            "transformers_swin_file",
            small_swin,
            "transformers swin of [2, 2, 6, 2] blocks, width 24 (2D), 10 classes",
        ),
    ] {
        let (weights, recipe) = (at(&format!("{name}.safetensors")), recipe(dir.path(), model));
        let report = import(&weights, &at(&format!("{name}_run")), &["--config", &recipe, "--classes", "10"]);
        assert_eq!(report["source"], source, "{name}");
        assert_eq!(report["fresh"], serde_json::json!([]), "{name}");
        assert_eq!(report["unused"], serde_json::json!([]), "{name}");
        let mut io = tensors(&at(&format!("{name}.io")));
        let picture = io.remove("x").unwrap();
        let clip = picture.unsqueeze(2).repeat([1, 1, 4, 1, 1]);
        let logits = no_grad(|| restore(&at(&format!("{name}_run"))).forward(&clip, false)).unwrap();
        let error = relative(&logits, &io["logits"]);
        assert!(error < 1e-4, "{name}: logits are off by {error:e}");
    }

    // SlowFast takes an image network into its slow pathway; all else is fresh. The classifier has another size.
    let resnet = at("torchvision_resnet50.safetensors");
    let flags = ["--model", "slowfast_r50", "--classes", "10"];
    let report = import(&resnet, &at("slowfast"), &flags);
    let names = |key: &str| -> Vec<&str> {
        report[key].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect()
    };
    assert_eq!(names("unused"), ["fc.weight", "fc.bias"]);
    // The first block of each stage sees the lateral channels, in its shortcut and its first convolution.
    assert_eq!(names("padded").len(), 8);
    let parts = [".multipathway_blocks.1.", ".multipathway_fusion.", "blocks.6.proj."];
    assert!(names("fresh").iter().all(|name| parts.iter().any(|part| name.contains(part))));
    let (image, video) = (tensors(&resnet), restore(&at("slowfast")));
    let kernel = &named(&video, "blocks.3.multipathway_blocks.0.res_blocks.1.branch2.conv_a.weight");
    let over_time = kernel.sum_dim_intlist([2i64].as_slice(), false, None::<tch::Kind>);
    assert!(relative(&over_time, &image["layer3.1.conv1.weight"]) < 1e-6);

    // I3D reaches over time in its stem too, and its stages have other numbers.
    let i3d = recipe(dir.path(), "arch = \"resnet3d\"\nkind = \"i3d\"");
    import(&resnet, &at("i3d"), &["--config", &i3d, "--classes", "10"]);
    let stem = named(&restore(&at("i3d")), "blocks.0.conv.weight");
    assert_eq!(stem.size()[2], 5);
    assert!(relative(&(stem.select(2, 3) * 5), &image["conv1.weight"]) < 1e-6);
}

#[test]
fn video_models_come_and_go_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    python("videos", dir.path());
    let mut ours = HashMap::new();
    for (name, source) in [
        ("slowfast_r50", "pytorchvideo slowfast_r50, 400 classes"),
        ("swin3d_t", "torchvision swin3d_t, 400 classes"),
    ] {
        let report = import(&at(&format!("{name}.safetensors")), &at(name), &["--model", name]);
        assert_eq!(report["source"], source);
        assert_eq!((&report["fresh"], &report["inflated"]), (&serde_json::json!([]), &serde_json::json!([])));
        let io = tensors(&at(&format!("{name}.io")));
        let logits = no_grad(|| restore(&at(name)).forward(&io["x"], false)).unwrap();
        assert!(relative(&logits, &io["logits"]) < 1e-5, "{name}");
        ours.insert(name, logits);

        let out = at(&format!("{name}.exported.safetensors"));
        let said = worker(&["export", "--checkpoint", text(&at(name)), "--out", text(&out)]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
    // The reference loads what was exported, strictly, and gives the same logits.
    python("check", dir.path());
    for (name, ours) in ours {
        let theirs = tensors(&at(&format!("{name}.checked")));
        let error = relative(&ours, &theirs["logits"]);
        assert!(error < 1e-5, "{name}: the exported weights give logits that are off by {error:e}");
    }

    // Another number of classes: the classifier starts fresh. Another network: an error that lists the keys.
    let swin = at("swin3d_t.safetensors");
    let report = import(&swin, &at("five"), &["--model", "swin3d_t", "--classes", "5"]);
    assert_eq!(report["fresh"], serde_json::json!(["head.weight", "head.bias"]));
    assert_eq!(report["unused"], serde_json::json!(["module.head.weight", "module.head.bias"]));
    let said = import_output(&swin, &at("wrong"), &["--model", "swin3d_s"]);
    let stderr = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("156 missing: features.4.6.norm1.weight, ") && stderr.contains(text(&swin)),
        "{stderr}"
    );
    let said = import_output(&swin, &at("five"), &["--model", "swin3d_t"]);
    let stderr = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.code() == Some(2) && stderr.contains("holds checkpoints"), "{stderr}");
}

#[test]
fn other_layouts_are_converted() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let said = python("foreign", dir.path());
    for (source, reference) in [
        ("slowfast.pyth", "slowfast"),
        ("i3d.pyth", "i3d"),
        ("slowfast.pth", "slowfast"),
        ("swin.pth", "swin"),
        ("slowfast.pkl", "slowfast"),
    ] {
        let converted = tensors(&at(&format!("{source}.safetensors")));
        let reference = tensors(&at(&format!("{reference}.reference.safetensors")));
        assert_eq!(converted.len(), reference.len(), "{source}");
        for (name, tensor) in reference {
            assert!(converted[&name].equal(&tensor), "{source}: {name}");
        }
    }
    assert!(said.contains("lateral_norm=False") && said.contains("wants to make a os.system"), "{said}");
    assert!(!at("executed").exists(), "a pickle was executed");
}

/// Runs tests/weights.py; returns what it printed.
fn python(what: &str, folder: &Path) -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(here.join("../scripts/reference-python"));
    let output = command.arg(here.join("tests/weights.py")).arg(what).arg(folder).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "run scripts/setup.sh if a package is missing: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn worker(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_marey-worker")).args(args).output().unwrap()
}

fn import_output(weights: &Path, out: &Path, more: &[&str]) -> Output {
    worker(&[&["import", text(weights), "--out", text(out), "--json"], more].concat())
}

fn import(weights: &Path, out: &Path, more: &[&str]) -> Value {
    let said = import_output(weights, out, more);
    assert!(said.status.success(), "{weights:?}: {}", String::from_utf8_lossy(&said.stderr));
    serde_json::from_slice(&said.stdout).unwrap()
}

/// Writes a recipe with this `[model]`.
fn recipe(folder: &Path, model: &str) -> String {
    let path = folder.join("recipe.toml");
    let job = r#"
        [data]
        url = "clips"
        lanes = 1
        frames = 8
        augment = { crop = 224, scale = { kind = "short_side", min = 256, max = 320 } }
        eval = { short_side = 256, crop = 224 }
        [train]
        epochs = 1
        global_batch = 1
        [optimizer]
        kind = "sgd"
        lr = 0.1
        [model]
        "#;
    std::fs::write(&path, format!("{job}{model}\n")).unwrap();
    text(&path).into()
}

/// The model in a run's newest checkpoint.
fn restore(run: &Path) -> Model {
    let location = Location::parse(text(run)).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let loaded = runtime.block_on(load::open(&location, |text| panic!("{text}"))).unwrap();
    let (config, (header, parts)) = (loaded.config().unwrap(), loaded.into_parts());
    let (frames, crop) = (config.data.frames.into(), config.data.augment.crop.into());
    let mut model = Model::new(&config.model, header.classes as i64, frames, crop, Device::Cpu).unwrap();
    model.load(parts.model).unwrap();
    model
}

fn named(model: &Model, name: &str) -> Tensor {
    model.tensors().into_iter().find(|t| t.name == name).unwrap().tensor.detach()
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    tensors_of(&std::fs::read(path).unwrap()).unwrap().into_iter().collect()
}

/// The largest difference over the largest value.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let largest = |t: &Tensor| t.abs().max().double_value(&[]);
    assert_eq!(a.size(), b.size());
    largest(&(a - b)) / largest(b)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
