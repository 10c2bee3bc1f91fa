//! The main line on a real S3 server: ingest, train on two workers, SIGKILL, resume, evaluate, predict.

use std::process::Command;
use tests::{Said, data, job::Job, marey};

const CONFIG: &str = r#"
seed = 1
[data]
url = "s3://marey/motion"
lanes = 4
frames = 8
threads = 1
augment = { crop = 32, scale = { kind = "short_side", min = 32, max = 40 } }
eval = { short_side = 32, crop = 32 }
[model]
arch = "slowfast"
depth = 18
width = 8
beta = 4
[train]
epochs = 4
global_batch = 8
precision = "bf16"
[optimizer]
kind = "adamw"
lr = 2e-3
weight_decay = 0.02
[checkpoint]
keep = 2
"#;

#[test]
fn ingest_train_kill_resume_evaluate_predict() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = xtask::s3::Server::start(&dir.path().join("s3"), "marey").expect("an S3 server");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let command = |args: &[&str]| -> Command {
        let mut c = marey(args);
        c.envs(server.env());
        c
    };
    let ok = |args: &[&str]| -> String {
        let said: Said = command(args).output().expect("marey starts").into();
        assert_eq!(said.code, 0, "marey {args:?}\n{}\n{}", said.stdout, said.stderr);
        said.stdout
    };

    let videos = data::motion_videos(dir.path(), 48, 24).display().to_string();
    let labels = format!("{videos}/labels.csv");
    let (dataset, run) = ("s3://marey/motion", "s3://marey/runs/test");
    ok(&["ingest", &videos, "--labels", &labels, "--out", dataset, "--no-progress"]);
    ok(&["verify", dataset]);
    let inspected: serde_json::Value =
        serde_json::from_str(&ok(&["inspect", dataset, "--json"])).expect("JSON");
    assert!(inspected.to_string().contains("zoom"), "{inspected}");

    std::fs::write(path("job.toml"), CONFIG).expect("written");
    let config = path("job.toml");
    let train = ["train", &config, "--workers", "2", "--run", run];
    let mut first = Job::start(command(&train));
    first.wait_line(&["checkpoint", "step 12"]);
    first.kill_all();
    let said = Job::start(command(&train)).finish();
    assert!(said.contains("resumed from the checkpoint of step"), "{said}");

    let finished = "s3://marey/evals/test";
    let eval =
        ["eval", "--checkpoint", run, "--data", dataset, "--views", "2x3", "--json", "--out", finished];
    let text = ok(&eval);
    assert_eq!(ok(&eval), text, "its finished pieces are taken as they are");
    let out = path("eval.json");
    std::fs::write(&out, &text).expect("written");
    let eval: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let (top1, top5) = (eval["top1"].as_f64().expect("top1"), eval["top5"].as_f64().expect("top5"));
    assert!((0.0..=1.0).contains(&top1) && top1 <= top5, "{eval}");

    let video = std::fs::read_to_string(&labels).expect("labels");
    let video =
        format!("{videos}/{}", video.lines().nth(1).and_then(|l| l.split(',').next()).expect("a row"));
    let predicted: serde_json::Value =
        serde_json::from_str(&ok(&["predict", "--checkpoint", run, &video, "--json"])).expect("JSON");
    let top = predicted["videos"][0]["top"].as_array().expect("top");
    assert_eq!(top.len(), 5, "{predicted}");
    let report = path("report.html");
    ok(&["report", "--run", run, "--data", dataset, "--eval", &out, "--out", &report]);
    let html = std::fs::read_to_string(&report).expect("a report");
    assert!(html.contains("<svg") && html.contains("data:image/png;base64,"));
}
