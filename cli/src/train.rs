//! `marey train`: a coordinator and its workers on this machine, their progress, their end.

use crate::{
    Error, Result,
    children::Child,
    follow,
    screen::Screen,
    siblings::{COORDINATOR, WORKER, become_sibling, find},
};
use configs::Config;
use proto::{
    AccessArgs,
    v1::{JobEnded, JobEvent},
};
use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tonic::Streaming;

/// How long a child may take to end by itself once the job is over, and again after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(15);
/// Once all workers are gone the coordinator may have this long to say why the job ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Trains on this machine.
#[derive(clap::Args)]
pub struct Args {
    /// The job's configuration
    config: PathBuf,
    /// Trainer processes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), required_unless_present = "dry_run")]
    workers: Option<u32>,
    /// Where checkpoints and metrics go, and from where an earlier start goes on: s3://bucket/prefix, file:///path or a path
    #[arg(long, value_name = "URL", required_unless_present = "dry_run")]
    run: Option<String>,
    /// Override one key, e.g. --set train.epochs=10
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Where the coordinator listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[command(flatten)]
    access: AccessArgs,
    /// Accept a store without put-if-absent: only one coordinator ever runs on this location
    #[arg(long)]
    single_writer: bool,
    /// The devices to train on [default: cpu:N]
    #[arg(long, value_name = "DEVICES")]
    devices: Option<String>,
    /// Where the programs' logs go [default: a temporary folder, named if something fails]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Start nothing: build the network, plan the epochs, estimate memory
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: plan for this many training clips instead of opening the dataset
    #[arg(long, value_name = "N", requires = "dry_run")]
    clips: Option<u64>,
    /// With --dry-run: plan for this many classes instead of the dataset's
    #[arg(long, value_name = "N", requires = "dry_run")]
    classes: Option<u32>,
    /// With --dry-run: print JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

/// Returns the exit status: 0 only if the job ended well; 2 if it needs a change by the user.
pub fn command(args: Args) -> Result<u8> {
    let overrides = overrides(&args)?;
    if args.dry_run {
        return dry_run(&args, &overrides);
    }
    let (coordinator, worker) = (find(COORDINATOR)?, find(WORKER)?);
    let logs = log_folder(args.log_dir.as_deref())?;
    // One thread: the children's lives hang on the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    runtime.block_on(async {
        let mut screen = Screen::new();
        let code = train(&args, &overrides, [&coordinator, &worker], &logs, &mut screen).await;
        screen.close();
        if args.log_dir.is_none() {
            match &code {
                // Of no further use, or all said; a leftover would do no harm.
                Ok(0) => drop(std::fs::remove_dir_all(&logs)),
                Err(e @ Error::Said { .. }) if e.exit_code() == 2 => drop(std::fs::remove_dir_all(&logs)),
                _ => eprintln!("logs: {}", logs.display()),
            }
        }
        code
    })
}

/// The overrides to pass on, after the whole configuration was found good with them.
fn overrides(args: &Args) -> Result<Vec<String>> {
    let mut all = args.overrides.clone();
    // What the file asks for at least must be reachable; parse first to know it.
    let least = Config::read(&args.config, &args.overrides)?.cluster.min_workers;
    if let Some(workers) = args.workers {
        all.push(format!("cluster.workers={workers}"));
        if least > workers {
            all.push(format!("cluster.min_workers={workers}"));
        }
    }
    Config::read(&args.config, &all)?;
    Ok(all)
}

/// The network needs libtorch: the worker looks at the job.
fn dry_run(args: &Args, overrides: &[String]) -> Result<u8> {
    let mut told: Vec<OsString> = vec!["--config".into(), args.config.clone().into()];
    told.extend(overrides.iter().flat_map(|o| ["--set".into(), o.into()]));
    let mut number = |name: &str, value: Option<String>| {
        told.extend(value.into_iter().flat_map(|v| [name.into(), v.into()]));
    };
    number("--clips", args.clips.map(|n| n.to_string()));
    number("--classes", args.classes.map(|n| n.to_string()));
    told.extend(args.json.then(|| "--json".into()));
    become_sibling(WORKER, Some("dry-run"), &told)
}

fn log_folder(wanted: Option<&Path>) -> Result<PathBuf> {
    match wanted {
        Some(dir) => std::fs::create_dir_all(dir)
            .map(|()| dir.to_path_buf())
            .map_err(|source| Error::Io { path: dir.into(), source }),
        None => tempfile::Builder::new()
            .prefix("marey-train-")
            .tempdir()
            .map(|dir| dir.keep())
            .map_err(|source| Error::Io { path: std::env::temp_dir(), source }),
    }
}

async fn train(
    args: &Args,
    overrides: &[String],
    [coordinator, worker]: [&Path; 2],
    logs: &Path,
    screen: &mut Screen,
) -> Result<u8> {
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    let [Ok(mut interrupt), Ok(mut terminate)] = signals else {
        return Err(Error::Io { path: "the signals".into(), source: std::io::Error::last_os_error() });
    };
    let mut told = vec!["--die-with-parent".to_string()];
    told.extend([
        "--listen".into(),
        args.listen.to_string(),
        "--run".into(),
        args.run.clone().unwrap_or_default(),
    ]);
    told.extend(["--config".into(), args.config.display().to_string()]);
    told.extend(overrides.iter().flat_map(|o| ["--set".to_string(), o.clone()]));
    let shown = args.access.to_args();
    told.extend(shown.iter().cloned());
    told.extend(args.single_writer.then(|| "--single-writer".into()));
    let access = args.access.read()?;
    let mut coordinator = Child::start("coordinator", coordinator, &told, logs, Some(Stdio::piped()))?;

    let address = tokio::select! {
        address = listening(&mut coordinator, screen) => address?,
        // Nothing has begun.
        _ = interrupt.recv() => return Ok(0),
        _ = terminate.recv() => return Ok(0),
    };
    let mut events = follow::connect(&address, &access).await?;
    let devices = args.devices.clone().unwrap_or_else(|| format!("cpu:{}", args.workers.unwrap_or(1)));
    let mut told = ["run", "--coordinator", &address, "--devices", &devices].map(String::from).to_vec();
    told.extend(shown);
    let mut worker = Child::start("worker", worker, &told, logs, None)?;

    let mut told = false;
    let end = loop {
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => "interrupted",
                _ = terminate.recv() => "told to stop",
            }
        };
        let why = tokio::select! {
            ended = follow::follow(&address, &mut events, screen) => break End::Job(ended),
            status = worker.wait() => break End::Worker(status?),
            why = stop => why,
        };
        // The coordinator has the workers take a checkpoint; told a second time, it ends at once.
        coordinator.terminate();
        let then = if told { "ending at once" } else { "taking a checkpoint first; once more ends at once" };
        screen.line(&format!("{why}: {then}"));
        told = true;
    };
    match end {
        End::Job(ended) => finish(ended, &mut coordinator, &mut worker, screen).await,
        End::Worker(status) => {
            let ended = last_words(&address, &mut events, screen).await;
            if ended.as_ref().is_none_or(|e| !e.ok) {
                screen.line(&worker.tail());
            }
            coordinator.terminate();
            let coordinated = coordinator.end(PATIENCE).await?;
            match ended {
                Some(e) => Ok(exit_code(e.ok, &[coordinated, status])),
                None => Err(worker.died(status)),
            }
        }
    }
}

enum End {
    Job(Result<JobEnded>),
    /// All workers are gone.
    Worker(ExitStatus),
}

/// Waits for the coordinator's "listening on ADDRESS".
async fn listening(coordinator: &mut Child, screen: &Screen) -> Result<String> {
    let stdout = coordinator.stdout();
    if let Some(stdout) = stdout {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(address) = line.strip_prefix("listening on ") {
                return Ok(address.to_string());
            }
        }
    }
    let status = coordinator.wait().await?;
    let error = coordinator.died(status);
    if matches!(error, Error::Died { .. }) {
        screen.line(&coordinator.tail());
    }
    Err(error)
}

/// The job ended, or the coordinator went away.
async fn finish(
    ended: Result<JobEnded>,
    coordinator: &mut Child,
    worker: &mut Child,
    screen: &Screen,
) -> Result<u8> {
    let ended = match ended {
        Ok(ended) => ended,
        Err(e) => {
            screen.line(&coordinator.tail());
            worker.terminate();
            worker.end(PATIENCE).await?;
            let status = coordinator.end(PATIENCE).await?;
            return if status.success() { Err(e) } else { Err(coordinator.died(status)) };
        }
    };
    let worked = worker.end(PATIENCE).await?;
    let coordinated = coordinator.end(PATIENCE).await?;
    let code = exit_code(ended.ok, &[coordinated, worked]);
    if code != 0 {
        screen.line(&worker.tail());
    }
    Ok(code)
}

/// What the coordinator still has to say when no worker is left.
async fn last_words(
    address: &str,
    events: &mut Streaming<JobEvent>,
    screen: &mut Screen,
) -> Option<JobEnded> {
    timeout(LAST_WORDS, follow::follow(address, events, screen)).await.ok()?.ok()
}

/// A job that ended well did so whatever became of single workers.
fn exit_code(ok: bool, children: &[ExitStatus]) -> u8 {
    match ok {
        true => 0,
        false if children.iter().any(|s| s.code() == Some(2)) => 2,
        false => 1,
    }
}
