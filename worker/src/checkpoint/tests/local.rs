//! A node's own copies: written whole or not at all, few, and never believed without their digests.

use super::{
    shared::{bytes_of, fill, together_with},
    *,
};
use crate::checkpoint::Local;
use configs::LocalCopies;
use std::{fs, path::PathBuf};
use tokio::runtime::Runtime;

/// Copies below `dir` of the run in `dir`, newest `keep`.
fn copies(dir: &Path, keep: usize) -> Local {
    let settings = LocalCopies { folder: dir.join("fast").display().to_string(), keep };
    let run = run_in(dir);
    Runtime::new().unwrap().block_on(Local::of_run(&settings, &run, run.url())).unwrap()
}

/// The copies of the checkpoint that [`write`] makes of this step, of some of its ranks.
fn copy(to: &Local, step: u64, world: u32, generation: u64, ranks: &[u32]) {
    let model = model(step as i64);
    let optimizer = Optimizer::new(&config().optimizer, &model.tensors()).unwrap();
    for rank in ranks {
        let header = Header { generation, ..header(step, world) };
        let share = save::snapshot(entries(&model, optimizer.state()), header, *rank).unwrap();
        to.write(&Runtime::new().unwrap().block_on(share.pack()).unwrap()).unwrap();
    }
}

/// Every folder and file below `dir`, by its last two names.
fn files(dir: &Path) -> Vec<String> {
    let mut found: Vec<PathBuf> = vec![dir.to_path_buf()];
    let mut at = 0;
    while at < found.len() {
        if found[at].is_dir() {
            found.extend(fs::read_dir(&found[at]).unwrap().map(|e| e.unwrap().path()));
        }
        at += 1;
    }
    let files = found.iter().filter(|p| p.is_file());
    let last = |p: &PathBuf| {
        p.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let mut names: Vec<String> = files
        .map(|p| {
            let two: Vec<String> = last(p);
            format!("{}/{}", two[1], two[0])
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_start_reads_whole_copies_instead_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[(7, 2, true)]);
    // Two nodes, each with its rank's share; a third rank has nothing.
    let nodes: Vec<tempfile::TempDir> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut held = vec![];
    for (rank, node) in nodes.iter().enumerate() {
        let settings = LocalCopies { folder: node.path().display().to_string(), keep: 2 };
        let run = run_in(dir.path());
        let local = Runtime::new().unwrap().block_on(Local::of_run(&settings, &run, run.url())).unwrap();
        copy(&local, 7, 2, 3, &[rank as u32]);
        held.push(Some(local));
    }
    let empty = copies(dir.path(), 2);
    held.push(Some(empty));
    let want = model(7).state_dict();
    let read = |held: &Vec<Option<Local>>| {
        let (mut store, mut local, mut said) = (0, 0, vec![]);
        for (loaded, log) in together_with(dir.path(), held.clone()) {
            let loaded = loaded.unwrap().unwrap();
            assert!(loaded.committed && loaded.header.step == 7);
            assert!(want.iter().all(|(name, t)| loaded.model_tensors()[name].equal(t)));
            store += loaded.read.store;
            local += loaded.read.local;
            said.extend(log);
        }
        (store, local, said)
    };
    let all = bytes_of(dir.path(), 7);
    assert_eq!(read(&held), (0, all, vec![]));

    // One that is damaged costs its way to the store, and nothing else.
    let one = fs::read_dir(nodes[1].path()).unwrap().next().unwrap().unwrap().path();
    let one = one.join("step-000000007-g000003/model-2-of-2.safetensors");
    let good = fs::read(&one).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&one, bad).unwrap();
    let (store, local, said) = read(&held);
    assert_eq!((store, local), (good.len() as u64, all - good.len() as u64));
    assert!(
        said.len() == 1 && said[0].contains(one.to_str().unwrap()) && said[0].contains("SHA-256"),
        "{said:?}"
    );
    // One that is cut short or missing is not asked for at all.
    fs::write(&one, &good[1..]).unwrap();
    assert_eq!(read(&held), (good.len() as u64, all - good.len() as u64, vec![]));
}

#[test]
fn old_copies_make_room_and_what_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let local = copies(dir.path(), 2);
    for (step, generation) in [(5, 1), (10, 1), (15, 2)] {
        copy(&local, step, 1, generation, &[0]);
    }
    let of = |attempt: &str| {
        ["model-1-of-1.safetensors", "optimizer-1-of-1.safetensors", "rank-1-of-1.json"]
            .map(|f| format!("{attempt}/{f}"))
    };
    let fast = dir.path().join("fast");
    assert_eq!(files(&fast), [of("step-000000010-g000001"), of("step-000000015-g000002")].concat());
    // A later generation that has gone back counts as newer, whatever its step.
    copy(&local, 11, 1, 3, &[0]);
    assert_eq!(files(&fast), [of("step-000000011-g000003"), of("step-000000015-g000002")].concat());

    // The second file cannot be written: a folder has its name.
    let other = tempfile::tempdir().unwrap();
    let local = copies(other.path(), 2);
    copy(&local, 5, 1, 1, &[0]);
    let folder = fs::read_dir(other.path().join("fast")).unwrap().next().unwrap().unwrap().path();
    let obstacle = folder.join("step-000000010-g000001/optimizer-1-of-1.safetensors/x");
    fs::create_dir_all(&obstacle).unwrap();
    let share =
        save::snapshot(Entry::of_model(&model(1)), Header { generation: 1, ..header(10, 1) }, 0).unwrap();
    let packed = Runtime::new().unwrap().block_on(share.pack()).unwrap();
    assert_eq!(packed.files.len(), 1);
    local.write(&packed).unwrap();
    let model_state =
        entries(&model(1), Optimizer::new(&config().optimizer, &model(1).tensors()).unwrap().state());
    let share = save::snapshot(model_state, Header { generation: 1, ..header(10, 1) }, 0).unwrap();
    let packed = Runtime::new().unwrap().block_on(share.pack()).unwrap();
    local.write(&packed).unwrap_err();
    assert_eq!(files(&other.path().join("fast")), of("step-000000005-g000001"));
}

#[test]
fn an_attempt_that_was_not_committed_counts_only_if_nothing_came_after_it() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[(5, 2, true)]);
    let local = copies(dir.path(), 4);
    let step = |local: &Local, world: usize| {
        let loaded = together_with(dir.path(), vec![Some(local.clone()); world]);
        let found: Vec<_> = loaded
            .into_iter()
            .map(|(l, _)| l.unwrap().unwrap())
            .map(|l| (l.header.step, l.committed, l.read.store > 0 || l.read.local == 0))
            .collect();
        assert!(found.iter().all(|f| f.0 == found[0].0 && f.1 == found[0].1), "{found:?}");
        (found[0].0, found[0].1)
    };
    // The group that loads is generation 4.
    copy(&local, 10, 2, 3, &[0]);
    assert_eq!(step(&local, 2), (5, true), "a rank's share is missing");
    copy(&local, 20, 2, 2, &[0, 1]);
    assert_eq!(step(&local, 2), (5, true), "generation 3 may have gone on from an earlier state");
    copy(&local, 10, 2, 3, &[1]);
    assert_eq!(step(&local, 3), (10, false));

    // Damaged, it never was a checkpoint: the committed one is used.
    let folder = fs::read_dir(dir.path().join("fast")).unwrap().next().unwrap().unwrap().path();
    let file = folder.join("step-000000010-g000003/optimizer-2-of-2.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(step(&local, 2), (5, true));

    // Another run at the same URL has copies of its own.
    let run = run_in(dir.path());
    let birth = run.put("coordinator/journal/0000000001.json", b"{}".to_vec());
    Runtime::new().unwrap().block_on(birth).unwrap();
    let reborn = copies(dir.path(), 4);
    assert_eq!(reborn.newest_whole(3), None);
    assert!(local.newest_whole(3).is_some());
    // What is committed at a later step counts.
    fill(dir.path(), &[(15, 2, true)]);
    assert_eq!(step(&local, 2), (15, true));
}
