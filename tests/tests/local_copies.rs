//! Copies of checkpoints on the nodes' own disks: what a start reads instead of the store, and what they are worth
//! where nothing was committed.

use tests::{cluster::Cluster, job::Job, small::SLOWFAST};

/// Eight steps an epoch.
const STEPS: u64 = 32;

fn cluster(folder: &tempfile::TempDir, name: &str) -> Cluster {
    let local = format!("checkpoint.local={{ folder = '{}' }}", folder.path().join(name).display());
    let steps = format!("train.max_steps={STEPS}");
    let two = ["cluster.workers=2", "cluster.min_workers=2", "train.epochs=4", &*steps];
    Cluster::new(SLOWFAST, &[&two[..], &["checkpoint.every_steps=7", &*local]].concat()).on_s3()
}

/// Bytes that the ranks have read of a checkpoint: from the store, and from their nodes' copies.
fn read(said: &[String]) -> (u64, u64) {
    let numbers = |line: &str| -> Vec<u64> { line.split(' ').filter_map(|w| w.parse().ok()).collect() };
    let lines = said.iter().flat_map(|s| s.lines()).filter(|l| l.contains("bytes of the checkpoint from"));
    lines.map(numbers).fold((0, 0), |sum, n| (sum.0 + n[n.len() - 2], sum.1 + n[n.len() - 1]))
}

#[test]
fn a_start_reads_copies_and_goes_on_where_nothing_was_committed() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = cluster(&folder, "fast");
    let straight = cluster.straight(2, STEPS);
    let mut said = vec![];
    let mut start = |until: &[&str]| {
        let (mut coordinator, address) = cluster.coordinator("copied", 0, &[]);
        let workers: Vec<Job> = (0..2).map(|_| cluster.worker(0, &address)).collect();
        let end = match until {
            [] => coordinator.finish(),
            words => {
                coordinator.wait_line(words);
                coordinator.kill_all()
            }
        };
        let words = |w: Job| if until.is_empty() { w.finish() } else { w.kill_all() };
        let words: Vec<String> = workers.into_iter().map(words).collect();
        let read = read(&words);
        said.extend(words);
        (end, read)
    };
    start(&["checkpoint of step 14"]);
    // From now on every share is uploaded, and no manifest is written. The client does not wait over this
    // answer by itself, so that the training gets no further than to the next step or two.
    cluster.store_faults(&[("PUT *manifest.json 1 answer 418", None)]);
    let (end, (store, local)) = start(&["manifest.json", "trying again"]);
    assert!(end.contains("resumed from the checkpoint of step 14"), "{end}");
    assert!(store == 0 && local > 0, "{store} bytes came from the store, {local} from copies");
    cluster.store_faults(&[]);
    let (end, (store, local)) = start(&[]);
    // The workers may have gone on for a moment.
    let resumed = [21, 28].into_iter().find(|s| end.contains(&format!("resumed from the copy of step {s}")));
    let resumed = resumed.unwrap_or_else(|| panic!("no copy was resumed from: {end}"));
    assert!(store == 0 && local > 0, "{store} bytes came from the store, {local} from copies");
    assert!(end.contains(&format!("checkpoint of step {resumed}")), "it is committed now: {end}");
    cluster.ledger_with_gaps("copied", &said).equals(&straight);
}

#[test]
fn a_disk_that_takes_no_copy_costs_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("full"), "no folder").expect("written");
    let cluster = cluster(&folder, "full");
    let (coordinator, address) = cluster.coordinator("full", 0, &["train.max_steps=8"]);
    let workers: Vec<Job> = (0..2).map(|_| cluster.worker(0, &address)).collect();
    let end = coordinator.finish();
    assert!(end.contains("has no copy on this node (checkpoint.local)"), "{end}");
    assert!(end.contains("checkpoint of step 8"), "{end}");
    workers.into_iter().for_each(|w| drop(w.finish()));
}
