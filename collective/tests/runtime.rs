//! Autocast, memory formats, fused optimizer kernels, and CUDA's absence.
#![allow(clippy::unwrap_used)]

use collective::{
    AdamW, Autocast, Error, Sgd, channels_last_3d, channels_last_3d_, fused_adamw, fused_sgd, init,
    keep_pages, load_cuda,
};
use tch::{Device, Kind, Tensor};

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn switches_can_be_thrown_twice() {
    for _ in 0..2 {
        init().unwrap();
        assert!(keep_pages(), "glibc takes these settings");
    }
}

#[test]
fn autocast_lasts_as_long_as_its_guard() {
    let (a, b) = (random(&[4, 4]), random(&[4, 4]));
    let kind = || a.matmul(&b).kind();
    assert_eq!(kind(), Kind::Float);
    {
        let _outer = Autocast::bf16(Device::Cpu).unwrap();
        {
            let _inner = Autocast::bf16(Device::Cpu).unwrap();
            assert_eq!(kind(), Kind::BFloat16);
        }
        assert_eq!(kind(), Kind::BFloat16);
    }
    assert_eq!(kind(), Kind::Float);
    assert!(matches!(Autocast::bf16(Device::Mps), Err(Error::Other { .. })));
}

#[test]
fn autocast_forgets_its_copies_of_the_weights() {
    let w = random(&[4, 4]).set_requires_grad(true);
    let x = Tensor::eye(4, (Kind::Float, Device::Cpu));
    let product = || {
        let _autocast = Autocast::bf16(Device::Cpu).unwrap();
        x.matmul(&w)
    };
    let before = product();
    tch::no_grad(|| {
        let _ = w.shallow_clone().g_add_scalar_(1.0);
    });
    let moved = (product() - before).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!((moved - 1.0).abs() < 0.02, "the second product used stale weights: {moved}");
    product().sum(Kind::Float).backward();
    assert_eq!(w.grad().kind(), Kind::Float);
}

#[test]
fn channels_last_is_a_layout_and_not_another_tensor() {
    let t = random(&[2, 3, 4, 5, 6]);
    let last = channels_last_3d(&t).unwrap();
    assert_eq!(last.stride(), [360, 1, 90, 18, 3]);
    assert!(last.equal(&t) && last.size() == t.size());

    let p = random(&[8, 3, 1, 3, 3]).set_requires_grad(true);
    let values = p.detach().copy();
    (&p * 2.0).sum(Kind::Float).backward();
    let alias = p.shallow_clone();
    channels_last_3d_(&p).unwrap();
    assert_eq!(p.stride()[1], 1);
    assert_eq!(alias.stride()[1], 1, "every handle of the parameter sees it");
    assert!(p.is_leaf() && p.requires_grad() && p.detach().equal(&values));
    assert_eq!(p.grad().stride(), p.stride());
    assert!(p.grad().equal(&p.grad().full_like(2.0)));

    let e = channels_last_3d(&random(&[2, 2])).unwrap_err();
    assert!(e.to_string().contains("needs 5 dimensions, not 2"), "{e}");
}

/// torch.optim.AdamW, single tensor, in double precision.
fn adamw_reference(p: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64], o: AdamW) {
    let [b1, b2] = o.betas;
    let (c1, c2) = (1.0 - b1.powi(o.step as i32), 1.0 - b2.powi(o.step as i32));
    for i in 0..p.len() {
        p[i] *= 1.0 - o.lr * o.weight_decay;
        m[i] = b1 * m[i] + (1.0 - b1) * g[i];
        v[i] = b2 * v[i] + (1.0 - b2) * g[i] * g[i];
        p[i] -= o.lr / c1 * m[i] / (v[i].sqrt() / c2.sqrt() + o.eps);
    }
}

/// torch.optim.SGD, single tensor; its first step sets the buffer to the gradient.
fn sgd_reference(p: &mut [f64], g: &[f64], b: &mut [f64], first: bool, o: Sgd) {
    for i in 0..p.len() {
        let g = g[i] + o.weight_decay * p[i];
        b[i] = if first { g } else { o.momentum * b[i] + g };
        p[i] -= o.lr * if o.nesterov { g + o.momentum * b[i] } else { b[i] };
    }
}

fn doubles(t: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(t.detach().to_kind(Kind::Double).contiguous().view(-1)).unwrap()
}

fn assert_close(t: &Tensor, expected: &[f64], what: &str) {
    let worst = doubles(t).iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 2e-6, "{what}: off by {worst}");
}

/// A parameter laid out channels last, and gradients that are not: the kernels walk flat memory.
fn parameter() -> Tensor {
    tch::manual_seed(3);
    let p = random(&[4, 3, 2, 5, 3]).set_requires_grad(true);
    channels_last_3d_(&p).unwrap();
    p
}

#[test]
fn fused_adamw_is_torchs_adamw() {
    let p = parameter();
    let (m, v) = (p.detach().zeros_like(), p.detach().zeros_like());
    let (mut rp, mut rm, mut rv) = (doubles(&p), doubles(&m), doubles(&v));
    for step in 1..=5 {
        let o = AdamW { step, lr: 0.01, betas: [0.9, 0.999], weight_decay: 0.05, eps: 1e-8 };
        let g = random(&p.size());
        adamw_reference(&mut rp, &doubles(&g), &mut rm, &mut rv, o);
        let one = |t: &Tensor| [t.shallow_clone()];
        fused_adamw(&one(&p), &one(&g), &one(&m), &one(&v), o).unwrap();
        assert_close(&p, &rp, "weights");
        assert_close(&m, &rm, "exp_avg");
        assert_close(&v, &rv, "exp_avg_sq");
    }
    assert!(p.requires_grad() && p.is_leaf());
}

#[test]
fn fused_sgd_is_torchs_sgd() {
    for (momentum, nesterov) in [(0.9, true), (0.9, false), (0.0, false)] {
        let o = Sgd { lr: 0.1, momentum, weight_decay: 1e-2, nesterov };
        let p = parameter();
        let buffer = p.detach().zeros_like();
        let (mut rp, mut rb) = (doubles(&p), doubles(&buffer));
        for step in 0..5 {
            let g = random(&p.size());
            sgd_reference(&mut rp, &doubles(&g), &mut rb, step == 0, o);
            let momenta = if momentum == 0.0 { vec![] } else { vec![buffer.shallow_clone()] };
            fused_sgd(&[p.shallow_clone()], &[g], &momenta, o).unwrap();
            assert_close(&p, &rp, &format!("{o:?}"));
        }
    }
}

#[test]
fn fused_kernels_refuse_what_they_would_get_wrong() {
    let p = parameter();
    let o = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.0, nesterov: false };
    let one = |t: &Tensor| vec![t.shallow_clone()];
    let before = p.detach().copy();
    let plain = Tensor::zeros(p.size(), (Kind::Float, Device::Cpu));
    let refused = |grads: &[Tensor], momenta: &[Tensor], what: &str| {
        let e = fused_sgd(&one(&p), grads, momenta, o).unwrap_err();
        assert!(matches!(e, Error::Other { .. }) && e.to_string().contains(what), "{e}");
    };
    refused(&one(&before), &one(&plain), "strides of its parameter");
    refused(&one(&before), &[], "1 parameters but 0 momentum");
    refused(&[], &one(&before), "1 parameters but 0 gradients");
    refused(&one(&random(&[2])), &one(&before), "shape of its parameter");
    assert!(p.detach().equal(&before));
    fused_sgd(&[], &[], &[], o).unwrap();
}

#[test]
fn without_a_gpu_cuda_is_an_error_that_says_what_to_do() {
    match load_cuda() {
        Ok(gpus) => assert!(gpus > 0),
        Err(e) => {
            assert!(matches!(e, Error::Cuda { .. }), "{e}");
            assert!(
                e.to_string().starts_with("use CUDA: ") && e.to_string().contains("use cpu devices"),
                "{e}"
            );
        }
    }
}
