//! A training job as real processes that can be killed, and what it leaves behind.

use crate::{marey, program};
use rustix::process::{Pid, Signal};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

/// No line of a job is awaited longer than this, nor its end once it says nothing more.
const PATIENCE: Duration = Duration::from_secs(100);
/// A folder for what each process says, line by line as it comes: for whoever looks into a failed test.
const LOGS: &str = "MAREY_TEST_LOGS";

/// `marey train ...` and all the processes that it starts.
pub struct Job {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Job {
    /// Starts `marey train CONFIG --workers N --run RUN` with more arguments.
    pub fn train(config: &Path, workers: usize, run: &str, more: &[&str]) -> Self {
        let workers = workers.to_string();
        let mut args = vec!["train", config.to_str().expect("UTF-8"), "--workers", &workers, "--run", run];
        args.extend(more);
        Self::start(marey(&args))
    }

    /// Starts a prepared command.
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("marey starts");
        let (to, lines) = channel();
        let log = std::env::var_os(LOGS).map(|folder| Path::new(&folder).join(format!("{}.log", child.id())));
        send_lines(child.stdout.take().expect("a pipe"), to.clone(), log.clone());
        send_lines(child.stderr.take().expect("a pipe"), to, log);
        Self { child, lines, seen: vec![] }
    }

    /// Starts `marey-coordinator` for a run and waits for its address.
    pub fn coordinator(config: &Path, run: &Path, listen: &str, overrides: &[&str]) -> (Self, String) {
        let run = run.to_str().expect("UTF-8");
        let mut job = Self::start(coordinator(config, run, listen, overrides));
        let address = job.listening();
        (job, address)
    }

    /// Starts `marey-worker run` with one trainer, which records its clips.
    pub fn worker(address: &str) -> Self {
        Self::start(worker(address))
    }

    /// Waits until a coordinator serves; returns its address.
    pub fn listening(&mut self) -> String {
        loop {
            // Its log has these words too.
            if let Some(address) = self.wait_line(&["listening on "]).strip_prefix("listening on ") {
                return address.to_string();
            }
        }
    }

    /// Sends a signal to the program itself, not to what it started.
    pub fn signal(&self, of: Signal) {
        signal(self.child.id() as i32, of);
    }

    /// Reads lines until one holds all of `words`; returns it.
    pub fn wait_line(&mut self, words: &[&str]) -> String {
        self.wait_any(&[words])
    }

    /// Reads a coordinator's lines until one tells of another step.
    pub fn wait_step(&mut self) -> String {
        self.wait_line(&["step ", " of ", ": loss "])
    }

    /// Reads lines until one holds all words of one of these lists; returns it.
    pub fn wait_any(&mut self, lists: &[&[&str]]) -> String {
        loop {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|e| panic!("no line with {lists:?} ({e}):\n{}", self.seen.join("\n")));
            self.seen.push(line.clone());
            if lists.iter().any(|words| words.iter().all(|w| line.contains(w))) {
                return line;
            }
        }
    }

    /// SIGKILL to every process of the job: coordinator, supervisor, trainers and `marey` itself. Returns all that
    /// was said.
    pub fn kill_all(mut self) -> String {
        let all = self.processes();
        assert!(!all.is_empty(), "the job is alive");
        all.into_iter().for_each(kill);
        self.end();
        self.seen.join("\n")
    }

    /// One of the job's processes, by words of its command line.
    pub fn find_process(&self, words: &[&str]) -> Option<i32> {
        self.processes().into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            words.iter().all(|w| line.contains(w))
        })
    }

    /// `marey` and all that it started, directly or not.
    fn processes(&self) -> Vec<i32> {
        let parents: Vec<(i32, i32)> = std::fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
                Some((pid, stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?))
            })
            .collect();
        let mut all = vec![self.child.id() as i32];
        let mut next = 0;
        while next < all.len() {
            let parent = all[next];
            all.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        all
    }

    /// Waits for the end, which must be a good one; returns all that was said.
    pub fn finish(mut self) -> String {
        let code = self.end();
        assert_eq!(code, Some(0), "{}", self.seen.join("\n"));
        self.seen.join("\n")
    }

    /// Waits for the end; returns the exit code and all that was said.
    pub fn finish_any(mut self) -> (Option<i32>, String) {
        let code = self.end();
        (code, self.seen.join("\n"))
    }

    fn end(&mut self) -> Option<i32> {
        // The pipe closes when the last process of the job is gone.
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().expect("it ends").code(),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("it neither ends nor says anything:\n{}", self.seen.join("\n"))
                }
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.processes().into_iter().for_each(kill);
            let _ = self.child.wait();
        }
    }
}

fn send_lines(from: impl Read + Send + 'static, to: Sender<String>, log: Option<PathBuf>) {
    let mut log = log.map(|log| OpenOptions::new().create(true).append(true).open(log).expect("a file"));
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if let Some(log) = &mut log {
                log.write_all(format!("{line}\n").as_bytes()).expect("written");
            }
            if to.send(line).is_err() {
                return;
            }
        }
    });
}

/// `marey-coordinator`, which says each step in its log.
pub fn coordinator(config: &Path, run: &str, listen: &str, overrides: &[&str]) -> Command {
    let mut command = Command::new(program("marey-coordinator"));
    command.args(["--listen", listen, "--run", run, "--config"]).arg(config);
    command.args(overrides.iter().flat_map(|o| ["--set", o])).env("MAREY_LOG", "info,coordinator=debug");
    command
}

/// `marey-worker run` with one trainer, which records its clips.
pub fn worker(address: &str) -> Command {
    let mut command = Command::new(program("marey-worker"));
    command.args(["run", "--coordinator", address, "--devices", "cpu:1", "--threads", "1"]);
    command.env("RUST_LOG", "info,clips=debug");
    command
}

/// Sends a signal to a process, which must be there.
pub fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, signal).expect("it is alive");
}

/// SIGKILL; a process that is gone already is fine.
pub fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Epoch and clips of each step, as workers record them; where a step was begun again, the newest generation counts.
pub fn clips<'a>(said: impl IntoIterator<Item = &'a str>) -> BTreeMap<u64, (u64, Vec<String>)> {
    let mut steps: BTreeMap<u64, (u64, u64, Vec<String>)> = BTreeMap::new();
    for line in said.into_iter().flat_map(str::lines) {
        let Some((head, ids)) = line.split_once(", clips:") else { continue };
        let numbers = head.rsplit("generation ").next().expect("a generation");
        let numbers: Vec<u64> =
            numbers.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        let [generation, _rank, epoch, step] = numbers[..] else { panic!("{line}") };
        let entry = steps.entry(step).or_insert((generation, epoch, vec![]));
        if generation > entry.0 {
            *entry = (generation, epoch, vec![]);
        }
        if generation == entry.0 {
            entry.2.extend(ids.split_whitespace().map(String::from));
        }
    }
    let sorted = |(_, epoch, mut ids): (u64, u64, Vec<String>)| {
        ids.sort();
        (epoch, ids)
    };
    steps.into_iter().map(|(step, entry)| (step, sorted(entry))).collect()
}

/// Loss by step from a run's metrics; where a step was repeated, the latest generation counts.
pub fn losses(run: &Path) -> BTreeMap<u64, f64> {
    events(run)
        .into_iter()
        .filter(|e| e["kind"] == "step")
        .map(|e| (e["step"].as_u64().expect("step"), e["loss"].as_f64().expect("loss")))
        .collect()
}

/// Every event of a run, oldest generation first.
pub fn events(run: &Path) -> Vec<Value> {
    let mut files: Vec<_> =
        std::fs::read_dir(run.join("metrics")).expect("metrics").map(|e| e.expect("entry").path()).collect();
    files.sort();
    files
        .iter()
        .flat_map(|f| {
            let text = std::fs::read_to_string(f).expect("metrics are text");
            text.lines().map(|l| serde_json::from_str(l).expect("JSON lines")).collect::<Vec<Value>>()
        })
        .collect()
}

/// Every tensor of a checkpoint by file kind and name: dtype, shape and bytes.
pub fn checkpoint(run: &Path, step: u64) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let folder = run.join(format!("checkpoints/step-{step:09}"));
    let manifest = std::fs::read(folder.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let mut all = BTreeMap::new();
    for file in manifest["files"].as_array().expect("files") {
        let key = file["key"].as_str().expect("key");
        let kind = key.rsplit('/').next().and_then(|n| n.split('-').next()).expect("kind");
        let bytes = std::fs::read(folder.join(key)).expect("the shard");
        for (name, t) in SafeTensors::deserialize(&bytes).expect("safetensors").iter() {
            let value = (format!("{:?}", t.dtype()), t.shape().to_vec(), t.data().to_vec());
            assert!(all.insert(format!("{kind}/{name}"), value).is_none(), "{name} is there twice");
        }
    }
    assert!(!all.is_empty());
    all
}
