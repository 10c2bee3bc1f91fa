//! A trainer that dies under `marey train` is named, and the job goes on from what the others have in memory.

use tests::{
    data,
    job::{Job, events, kill, losses},
};

const CONFIG: &str = r#"
seed = 3
[data]
url = "set by the test"
lanes = 4
frames = 8
threads = 1
augment = { crop = 32, scale = { kind = "short_side", min = 32, max = 32 } }
eval = { short_side = 32, crop = 32 }
[model]
arch = "slowfast"
depth = 18
width = 8
beta = 4
[train]
epochs = 12
global_batch = 4
eval_every_epochs = 0
[optimizer]
kind = "adamw"
lr = 1e-3
[checkpoint]
every_steps = 6
[cluster]
min_workers = 1
beat_timeout = "5s"
collective_timeout = "10s"
"#;

#[test]
fn the_job_goes_on_without_a_killed_worker() {
    let dir = tempfile::tempdir().expect("a folder");
    let url = data::motion_dataset(dir.path(), 24, 12);
    let config = dir.path().join("job.toml");
    std::fs::write(&config, CONFIG).expect("written");
    let run = dir.path().join("run");
    let set = format!("data.url={url}");
    let mut job = Job::train(&config, 2, run.to_str().expect("UTF-8"), &["--set", &set]);
    job.wait_line(&["checkpoint", "step 6"]);
    let victim = job.find_process(&["trainer", "cpu:1"]).expect("the second trainer");
    kill(victim);
    let lost = job.wait_line(&["lost"]);
    assert!(lost.contains(&victim.to_string()), "the line names the worker: {lost}");
    let rest = job.finish();
    assert!(!rest.contains("resumed from the checkpoint"), "{rest}");

    let events = events(&run);
    let worlds: Vec<usize> = events
        .iter()
        .filter(|e| e["kind"] == "generation")
        .map(|e| e["members"].as_array().expect("members").len())
        .collect();
    // Its supervisor starts another, which may still come in time.
    assert!(worlds == [2, 1] || worlds == [2, 1, 2], "{worlds:?}");
    let steps: Vec<u64> = losses(&run).into_keys().collect();
    assert_eq!(steps, (1..=72).collect::<Vec<u64>>());
    assert!(run.join("checkpoints/step-000000072/manifest.json").exists());
}
