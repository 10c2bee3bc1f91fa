//! Batch norm's modes: what they compute, what they leave alone, and that synchronised ranks equal one big batch.
#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use models::{Exchange, Model, Named, NormMode, Result, Role};
use std::sync::{Arc, Barrier, Mutex};
use tch::{Device, Kind, Tensor};

fn network() -> configs::Model {
    // Without dropout, and with residual branches that count from the start.
    configs::Model::Slowfast(configs::SlowFast {
        depth: 18,
        beta: 4,
        width: 8,
        dropout: 0.0,
        zero_init_last_norm: false,
        ..Default::default()
    })
}

/// Equal weights whenever it is called, in float64 if asked.
fn model(double: bool) -> Model {
    let mut fresh = Model::new(&network(), 5, 8, 32, Device::Cpu).unwrap();
    let mut seed = 0;
    let weights = fresh.tensors().into_iter().map(|n| {
        seed += 1;
        let t = Tensor::arange(n.tensor.numel() as i64, (Kind::Double, Device::Cpu));
        let t = (t * 0.37 + f64::from(seed)).sin().view(n.tensor.size().as_slice());
        let t = if n.name.ends_with("running_var") || (t.dim() == 1 && n.name.ends_with("weight")) {
            t * 0.2 + 1.0
        } else {
            t * 0.2
        };
        (n.name, t)
    });
    let weights = weights.collect();
    fresh.load(weights).unwrap();
    if double {
        fresh.to_double().unwrap();
    }
    fresh
}

fn clips(n: i64, kind: Kind) -> Tensor {
    let t = Tensor::arange(n * 3 * 8 * 32 * 32, (Kind::Double, Device::Cpu));
    // A mean far from zero, and another in each clip.
    let each = Tensor::arange(n, (Kind::Double, Device::Cpu)).view([n, 1, 1, 1, 1]);
    ((t * 0.7131).sin().view([n, 3, 8, 32, 32]) + each * 0.5 + 3.0).to_kind(kind)
}

/// The loss of some clips of a batch: a sum, so that parts add up to the whole.
fn loss(logits: &Tensor) -> Tensor {
    (logits.square() * Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0]).to_kind(logits.kind()))
        .sum(logits.kind())
}

fn gap(a: &Tensor, b: &Tensor) -> f64 {
    let scale = b.abs().max().double_value(&[]).max(1e-3);
    (a - b).abs().max().double_value(&[]) / scale
}

fn buffers(model: &Model) -> Vec<Named> {
    model.tensors().into_iter().filter(|n| n.role == Role::Buffer).collect()
}

fn copies(model: &Model) -> Vec<Tensor> {
    buffers(model).iter().map(|n| n.tensor.copy()).collect()
}

/// Adds up what the ranks, which are threads, bring. The sum is one tensor in the graph of them all, so that one
/// backward pass from the sum of their losses gives each rank its part of the whole's gradient.
#[derive(Debug)]
struct Threads {
    barrier: Barrier,
    brought: Mutex<Vec<Tensor>>,
    total: Mutex<Option<Tensor>>,
    calls: Mutex<usize>,
}

impl Threads {
    fn new(world: usize) -> Arc<Self> {
        Arc::new(Self {
            barrier: Barrier::new(world),
            brought: Mutex::default(),
            total: Mutex::default(),
            calls: Mutex::default(),
        })
    }
}

impl Exchange for Threads {
    fn sum(&self, x: &Tensor) -> Result<Tensor> {
        self.brought.lock().unwrap().push(x.shallow_clone());
        if self.barrier.wait().is_leader() {
            let parts: Vec<Tensor> = self.brought.lock().unwrap().drain(..).collect();
            *self.total.lock().unwrap() =
                Some(Tensor::stack(&parts, 0).sum_dim_intlist([0i64].as_slice(), false, None));
            *self.calls.lock().unwrap() += 1;
        }
        self.barrier.wait();
        let total = self.total.lock().unwrap().as_ref().unwrap().shallow_clone();
        self.barrier.wait();
        Ok(total)
    }
}

/// Trains one step on `sizes[rank]` clips a rank (0: absent), and compares with one model on all clips.
fn ranks_equal_one_batch(sizes: &[i64]) {
    let (kind, tolerance) = (Kind::Double, 1e-9);
    let all = clips(sizes.iter().sum(), kind);
    let whole = model(true);
    let logits = whole.forward(&all, true).unwrap();
    loss(&logits).backward();

    let exchange = Threads::new(sizes.len());
    let mut start = 0;
    let ranks: Vec<(Model, Tensor)> = sizes
        .iter()
        .map(|&n| {
            let mut rank = model(true);
            rank.set_norm_mode(NormMode::Sync(exchange.clone()));
            rank.set_absent(n == 0);
            let x = if n == 0 {
                Tensor::zeros([1, 3, 8, 32, 32], (kind, Device::Cpu))
            } else {
                all.narrow(0, start, n)
            };
            start += n;
            (rank, x)
        })
        .collect();
    let threads: Vec<_> = ranks
        .into_iter()
        .zip(sizes.to_vec())
        .map(|((rank, x), n)| {
            std::thread::spawn(move || {
                let logits = rank.forward(&x, true).unwrap();
                let share = if n == 0 { 0.0 } else { 1.0 };
                let loss = loss(&logits) * share;
                (rank, logits, loss)
            })
        })
        .collect();
    let done: Vec<(Model, Tensor, Tensor)> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let losses: Vec<&Tensor> = done.iter().map(|d| &d.2).collect();
    Tensor::stack(&losses, 0).sum(kind).backward();

    let present = done.iter().zip(sizes).filter(|(_, n)| **n > 0).map(|(d, _)| &d.1);
    let theirs = Tensor::cat(&present.collect::<Vec<_>>(), 0);
    assert!(gap(&theirs, &logits) < tolerance, "logits: {:e}", gap(&theirs, &logits));
    for (i, named) in whole.tensors().iter().enumerate() {
        let all_ranks = done.iter().map(|d| d.0.tensors().swap_remove(i).tensor);
        match named.role {
            Role::Weight { .. } => {
                let sum = all_ranks.map(|t| t.grad()).reduce(|a, b| a + b).unwrap();
                let gap = gap(&sum, &named.tensor.grad());
                assert!(gap < tolerance, "gradient of {}: {gap:e}", named.name);
            }
            Role::Buffer => {
                for t in all_ranks {
                    assert!(
                        gap(&t, &named.tensor) < tolerance,
                        "{}: {:e}",
                        named.name,
                        gap(&t, &named.tensor)
                    );
                }
            }
        }
    }
    assert_eq!(*exchange.calls.lock().unwrap(), buffers(&whole).len(), "two exchanges a norm");
}

#[test]
fn synchronised_ranks_equal_one_batch() {
    ranks_equal_one_batch(&[1, 2]);
}

#[test]
fn an_absent_rank_takes_part_and_counts_nowhere() {
    ranks_equal_one_batch(&[2, 0, 1]);
}

#[test]
fn sub_batches_have_their_own_statistics() {
    let mut grouped = model(true);
    grouped.set_norm_mode(NormMode::SubBatch(2));
    let x = clips(5, Kind::Double);
    let logits = grouped.forward(&x, true).unwrap();
    for (start, n) in [(0, 2), (2, 2), (4, 1)] {
        let alone = model(true).forward(&x.narrow(0, start, n), true).unwrap();
        assert!(gap(&logits.narrow(0, start, n), &alone) < 1e-9, "clips from {start}");
    }
    let together = model(true).forward(&x, true).unwrap();
    assert!(gap(&logits, &together) > 1e-3, "groups made no difference");
}

#[test]
fn running_statistics_of_sub_batches_are_those_of_all_clips() {
    // At the stem, whose inputs do not depend on the mode.
    let name = "blocks.0.multipathway_blocks.1.norm.running_";
    let after = |mode| {
        let mut m = model(true);
        m.set_norm_mode(mode);
        m.set_norm_momentum(1.0);
        let _ = m.forward(&clips(4, Kind::Double), true).unwrap();
        buffers(&m).into_iter().filter(|n| n.name.starts_with(name)).map(|n| n.tensor).collect::<Vec<_>>()
    };
    let (grouped, whole) = (after(NormMode::SubBatch(2)), after(NormMode::Local));
    assert!(gap(&grouped[0], &whole[0]) < 1e-12, "mean");
    // n - 1 in each group and in the whole differ by a little.
    assert!(gap(&grouped[1], &whole[1]) < 1e-3, "variance: {} and {}", grouped[1], whole[1]);
    // Without the variance of the groups' means it would be far off.
    let first = {
        let mut m = model(true);
        m.set_norm_momentum(1.0);
        let _ = m.forward(&clips(2, Kind::Double), true).unwrap();
        buffers(&m).into_iter().find(|n| n.name == format!("{name}var")).unwrap().tensor
    };
    assert!(gap(&first, &whole[1]) > 1e-2);
}

#[test]
fn frozen_norms_use_and_keep_the_running_statistics() {
    let mut frozen = model(true);
    frozen.set_norm_mode(NormMode::Frozen);
    let before = copies(&frozen);
    let x = clips(2, Kind::Double);
    let trained = frozen.forward(&x, true).unwrap();
    assert!(trained.equal(&frozen.forward(&x, false).unwrap()));
    assert!(copies(&frozen).iter().zip(&before).all(|(a, b)| a.equal(b)));
    loss(&trained).backward();
    let weights = frozen.tensors().into_iter().filter(|n| n.role != Role::Buffer);
    for named in weights {
        assert!(named.tensor.grad().defined(), "{} has no gradient", named.name);
    }
}

#[test]
fn momentum_weighs_the_new_values() {
    let mut m = model(true);
    let start = copies(&m);
    let x = clips(2, Kind::Double);
    m.set_norm_momentum(1.0);
    let _ = m.forward(&x, true).unwrap();
    let batch = copies(&m);
    let mut m = model(true);
    m.set_norm_momentum(0.25);
    let _ = m.forward(&x, true).unwrap();
    for ((now, start), batch) in copies(&m).iter().zip(&start).zip(&batch) {
        assert!(gap(now, &(start * 0.75 + batch * 0.25)) < 1e-12);
    }
}

#[test]
fn an_absent_rank_moves_no_statistics_of_its_own() {
    for mode in [NormMode::Local, NormMode::SubBatch(1)] {
        let mut m = model(false);
        m.set_norm_mode(mode);
        m.set_absent(true);
        let before = copies(&m);
        let logits = m.forward(&Tensor::zeros([2, 3, 8, 32, 32], (Kind::Float, Device::Cpu)), true).unwrap();
        assert!(logits.isfinite().all().int64_value(&[]) == 1);
        assert!(copies(&m).iter().zip(&before).all(|(a, b)| a.equal(b)));
    }
}

#[test]
fn one_value_a_channel_is_an_error_and_spoils_nothing() {
    let m = model(false);
    // 4 frames make one slow frame, 32 pixels one place.
    let x = Tensor::ones([1, 3, 4, 32, 32], (Kind::Float, Device::Cpu));
    let e = m.forward(&x, true).unwrap_err().to_string();
    assert!(e.contains("one value a channel"), "{e}");
    for b in buffers(&m) {
        assert!(b.tensor.isfinite().all().int64_value(&[]) == 1, "{}", b.name);
    }
    assert!(m.forward(&x, false).is_ok());
}
