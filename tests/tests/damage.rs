//! A flipped byte in the data of a job: it stops and says where, or goes on without the clip, in the same way on
//! any number of workers.

use std::{collections::BTreeMap, path::Path};
use tests::{
    data,
    job::{Job, events, losses},
    small::SWIN,
};

/// Flips one byte in the middle of the frames of `clips` clips; returns the damaged file's name.
fn flip(dataset: &Path, clips: usize) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let location = storage::Location::parse(dataset.to_str().unwrap()).unwrap();
    let opened = runtime.block_on(shards::format::Dataset::open(&location)).unwrap();
    let key = opened.manifest.files[0].key.clone();
    let path = dataset.join(&key);
    let mut bytes = std::fs::read(&path).unwrap();
    for clip in opened.clips_of("train").unwrap().into_iter().take(clips) {
        let clip = opened.clip(clip);
        bytes[(clip.offset + clip.bytes / 2) as usize] ^= 0x40;
    }
    std::fs::write(&path, bytes).unwrap();
    key
}

struct Bench {
    dir: tempfile::TempDir,
    url: String,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = data::motion_dataset(dir.path(), 60, 12);
        std::fs::write(dir.path().join("job.toml"), SWIN).unwrap();
        Self { url, dir }
    }

    fn train(&self, workers: usize, run: &str, more: &[&str]) -> Job {
        let url = format!("data.url={}", self.url);
        let mut set = vec!["--set", &url];
        set.extend(more.iter().flat_map(|o| ["--set", o]));
        let run = self.dir.path().join(run);
        Job::train(&self.dir.path().join("job.toml"), workers, run.to_str().unwrap(), &set)
    }

    /// The clips that each step was taken without.
    fn missing(&self, run: &str) -> BTreeMap<u64, Vec<String>> {
        let steps = events(&self.dir.path().join(run)).into_iter().filter(|e| e["kind"] == "step");
        let names = |e: &serde_json::Value| -> Vec<String> {
            e["missing"].as_array().into_iter().flatten().map(|n| n.as_str().unwrap().to_string()).collect()
        };
        steps
            .map(|e| (e["step"].as_u64().unwrap(), names(&e)))
            .filter(|(_, names)| !names.is_empty())
            .collect()
    }
}

#[test]
fn a_damaged_clip_stops_the_job_or_is_left_out_alike_on_all_workers() {
    let bench = Bench::new();
    let key = flip(Path::new(&bench.url), 3);
    let (code, said) = bench.train(1, "stopped", &[]).finish_any();
    assert_eq!(code, Some(1), "{said}");
    for words in ["read clip", "run 0", &key, "its CRC32C is", "marey verify"] {
        assert!(said.contains(words), "{words}: {said}");
    }

    let quarantine = ["data.on_damage=quarantine", "train.eval_every_epochs=1", "data.eval_split=train"];
    let runs: Vec<_> = [1, 3]
        .map(|workers| {
            let name = format!("world{workers}");
            let said = bench.train(workers, &name, &quarantine).finish();
            assert!(said.contains("taken without a clip: failed to read clip"), "{said}");
            assert!(said.contains("the evaluation leaves out a clip"), "{said}");
            (losses(&bench.dir.path().join(&name)), bench.missing(&name))
        })
        .into();
    let (one, three) = (&runs[0], &runs[1]);
    assert_eq!(one.1, three.1);
    // 20 steps are two and a half epochs of 60 clips.
    let lost: usize = one.1.values().map(Vec::len).sum();
    assert!((6..=9).contains(&lost), "{:?}", one.1);
    assert_eq!(one.0.len(), 20);
    for (step, loss) in &one.0 {
        assert!((three.0[step] - loss).abs() < 2e-3, "step {step}: {loss} and {}", three.0[step]);
    }
    for name in ["world1", "world3"] {
        let evals: Vec<_> =
            events(&bench.dir.path().join(name)).into_iter().filter(|e| e["kind"] == "eval").collect();
        assert!(!evals.is_empty());
        assert!(evals.iter().all(|e| e["missing"] == 3 && e["clips"] == 57), "{evals:?}");
    }
}

/// Whole global batches lost are skipped steps, and too many of them in a row end the job.
#[test]
fn steps_without_any_clip_are_skipped() {
    let bench = Bench::new();
    flip(Path::new(&bench.url), 60);
    let set = ["data.on_damage=quarantine", "train.max_skipped_steps=2"];
    let (code, said) = bench.train(2, "nothing", &set).finish_any();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("all of its clips are damaged"), "{said}");
    assert!(said.contains("3 steps in a row had to be skipped"), "{said}");
}
