//! Small jobs on a small dataset: what the tests of numbers train.

use crate::{data, job::Job};
use std::path::{Path, PathBuf};

/// Video Swin, which has no batch statistics.
pub const SWIN: &str = r#"
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
pub const SLOWFAST: &str = r#"
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

/// A dataset and the runs beside it, in a folder that goes away.
pub struct Fixture {
    dir: tempfile::TempDir,
    url: String,
}

impl Fixture {
    /// 60 training clips: global batches of 8 leave a short last one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let url = data::motion_dataset(dir.path(), 60, 12);
        Self { dir, url: format!("data.url={url}") }
    }

    /// Writes a configuration.
    pub fn config(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// The override that names the dataset.
    pub fn data(&self) -> &str {
        &self.url
    }

    /// Where a run of that name goes.
    pub fn run(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a job, with `--set` overrides.
    pub fn train(&self, config: &Path, workers: usize, run: &Path, overrides: &[&str]) -> Job {
        let overrides: Vec<&str> =
            [self.url.as_str()].iter().chain(overrides).flat_map(|o| ["--set", o]).collect();
        Job::train(config, workers, run.to_str().expect("UTF-8"), &overrides)
    }
}
