//! Jobs that begin with the weights of another, and clips of several labels.

use serde_json::Value;
use std::{fs, path::Path};
use tests::{
    data,
    job::{checkpoint, events, losses},
    ok, refused,
    small::{Fixture, SWIN},
};

#[test]
fn a_job_begins_with_the_weights_of_another() {
    let f = Fixture::new();
    let config = f.config("job.toml", SWIN);
    let (first, second, third) = (f.run("first"), f.run("second"), f.run("third"));
    f.train(&config, 2, &first, &[]).finish();
    // One step at a rate of nothing leaves the weights as they came.
    let init = format!("train.init={}", first.display());
    let still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0.0", "schedule.warmup_epochs=0.0"];
    let once = [&["train.max_steps=1", init.as_str()], &still[..]].concat();
    let said = f.train(&config, 2, &second, &once).finish();
    assert!(said.contains("first"), "the log names the weights' run:\n{said}");
    let weights = |run: &Path, step| {
        let all = checkpoint(run, step);
        let model = all.into_iter().filter(|(name, _)| name.starts_with("model/"));
        model.collect::<Vec<_>>()
    };
    assert_eq!(weights(&first, 20), weights(&second, 1));

    // Out of the house and back, by a safetensors file.
    let (file, imported) = (f.run("w.safetensors"), f.run("imported"));
    let (file, imported) = (file.to_str().expect("UTF-8"), imported.to_str().expect("UTF-8"));
    ok(&["export", "--checkpoint", first.to_str().expect("UTF-8"), "--out", file]);
    let labels = f.run("labels.txt");
    let names: Vec<String> = xtask::motion::LABELS.iter().map(|l| l.to_string()).collect();
    let mut sorted = names;
    sorted.sort();
    fs::write(&labels, sorted.join("\n")).expect("written");
    let labels = labels.to_str().expect("UTF-8");
    let config_path = config.to_str().expect("UTF-8");
    ok(&["import", file, "--config", config_path, "--labels", labels, "--out", imported]);
    let init = format!("train.init={imported}");
    f.train(&config, 2, &third, &[&["train.max_steps=1", init.as_str()], &still[..]].concat()).finish();
    assert_eq!(weights(&second, 1), weights(&third, 1));
    assert_eq!(losses(&second), losses(&third));

    // Another network is refused before a step.
    let other = [&["model.embed_dim=32", init.as_str()], &still[..]].concat();
    let (code, said) = f.train(&config, 1, &f.run("other"), &other).finish_any();
    assert_ne!(code, Some(0));
    assert!(said.contains("imported") && said.contains("patch_embed"), "{said}");
}

#[test]
fn clips_of_several_labels_are_trained_and_judged_by_precision() {
    let dir = tempfile::tempdir().expect("a folder");
    let videos = data::motion_videos(dir.path(), 24, 12);
    // Each motion, and whether it is one of the first half of the list.
    let text = fs::read_to_string(videos.join("labels.csv")).expect("labels");
    let rows = text.lines().enumerate().map(|(i, line)| match line.split(',').collect::<Vec<_>>()[..] {
        [path, label, split] if i > 0 => {
            format!("{path},{label};{},{split}", if i % 2 == 0 { "even" } else { "odd" })
        }
        _ => line.to_string(),
    });
    let labels = dir.path().join("several.csv");
    fs::write(&labels, rows.collect::<Vec<_>>().join("\n")).expect("written");
    let path = |p: &Path| p.to_str().expect("UTF-8").to_string();
    let (data, run) = (path(&dir.path().join("data")), dir.path().join("run"));
    ok(&["ingest", &path(&videos), "--labels", &path(&labels), "--out", &data, "--no-progress"]);
    let config = dir.path().join("job.toml");
    fs::write(&config, SWIN).expect("written");
    let set = [
        format!("data.url={data}"),
        "loss={ kind = \"bce\" }".into(),
        "train.eval_every_epochs=1".into(),
        "train.max_steps=6".into(),
    ];
    let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
    tests::job::Job::train(&config, 2, &path(&run), &set).finish();
    let all = losses(&run);
    assert!(all.len() == 6 && all.values().all(|l| (0.0..5.0).contains(l)), "{all:?}");
    let judged: Vec<Value> = events(&run).into_iter().filter(|e| e["kind"] == "eval").collect();
    let map = |e: &Value| e["mean_average_precision"].as_f64();
    assert!(
        !judged.is_empty() && judged.iter().all(|e| map(e).is_some_and(|m| (0.0..=1.0).contains(&m))),
        "{judged:?}"
    );
    let eval = ["eval", "--checkpoint", &path(&run), "--data", &data, "--views", "2x1", "--json"];
    let result: Value = serde_json::from_str(&ok(&eval)).expect("JSON");
    // "even" and "odd" are half of the clips each: no ranking of 14 classes is as bad as none.
    assert!(map(&result).is_some_and(|m| m > 0.05 && m <= 1.0), "{result}");
    refused(&["train", &path(&config), "--dry-run", "--set", "loss={ kind = \"bces\" }"], &["loss", "bces"]);
}
