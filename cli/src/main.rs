//! `marey`: one command for the whole of Marey. It links neither FFmpeg nor libtorch: what needs
//! them runs in `marey-shards` and `marey-worker`, found beside this program or on PATH.

mod checkpoints;
mod children;
mod error;
mod follow;
mod predict;
mod report;
mod screen;
mod siblings;
mod status;
mod train;
mod words;

use clap::{Parser, Subcommand};
use error::{Error, Result};
use std::{ffi::OsString, process::ExitCode};

/// Trains video action-recognition models on a cluster.
#[derive(Parser)]
#[command(name = "marey", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a clip dataset of videos or images (marey-shards ingest)
    #[command(disable_help_flag = true)]
    Ingest(Rest),
    /// Show what is in a dataset, or draw one clip (marey-shards inspect)
    #[command(disable_help_flag = true)]
    Inspect(Rest),
    /// Check every byte of a dataset (marey-shards verify)
    #[command(disable_help_flag = true)]
    Verify(Rest),
    /// Measure the reading of datasets
    #[command(subcommand)]
    Data(Data),
    /// Split, merge, relabel or count datasets (marey-shards dataset)
    #[command(disable_help_flag = true)]
    Dataset(Rest),
    /// Train on this machine: a coordinator, its workers, and their progress
    Train(train::Args),
    /// Follow a running job
    Watch(follow::Args),
    /// Show where a running job stands: members, checkpoint, incidents
    Status(status::StatusArgs),
    /// Let a worker of a running job go at the next step boundary
    Release(status::ReleaseArgs),
    /// Coordinate the workers of one job (marey-coordinator)
    #[command(disable_help_flag = true)]
    Coordinator(Rest),
    /// Train on this node's devices for a coordinator (marey-worker run)
    #[command(disable_help_flag = true)]
    Worker(Rest),
    /// Measure a checkpoint's accuracy on a dataset (marey-worker eval)
    #[command(disable_help_flag = true)]
    Eval(Rest),
    /// Name the action in a video
    Predict(predict::Args),
    /// Draw a run's curves and predictions as one HTML page
    Report(report::Args),
    /// List, verify, export or remove a run's checkpoints
    #[command(subcommand)]
    Checkpoints(checkpoints::Command),
    /// Make a checkpoint of another implementation's weights (marey-worker import)
    #[command(disable_help_flag = true)]
    Import(Rest),
    /// Write a checkpoint's weights for its reference implementation (marey-worker export)
    #[command(disable_help_flag = true)]
    Export(Rest),
    /// List the named networks with their size and cost (marey-worker models)
    #[command(disable_help_flag = true)]
    Models(Rest),
    /// Compare a model with a reference implementation's tensors (marey-worker parity)
    #[command(disable_help_flag = true)]
    Parity(Rest),
}

#[derive(Subcommand)]
enum Data {
    /// Measure how fast a dataset feeds a trainer (marey-shards bench)
    #[command(disable_help_flag = true)]
    Bench(Rest),
    /// Work out a job's requests, bytes, cache hits and cost, without reading a clip (marey-shards simulate)
    #[command(disable_help_flag = true)]
    Simulate(Rest),
}

/// Arguments that another program parses.
#[derive(clap::Args)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("error: failed to {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(command: Command) -> Result<u8> {
    use siblings::{COORDINATOR, SHARDS, WORKER, become_sibling};
    match command {
        Command::Ingest(rest) => become_sibling(SHARDS, Some("ingest"), &rest.args),
        Command::Inspect(rest) => become_sibling(SHARDS, Some("inspect"), &rest.args),
        Command::Verify(rest) => become_sibling(SHARDS, Some("verify"), &rest.args),
        Command::Data(Data::Bench(rest)) => become_sibling(SHARDS, Some("bench"), &rest.args),
        Command::Data(Data::Simulate(rest)) => become_sibling(SHARDS, Some("simulate"), &rest.args),
        Command::Dataset(rest) => become_sibling(SHARDS, Some("dataset"), &rest.args),
        Command::Coordinator(rest) => become_sibling(COORDINATOR, None, &rest.args),
        Command::Worker(rest) => become_sibling(WORKER, Some("run"), &rest.args),
        Command::Eval(rest) => become_sibling(WORKER, Some("eval"), &rest.args),
        Command::Import(rest) => become_sibling(WORKER, Some("import"), &rest.args),
        Command::Export(rest) => become_sibling(WORKER, Some("export"), &rest.args),
        Command::Models(rest) => become_sibling(WORKER, Some("models"), &rest.args),
        Command::Parity(rest) => become_sibling(WORKER, Some("parity"), &rest.args),
        Command::Checkpoints(what) => checkpoints::command(what),
        Command::Predict(args) => predict::command(&args),
        Command::Report(args) => report::command(&args),
        Command::Train(args) => train::command(args),
        Command::Status(args) => status::status(&args),
        Command::Release(args) => status::release(&args),
        Command::Watch(args) => follow::command(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn other_programs_get_their_arguments_untouched() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|c| c.command);
        for (line, want) in [
            ("marey ingest --help", vec!["--help"]),
            (
                "marey ingest videos --labels l.csv --out s3://b/k",
                vec!["videos", "--labels", "l.csv", "--out", "s3://b/k"],
            ),
            ("marey ingest -x --fps 15", vec!["-x", "--fps", "15"]),
        ] {
            let Ok(Command::Ingest(rest)) = parse(line) else { panic!("{line}") };
            assert_eq!(rest.args, want, "{line}");
        }
    }
}
