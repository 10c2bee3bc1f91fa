//! The programs that `marey train` runs: started with a log each, ended with this one.

use crate::{Error, Result};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    process::{Child as Process, Command},
    time::timeout,
};

/// How much of a log is read to show its end.
const TAIL_BYTES: i64 = 8192;
const TAIL_LINES: usize = 15;

/// A running program. Killed when dropped.
pub struct Child {
    pub name: &'static str,
    pub log: PathBuf,
    process: Process,
}

impl Child {
    /// Starts `program`; standard error goes to `name.log` in `folder`, standard output too
    /// unless `stdout` takes it.
    pub fn start(
        name: &'static str,
        program: &Path,
        args: &[String],
        folder: &Path,
        stdout: Option<Stdio>,
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let io = |source| Error::Io { path: log.clone(), source };
        let file = File::create(&log).map_err(io)?;
        let stdout = match stdout {
            Some(s) => s,
            None => file.try_clone().map_err(io)?.into(),
        };
        let process = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(file)
            // Ctrl-C reaches this program alone, which then ends them in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::Start { program: program.into(), source })?;
        Ok(Self { name, log, process })
    }

    /// Its standard output, once, if it was piped.
    pub fn stdout(&mut self) -> Option<tokio::process::ChildStdout> {
        self.process.stdout.take()
    }

    /// Waits for its end. May be called again.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait().await.map_err(|source| Error::Io { path: self.name.into(), source })
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        let pid = self.process.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // It may just have gone by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Gives it `patience` to end by itself, as long again after SIGTERM, then kills it.
    pub async fn end(&mut self, patience: Duration) -> Result<ExitStatus> {
        if let Ok(status) = timeout(patience, self.wait()).await {
            return status;
        }
        self.terminate();
        if let Ok(status) = timeout(patience, self.wait()).await {
            return status;
        }
        let _ = self.process.start_kill();
        self.wait().await
    }

    /// Ended too early: with its own last message, if it left one.
    pub fn died(&self, status: ExitStatus) -> Error {
        match self.last_words() {
            Some(text) => Error::Said { text, status },
            None => Error::Died { program: self.name, status, log: self.log.clone() },
        }
    }

    fn last_words(&self) -> Option<String> {
        let tail = tail(&self.log).ok()?;
        // A supervisor puts the device's name before its trainer's lines.
        tail.lines().rev().find_map(|l| Some(l.split_once("error: failed to ")?.1.to_string()))
    }

    /// The end of its log, for a person who must find out why.
    pub fn tail(&self) -> String {
        match tail(&self.log) {
            Ok(text) if text.is_empty() => format!("{} wrote nothing", self.name),
            Ok(text) => format!("the last lines of {}:\n{text}", self.log.display()),
            Err(e) => format!("failed to read {}: {e}", self.log.display()),
        }
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len() as i64;
    file.seek(SeekFrom::End(-length.min(TAIL_BYTES)))?;
    let mut bytes = vec![];
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    Ok(lines[from..].iter().map(|l| format!("  {l}\n")).collect::<String>().trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, dir: &Path) -> Child {
        Child::start("sh", Path::new("/bin/sh"), &["-c".into(), script.into()], dir, None).unwrap()
    }

    #[tokio::test]
    async fn a_log_keeps_both_streams_and_its_end_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = shell("for i in $(seq 40); do echo line $i; done; echo bad >&2; exit 2", dir.path());
        let status = child.wait().await.unwrap();
        assert_eq!(status.code(), Some(2));
        let tail = child.tail();
        assert!(tail.ends_with("bad") && tail.contains("line 40") && !tail.contains("line 20"), "{tail}");
        let e = child.died(status);
        assert!(matches!(e, Error::Died { .. }) && e.exit_code() == 2, "{e}");

        let mut child = shell("echo '[cpu:1] error: failed to read x: no' >&2; exit 2", dir.path());
        let status = child.wait().await.unwrap();
        let e = child.died(status);
        assert_eq!((e.to_string().as_str(), e.exit_code()), ("read x: no", 2));
    }

    #[tokio::test]
    async fn one_that_does_not_listen_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = shell("trap '' TERM; while :; do sleep 1; done", dir.path());
        let status = child.end(Duration::from_millis(100)).await.unwrap();
        assert_eq!(status.code(), None);
    }
}
