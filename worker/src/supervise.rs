//! `marey-worker run`: one trainer process a device, their logs forwarded, signals passed on.

use crate::{Error, Result, device::Device};
use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
    thread,
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

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
        forward(&mut child, *device)?;
        let device = *device;
        children.spawn(async move { (device, child.wait().await) });
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
fn forward(child: &mut Child, device: Device) -> Result<()> {
    let io = |source| Error::Io { path: format!("the log of {device}"), source };
    if let Some(out) = child.stdout.take() {
        copy_lines(std::fs::File::from(out.into_owned_fd().map_err(io)?), device, false);
    }
    if let Some(err) = child.stderr.take() {
        copy_lines(std::fs::File::from(err.into_owned_fd().map_err(io)?), device, true);
    }
    Ok(())
}

fn copy_lines(from: impl Read + Send + 'static, device: Device, to_stderr: bool) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(std::result::Result::ok) {
            if to_stderr {
                eprintln!("[{device}] {line}");
            } else {
                println!("[{device}] {line}");
            }
        }
    });
}
