//! Ranks that are real processes: gradients agree, and a peer that is killed or hangs is an error
//! that its survivors recover from.
#![allow(clippy::unwrap_used)]

mod support;

use collective::{
    Buckets, Error, Group, KeyValue, MemoryStore, ReduceOp, Reducer, ReducerOptions, Sgd, backward, fused_sgd,
};
use std::{
    process::{Child, Command},
    sync::Arc,
    thread,
    time::Duration,
};
use support::{Remote, group, now, role, secs, serve, spawn};
use tch::{Device, Kind, Tensor};

const FEATURES: i64 = 24;
const BATCH: i64 = 12;

/// A small network with several buckets: linear, tanh, linear.
struct Net(Vec<Tensor>);

impl Net {
    fn new(seed: i64) -> Self {
        tch::manual_seed(seed);
        let shapes: [&[i64]; 4] = [&[64, FEATURES], &[64], &[5, 64], &[5]];
        let leaf = |s: &&[i64]| (Tensor::randn(*s, (Kind::Float, Device::Cpu)) * 0.1).set_requires_grad(true);
        Net(shapes.iter().map(leaf).collect())
    }
    fn forward(&self, x: &Tensor) -> Tensor {
        let p = &self.0;
        x.linear(&p[0], Some(&p[1])).tanh().linear(&p[2], Some(&p[3]))
    }
    fn grads(&self) -> Vec<Tensor> {
        self.0.iter().map(|p| p.grad().copy()).collect()
    }
    fn step(&self) {
        let rule = Sgd { lr: 0.1, momentum: 0.0, weight_decay: 0.0, nesterov: false };
        fused_sgd(&self.0, &self.0.iter().map(Tensor::grad).collect::<Vec<_>>(), &[], rule).unwrap();
    }
    fn copy(&self) -> Vec<Tensor> {
        self.0.iter().map(|p| p.detach().copy()).collect()
    }
}

/// The step's global batch: the same on every rank.
fn batch(step: i64) -> (Tensor, Tensor) {
    tch::manual_seed(1000 + step);
    let random = |n| Tensor::randn([BATCH, n], (Kind::Float, Device::Cpu));
    (random(FEATURES), random(5))
}

fn loss(out: &Tensor, y: &Tensor) -> Tensor {
    out.mse_loss(y, tch::Reduction::Mean)
}

/// Forward and backward on this rank's share.
fn share(net: &Net, reducer: &Reducer, group: &Group, step: i64) -> collective::Result<()> {
    let (x, y) = batch(step);
    let n = BATCH / group.world() as i64;
    let (x, y) = (x.narrow(0, n * group.rank() as i64, n), y.narrow(0, n * group.rank() as i64, n));
    reducer.zero_grad()?;
    let out = reducer.forward(|| net.forward(&x))?;
    backward(&loss(&out, &y))
}

fn options() -> ReducerOptions {
    ReducerOptions { first_bucket_bytes: 1024, bucket_bytes: 4096, ..Default::default() }
}

#[test]
fn gradients_of_two_and_three_ranks_equal_those_of_one() {
    let name = "gradients_of_two_and_three_ranks_equal_those_of_one";
    if let Some((role, keys)) = role() {
        let (rank, world) = role.split_once('/').unwrap();
        return gradients_rank(keys, rank.parse().unwrap(), world.parse().unwrap());
    }
    for world in [2, 3] {
        let server = serve(Arc::new(MemoryStore::new()));
        let children: Vec<Child> =
            (0..world).map(|r| spawn(name, &format!("{r}/{world}"), &server)).collect();
        for (rank, mut child) in children.into_iter().enumerate() {
            assert!(child.wait().unwrap().success(), "rank {rank} of {world} failed");
        }
    }
}

fn gradients_rank(keys: Arc<Remote>, rank: usize, world: usize) {
    let group = group(keys, "g0/", rank, world, secs(30)).unwrap();
    let sum = Tensor::from_slice(&[rank as f64 + 1.0, 1.0]);
    group.all_reduce(&sum, ReduceOp::Sum).unwrap().wait().unwrap();
    let n = world as f64;
    assert_eq!(Vec::<f64>::try_from(&sum).unwrap(), [n * (n + 1.0) / 2.0, n]);

    let net = Net::new(7);
    let reducer = Reducer::new(&net.0, &group, options()).unwrap();
    let single = Net::new(7);
    for step in 0..4 {
        share(&net, &reducer, &group, step).unwrap();
        let (x, y) = batch(step);
        for p in &single.0 {
            p.shallow_clone().zero_grad();
        }
        loss(&single.forward(&x), &y).backward();
        for (i, (a, b)) in net.grads().iter().zip(single.grads()).enumerate() {
            let worst = (a - b).abs().max().double_value(&[]);
            assert!(worst < 1e-6, "step {step}, parameter {i}: off by {worst}");
            let of_rank_0 = a.copy();
            group.broadcast(&of_rank_0, 0).unwrap().wait().unwrap();
            let bits = |t: &Tensor| t.view_dtype(Kind::Int);
            assert!(bits(&of_rank_0).equal(&bits(a)), "step {step}, parameter {i}: other bits than rank 0's");
        }
        net.step();
        single.step();
    }
    let buckets = reducer.lay_out().unwrap();
    assert!(buckets.count() > 1, "the test means to use several buckets");
    share(&net, &reducer, &group, 4).unwrap();
    let laid_out_on_the_way: Vec<Tensor> = net.grads().iter().map(Tensor::copy).collect();
    drop(reducer);
    let numbers = buckets.to_numbers();
    let reducer = Reducer::laid_out(&net.0, &group, options(), &Buckets::of_numbers(&numbers)).unwrap();
    share(&net, &reducer, &group, 4).unwrap();
    let equal = |(a, b): (&Tensor, &Tensor)| a.equal(b);
    assert!(laid_out_on_the_way.iter().zip(&net.grads()).all(equal), "other bits in the first pass");
    assert_eq!(reducer.lay_out().unwrap(), buckets);
    drop(reducer);
    for numbers in [&numbers[1..], &[&numbers[1..], &numbers[1..2]].concat()] {
        let refused = Reducer::laid_out(&net.0, &group, options(), &Buckets::of_numbers(numbers));
        let why = refused.map(|_| ()).unwrap_err().to_string();
        assert!(why.contains("belongs to other parameters"), "{why}");
    }
}

#[test]
fn survivors_of_a_killed_rank_go_on_in_a_new_group() {
    let name = "survivors_of_a_killed_rank_go_on_in_a_new_group";
    if let Some((role, keys)) = role() {
        return killed_rank(keys, role.parse().unwrap());
    }
    let keys = Arc::new(MemoryStore::new());
    let server = serve(keys.clone());
    let mut children: Vec<Child> = (0..3).map(|r| spawn(name, &r.to_string(), &server)).collect();
    keys.get("trained", secs(60)).unwrap();
    children[1].kill().unwrap(); // SIGKILL
    children[1].wait().unwrap();
    let killed = now();
    for survivor in [0, 2] {
        keys.get(&format!("noticed {survivor}"), secs(20)).unwrap();
    }
    assert!(killed.elapsed() < secs(20), "the time-out is 60 s: a closed connection must be noticed before");
    for survivor in [0, 2] {
        assert!(children[survivor].wait().unwrap().success(), "rank {survivor} failed");
    }
}

fn killed_rank(keys: Arc<Remote>, rank: usize) {
    let first = group(keys.clone(), "g0/", rank, 3, secs(60)).unwrap();
    let net = Net::new(7);
    let reducer = Reducer::new(&net.0, &first, options()).unwrap();
    let mut weights = net.copy();
    let mut step = 0;
    let error = loop {
        if let Err(e) = share(&net, &reducer, &first, step) {
            break e;
        }
        net.step();
        weights = net.copy();
        step += 1;
        if step == 5 && rank == 1 {
            keys.set("trained", b"").unwrap(); // the parent kills this rank, sooner or later
        }
    };
    assert!(matches!(error, Error::Peer { .. }), "rank {rank}: {error}");
    keys.set(&format!("noticed {rank}"), b"").unwrap();
    for (a, b) in net.copy().iter().zip(&weights) {
        assert!(a.equal(b), "the failed step has changed a weight");
    }

    first.abort().unwrap();
    drop((reducer, first));
    // As in a job: both take the state of rank 0, then repeat the step.
    let second = group(keys, "g1/", rank / 2, 2, secs(60)).unwrap();
    second.broadcast_all(&net.0, 0).unwrap();
    let reducer = Reducer::new(&net.0, &second, options()).unwrap();
    for step in 0..5 {
        share(&net, &reducer, &second, step).unwrap();
        net.step();
    }
    let sum = net.copy().iter().map(|t| t.sum(Kind::Double)).fold(Tensor::from(0.0), |a, b| a + b);
    let (low, high) = (sum.copy(), sum);
    second.all_reduce(&low, ReduceOp::Min).unwrap().wait().unwrap();
    second.all_reduce(&high, ReduceOp::Max).unwrap().wait().unwrap();
    assert!(low.equal(&high), "the survivors' weights differ");
    second.barrier().unwrap();
}

#[test]
fn a_hung_rank_is_left_behind_by_an_abort_from_another_thread() {
    let name = "a_hung_rank_is_left_behind_by_an_abort_from_another_thread";
    if let Some((role, keys)) = role() {
        return hung_rank(keys, role.parse().unwrap());
    }
    let keys = Arc::new(MemoryStore::new());
    let server = serve(keys.clone());
    let mut children: Vec<Child> = (0..2).map(|r| spawn(name, &r.to_string(), &server)).collect();
    keys.get("trained", secs(60)).unwrap();
    let pid = children[1].id().to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    keys.set("abort", b"").unwrap();
    let began = now();
    let noticed = keys.get("noticed 0", secs(30));
    children[1].kill().unwrap();
    children[1].wait().unwrap();
    assert!(noticed.is_ok(), "not within {:?} of the abort, with a time-out of 300 s", began.elapsed());
    assert!(children[0].wait().unwrap().success());
}

fn hung_rank(keys: Arc<Remote>, rank: usize) {
    let timeout = secs(300);
    let first = group(keys.clone(), "g0/", rank, 2, timeout).unwrap();
    let net = Net::new(7);
    let reducer = Reducer::new(&net.0, &first, options()).unwrap();
    let (aborter, watched) = (first.aborter(), keys.clone());
    thread::spawn(move || {
        watched.get("abort", Duration::from_secs(120)).unwrap();
        aborter.abort().unwrap();
    });
    let error = (0..).find_map(|step| {
        if step == 5 && rank == 1 {
            keys.set("trained", b"").unwrap();
        }
        share(&net, &reducer, &first, step).err()
    });
    let error = error.unwrap();
    assert!(matches!(error, Error::Peer { .. }), "rank {rank}: {error}");
    drop((reducer, first));
    group(keys.clone(), "g1/", 0, 1, timeout).unwrap().barrier().unwrap();
    keys.set(&format!("noticed {rank}"), b"").unwrap();
}
