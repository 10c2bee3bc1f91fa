//! Bad input is refused with a message that says what, where and what to do, and loses nothing.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};
use tests::{
    Said, check_refused, data,
    job::{Job, checkpoint},
    marey, ok, refused, run,
};

const CONFIG: &str = r#"
[data]
url = "set by the test"
lanes = 2
frames = 4
threads = 1
augment = { crop = 32, scale = { kind = "short_side", min = 32, max = 32 } }
eval = { short_side = 32, crop = 32 }
[model]
arch = "slowfast"
depth = 18
width = 8
beta = 4
[train]
epochs = 1
max_steps = 2
global_batch = 2
eval_every_epochs = 0
[optimizer]
kind = "sgd"
lr = 0.01
"#;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn config(dir: &Path) -> PathBuf {
    let path = dir.join("job.toml");
    fs::write(&path, CONFIG).expect("written");
    path
}

fn train<'a>(config: &'a Path, run: &'a Path, set: &'a [String]) -> Vec<&'a str> {
    let mut args = vec!["train", text(config), "--workers", "1", "--run", text(run)];
    for s in set {
        args.extend(["--set", s.as_str()]);
    }
    args
}

#[test]
fn configurations() {
    let dir = tempfile::tempdir().expect("a folder");
    let (config, run) = (config(dir.path()), dir.path().join("run"));
    let refused_with = |set: &str, words: &[&str]| refused(&train(&config, &run, &[set.into()]), words);
    refused_with("optimizer.momentun=0.9", &["momentun", "momentum"]);
    refused_with("train.epoch=3", &["epoch", "epochs"]);
    refused_with("train.global_batch=3", &["global_batch", "lanes"]);
    refused_with("data.prefetch=lots", &["prefetch", "256 MiB"]);
    refused_with("data.url=/does/not/exist", &["/does/not/exist"]);
    refused_with("no-equals-sign", &["no-equals-sign"]);
    let missing = dir.path().join("missing.toml");
    refused(&train(&missing, &run, &[]), &["missing.toml"]);
    assert!(!run.exists(), "a refused job leaves nothing behind");
}

#[test]
fn labels() {
    let dir = tempfile::tempdir().expect("a folder");
    let videos = data::motion_videos(dir.path(), 12, 12);
    let csv = fs::read_to_string(videos.join("labels.csv")).expect("labels");
    let out = dir.path().join("out");
    let labels = dir.path().join("labels.csv");
    let ingest = ["ingest", text(&videos), "--labels", text(&labels), "--out", text(&out), "--no-progress"];

    let short: Vec<&str> = csv.lines().take(csv.lines().count() - 1).collect();
    let left_out = csv.lines().last().and_then(|l| l.split(',').next()).expect("a row");
    fs::write(&labels, short.join("\n")).expect("written");
    refused(&ingest, &[left_out, "label"]);

    fs::write(&labels, format!("{csv}no/such.mp4,zoom in,train\n")).expect("written");
    refused(&ingest, &["no/such.mp4", "row"]);

    fs::remove_file(&labels).expect("removed");
    refused(&ingest, &["labels.csv"]);
    assert!(!out.join("dataset.json").exists());
}

#[test]
fn damaged_videos_go_to_the_ledger_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let videos = data::motion_videos(dir.path(), 12, 12);
    let mut files: Vec<PathBuf> =
        walk(&videos).into_iter().filter(|p| p.extension().is_some_and(|e| e == "mp4")).collect();
    files.sort();
    let whole = fs::read(&files[0]).expect("a video");
    fs::write(&files[0], &whole[..whole.len() / 3]).expect("truncated");
    fs::write(&files[1], b"this is no video").expect("replaced");
    let out = dir.path().join("out");
    let labels = videos.join("labels.csv");
    ok(&["ingest", text(&videos), "--labels", text(&labels), "--out", text(&out), "--no-progress"]);
    let said = ok(&["inspect", text(&out)]);
    for file in &files[..2] {
        let name = file.file_name().and_then(|n| n.to_str()).expect("a name");
        assert!(said.contains(name), "the ledger names {name}:\n{said}");
    }
    ok(&["verify", text(&out)]);
}

#[test]
fn damaged_and_foreign_datasets() {
    let dir = tempfile::tempdir().expect("a folder");
    let url = PathBuf::from(data::motion_dataset(dir.path(), 12, 12));
    let (config, run_dir) = (config(dir.path()), dir.path().join("run"));
    ok(&["verify", text(&url)]);

    // One flipped byte in the middle of a clip.
    let file = walk(&url.join("data")).into_iter().next().expect("a data file");
    let mut bytes = fs::read(&file).expect("data");
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).expect("damaged");
    let said = run(&["verify", text(&url)]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    let name = file.file_name().and_then(|n| n.to_str()).expect("a name");
    assert!(format!("{}{}", said.stdout, said.stderr).contains(name), "{}{}", said.stdout, said.stderr);
    let set = [format!("data.url={}", text(&url)), "train.max_steps=6".into()];
    let said = run(&train(&config, &run_dir, &set));
    assert_ne!(said.code, 0, "a damaged clip must not be trained on");
    assert!(said.stderr.contains(name) && said.stderr.contains("CRC"), "{}", said.stderr);
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).expect("mended");

    // A newer version of the format.
    let manifest = url.join("dataset.json");
    let original = fs::read_to_string(&manifest).expect("a manifest");
    let newer =
        original.replace("\"version\": 1", "\"version\": 2").replace("\"version\":1", "\"version\":2");
    assert_ne!(newer, original);
    fs::write(&manifest, newer).expect("written");
    refused(&["inspect", text(&url)], &["version", "2"]);
    refused(&["verify", text(&url)], &["version", "2"]);
    fs::write(&manifest, original).expect("mended");

    // No dataset at all.
    refused(&["inspect", text(&run_dir)], &["dataset.json"]);
}

#[test]
fn checkpoints_of_another_model_and_damaged_ones() {
    let dir = tempfile::tempdir().expect("a folder");
    let url = data::motion_dataset(dir.path(), 12, 12);
    let (config, run_dir) = (config(dir.path()), dir.path().join("run"));
    let set = |more: &str| [format!("data.url={url}"), more.to_string()];
    Job::train(&config, 1, text(&run_dir), &["--set", &set("")[0], "--set", "checkpoint.every_steps=1"])
        .finish();

    // The same run with another model: refused, nothing lost.
    let before = checkpoint(&run_dir, 2);
    refused(&train(&config, &run_dir, &set("model.width=16")), &["model.width"]);
    assert_eq!(before, checkpoint(&run_dir, 2));

    // Damage the newest: it is named, and the one before it is used.
    let newest = run_dir.join("checkpoints/step-000000002");
    let shard = walk(&newest)
        .into_iter()
        .find(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .expect("a shard");
    let mut bytes = fs::read(&shard).expect("a shard");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&shard, bytes).expect("damaged");
    let said = run(&["eval", "--checkpoint", text(&run_dir), "--data", &url, "--views", "1x1"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stderr.contains("step-000000002"), "the damaged one is named: {}", said.stderr);

    // Nothing there.
    refused(&["eval", "--checkpoint", text(&dir.path().join("none")), "--data", &url], &["none"]);
}

#[test]
fn occupied_port_and_strangers() {
    let dir = tempfile::tempdir().expect("a folder");
    let url = data::motion_dataset(dir.path(), 12, 12);
    let (config, run_dir) = (config(dir.path()), dir.path().join("run"));
    let set = format!("data.url={url}");
    let port = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = port.local_addr().expect("an address").to_string();
    let coordinator = [
        "coordinator",
        "--listen",
        &address,
        "--run",
        text(&run_dir),
        "--config",
        text(&config),
        "--set",
        &set,
    ];
    refused(&coordinator, &[&address]);
    drop(port);

    // A coordinator that waits for a worker which believes in another configuration.
    let mut waiting = Job::start({
        let mut c = marey(&coordinator);
        c.args(["--set", "cluster.gather=1h"]);
        c
    });
    waiting.wait_line(&["listening", &address]);
    let other = dir.path().join("other.toml");
    fs::write(&other, CONFIG.replace("lr = 0.01", "lr = 0.02")).expect("written");
    refused(&["worker", "--coordinator", &address, "--config", text(&other)], &["config"]);
    waiting.kill_all();

    // Nobody listens.
    let said = run(&["worker", "--coordinator", &address]);
    assert_ne!(said.code, 0);
    assert!(said.stderr.contains(&address), "{}", said.stderr);
}

#[test]
fn buckets_credentials_and_endpoints() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = xtask::s3::Server::start(&dir.path().join("s3"), "marey").expect("an S3 server");
    let args = ["inspect", "s3://marey/none"];
    let with = |change: &dyn Fn(&mut Command), args: &[&str]| -> Said {
        let mut command = marey(args);
        command.envs(server.env());
        change(&mut command);
        command.output().expect("marey starts").into()
    };
    check_refused(&args, with(&|_| {}, &args), &["s3://marey/none"]);
    let bucket = ["inspect", "s3://elsewhere/none"];
    check_refused(&bucket, with(&|_| {}, &bucket), &["elsewhere"]);
    let secret = |c: &mut Command| {
        c.env("AWS_SECRET_ACCESS_KEY", "wrong");
    };
    check_refused(&args, with(&secret, &args), &["s3://marey/none", "AWS_SECRET_ACCESS_KEY"]);
    let endpoint = |c: &mut Command| {
        c.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    };
    check_refused(&args, with(&endpoint, &args), &["127.0.0.1:9", "AWS_ENDPOINT_URL"]);
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
