//! `marey report`: one self-contained HTML page about a run, to look at and to pass on.

mod chart;
mod history;
mod page;

use crate::siblings::{SHARDS, find};
use history::History;
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use storage::Location;

/// Clips on the contact sheet, and how many of them show a mistake if there are any.
const CLIPS: usize = 8;
const MISTAKES: usize = 2;

/// Draws a run's curves, a few clips with their predictions, and the confusion matrix.
#[derive(clap::Args)]
pub struct Args {
    /// The run
    #[arg(long, value_name = "URL")]
    run: String,
    /// The dataset, for the pictures
    #[arg(long, value_name = "URL")]
    data: String,
    /// The eval.json in the folder that `marey eval --out` was given
    #[arg(long, value_name = "FILE")]
    eval: PathBuf,
    /// The page to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Why there is no report. Messages complete "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error("read the metrics of {url}: {why}")]
    Metrics { url: String, why: String },
    #[error("read {}: {why}; write it with `marey eval ... --out DIR`", path.display())]
    Eval { path: PathBuf, why: String },
    #[error("draw the clip {clip} of {data}: marey-shards ended with {status}; its words are above")]
    Draw { clip: String, data: String, status: std::process::ExitStatus },
    #[error("use {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl Error {
    /// 2 where the user must change something, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Storage(e) if !e.is_usage() => 1,
            Error::Draw { status, .. } if status.code() != Some(2) => 1,
            _ => 2,
        }
    }
}

/// The part of an evaluation that the page shows.
#[derive(Debug, Deserialize)]
pub(crate) struct Eval {
    step: u64,
    epoch: u64,
    split: String,
    views: Views,
    clips: u64,
    top1: f64,
    top5: f64,
    loss: f64,
    labels: Vec<String>,
    /// True class x predicted class; empty where clips bear several.
    confusion: Vec<Vec<u64>>,
    predictions: Vec<Prediction>,
    /// Damaged clips, which all the above is without.
    #[serde(default)]
    missing: Vec<Missing>,
}

#[derive(Debug, Deserialize)]
struct Missing {
    clip_id: String,
}

#[derive(Debug, Deserialize)]
struct Views {
    clips: u64,
    crops: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Prediction {
    clip_id: String,
    label: Option<String>,
    correct: Option<bool>,
    top: Vec<Guess>,
}

#[derive(Clone, Debug, Deserialize)]
struct Guess {
    label: String,
    probability: f64,
}

/// A clip's frames as a PNG, with what was predicted.
pub(crate) struct Picture {
    prediction: Prediction,
    png: Vec<u8>,
}

/// Returns the exit status.
pub fn command(args: &Args) -> crate::Result<u8> {
    let eval = read_eval(&args.eval)?;
    let run = Location::parse(&args.run).map_err(Error::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| crate::Error::Io { path: "the async runtime".into(), source })?;
    let history = runtime.block_on(History::read(&run))?;
    let shards = find(SHARDS)?;
    let pictures = choose(&eval.predictions)
        .into_iter()
        .map(|prediction| {
            let png = draw(&shards, &args.data, &prediction.clip_id)?;
            Ok(Picture { prediction, png })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let html = page::html(&args.run, &args.data, &history, &eval, &pictures);
    std::fs::write(&args.out, html).map_err(|source| Error::Io { path: args.out.clone(), source })?;
    println!("wrote {}", args.out.display());
    Ok(0)
}

fn read_eval(path: &Path) -> Result<Eval, Error> {
    let bad = |why: String| Error::Eval { path: path.into(), why };
    let text = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let eval: Eval = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let n = eval.labels.len();
    let some = !eval.confusion.is_empty();
    if some && (eval.confusion.len() != n || eval.confusion.iter().any(|row| row.len() != n)) {
        return Err(bad(format!("its confusion matrix is not {n} by {n}")));
    }
    Ok(eval)
}

/// Some mistakes first, then right answers, each of another class while there are others.
fn choose(predictions: &[Prediction]) -> Vec<Prediction> {
    let mut chosen: Vec<Prediction> = vec![];
    for (correct, most) in [(false, MISTAKES), (true, CLIPS)] {
        // First a clip a class, then whatever is left.
        for repeat in [false, true] {
            for p in predictions.iter().filter(|p| p.correct == Some(correct)) {
                let taken = chosen.iter().any(|c| c.clip_id == p.clip_id);
                let seen = chosen.iter().any(|c| c.label == p.label);
                if chosen.len() < most && !taken && (repeat || !seen) {
                    chosen.push(p.clone());
                }
            }
        }
    }
    chosen
}

fn draw(shards: &Path, data: &str, clip: &str) -> Result<Vec<u8>, Error> {
    let folder = tempfile::tempdir().map_err(|source| Error::Io { path: std::env::temp_dir(), source })?;
    let png = folder.path().join("clip.png");
    let status = Command::new(shards)
        .args(["inspect", data, "--clip", clip, "--png"])
        .arg(&png)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|source| Error::Io { path: shards.into(), source })?;
    if !status.success() {
        return Err(Error::Draw { clip: clip.into(), data: data.into(), status });
    }
    std::fs::read(&png).map_err(|source| Error::Io { path: png, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(i: usize, label: &str, correct: bool) -> Prediction {
        Prediction {
            clip_id: format!("c{i}"),
            label: Some(label.into()),
            correct: Some(correct),
            top: vec![],
        }
    }

    #[test]
    fn the_sheet_shows_some_mistakes_and_many_classes() {
        let mut all: Vec<_> = (0..20).map(|i| prediction(i, &format!("l{}", i % 5), true)).collect();
        all.extend((20..30).map(|i| prediction(i, "l0", false)));
        let chosen = choose(&all);
        assert_eq!(chosen.len(), CLIPS);
        assert_eq!(chosen.iter().filter(|p| p.correct == Some(false)).count(), MISTAKES);
        for i in 0..5 {
            assert!(chosen.iter().any(|p| p.label == Some(format!("l{i}"))));
        }
        assert_eq!(choose(&all[..3]).len(), 3);
    }

    #[test]
    fn a_wrong_eval_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eval.json");
        let e = read_eval(&path).unwrap_err();
        assert!(e.to_string().contains("eval.json") && e.exit_code() == 2, "{e}");
        std::fs::write(&path, "{}").unwrap();
        assert!(read_eval(&path).unwrap_err().to_string().contains("missing field"));
    }
}
