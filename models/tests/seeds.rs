//! Equal seeds give equal weights. Alone in its program: libtorch's generator is one for all threads.

#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use models::{Model, Role};
use tch::Device;

#[test]
fn equal_seeds_give_equal_networks() {
    let configs = [
        configs::Model::Slowfast(configs::SlowFast { depth: 18, beta: 4, width: 8, ..Default::default() }),
        configs::Model::VideoSwin(configs::VideoSwin {
            embed_dim: 12,
            depths: vec![2, 2],
            heads: vec![2, 4],
            window: [2, 3, 3],
            mlp_ratio: 2.0,
            dropout: 0.1,
            drop_path: 0.2,
            ..Default::default()
        }),
    ];
    for cfg in &configs {
        let build = |seed| {
            tch::manual_seed(seed);
            Model::new(cfg, 5, 8, 32, Device::Cpu).unwrap()
        };
        let (a, b, c) = (build(7), build(7), build(8));
        for ((a, b), c) in a.tensors().iter().zip(b.tensors()).zip(c.tensors()) {
            assert_eq!(a.name, b.name);
            assert!(a.tensor.equal(&b.tensor), "{}", a.name);
            let drawn = a.role == Role::Weight { decay: true };
            assert!(!drawn || !a.tensor.equal(&c.tensor), "{} ignores the seed", a.name);
        }
    }
}
