//! Sums over ranks inside the graph, and blocks that are computed again in the backward pass.
// Tensors are not Sync; a block is only ever run by one thread at a time.
#![allow(clippy::unwrap_used, clippy::arc_with_non_send_sync)]

mod support;

use collective::{Autocast, BlockFn, RankSum, Reducer, ReducerOptions, backward, recompute};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use support::ranks;
use tch::{Device, Kind, Tensor};

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// The same on every thread, which share one random generator.
fn waves(shape: &[i64]) -> Tensor {
    Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).sin().reshape(shape)
}

#[test]
fn a_sum_over_ranks_passes_every_rank_s_gradient_back() {
    ranks(3, |group| {
        let weight = group.rank() as f64 + 1.0;
        let x = Tensor::from_slice(&[weight as f32, 1.0]).set_requires_grad(true);
        let sum = RankSum::new(&group).sum(&x).unwrap();
        assert_eq!(Vec::<f32>::try_from(sum.detach()).unwrap(), [6.0, 3.0]);
        // The losses of the ranks are 1, 2 and 3 times the sum.
        backward(&(sum.sum(Kind::Float) * weight)).unwrap();
        assert_eq!(Vec::<f32>::try_from(x.grad()).unwrap(), [6.0, 6.0]);
    });
}

/// Two layers with dropout between them, and how often they were run.
fn network(w: &[Tensor; 2], runs: &Arc<AtomicUsize>) -> Arc<BlockFn> {
    let (w, runs) = (w.each_ref().map(Tensor::shallow_clone), runs.clone());
    Arc::new(move |x: &Tensor| {
        runs.fetch_add(1, Ordering::Relaxed);
        let run = || {
            x.f_linear::<&Tensor>(&w[0], None)?
                .f_gelu("none")?
                .f_dropout(0.5, true)?
                .f_linear::<&Tensor>(&w[1], None)
        };
        run().map_err(|e: tch::TchError| e.to_string())
    })
}

#[test]
fn a_block_computed_again_gives_the_same_numbers_under_autocast_and_dropout() {
    let runs = Arc::new(AtomicUsize::new(0));
    let w = [random(&[64, 16]), random(&[16, 64])].map(|t| t.set_requires_grad(true));
    let block = network(&w, &runs);
    let input = random(&[8, 16]);
    let grads = |again: bool| {
        let mut w = w.each_ref().map(Tensor::shallow_clone);
        let x = input.copy().set_requires_grad(true);
        w.iter_mut().for_each(|w| {
            if w.grad().defined() {
                let _ = w.grad().zero_();
            }
        });
        tch::manual_seed(3);
        let y = {
            let _autocast = Autocast::bf16(Device::Cpu).unwrap();
            // What comes before and after draws random numbers too.
            let x = x.dropout(0.1, true);
            let y = if again { recompute(block.clone(), &x).unwrap() } else { block(&x).unwrap() };
            y.dropout(0.1, true)
        };
        backward(&y.to_kind(Kind::Float).square().sum(Kind::Float)).unwrap();
        [x.grad(), w[0].grad(), w[1].grad()].map(|g| g.copy())
    };
    let plain = grads(false);
    assert_eq!(runs.swap(0, Ordering::Relaxed), 1);
    let again = grads(true);
    assert_eq!(runs.load(Ordering::Relaxed), 2, "once forward and once backward");
    assert!(plain.iter().zip(&again).all(|(a, b)| a.equal(b)));
    // Nothing of the recomputation leaks: autocast is off.
    assert_eq!(input.matmul(&input.tr()).kind(), Kind::Float);
}

#[test]
fn the_reducer_averages_what_is_computed_again() {
    let grads = |again: bool| {
        ranks(2, move |group| {
            let w = [waves(&[32, 8]), waves(&[8, 32])].map(|t| t.set_requires_grad(true));
            let stem = waves(&[8, 8]).set_requires_grad(true);
            let params = [&stem, &w[0], &w[1]].map(Tensor::shallow_clone);
            let reducer = Reducer::new(&params, &group, ReducerOptions::default()).unwrap();
            let block: Arc<BlockFn> = {
                let w = w.each_ref().map(Tensor::shallow_clone);
                Arc::new(move |x: &Tensor| {
                    Ok(x.linear::<&Tensor>(&w[0], None).relu().linear::<&Tensor>(&w[1], None))
                })
            };
            let x = waves(&[4, 8]) + group.rank() as f64;
            for _ in 0..3 {
                reducer.zero_grad().unwrap();
                let y = reducer
                    .forward(|| {
                        let x = x.linear::<&Tensor>(&stem, None);
                        if again { recompute(block.clone(), &x).unwrap() } else { block(&x).unwrap() }
                    })
                    .unwrap();
                backward(&y.square().sum(Kind::Float)).unwrap();
            }
            params.map(|p| Vec::<f32>::try_from(p.grad().flatten(0, -1)).unwrap()).concat()
        })
    };
    let (plain, again) = (grads(false), grads(true));
    assert_eq!(plain[0], plain[1]);
    assert_eq!(again[0], again[1]);
    let gap =
        plain[0].iter().zip(&again[0]).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f32::max);
    assert!(gap < 1e-5, "{gap}");
}

#[test]
fn a_block_that_fails_again_is_an_error_of_backward() {
    let runs = Arc::new(AtomicUsize::new(0));
    let seen = runs.clone();
    let block: Arc<BlockFn> = Arc::new(move |x: &Tensor| match seen.fetch_add(1, Ordering::Relaxed) {
        0 => Ok(x * 2.0),
        _ => Err("the block is worn out".into()),
    });
    let x = random(&[2]).set_requires_grad(true);
    let y = recompute(block, &x).unwrap();
    let e = backward(&y.sum(Kind::Float)).unwrap_err().to_string();
    assert!(e.contains("the block is worn out"), "{e}");
}
