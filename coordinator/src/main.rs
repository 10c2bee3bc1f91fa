//! `marey-coordinator`: parses its arguments and the whole configuration, then serves one job.

use clap::Parser;
use configs::Config;
use coordinator::{Error, Options, Outcome, Server, Signal};
use futures::stream;
use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};

/// Coordinates the workers of one training job.
///
/// Prints "listening on ADDRESS" once its port is open. On an address that is not loopback it asks for TLS, and for
/// a token or certificates by which it knows its workers, unless --insecure is given.
#[derive(Parser)]
#[command(name = "marey-coordinator", version)]
struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7878")]
    listen: SocketAddr,
    /// Where checkpoints, journal and metrics go: s3://bucket/prefix, file:///path or a path
    #[arg(long, value_name = "URL")]
    run: String,
    /// The job's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Override one key, e.g. --set train.epochs=10
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Also write the address, and later the outcome, to this file as JSON
    #[arg(long, value_name = "FILE")]
    status_file: Option<PathBuf>,
    /// Where workers reach this coordinator, if not at the address it listens on
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Lead the run although a coordinator that does is alive; that one stops, and the workers come here
    #[arg(long)]
    take_over: bool,
    #[command(flatten)]
    access: proto::AccessArgs,
    /// Serve an address that is not loopback without encryption, or to anybody
    #[arg(long)]
    insecure: bool,
    /// Accept a store without put-if-absent: only one coordinator ever runs on this location
    #[arg(long)]
    single_writer: bool,
    /// End when the program that started this one does (used by `marey train`)
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.die_with_parent {
        // Linux only; elsewhere a killed `marey train` leaves its coordinator running.
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("MAREY_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match serve(args) {
        Ok(Outcome { ok: true, .. }) => ExitCode::SUCCESS,
        Ok(Outcome { reason, superseded: true, .. }) => {
            eprintln!("error: {reason}");
            ExitCode::from(1)
        }
        Ok(Outcome { reason, .. }) => {
            eprintln!("error: failed to finish the job: {reason}");
            ExitCode::from(1)
        }
        Err((text, code)) => {
            eprintln!("error: failed to {text}");
            ExitCode::from(code)
        }
    }
}

fn serve(args: Args) -> Result<Outcome, (String, u8)> {
    let fail = |e: Error| (e.to_string(), if e.is_usage() { 2 } else { 1 });
    let config = Config::read(&args.config, &args.overrides).map_err(|e| fail(e.into()))?;
    let runtime = tokio::runtime::Runtime::new().map_err(|e| (format!("start the runtime: {e}"), 1))?;
    runtime.block_on(async {
        let options = Options {
            listen: args.listen,
            run: args.run,
            config,
            access: args.access.read().map_err(|e| fail(e.into()))?,
            insecure: args.insecure,
            single_writer: args.single_writer,
            advertise: args.advertise,
            take_over: args.take_over,
        };
        // Signals are caught before the port opens: nobody sees a coordinator that ignores them.
        let caught =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::user_defined1()].map(signal);
        let [Ok(interrupt), Ok(terminate), Ok(user)] = caught else {
            return Err(("catch signals".into(), 1));
        };
        let signals = stream::unfold((interrupt, terminate, user), |(mut i, mut t, mut u)| async move {
            let signal = tokio::select! {
                _ = i.recv() => Signal::Stop,
                _ = t.recv() => Signal::Stop,
                _ = u.recv() => Signal::Checkpoint,
            };
            Some((signal, (i, t, u)))
        });
        let server = Server::bind(options).await.map_err(fail)?;
        let address = server.address();
        let status = |state: serde_json::Value| {
            args.status_file.as_deref().map_or(Ok(()), |f| write_status(f, &state))
        };
        status(serde_json::json!({"state": "running", "address": address, "pid": std::process::id()}))?;
        println!("listening on {address}");
        // The reader may wait for this line.
        let _ = std::io::stdout().flush();
        let outcome = server.run(signals).await.map_err(fail)?;
        status(serde_json::json!({
            "state": "ended", "address": address, "ok": outcome.ok, "reason": outcome.reason
        }))?;
        Ok(outcome)
    })
}

/// Replaces the file whole, so that a reader never sees half of it.
fn write_status(path: &Path, state: &serde_json::Value) -> Result<(), (String, u8)> {
    let fail = |e: std::io::Error| (format!("write the status file {}: {e}", path.display()), 2);
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, format!("{state}\n")).map_err(fail)?;
    std::fs::rename(&part, path).map_err(fail)
}
