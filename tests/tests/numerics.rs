//! A resumed run is the same run, and the number of workers does not change the losses.

use std::path::{Path, PathBuf};
use tests::{
    data,
    job::{Job, checkpoint, losses},
};

/// Video Swin, which has no batch statistics.
const SWIN: &str = r#"
seed = 5
[data]
url = "set by the test"
lanes = 8
frames = 8
threads = 1
prefetch = "8 MiB"
augment = { crop = 32, scale = { kind = "short_side", min = 32, max = 40 }, flip = 0.5 }
eval = { short_side = 32, crop = 32 }
[model]
arch = "video_swin"
embed_dim = 16
depths = [1, 1]
heads = [1, 2]
window = [4, 4, 4]
drop_path = 0.0
[train]
epochs = 10
max_steps = 20
global_batch = 8
eval_every_epochs = 0
[optimizer]
kind = "adamw"
lr = 1e-3
weight_decay = 0.05
[schedule]
warmup_epochs = 1.0
[checkpoint]
every_steps = 10
"#;

/// SlowFast with batch norm, dropout and momentum: everything that a checkpoint must carry.
const SLOWFAST: &str = r#"
seed = 5
[data]
url = "set by the test"
lanes = 8
frames = 8
threads = 1
prefetch = "8 MiB"
augment = { crop = 32, scale = { kind = "short_side", min = 32, max = 40 }, flip = 0.5 }
eval = { short_side = 32, crop = 32 }
[model]
arch = "slowfast"
depth = 18
width = 8
beta = 4
dropout = 0.5
[train]
epochs = 10
max_steps = 20
global_batch = 8
precision = "bf16"
eval_every_epochs = 1
[optimizer]
kind = "sgd"
lr = 0.05
weight_decay = 1e-4
[schedule]
warmup_epochs = 0.5
warmup_start_lr = 0.01
[checkpoint]
every_steps = 10
"#;

struct Fixture {
    dir: tempfile::TempDir,
    url: String,
}

impl Fixture {
    /// 60 training clips: global batches of 8 leave a short last one.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let url = data::motion_dataset(dir.path(), 60, 12);
        Self { dir, url: format!("data.url={url}") }
    }

    fn config(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    fn run(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn train(&self, config: &Path, workers: usize, run: &Path) -> Job {
        Job::train(config, workers, run.to_str().expect("UTF-8"), &["--set", &self.url])
    }
}

fn resumed_is_uninterrupted(name: &str, text: &str, workers: usize) {
    let f = Fixture::new();
    let config = f.config(name, text);
    let (straight, resumed) = (f.run("straight"), f.run("resumed"));
    f.train(&config, workers, &straight).finish();

    let mut first = f.train(&config, workers, &resumed);
    first.wait_line(&["checkpoint", "step 10"]);
    first.kill_all();
    let at = |step: u64| resumed.join(format!("checkpoints/step-{step:09}/manifest.json")).exists();
    assert!(at(10) && !at(20), "the kill must come between step 10 and step 20");
    let second = f.train(&config, workers, &resumed).finish();
    assert!(second.contains("resumed from the checkpoint of step 10"), "{second}");

    let (a, b) = (checkpoint(&straight, 20), checkpoint(&resumed, 20));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    assert!(a.keys().any(|k| k.starts_with("optimizer/")) && a.keys().any(|k| k.starts_with("model/")));
    let differing: Vec<_> = a.iter().filter(|(k, v)| b[*k] != **v).map(|(k, _)| k).collect();
    assert!(differing.is_empty(), "{} of {} tensors differ: {differing:?}", differing.len(), a.len());
    // Reports of the last seconds before the kill may be lost; those after the resume are all there.
    let (a, b) = (losses(&straight), losses(&resumed));
    assert_eq!(a.len(), 20);
    assert!((11..=20).all(|step| b.contains_key(&step)), "{b:?}");
    for (step, loss) in &b {
        assert_eq!(a[step].to_bits(), loss.to_bits(), "the loss of step {step}: {} and {loss}", a[step]);
    }
}

#[test]
fn slowfast_resumed_after_sigkill_has_the_same_bits() {
    resumed_is_uninterrupted("slowfast.toml", SLOWFAST, 2);
}

/// Three ranks: the order of additions in the all-reduce matters.
#[test]
fn swin_resumed_after_sigkill_has_the_same_bits() {
    resumed_is_uninterrupted("swin.toml", SWIN, 3);
}

#[test]
fn one_two_and_three_workers_have_the_same_losses() {
    let f = Fixture::new();
    let config = f.config("swin.toml", SWIN);
    let runs: Vec<_> = (1..=3)
        .map(|n| {
            let run = f.run(&format!("world{n}"));
            f.train(&config, n, &run).finish();
            losses(&run)
        })
        .collect();
    assert_eq!(runs[0].len(), 20);
    assert!((runs[0][&1] - runs[0][&20]).abs() > 1e-3, "nothing was learnt: {:?}", runs[0]);
    for (n, run) in runs.iter().enumerate().skip(1) {
        for (step, loss) in run {
            let one = runs[0][step];
            assert!(
                (loss - one).abs() <= 1e-5 * one.abs(),
                "step {step}: {one} with 1 worker, {loss} with {}",
                n + 1
            );
        }
    }
}
