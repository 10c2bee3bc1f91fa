//! Every recipe beside this crate parses, says what its name says, and is listed in docs/recipes.md.
#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use configs::{BatchNorm, Config, Ensemble, LossKind, Model, NonLocalKind, Optimizer, TestSampling};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

fn recipe(name: &str) -> Config {
    Config::read(&Path::new(FOLDER).join(name), &[]).expect("a recipe parses")
}

/// Every recipe by its file's name.
fn all() -> BTreeMap<String, Config> {
    std::fs::read_dir(FOLDER)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml") && name != "Cargo.toml")
        .map(|name| (name.clone(), recipe(&name)))
        .collect()
}

#[test]
fn every_recipe_parses_and_knows_its_datasets_size() {
    let recipes = all();
    assert!(recipes.len() >= 25, "{}", recipes.len());
    for (name, config) in &recipes {
        let size = config.data.nominal.unwrap_or_else(|| panic!("{name} names the dataset's size"));
        let classes = match name.trim_end_matches(".toml").rsplit('_').next() {
            Some("k400") => 400,
            Some("ssv2") => 174,
            Some("charades") => 157,
            _ => 12,
        };
        assert_eq!(size.classes, classes, "{name}");
    }
}

#[test]
fn the_table_of_contents_is_in_step_with_the_folder() {
    let page = std::fs::read_to_string(Path::new(FOLDER).join("../docs/recipes.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let (_, rest) = line.strip_prefix("| [")?.split_once("](../configs/")?;
        Some(rest.split_once(')')?.0.to_string())
    });
    let listed: Vec<String> = rows.collect();
    let unique: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(unique.len(), listed.len(), "a recipe has two rows");
    assert_eq!(unique, all().into_keys().collect());
}

/// What a recipe's first line claims is also what its row says.
#[test]
fn the_published_accuracy_is_the_same_in_both_places() {
    let page = std::fs::read_to_string(Path::new(FOLDER).join("../docs/recipes.md")).unwrap();
    for name in all().into_keys() {
        let text = std::fs::read_to_string(Path::new(FOLDER).join(&name)).unwrap();
        let claim: String =
            text.lines().take_while(|l| l.starts_with('#')).map(|l| l.trim_start_matches('#')).collect();
        let row = page.lines().find(|l| l.contains(&format!("(../configs/{name})"))).unwrap();
        let accuracy = row.split('|').nth(2).unwrap().trim();
        for number in accuracy.split(['/', ' ']).filter(|n| n.parse::<f64>().is_ok()) {
            assert!(claim.contains(&format!("{number} %")), "{name}: {number} % is not in its comment");
        }
    }
}

#[test]
fn published_recipes_are_complete() {
    for (name, config) in all() {
        let published = ["_k400.toml", "_ssv2.toml", "_charades.toml"].iter().any(|e| name.ends_with(e));
        if !published {
            continue;
        }
        let test = config.data.test.as_ref().unwrap_or_else(|| panic!("{name} says how it is tested"));
        let batch = config.optimizer.reference_batch();
        assert_eq!(batch, Some(config.train.global_batch), "{name}: the rate is of this many clips");
        match &config.model {
            Model::VideoSwin(m) => {
                assert_eq!(config.optimizer.groups().backbone, 0.1, "{name}");
                assert_eq!(test.sampling, TestSampling::MmAction2, "{name}");
                assert!(m.drop_path > 0.0 && config.train.init.is_some(), "{name}");
            }
            Model::Slowfast(_) | Model::Resnet3d(_) => {
                assert_eq!(config.train.batch_norm, BatchNorm::SubBatch { clips: 8 }, "{name}");
                assert_eq!(config.train.precise_bn_batches, 200, "{name}");
                let share = config.train.global_batch / config.cluster.workers;
                assert_eq!(share, 8, "{name}: batch norm sees 8 clips of each worker");
                assert_eq!((test.short_side, test.crop), (256, 256), "{name}");
            }
        }
        let multi = name.contains("charades");
        assert_eq!(config.loss.kind == LossKind::Bce, multi, "{name}");
        assert_eq!(test.ensemble == Ensemble::Max, multi, "{name}");
        assert_eq!(config.data.augment.flip == 0.0, name.contains("ssv2"), "{name}");
    }
}

#[test]
fn a_recipe_that_starts_from_another_names_one_that_is_there() {
    let recipes = all();
    for (name, config) in &recipes {
        let Some(from) = config.train.init.as_deref().and_then(|i| i.strip_prefix("s3://BUCKET/runs/"))
        else {
            continue;
        };
        assert!(recipes.contains_key(&format!("{from}.toml")), "{name} starts from {from}");
    }
}

#[test]
fn slowfasts_differ_in_alpha_depth_and_kernel() {
    for (name, depth, alpha, kernel, slow, blocks) in [
        ("slowfast_4x16_r50_k400.toml", 50, 8, 5, 4, None),
        ("slowfast_8x8_r50_k400.toml", 50, 4, 7, 8, None),
        ("slowfast_8x8_r101_k400.toml", 101, 4, 5, 8, Some([3, 4, 6, 3])),
        ("slowfast_16x8_r101_k400.toml", 101, 4, 5, 16, Some([3, 4, 6, 3])),
    ] {
        let config = recipe(name);
        let Model::Slowfast(m) = &config.model else { panic!("{name} is a SlowFast") };
        assert_eq!((m.depth, m.alpha, m.fusion_kernel, m.beta), (depth, alpha, kernel, 8), "{name}");
        assert_eq!((config.data.frames / m.alpha, m.temporal_blocks), (slow, blocks), "{name}");
    }
    let Model::Slowfast(m) = recipe("slowfast_16x8_r101_nl_k400.toml").model.clone() else { panic!() };
    assert_eq!(m.non_local.map(|n| n.locations[2].clone()), Some(vec![6, 13, 20]));
    let Model::Resnet3d(m) = recipe("i3d_nl_8x8_r50_k400.toml").model.clone() else { panic!() };
    assert_eq!(m.non_local.map(|n| n.kind), Some(NonLocalKind::EmbeddedGaussian));
}

#[test]
fn swins_train_with_adamw() {
    for (name, config) in all() {
        if let Model::VideoSwin(_) = config.model {
            assert!(matches!(config.optimizer, Optimizer::Adamw(_)), "{name}");
        }
    }
}

#[test]
fn the_demos_know_left_from_right() {
    for name in ["demo.toml", "demo_long.toml", "tiny_slow_motion.toml", "tiny_swin_motion.toml"] {
        assert_eq!(recipe(name).data.augment.flip, 0.0, "{name}");
    }
}
