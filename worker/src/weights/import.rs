//! `marey import`: weights of another implementation, or of an image model, become a checkpoint of step 0.

use super::{read, runtime};
use crate::{
    Error, Result,
    checkpoint::{FileEntry, Header, Manifest, Place, layout, load, save},
};
use configs::Config;
use models::{
    Model, PRESETS, Preset,
    weights::{Report, Source},
};
use serde_json::json;
use std::path::{Path, PathBuf};
use storage::{Location, PutOutcome};

/// Names that the printed lists show before they only count.
const SHOWN: usize = 6;

/// `marey import`
#[derive(Clone, Debug, clap::Args)]
pub struct ImportArgs {
    /// A safetensors file with names of pytorchvideo, torchvision, timm or transformers.
    pub weights: PathBuf,
    /// The network's preset, like slowfast_r50 or swin3d_t.
    #[arg(long, required_unless_present = "config", conflicts_with = "config")]
    pub model: Option<String>,
    /// A recipe, whose network and input they are for.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The run to write: `train.init`, `marey eval` and `marey predict` take it.
    #[arg(long)]
    pub out: String,
    /// Number of classes [default: the source's].
    #[arg(long, conflicts_with = "labels")]
    pub classes: Option<u32>,
    /// Names of the classes in the classifier's order, one a line.
    #[arg(long)]
    pub labels: Option<PathBuf>,
    /// Print JSON, with every name.
    #[arg(long)]
    pub json: bool,
}

/// Reads, fits, writes the checkpoint and says what became of every tensor.
pub fn command(args: ImportArgs) -> Result<()> {
    let named = |e: models::Error| match e.is_usage() {
        true => Error::Usage(format!("import {}: {e}", args.weights.display())),
        false => e.into(),
    };
    let source = Source::read(read(&args.weights)?).map_err(named)?;
    let labels = labels(&args, &source)?;
    let config = config(&args)?;
    let run = Location::parse(&args.out)?;
    let runtime = runtime()?;
    if !runtime.block_on(load::newest(&run))?.is_empty() {
        return Err(Error::Usage(format!(
            "write to {}: it holds checkpoints; choose another place",
            run.url()
        )));
    }

    tch::manual_seed(config.seed as i64);
    let (frames, crop) = (i64::from(config.data.frames), i64::from(config.data.augment.crop));
    let mut model = Model::new(&config.model, labels.len() as i64, frames, crop, tch::Device::Cpu)?;
    let report = source.load_into(&mut model, &config.model).map_err(named)?;
    let header = Header::new(&config, &labels, layout::NO_DATASET, Place::default(), 1, 0)?;
    let url = runtime.block_on(commit(&run, &model, header))?;
    match args.json {
        true => println!("{:#}", as_json(&report, &labels, &url)),
        false => print!("{}", as_text(&report, &labels, &url)),
    }
    Ok(())
}

/// Writes the checkpoint; returns its folder's URL.
pub(super) async fn commit(run: &Location, model: &Model, header: Header) -> Result<String> {
    let folder = run.join(&layout::step_folder(header.step));
    let shard = save::snapshot(save::Entry::of_model(model), header.clone(), 0)?.upload(run).await?;
    let files = shard.files.into_iter().map(|f| FileEntry { key: f.key, bytes: f.bytes, sha256: f.sha256 });
    let manifest = Manifest { header, files: files.collect() }.to_json()?;
    match folder.put_if_absent(layout::MANIFEST, manifest).await? {
        PutOutcome::Created => Ok(folder.url().into()),
        PutOutcome::Exists => Err(Error::Usage(format!("write {}: somebody else just did", folder.url()))),
    }
}

/// The class names: given, or numbers in their place.
fn labels(args: &ImportArgs, source: &Source) -> Result<Vec<String>> {
    let numbered = |n: i64| (0..n).map(|i| format!("class {i}")).collect();
    match (&args.labels, args.classes, source.classes()) {
        (Some(path), ..) => read_labels(path),
        (None, Some(n), _) if n > 0 => Ok(numbered(n.into())),
        (None, Some(_), _) => Err(Error::Usage("import for 0 classes: a classifier needs some".into())),
        (None, None, Some(n)) if !source.is_image() => Ok(numbered(n)),
        (None, None, _) => Err(Error::Usage(format!(
            "choose the number of classes for {}: give --classes or --labels",
            source.describe()
        ))),
    }
}

fn read_labels(path: &Path) -> Result<Vec<String>> {
    let bad = |why: String| Error::Usage(format!("read the labels in {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let labels: Vec<String> = text.lines().map(|l| l.trim().to_string()).filter(|l| !l.is_empty()).collect();
    let mut sorted: Vec<&String> = labels.iter().collect();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(bad(format!("{:?} is there twice", pair[0]))),
        None if labels.is_empty() => Err(bad("it has none".into())),
        None => Ok(labels),
    }
}

/// The recipe, or for a preset one that tells how its published weights see a clip.
fn config(args: &ImportArgs) -> Result<Config> {
    if let Some(path) = &args.config {
        return Ok(Config::read(path, &[])?);
    }
    let name = args.model.as_deref().unwrap_or_default();
    let preset = PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let known: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        models::Error::Preset { name: name.into(), known: known.join(", ") }
    })?;
    Ok(Config::parse(&format!("the preset {name}"), &preset_toml(preset)?, &[])?)
}

fn preset_toml(preset: &Preset) -> Result<String> {
    #[derive(serde::Serialize)]
    struct Section {
        model: configs::Model,
    }
    let model = preset.config();
    let swin = matches!(model, configs::Model::VideoSwin(_));
    let Preset { frames, crop, test_crop, .. } = preset;
    // Published networks see 64 frames at 30 a second; those of 64 frames see 128.
    let rate = (64 / frames).max(2);
    let (mean, std, views, sampling) = match swin {
        true => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "4x3", "mmaction2"),
        false => ([0.45; 3], [0.225; 3], "10x3", "pyslowfast"),
    };
    let model = toml::to_string(&Section { model })
        .map_err(|e| Error::Usage(format!("write the network's configuration as TOML: {e}")))?;
    Ok(format!(
        r#"
[data]
url = "none"
lanes = 1
frames = {frames}
sampling_rate = {rate}
fps = 30.0
mean = {mean:?}
std = {std:?}
augment = {{ crop = {crop}, scale = {{ kind = "short_side", min = {test_crop}, max = {test_crop} }} }}
eval = {{ short_side = {test_crop}, crop = {crop} }}
test = {{ views = "{views}", short_side = {test_crop}, crop = {test_crop}, sampling = "{sampling}" }}
[train]
epochs = 1
global_batch = 1
[optimizer]
kind = "sgd"
lr = 0.1
{model}"#
    ))
}

fn as_text(report: &Report, labels: &[String], url: &str) -> String {
    let mut text = format!("weights     {}\n", report.source);
    text += &format!("loaded      {} tensors for {} classes\n", report.loaded, labels.len());
    for (what, names) in [
        ("inflated", &report.inflated),
        ("padded", &report.padded),
        ("tables", &report.tables),
        ("fresh", &report.fresh),
        ("unused", &report.unused),
    ] {
        if !names.is_empty() {
            let shown = &names[..names.len().min(SHOWN)];
            let more = if names.len() > SHOWN { ", ..." } else { "" };
            text += &format!("{what:11} {}: {}{more}\n", names.len(), shown.join(", "));
        }
    }
    text + &format!("checkpoint  {url}\n")
}

fn as_json(report: &Report, labels: &[String], url: &str) -> serde_json::Value {
    json!({
        "source": report.source,
        "classes": labels.len(),
        "loaded": report.loaded,
        "inflated": report.inflated,
        "padded": report.padded,
        "tables": report.tables,
        "fresh": report.fresh,
        "unused": report.unused,
        "checkpoint": url,
    })
}
