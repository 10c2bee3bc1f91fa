//! Groups whose ranks are threads of one process, and everything that must be an error in them.
#![allow(clippy::unwrap_used)]

mod support;

use collective::{Error, KeyValue, MemoryStore, ReduceOp, Reducer, ReducerOptions, Store, backward};
use std::{sync::Arc, time::Duration};
use support::{group, now, ranks, secs};
use tch::{Device, Kind, Tensor};

fn leaf(values: &[f32]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

fn floats(t: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(t).unwrap()
}

#[test]
fn three_ranks_reduce_and_broadcast() {
    ranks(3, |group| {
        let r = group.rank() as f32;
        for (op, expected) in [(ReduceOp::Sum, 3.0), (ReduceOp::Min, 0.0), (ReduceOp::Max, 2.0)] {
            let t = Tensor::from_slice(&[r]);
            let work = group.all_reduce(&t, op).unwrap();
            work.wait().unwrap();
            assert!(work.is_done().unwrap());
            assert_eq!(floats(&t), [expected], "{op:?}");
        }
        let t = Tensor::from_slice(&[r, -r]);
        group.broadcast(&t, 2).unwrap().wait().unwrap();
        assert_eq!(floats(&t), [2.0, -2.0]);

        let many = [Tensor::from_slice(&[r; 5]), Tensor::from(r as i64), leaf(&[r])];
        group.broadcast_all(&many, 1).unwrap();
        assert_eq!(floats(&many[0]), [1.0; 5]);
        assert_eq!(many[1].int64_value(&[]), 1);
        assert_eq!(floats(&many[2].detach()), [1.0]);
        group.broadcast_all(&[], 0).unwrap();
        group.barrier().unwrap();
        group.check().unwrap();
    });
}

#[test]
fn gradients_of_uneven_shares_add_up_and_unused_parameters_are_zero() {
    ranks(2, |group| {
        let (used, sometimes) = (leaf(&[1.0, 2.0]), leaf(&[3.0]));
        let options = ReducerOptions { find_unused: true, ..Default::default() };
        let reducer =
            Reducer::new(&[used.shallow_clone(), sometimes.shallow_clone()], &group, options).unwrap();
        for _ in 0..3 {
            reducer.zero_grad().unwrap();
            // Only rank 1 uses the second parameter.
            let out = reducer
                .forward(|| match group.rank() {
                    0 => used.sum(Kind::Float),
                    _ => used.sum(Kind::Float) * 3.0 + sometimes.sum(Kind::Float),
                })
                .unwrap();
            backward(&out).unwrap();
            assert_eq!((floats(&used.grad()), floats(&sometimes.grad())), (vec![2.0, 2.0], vec![0.5]));
        }
    });
}

#[test]
fn a_network_that_fails_in_forward_is_its_own_error() {
    let group = group(Arc::new(MemoryStore::new()), "g0/", 0, 1, secs(5)).unwrap();
    let reducer = Reducer::new(&[leaf(&[1.0])], &group, ReducerOptions::default()).unwrap();
    let mine = || Err(Error::Other { doing: "run the network".into(), why: "it is too small".into() });
    assert_eq!(reducer.try_forward(mine).unwrap_err().to_string(), "run the network: it is too small");
}

#[test]
fn a_peer_that_never_comes_is_an_error_after_the_timeout() {
    let began = now();
    let e = group(Arc::new(MemoryStore::new()), "g0/", 0, 2, Duration::from_millis(700)).unwrap_err();
    assert!(
        matches!(e, Error::Peer { .. }) && e.to_string().starts_with("join group g0/ as rank 0 of 2: "),
        "{e}"
    );
    assert!(began.elapsed() >= Duration::from_millis(700) && began.elapsed() < secs(20));
}

#[test]
fn a_peer_that_stays_away_from_a_collective_is_an_error_after_the_timeout() {
    let keys = Arc::new(MemoryStore::new());
    let theirs = keys.clone();
    let peer = std::thread::spawn(move || group(theirs, "g0/", 1, 2, secs(1)).unwrap());
    let mine = group(keys, "g0/", 0, 2, secs(1)).unwrap();
    let peer = peer.join().unwrap();
    let t = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let e = mine.all_reduce(&t, ReduceOp::Sum).unwrap().wait().unwrap_err();
    assert!(e.is_peer(), "{e}");
    drop(peer);
    mine.abort().unwrap();
    let again = mine.all_reduce(&t, ReduceOp::Sum).and_then(|w| w.wait()).unwrap_err();
    assert!(again.is_peer(), "{again}");
}

#[test]
fn an_aborted_group_fails_at_once_on_both_sides() {
    let errors = ranks(2, |group| {
        if group.rank() == 0 {
            group.aborter().abort().unwrap();
        }
        let t = Tensor::zeros([4], (Kind::Float, Device::Cpu));
        group.all_reduce(&t, ReduceOp::Sum).and_then(|w| w.wait()).unwrap_err()
    });
    for e in errors {
        assert!(matches!(e, Error::Peer { .. }), "{e}");
    }
}

#[test]
fn what_cannot_be_reduced_is_refused() {
    let group = group(Arc::new(MemoryStore::new()), "g0/", 0, 1, secs(5)).unwrap();
    let reduce =
        |params: &[Tensor]| Reducer::new(params, &group, ReducerOptions::default()).map(|_| ()).unwrap_err();
    let told = |e: Error, what: &str| {
        assert!(matches!(e, Error::Other { .. }) && e.to_string().contains(what), "{e}");
    };
    told(reduce(&[]), "no parameters");
    told(reduce(&[leaf(&[1.0]), Tensor::from_slice(&[1.0f32])]), "parameter 1 must be a leaf");
    told(reduce(&[leaf(&[1.0]) * 2.0]), "parameter 0 must be a leaf");
    told(group.broadcast(&leaf(&[1.0]), 7).and_then(|w| w.wait()).unwrap_err(), "root");
    for (rank, world) in [(2, 2), (0, 0)] {
        told(
            support::group(Arc::new(MemoryStore::new()), "g", rank, world, secs(1)).unwrap_err(),
            "ranks count",
        );
    }
}

#[test]
fn ranks_with_other_shapes_are_refused() {
    // Each compares itself with rank 0.
    let refused = ranks(2, |group| {
        let params =
            [Tensor::zeros([2 + group.rank() as i64], (Kind::Float, Device::Cpu)).set_requires_grad(true)];
        let made = Reducer::new(&params, &group, ReducerOptions::default());
        (group.rank(), made.err().map(|e| e.to_string()))
    });
    let (_, why) = refused.into_iter().find(|(rank, _)| *rank == 1).unwrap();
    assert!(why.as_ref().is_some_and(|e| e.contains("appears not to match sizes")), "{why:?}");
}

/// A store that fails in a chosen way.
enum Broken {
    Err,
    Panic,
}

impl Broken {
    fn fail<T>(&self) -> Result<T, String> {
        match self {
            Broken::Err => Err("the coordinator hung up".into()),
            Broken::Panic => panic!("a bug in the store"),
        }
    }
}

impl KeyValue for Broken {
    fn set(&self, _: &str, _: &[u8]) -> Result<(), String> {
        self.fail()
    }
    fn get(&self, _: &str, _: Duration) -> Result<Vec<u8>, String> {
        self.fail()
    }
    fn add(&self, _: &str, _: i64) -> Result<i64, String> {
        self.fail()
    }
    fn compare_set(&self, _: &str, _: &[u8], _: &[u8]) -> Result<Vec<u8>, String> {
        self.fail()
    }
    fn wait(&self, _: &[String], _: Duration) -> Result<(), String> {
        self.fail()
    }
    fn check(&self, _: &[String]) -> Result<bool, String> {
        self.fail()
    }
    fn delete(&self, _: &str) -> Result<bool, String> {
        self.fail()
    }
    fn num_keys(&self) -> Result<i64, String> {
        self.fail()
    }
}

#[test]
fn a_broken_store_is_an_error_and_a_panic_in_it_no_abort() {
    for (broken, says) in [(Broken::Err, "the coordinator hung up"), (Broken::Panic, "a bug in the store")] {
        let broken = Arc::new(broken);
        let e = group(broken.clone(), "g0/", 0, 2, secs(5)).unwrap_err();
        assert!(e.is_peer() && e.to_string().contains(says), "{e}");
        let store = Store::new(broken, secs(5)).unwrap();
        for e in [store.set("k", b"v").unwrap_err(), store.num_keys().unwrap_err()] {
            assert!(matches!(e, Error::Store { .. }) && e.to_string().contains(says), "{e}");
        }
    }
}
