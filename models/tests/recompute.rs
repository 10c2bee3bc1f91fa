//! Activation checkpointing's hook: which blocks go through it, and that a second run changes nothing.
#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use models::{BlockFn, Model, NormMode, Recompute, Result, Role};
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor};

/// Runs each block twice, as forward and backward pass would, and counts.
#[derive(Debug, Default)]
struct Twice(Mutex<usize>);

impl Recompute for Twice {
    fn run(&self, block: Arc<BlockFn>, x: &Tensor) -> Result<Tensor> {
        *self.0.lock().unwrap() += 1;
        let first = tch::no_grad(|| block(x))?;
        let second = block(x)?;
        assert!(first.equal(&second));
        Ok(second)
    }
}

/// A network, and its residual or transformer blocks.
fn networks() -> [(configs::Model, usize); 2] {
    [
        (
            configs::Model::Slowfast(configs::SlowFast {
                depth: 18,
                beta: 4,
                width: 8,
                dropout: 0.0,
                ..Default::default()
            }),
            16,
        ),
        (
            configs::Model::VideoSwin(configs::VideoSwin {
                embed_dim: 12,
                depths: vec![2, 2],
                heads: vec![2, 4],
                window: [2, 3, 3],
                drop_path: 0.0,
                ..Default::default()
            }),
            4,
        ),
    ]
}

/// All tensors and gradients after a training step, and how often a block was run again.
fn step(cfg: &configs::Model, mode: NormMode, recompute: Option<Arc<Twice>>) -> Vec<Tensor> {
    tch::manual_seed(5);
    let mut model = Model::new(cfg, 5, 8, 32, Device::Cpu).unwrap();
    model.set_norm_mode(mode);
    model.set_recompute(recompute.map(|r| r as Arc<dyn Recompute>));
    let clip = Tensor::randn([2, 3, 8, 32, 32], (Kind::Float, Device::Cpu));
    model.forward(&clip, true).unwrap().square().mean(Kind::Float).backward();
    let tensors = model.tensors().into_iter();
    tensors.map(|n| if n.role == Role::Buffer { n.tensor } else { n.tensor.grad() }).collect()
}

#[test]
fn blocks_run_again_give_the_same_step_and_count_once() {
    for (cfg, blocks) in networks() {
        for mode in [NormMode::Local, NormMode::SubBatch(1), NormMode::Frozen] {
            let twice = Arc::new(Twice::default());
            let plain = step(&cfg, mode.clone(), None);
            let again = step(&cfg, mode, Some(twice.clone()));
            assert_eq!(*twice.0.lock().unwrap(), blocks);
            assert!(plain.iter().zip(&again).all(|(a, b)| a.equal(b)));
        }
    }
}

#[test]
fn evaluation_runs_each_block_once() {
    for (cfg, _) in networks() {
        let twice = Arc::new(Twice::default());
        let mut model = Model::new(&cfg, 5, 8, 32, Device::Cpu).unwrap();
        model.set_recompute(Some(twice.clone()));
        let clip = Tensor::zeros([1, 3, 8, 32, 32], (Kind::Float, Device::Cpu));
        assert_eq!(model.probabilities(&clip).unwrap().size(), [1, 5]);
        assert_eq!(*twice.0.lock().unwrap(), 0);
    }
}
