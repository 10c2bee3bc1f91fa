//! `marey-shards`: videos into clip datasets, and a look at what is in them.

mod dataset;
mod ingest;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use shards::{
    Error, bench,
    inspect::{contact_sheet, inspect, size},
    simulate::command as simulation,
    verify::verify,
};
use std::{
    error::Error as _,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};
use storage::Location;
use tokio::runtime::Runtime;

/// Videos into clip datasets, and a look at what is in them.
#[derive(Parser)]
#[command(name = "marey-shards", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Ingest(Box<ingest::Ingest>),
    /// Show what is in a dataset.
    Inspect(Inspect),
    /// Check every byte of a dataset; exit status 1 if anything is damaged.
    Verify(Verify),
    /// Work out a job's requests, bytes, cache hits and cost, without reading a clip.
    Simulate(simulation::Args),
    /// Measure how fast a dataset feeds a trainer.
    Bench(bench::Args),
    /// Datasets out of datasets: split, merge, relabel; and stats.
    #[command(subcommand)]
    Dataset(dataset::Dataset),
}

#[derive(Args)]
struct Inspect {
    /// The dataset.
    url: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Draw this clip's frames.
    #[arg(long, requires = "png")]
    clip: Option<String>,
    /// The PNG file to draw into.
    #[arg(long, requires = "clip")]
    png: Option<PathBuf>,
}

#[derive(Args)]
struct Verify {
    /// The dataset.
    url: String,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Ingest(args) => ingest::run(*args),
        Command::Dataset(command) => dataset::run(command),
        Command::Inspect(args) => run_inspect(&args),
        Command::Verify(args) => run_verify(&args),
        Command::Bench(args) => run_bench(&args),
        Command::Simulate(args) => runtime().and_then(|runtime| say(&simulation::command(&args, &runtime)?)),
    };
    outcome.unwrap_or_else(|e| {
        let mut text = e.to_string();
        let mut cause = e.source();
        while let Some(c) = cause {
            // Messages often name their cause already.
            let c_text = c.to_string();
            if !text.contains(&c_text) {
                text = format!("{text}: {c_text}");
            }
            cause = c.source();
        }
        eprintln!("error: failed to {}", text.replace('\n', " "));
        ExitCode::from(if e.is_usage() { 2 } else { 1 })
    })
}

fn run_inspect(args: &Inspect) -> Result<ExitCode, Error> {
    let location = Location::parse(&args.url)?;
    let runtime = runtime()?;
    if let (Some(clip), Some(path)) = (&args.clip, &args.png) {
        let png = runtime.block_on(contact_sheet(&location, clip))?;
        std::fs::write(path, png).map_err(|source| io(path, source))?;
        return say(&format!("drew {clip} into {}", path.display()));
    }
    let report = runtime.block_on(inspect(&location))?;
    match args.json {
        true => {
            say(&serde_json::to_string_pretty(&report).map_err(|e| Error::Stopped(format!("print: {e}")))?)
        }
        false => say(report.text().trim_end()),
    }
}

fn run_verify(args: &Verify) -> Result<ExitCode, Error> {
    let location = Location::parse(&args.url)?;
    let bar = bar(args.no_progress, "{bar:30} {bytes}/{total_bytes}, {eta} left");
    let verdict = runtime()?.block_on(verify(&location, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }))?;
    bar.finish_and_clear();
    for line in &verdict.damage {
        say(&format!("damaged: {line}"))?;
    }
    let looked = format!("{} files, {} clips, {}", verdict.files, verdict.clips, size(verdict.bytes));
    if verdict.damage.is_empty() {
        return say(&format!("{}: all is whole ({looked})", location.url()));
    }
    say(&format!("{}: {} findings in {looked}", location.url(), verdict.damage.len()))?;
    Ok(ExitCode::from(1))
}

/// A bar on a terminal, unless `quiet`.
fn bar(quiet: bool, template: &str) -> ProgressBar {
    let bar = match !quiet && std::io::stderr().is_terminal() {
        true => ProgressBar::new(0),
        false => ProgressBar::hidden(),
    };
    // A wrong template would only cost the looks.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn run_bench(args: &bench::Args) -> Result<ExitCode, Error> {
    let report = args.run(&runtime()?)?;
    match args.json {
        true => {
            say(&serde_json::to_string_pretty(&report).map_err(|e| Error::Stopped(format!("print: {e}")))?)
        }
        false => say(&report.text()),
    }
}

fn runtime() -> Result<Runtime, Error> {
    Runtime::new().map_err(|source| io(Path::new("the async runtime"), source))
}

/// Prints a line; a closed pipe ends the program quietly, as it should.
fn say(text: &str) -> Result<ExitCode, Error> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(io(Path::new("stdout"), e)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

/// Bytes, with or without a unit of 1000 or 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        _ => return Err(format!("the unit {unit:?} is not known; write a size such as \"256 MiB\"")),
    };
    match number.parse::<f64>() {
        Ok(n) if n.is_finite() => Ok((n * factor) as u64),
        _ => Err(format!("{text:?} is no size; write one such as \"256 MiB\"")),
    }
}
