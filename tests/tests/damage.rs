//! A flipped byte in the data of a job: it stops and says where, or goes on without the clip, in the same way on
//! any number of workers.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::{collections::BTreeMap, path::Path};
use tests::{
    data,
    job::{Job, events, losses},
    ok, run,
    small::SWIN,
};

/// Flips one byte in the middle of the frames of `clips` clips; returns the damaged file's name and the clips'.
fn flip(dataset: &Path, clips: usize) -> (String, Vec<String>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let location = storage::Location::parse(dataset.to_str().unwrap()).unwrap();
    let opened = runtime.block_on(shards::format::Dataset::open(&location)).unwrap();
    let key = opened.manifest.files[0].key.clone();
    let path = dataset.join(&key);
    let mut bytes = std::fs::read(&path).unwrap();
    let mut ids = vec![];
    for clip in opened.clips_of("train").unwrap().into_iter().take(clips) {
        let clip = opened.clip(clip);
        bytes[(clip.offset + clip.bytes / 2) as usize] ^= 0x40;
        ids.push(clip.clip_id.to_string());
    }
    std::fs::write(&path, bytes).unwrap();
    (key, ids)
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
    let (key, ids) = flip(Path::new(&bench.url), 3);
    let (code, said) = bench.train(1, "stopped", &[]).finish_any();
    assert_eq!(code, Some(1), "{said}");
    for words in ["read clip", "run 0", &key, "its CRC32C is", "marey verify"] {
        assert!(said.contains(words), "{words}: {said}");
    }

    let told = events(&bench.dir.path().join("stopped"));
    let clip = told.iter().find_map(|e| e["clip"].as_str()).expect("the incident names the clip");
    assert!(ids.iter().any(|id| id == clip), "{told:?}");

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
        assert!(
            evals.iter().all(|e| e["missing"] == serde_json::json!(ids) && e["clips"] == 57),
            "{evals:?}"
        );
    }
}

#[test]
fn an_evaluation_leaves_damaged_clips_out_and_names_them_or_stops() {
    let bench = Bench::new();
    let short = ["train.max_steps=2", "train.eval_every_epochs=0"];
    bench.train(1, "stops", &short).finish();
    bench.train(1, "goes-on", &[&short[..], &["data.on_damage=quarantine"]].concat()).finish();
    let path = |name: &str| bench.dir.path().join(name).display().to_string();
    let (stops, goes_on) = (path("stops"), path("goes-on"));
    let eval = |run| vec!["eval", "--checkpoint", run, "--data", &bench.url, "--split", "train"];
    let (whole, out, scores) = (path("whole"), path("out"), path("scores.parquet"));
    ok(&[&eval(&goes_on)[..], &["--views", "2x1", "--out", &whole]].concat());
    let json = |folder: &str| -> Value {
        serde_json::from_slice(&std::fs::read(Path::new(folder).join("eval.json")).unwrap()).unwrap()
    };
    let whole = json(&whole);
    assert_eq!((&whole["clips"], &whole["missing"]), (&60.into(), &Value::Array(vec![])));

    let (key, ids) = flip(Path::new(&bench.url), 3);
    let views = ["--views", "2x1", "--threads", "2"];
    let said = run(&[&eval(&goes_on)[..], &views, &["--workers", "1", "--json"]].concat());
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stderr.contains("their stored bytes are damaged: 3 clips"), "{}", said.stderr);
    let one: Value = serde_json::from_str(&said.stdout).unwrap();
    let many =
        [&eval(&goes_on)[..], &views, &["--workers", "3", "--out", &out, "--scores", &scores]].concat();
    let text = ok(&many);
    let three = json(&out);
    assert!(text.contains("57 clips of split train, 57 of them labelled"), "{text}");
    for (clip, id) in three["missing"].as_array().unwrap().iter().zip(&ids) {
        let why = clip["why"].as_str().unwrap();
        assert_eq!(clip["clip_id"], id.as_str());
        assert!(why.contains(id) && why.contains(&key) && why.contains("its CRC32C is"), "{why}");
        assert!(text.contains(why), "{text}");
    }
    assert_eq!(three["missing"].as_array().unwrap().len(), 3);
    assert_eq!((&one["missing"], &one["clips"]), (&three["missing"], &three["clips"]));
    // The others are judged as before.
    let of = |eval: &Value| -> BTreeMap<String, f64> {
        let all = eval["predictions"].as_array().unwrap().iter();
        all.map(|p| (p["clip_id"].as_str().unwrap().into(), p["top"][0]["probability"].as_f64().unwrap()))
            .collect()
    };
    let (whole, one, three) = (of(&whole), of(&one), of(&three));
    assert_eq!(one.len(), 57);
    assert!(ids.iter().all(|id| !one.contains_key(id) && !three.contains_key(id)));
    for (id, p) in &one {
        assert!((p - whole[id]).abs() < 1e-5 && (p - three[id]).abs() < 1e-5, "{id}");
    }

    let said = run(&eval(&stops));
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("read clip") && said.stderr.contains(&key), "{}", said.stderr);
    flip(Path::new(&bench.url), 3);
    let whole_again = ok(&eval(&stops));
    assert!(whole_again.contains("60 clips of split train"), "{whole_again}");
    flip(Path::new(&bench.url), 60);
    let said = run(&eval(&goes_on));
    assert!(said.code == 1 && said.stderr.contains("all of its 60 clips are damaged"), "{}", said.stderr);
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
