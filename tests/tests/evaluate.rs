//! An evaluation by several processes, killed and gone on with; and jobs that are only planned.

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tests::{data, job::Job, marey, ok, refused, run};

const CONFIG: &str = r#"
seed = 3
[data]
url = "set by the test"
lanes = 2
frames = 8
threads = 1
augment = { crop = 32, scale = { kind = "short_side", min = 32, max = 40 } }
eval = { short_side = 40, crop = 40 }
test = { views = "5x3", short_side = 48, crop = 40, sampling = "pyslowfast" }
[model]
arch = "slowfast"
depth = 18
width = 16
beta = 4
[train]
epochs = 1
max_steps = 2
global_batch = 4
eval_every_epochs = 0
[optimizer]
kind = "sgd"
lr = 0.01
reference_batch = 2
"#;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// Finished pieces of an evaluation.
fn pieces(out: &Path) -> usize {
    let files = fs::read_dir(out.join("pieces")).into_iter().flatten().flatten();
    files.filter(|f| f.path().extension().is_some_and(|e| e == "parquet")).count()
}

#[test]
fn an_evaluation_survives_kills_with_the_same_numbers() {
    let dir = tempfile::tempdir().expect("a folder");
    let url = data::motion_dataset(dir.path(), 12, 36);
    let (config, run_dir) = (dir.path().join("job.toml"), dir.path().join("run"));
    fs::write(&config, CONFIG).expect("written");
    let set = format!("data.url={url}");
    Job::train(&config, 1, text(&run_dir), &["--set", &set]).finish();

    let eval = ["eval", "--checkpoint", text(&run_dir), "--data", &url, "--threads", "2"];
    let with = |more: &[&str]| -> Vec<String> { eval.iter().chain(more).map(|s| s.to_string()).collect() };
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    let (first, second) = (dir.path().join("first.parquet"), dir.path().join("second.parquet"));
    let uninterrupted = with(&["--workers", "2", "--out", text(&whole), "--scores", text(&first)]);
    ok(&uninterrupted.iter().map(String::as_str).collect::<Vec<_>>());
    let all = pieces(&whole);
    assert!(all >= 8, "{all}");
    let expected = json(&whole.join("eval.json"));
    assert_eq!(
        (&expected["views"]["clips"], &expected["crop"]),
        (&5.into(), &40.into()),
        "the job's own views"
    );
    assert_eq!((expected["clips"].as_u64(), expected["mean_average_precision"].is_null()), (Some(36), true));

    // Everything is killed once something is finished.
    let args = with(&["--workers", "2", "--out", text(&out), "--scores", text(&second)]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let job = Job::start(marey(&args));
    while pieces(&out) == 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    job.kill_all();
    let kept = pieces(&out);
    assert!((1..all).contains(&kept), "killed half-way: {kept} of {all}");
    assert!(!out.join("eval.json").exists() && !second.exists());

    // One process is lost: it is named, and the others finish.
    let job = Job::start(marey(&args));
    let victim = loop {
        if let Some(pid) = job.find_process(&["eval-part", "cpu:1"]) {
            break pid;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    tests::job::kill(victim);
    let (code, said) = job.finish_any();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("cpu:1") && said.contains("signal: 9") && said.contains("the same command"),
        "{said}"
    );
    assert!((kept..all).contains(&pieces(&out)), "{said}");

    // Other arguments are another evaluation.
    let other = with(&["--workers", "2", "--out", text(&out), "--scores", text(&second), "--views", "1x1"]);
    refused(&other.iter().map(String::as_str).collect::<Vec<_>>(), &["views was 5x3 and is 1x1", "--out"]);

    let said = run(&args);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stderr.contains("going on after"), "{}", said.stderr);
    assert_eq!(json(&out.join("eval.json")), expected, "to the last bit");
    assert_eq!(fs::read(&first).expect("scores"), fs::read(&second).expect("scores"));

    // One process comes to the same, but for the order of additions.
    let alone: Value =
        serde_json::from_str(&ok(&with(&["--json"]).iter().map(String::as_str).collect::<Vec<_>>()))
            .expect("JSON");
    let close =
        |key: &str| (alone[key].as_f64().expect(key) - expected[key].as_f64().expect(key)).abs() < 1e-5;
    assert!(["top1", "top5", "mean_class_accuracy", "loss"].into_iter().all(close), "{alone}\n{expected}");
    refused(&[&eval[..], &["--crop", "64"]].concat(), &["crop of 64", "short side of 48"]);
}

#[test]
fn a_dry_run_plans_the_dataset_that_is_there_and_starts_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let url = data::motion_dataset(dir.path(), 26, 12);
    let config: PathBuf = dir.path().join("job.toml");
    fs::write(&config, CONFIG).expect("written");
    let set = format!("data.url={url}");
    let dry = ["train", text(&config), "--dry-run", "--workers", "2", "--set", &set];
    let said = ok(&dry);
    assert!(said.contains("26 clips in 7 steps of 4, the last of 2"), "{said}");
    assert!(said.contains("12 classes") && said.contains("times 2 for the global batch"), "{said}");
    let plan: Value = serde_json::from_str(&ok(&[&dry[..], &["--json"]].concat())).expect("JSON");
    assert_eq!((plan["total_steps"].as_u64(), plan["lanes_per_worker"][1].as_u64()), (Some(2), Some(1)));
    let bytes: u64 = {
        let manifest = json(&Path::new(&url).join("dataset.json"));
        manifest["totals"]["bytes"].as_u64().expect("bytes")
    };
    assert!((1..=bytes).contains(&plan["epoch_bytes"].as_u64().expect("bytes")), "{plan}");
    let mut left: Vec<_> =
        fs::read_dir(dir.path()).expect("a folder").flatten().map(|f| f.file_name()).collect();
    left.sort();
    assert_eq!(left, ["dataset", "job.toml", "videos"], "nothing is left behind");

    refused(&["train", text(&config), "--dry-run", "--set", "data.url=/no/such"], &["/no/such", "--clips"]);
    ok(&[
        "train",
        text(&config),
        "--dry-run",
        "--set",
        "data.url=/no/such",
        "--clips",
        "9",
        "--classes",
        "3",
    ]);
    refused(&["train", text(&config), "--dry-run", "--workers", "3"], &["data.lanes"]);
    assert_eq!(run(&["train", text(&config), "--clips", "9"]).code, 2, "only with --dry-run");
}
