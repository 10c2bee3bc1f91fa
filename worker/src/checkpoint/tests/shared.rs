//! Several ranks, threads of this process, load a checkpoint together.

use super::*;
use crate::checkpoint::{Loaded, Local, shared::Shared};
use collective::{Backend, Group, MemoryStore, Store};
use std::{sync::Arc, thread, time::Duration};
use tokio::runtime::Runtime;

/// What a rank loaded, and what was said to its log.
type Outcome = (crate::Result<Option<Loaded>>, Vec<String>);

/// What each of `world` ranks loads from the run in `dir`.
fn together(dir: &Path, world: usize) -> Vec<Outcome> {
    together_with(dir, vec![None; world])
}

/// Likewise of ranks that have such copies.
pub(super) fn together_with(dir: &Path, copies: Vec<Option<Local>>) -> Vec<Outcome> {
    let world = copies.len();
    collective::init().unwrap();
    let keys = Arc::new(MemoryStore::new());
    let started: Vec<_> = copies
        .into_iter()
        .enumerate()
        .map(|(rank, local)| {
            let (keys, run) = (keys.clone(), run_in(dir));
            thread::spawn(move || {
                let patience = Duration::from_secs(30);
                let store = Store::new(keys, patience).unwrap();
                let backend = Backend::Gloo { host: "127.0.0.1" };
                let group = Group::new(&store, "g1/", rank, world, backend, patience).unwrap();
                let runtime = Runtime::new().unwrap();
                let (device, runtime) = (Device::Cpu, runtime.handle());
                let local = local.as_ref();
                let shared =
                    Shared { run: &run, local, generation: 4, group: &group, device, runtime, tick: &|| () };
                let mut log = vec![];
                (shared.newest(|text| log.push(text)), log)
            })
        })
        .collect();
    started.into_iter().map(|t| t.join().unwrap()).collect()
}

pub(super) fn bytes_of(dir: &Path, step: u64) -> u64 {
    let manifest = std::fs::read(dir.join(layout::step_folder(step)).join(layout::MANIFEST)).unwrap();
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    manifest.files.iter().map(|f| f.bytes).sum()
}

pub(super) fn fill(dir: &Path, steps: &[(u64, u32, bool)]) {
    Runtime::new().unwrap().block_on(async {
        for &(step, world, with_manifest) in steps {
            write(&run_in(dir), step, world, with_manifest).await;
        }
    });
}

#[test]
fn every_byte_is_read_once_and_every_rank_has_all() {
    let dir = tempfile::tempdir().unwrap();
    assert!(together(dir.path(), 2).iter().all(|(loaded, _)| matches!(loaded, Ok(None))));
    fill(dir.path(), &[(5, 1, true), (7, 2, true), (9, 2, false)]);
    let want = model(7).state_dict();
    for world in [1, 2, 3, 5] {
        let (mut shares, mut logs) = (vec![], vec![]);
        for (loaded, log) in together(dir.path(), world) {
            let loaded = loaded.unwrap().unwrap();
            assert_eq!(loaded.header, header(7, 2));
            assert_eq!(loaded.model_tensors().len(), want.len());
            assert!(want.iter().all(|(name, t)| loaded.model_tensors()[name].equal(t)));
            assert!(!loaded.optimizer_tensors().is_empty());
            shares.push(loaded.read.store);
            logs.push(log);
        }
        assert_eq!(shares.iter().sum::<u64>(), bytes_of(dir.path(), 7), "{shares:?}");
        assert!(world == 1 || shares.iter().filter(|s| **s > 0).count() >= 2, "{shares:?}");
        assert!(logs[0].len() == 1 && logs[0][0].contains("step-000000009"), "{logs:?}");
        assert!(logs[1..].iter().all(Vec::is_empty), "only rank 0 says so");
    }
}

#[test]
fn damage_that_one_rank_finds_moves_all_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[(5, 2, true), (10, 2, true)]);
    let folder = dir.path().join(layout::step_folder(10)).join(layout::attempt(3));
    for file in ["model-1-of-2", "model-2-of-2", "optimizer-1-of-2", "optimizer-2-of-2"] {
        let path = folder.join(format!("{file}.safetensors"));
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let all = together(dir.path(), 3);
        assert!(all.iter().all(|(loaded, _)| loaded.as_ref().unwrap().as_ref().unwrap().header.step == 5));
        assert!(all[0].1.len() == 1 && all[0].1[0].contains(file), "{:?}", all[0].1);
        std::fs::write(&path, good).unwrap();
    }
    assert!(
        together(dir.path(), 3).iter().all(|(l, _)| l.as_ref().unwrap().as_ref().unwrap().header.step == 10)
    );
}

#[test]
fn what_no_rank_can_use_is_an_error_of_all() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[(5, 2, true)]);
    let file =
        dir.path().join(layout::step_folder(5)).join(layout::attempt(3)).join("model-2-of-2.safetensors");
    std::fs::remove_file(&file).unwrap();
    for (loaded, _) in together(dir.path(), 2) {
        let e = loaded.unwrap_err();
        assert!(matches!(&e, Error::Checkpoint { url, .. } if url.contains("model-2-of-2")), "{e}");
    }
    // One of a newer version: rank 0 says what to do, and the others may come again.
    let manifest = dir.path().join(layout::step_folder(5)).join(layout::MANIFEST);
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let errors: Vec<Error> = together(dir.path(), 2).into_iter().map(|(l, _)| l.unwrap_err()).collect();
    assert!(errors[0].exit_code() == 2 && errors[0].to_string().contains("newer"), "{}", errors[0]);
    assert!(
        errors[1].is_rejoin() && errors[1].to_string().contains("rank 0 failed to read"),
        "{}",
        errors[1]
    );
}
