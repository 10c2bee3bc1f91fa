//! `marey-worker`: trains on this node's devices, evaluates, predicts, imports and exports weights, checks parity.

use clap::{Parser, Subcommand};
use configs::Config;
use proto::AccessArgs;
use std::{io::IsTerminal, path::PathBuf, process::ExitCode, time::Duration};
use storage::Location;
use worker::{
    Error, Result,
    device::{Device, parse_devices},
    dry_run, evaluate, models, parity, predict, supervise,
    trainer::{self, TrainerOptions},
    twin,
    weights::{export, import},
};

/// Trains video models on this node's devices, as the coordinator directs.
#[derive(Parser)]
#[command(name = "marey-worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start one trainer a device of this node and watch over them.
    Run {
        /// The coordinator's address, host:port.
        #[arg(long)]
        coordinator: String,
        #[command(flatten)]
        access: AccessArgs,
        /// cpu:N (N trainers), cuda:all, or cuda:0,1.
        #[arg(long, default_value = "cpu:1")]
        devices: String,
        /// The configuration this host believes in: refused where the coordinator's differs.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Compute threads of each trainer [default: the cores shared out].
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Train on one device (started by `run`).
    #[command(hide = true)]
    Trainer {
        #[arg(long)]
        coordinator: String,
        #[command(flatten)]
        access: AccessArgs,
        #[arg(long)]
        device: String,
        #[arg(long, default_value_t = 1)]
        threads: usize,
        #[arg(long)]
        config: Option<PathBuf>,
        /// The run, whose journal says where its coordinator is if that is not at the address.
        #[arg(long, requires = "grace")]
        run: Option<String>,
        /// Seconds to look for it.
        #[arg(long)]
        grace: Option<f64>,
    },
    /// Measure a checkpoint's accuracy on a dataset.
    Eval(evaluate::EvalArgs),
    /// Judge a part of the clips (started by `eval`).
    #[command(hide = true)]
    EvalPart(evaluate::PartArgs),
    /// Plan a job without starting it (marey train --dry-run).
    DryRun(dry_run::DryRunArgs),
    /// Name the action in a video that was ingested.
    Predict(predict::PredictArgs),
    /// Make a checkpoint of another implementation's weights, or of an image model's.
    Import(import::ImportArgs),
    /// Write a checkpoint's weights for its reference implementation.
    Export(export::ExportArgs),
    /// List the named networks with their size and cost.
    Models(models::ModelsArgs),
    /// Compare a model with a reference implementation's tensors.
    Parity(parity::ParityArgs),
    /// Write a job's fresh weights and first batches, for the same training elsewhere.
    Twin(twin::TwinArgs),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,h2=warn,object_store=warn".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("error: failed to {}", chain(&e));
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Run { coordinator, access, devices, config, threads } => {
            let devices = parse_devices(&devices, || tch::Cuda::device_count().max(0) as usize)?;
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
            let threads = threads.unwrap_or((cores / devices.len()).max(1));
            let mut extra = access.to_args();
            let access = access.read()?;
            if let Some(path) = config {
                extra.extend(["--config".to_string(), path.display().to_string()]);
            }
            // One thread: the trainers' lives hang on the thread that started them.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
            runtime.block_on(supervise::run(supervise::Node { coordinator, access, devices, extra, threads }))
        }
        Command::Trainer { coordinator, access, device, threads, config, run, grace } => {
            die_with_parent();
            let config = config.map(|path| Config::read(&path, &[])).transpose()?;
            let (device, run) = (Device::parse(&device)?, run.map(|url| Location::parse(&url)).transpose()?);
            let look = run.zip(grace.and_then(|s| Duration::try_from_secs_f64(s).ok()));
            let access = access.read()?;
            let again = trainer::run(TrainerOptions { coordinator, access, device, threads, config, look })?;
            Ok(if again { supervise::AGAIN } else { 0 })
        }
        Command::Eval(args) => evaluate::command(args).map(|()| 0),
        Command::EvalPart(args) => {
            die_with_parent();
            evaluate::part(&args).map(|()| 0)
        }
        Command::DryRun(args) => dry_run::command(&args).map(|()| 0),
        Command::Predict(args) => predict::command(args).map(|()| 0),
        Command::Import(args) => import::command(args).map(|()| 0),
        Command::Export(args) => export::command(args).map(|()| 0),
        Command::Models(args) => models::command(&args).map(|()| 0),
        Command::Parity(args) => parity::command(args),
        Command::Twin(args) => twin::command(args).map(|()| 0),
    }
}

/// A trainer whose supervisor was killed would go on unseen.
fn die_with_parent() {
    // Linux only; elsewhere the broken session ends the trainer.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}

/// The error with its causes.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        // A transparent or embedded cause says the same again.
        if !text.contains(&s.to_string()) {
            text = format!("{text}: {s}");
        }
        source = s.source();
    }
    text
}
