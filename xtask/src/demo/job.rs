//! A training job whose every process can be killed at once.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

/// When a job ends.
pub enum Stop {
    /// By itself, well.
    AtTheEnd,
    /// By SIGKILL to all of it, some steps after this many checkpoints were written.
    AfterCheckpoints(u64),
}

/// Runs `marey train`, passing its lines on.
pub fn run(mut command: Command, stop: Stop) -> Result<()> {
    let mut child = command.stderr(Stdio::piped()).spawn().context("start marey")?;
    let stderr = child.stderr.take().context("read what marey says")?;
    let (mut checkpoints, mut steps_since) = (0, 0);
    for line in BufReader::new(stderr).lines() {
        let line = line.context("read what marey says")?;
        println!("  {line}");
        checkpoints += u64::from(line.starts_with("checkpoint of step"));
        let Stop::AfterCheckpoints(n) = stop else { continue };
        // Some seconds after the checkpoint: work is lost, and done again.
        steps_since += u64::from(checkpoints >= n && line.contains("clips/s"));
        if steps_since >= 2 {
            let killed = kill_family(child.id())?;
            child.wait().context("see marey end")?;
            println!("  killed with SIGKILL: {}", killed.join(", "));
            return Ok(());
        }
    }
    let status = child.wait().context("see marey end")?;
    ensure!(status.success(), "train: marey ended with {status}");
    ensure!(matches!(stop, Stop::AtTheEnd), "kill the job half-way: it had ended by then");
    Ok(())
}

/// SIGKILL to a process and all its descendants; returns their names. All are looked up before
/// the first is killed: orphans would be found under another parent.
fn kill_family(root: u32) -> Result<Vec<String>> {
    let mut children: BTreeMap<u32, Vec<(u32, String)>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        // One that ended meanwhile has no file any more.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((name, parent)) = name_and_parent(&stat) {
            children.entry(parent).or_default().push((pid, name.into()));
        }
    }
    let mut family = vec![(root, "marey".to_string())];
    let mut next = 0;
    while next < family.len() {
        family.extend(children.remove(&family[next].0).unwrap_or_default());
        next += 1;
    }
    for (pid, _) in &family {
        if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
            // Some end by themselves as soon as their parent is gone.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    Ok(family.into_iter().map(|(pid, name)| format!("{name} {pid}")).collect())
}

/// From /proc/PID/stat: "pid (name) state parent ...".
fn name_and_parent(stat: &str) -> Option<(&str, u32)> {
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once(" (")?;
    Some((name, after.split(' ').nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_brackets_are_read() {
        assert_eq!(name_and_parent("12 (a) b) S 7 12 12 0"), Some(("a) b", 7)));
        assert_eq!(name_and_parent("nonsense"), None);
    }

    #[test]
    fn a_job_is_killed_with_its_children_after_its_checkpoint() {
        let script = "sleep 300 & echo $! >&2; \
            for line in 'checkpoint of step 1: x' '1.0 clips/s' '2.0 clips/s'; do echo $line >&2; done; wait; echo never >&2";
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, Stop::AfterCheckpoints(1)).unwrap();
    }

    #[test]
    fn a_failing_job_is_an_error() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        assert!(run(command, Stop::AtTheEnd).is_err());
        let mut command = Command::new("sh");
        command.args(["-c", "exit 0"]);
        assert!(run(command, Stop::AfterCheckpoints(1)).is_err());
    }
}
