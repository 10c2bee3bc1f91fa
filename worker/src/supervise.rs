//! `marey-worker run`: one trainer process a device, their logs forwarded, signals passed on.

use crate::{Error, Result, device::Device};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    process::Stdio,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

/// What each device's trainer failed to do, in its own words.
type Errors = Arc<Mutex<BTreeMap<String, String>>>;

/// What every trainer of this node is told.
#[derive(Clone, Debug)]
pub struct Node {
    pub coordinator: String,
    pub devices: Vec<Device>,
    /// Passed on to each trainer as they are.
    pub extra: Vec<String>,
    /// Compute threads of each trainer.
    pub threads: usize,
}

/// Starts the trainers and waits for all. Returns the exit code: 0 only if all ended well; 2 if
/// any says that the user must change something. One that dies does not take the others along:
/// the coordinator decides how the job goes on.
pub async fn run(node: Node) -> Result<u8> {
    let program =
        std::env::current_exe().map_err(|source| Error::Io { path: "the running program".into(), source })?;
    let mut children = JoinSet::new();
    let errors: Errors = Errors::default();
    let mut pids = vec![];
    for device in &node.devices {
        let mut child = Command::new(&program)
            .args(["trainer", "--coordinator", &node.coordinator, "--device", &device.to_string()])
            .args(["--threads", &node.threads.to_string()])
            .args(&node.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::Io { path: program.display().to_string(), source })?;
        pids.extend(child.id());
        let log = forward(&mut child, *device, &errors)?;
        let device = *device;
        children.spawn(async move {
            let status = child.wait().await;
            // Its last words may still be in the pipe.
            let _ = tokio::task::spawn_blocking(|| log.into_iter().for_each(|l| drop(l.join()))).await;
            (device, status)
        });
    }
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|source| Error::Io { path: "SIGTERM".into(), source })?;
    let mut code = 0u8;
    loop {
        tokio::select! {
            _ = terminate.recv() => pids.iter().for_each(|pid| pass_on(*pid)),
            ended = children.join_next() => match ended {
                None => return Ok(code),
                Some(Ok((device, Ok(status)))) => {
                    if !status.success() {
                        eprintln!("[{device}] the trainer ended: {status}");
                        if let Some(error) = errors.lock().unwrap_or_else(|e| e.into_inner()).remove(&device.to_string()) {
                            eprintln!("error: failed to train on {device}: {error}");
                        }
                        code = code.max(if status.code() == Some(2) { 2 } else { 1 });
                    }
                }
                Some(Ok((device, Err(e)))) => { eprintln!("[{device}] the trainer is lost: {e}"); code = code.max(1); }
                Some(Err(e)) => { eprintln!("the supervisor is broken: {e}"); code = code.max(1); }
            }
        }
    }
}

fn pass_on(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // A trainer that is gone already needs no signal.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Copies a trainer's lines to ours, each with its device's name.
fn forward(child: &mut Child, device: Device, errors: &Errors) -> Result<Vec<JoinHandle<()>>> {
    let io = |source| Error::Io { path: format!("the log of {device}"), source };
    let mut log = vec![];
    if let Some(out) = child.stdout.take() {
        log.push(copy_lines(std::fs::File::from(out.into_owned_fd().map_err(io)?), device, None));
    }
    if let Some(err) = child.stderr.take() {
        log.push(copy_lines(
            std::fs::File::from(err.into_owned_fd().map_err(io)?),
            device,
            Some(errors.clone()),
        ));
    }
    Ok(log)
}

/// `errors`: the lines come from standard error; what the trainer failed to do is kept.
fn copy_lines(from: impl Read + Send + 'static, device: Device, errors: Option<Errors>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(std::result::Result::ok) {
            let Some(errors) = &errors else {
                println!("[{device}] {line}");
                continue;
            };
            if let Some(error) = line.strip_prefix("error: failed to ") {
                errors
                    .lock()
                    .unwrap_or_else(|e| e.into_inner())
                    .insert(device.to_string(), error.to_string());
            }
            eprintln!("[{device}] {line}");
        }
    })
}
