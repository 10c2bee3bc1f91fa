//! Every recipe beside this crate parses, and says what its name says.

use configs::{Config, Model, Optimizer};
use std::path::Path;

fn recipe(name: &str) -> Config {
    Config::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name), &[]).expect("a recipe parses")
}

#[test]
fn every_recipe_parses() {
    let mut count = 0;
    for entry in std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".toml") && name != "Cargo.toml" {
            recipe(&name);
            count += 1;
        }
    }
    assert!(count >= 5);
}

#[test]
fn the_two_slowfasts_differ_in_alpha_and_kernel() {
    for (name, alpha, kernel) in [("slowfast_4x16_r50_k400.toml", 8, 5), ("slowfast_8x8_r50_k400.toml", 4, 7)]
    {
        let config = recipe(name);
        let Model::Slowfast(m) = &config.model else { panic!("{name} is a SlowFast") };
        assert_eq!((m.depth, m.alpha, m.fusion_kernel, m.beta), (50, alpha, kernel, 8), "{name}");
        assert_eq!(config.data.frames / m.alpha, if alpha == 8 { 4 } else { 8 });
    }
}

#[test]
fn swin_trains_with_adamw() {
    let config = recipe("swin3d_t_k400.toml");
    assert!(matches!(config.optimizer, Optimizer::Adamw(_)));
    assert!(matches!(config.model, Model::VideoSwin(_)));
}

#[test]
fn the_demo_knows_left_from_right() {
    for name in ["demo.toml", "demo_long.toml"] {
        assert_eq!(recipe(name).data.augment.flip, 0.0, "{name}");
    }
}
