//! `marey predict`: ingests one video into a temporary dataset, then asks the worker what it shows.

use crate::{
    Error, Result,
    siblings::{SHARDS, WORKER, find},
};
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// The video is decoded, cut and stored as at ingest, in a temporary folder, and classified.
#[derive(clap::Args)]
pub struct Args {
    /// The video
    video: PathBuf,
    /// A run (its newest whole checkpoint is taken) or one checkpoints/step-N folder
    #[arg(long, value_name = "URL")]
    checkpoint: String,
    /// Cut the video into clips of this many seconds, and name the action in each
    #[arg(long, value_name = "S")]
    clip_seconds: Option<String>,
    /// Short side of the frames; take what the training data were ingested with [default: 256]
    #[arg(long, value_name = "PIXELS")]
    short_side: Option<String>,
    /// Frame rate; take what the training data were ingested with [default: the video's own]
    #[arg(long, value_name = "F")]
    fps: Option<String>,
    /// Windows in time x crops in space whose probabilities are averaged
    #[arg(long, value_name = "NxM")]
    views: Option<String>,
    /// How many classes to name
    #[arg(long, value_name = "N")]
    top: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Threads to compute and decode with [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// cpu, or cuda:N
    #[arg(long)]
    device: Option<String>,
}

/// Returns the exit status.
pub fn command(args: &Args) -> Result<u8> {
    let (shards, worker) = (find(SHARDS)?, find(WORKER)?);
    let folder = tempfile::Builder::new()
        .prefix("marey-predict-")
        .tempdir()
        .map_err(|source| Error::Io { path: std::env::temp_dir(), source })?;
    let data = folder.path().join("data");

    let mut ingest = Command::new(shards);
    ingest.arg("ingest").arg(&args.video).arg("--out").arg(&data).arg("--no-progress");
    option(&mut ingest, "--clip-seconds", &args.clip_seconds);
    option(&mut ingest, "--short-side", &args.short_side);
    option(&mut ingest, "--fps", &args.fps);
    // Its summary is not the answer; its errors are.
    ingest.stdout(Stdio::null());
    let code = run(ingest)?;
    if code != 0 {
        return Ok(code);
    }

    let mut predict = Command::new(worker);
    predict.arg("predict").args(["--checkpoint", &args.checkpoint]).arg("--data").arg(&data);
    option(&mut predict, "--views", &args.views);
    option(&mut predict, "--top", &args.top);
    option(&mut predict, "--threads", &args.threads);
    option(&mut predict, "--device", &args.device);
    predict.args(args.json.then_some("--json"));
    let code = run(predict)?;
    if code != 0 {
        // The worker's message may name it.
        eprintln!("the ingested video is kept in {}", folder.keep().display());
    }
    Ok(code)
}

fn option(command: &mut Command, name: &str, value: &Option<String>) {
    if let Some(value) = value {
        command.arg(name).arg(value);
    }
}

fn run(mut command: Command) -> Result<u8> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|source| Error::Start { program: command.get_program().into(), source })?;
    // Killed by a signal: no code of its own.
    Ok(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}
