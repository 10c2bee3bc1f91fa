//! `cargo xtask ...`: the command line of the house's chores.

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use xtask::motion;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the house")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check layering, file sizes, module comments and the paths that the documents name.
    Tidy,
    /// Show the whole of Marey on this machine: videos, S3, training, a kill, a resume, a report.
    Demo {
        /// Twice the clips, three times the epochs.
        #[arg(long)]
        long: bool,
    },
    /// Make a labelled set of H.264 videos from the real sample videos: a window moves over a still
    /// frame with one of 12 known camera motions.
    MotionVideos {
        /// Folder for train/, val/ and labels.csv.
        #[arg(long)]
        out: PathBuf,
        /// Training clips.
        #[arg(long)]
        train: usize,
        /// Validation clips.
        #[arg(long)]
        val: usize,
        /// Side of the square videos, pixels; even.
        #[arg(long, default_value_t = 64)]
        size: u32,
        /// Frames of each video.
        #[arg(long, default_value_t = 24)]
        frames: u32,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() {
    if let Err(e) = run(Args::parse()) {
        eprintln!("error: failed to {e:#}");
        std::process::exit(1);
    }
}

fn run(args: Args) -> Result<()> {
    match args.task {
        Task::Tidy => tidy(),
        Task::Demo { long } => xtask::demo::run(long),
        Task::MotionVideos { out, train, val, size, frames, seed } => {
            motion::write_set(&out, &motion::Spec { train, val, size, frames, seed })
        }
    }
}

fn tidy() -> Result<()> {
    let report = xtask::tidy::check(&xtask::root())?;
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    for finding in &report.findings {
        eprintln!("untidy: {finding}");
    }
    if !report.findings.is_empty() {
        bail!("find the house tidy: {} findings above", report.findings.len());
    }
    println!("tidy");
    Ok(())
}
