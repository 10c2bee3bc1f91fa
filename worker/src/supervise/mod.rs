//! `marey-worker run`: one trainer process a device, started again when it dies; logs forwarded, signals passed on.

mod exit;

use crate::{Error, Result, device::Device, session};
use configs::Config;
use proto::{
    Access,
    v1::{self, coordinator_client::CoordinatorClient},
};
use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};
use storage::Location;
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
    sync::broadcast,
    task::JoinSet,
    time::{sleep, timeout},
};

/// What a trainer prints once it has finished a step: it gets on, so its next end is not one more in a row.
pub const STEPPED: &str = "marey: a step is done";
/// Exit status of a trainer that was let go so that a fresh process takes its place.
pub const AGAIN: u8 = 4;
/// Exit status of a trainer in whose place another would fare no better; the supervisor's own is 1 then.
pub const FINAL: u8 = 3;

/// So many of a trainer's last lines go with the report of its end.
const LAST_LINES: usize = 20;
/// The longest pause before a trainer is started again.
const LONGEST: Duration = Duration::from_secs(30);
/// The coordinator is told of an end for at most this long.
const TELL: Duration = Duration::from_secs(5);

/// What every trainer of this node is told.
#[derive(Clone, Debug)]
pub struct Node {
    pub coordinator: String,
    /// What this node shows to the coordinator, and asks of it.
    pub access: Access,
    pub devices: Vec<Device>,
    /// Passed on to each trainer as they are.
    pub extra: Vec<String>,
    /// Compute threads of each trainer.
    pub threads: usize,
}

/// How to start trainers, and how often.
struct Plan {
    program: PathBuf,
    args: Vec<String>,
    /// Ends in a row, without a step in between, after which a trainer is started again.
    restarts: u32,
    /// The first pause; it doubles with each end in a row.
    pause: Duration,
}

/// Starts the trainers and keeps them running. Returns the exit code once none is left: 0 only if all ended well; 2
/// if any says that the user must change something. One that dies does not take the others along: the coordinator
/// decides how the job goes on.
pub async fn run(node: Node) -> Result<u8> {
    let mut signals = Signals::catch()?;
    let (plan, run) = tokio::select! {
        prepared = prepare(&node) => prepared?,
        // Nobody counts on this node yet.
        _ = signals.stop() => return Ok(0),
    };
    keep(plan, &node.devices, signals, move |report| {
        tell(node.coordinator.clone(), node.access.clone(), run.clone(), report)
    })
    .await
}

/// What the job asks of its trainers, and the run.
async fn prepare(node: &Node) -> Result<(Plan, Location)> {
    let program =
        std::env::current_exe().map_err(|source| Error::Io { path: "the running program".into(), source })?;
    let channel = session::connect(&node.coordinator, &node.access).await?;
    let job = session::get_job(channel, &node.coordinator).await?;
    let cluster = Config::parse("the coordinator's configuration", &job.config_toml, &[])?.cluster.clone();
    let mut args = ["trainer", "--coordinator", &node.coordinator].map(String::from).to_vec();
    args.extend(["--threads".into(), node.threads.to_string()]);
    args.extend(["--run".into(), job.run_url.clone()]);
    args.extend(["--grace".into(), cluster.coordinator_grace.duration().as_secs_f64().to_string()]);
    args.extend(node.extra.iter().cloned());
    let plan = Plan { program, args, restarts: cluster.restarts, pause: Duration::from_secs(1) };
    Ok((plan, Location::parse(&job.run_url)?))
}

/// What this program is told.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    user: Signal,
}

impl Signals {
    fn catch() -> Result<Self> {
        let caught = |kind, name: &str| {
            signal(kind).map_err(|source| Error::Io { path: format!("the signal {name}"), source })
        };
        Ok(Self {
            terminate: caught(SignalKind::terminate(), "SIGTERM")?,
            interrupt: caught(SignalKind::interrupt(), "SIGINT")?,
            user: caught(SignalKind::user_defined1(), "SIGUSR1")?,
        })
    }

    /// Trainers are a group of their own: a terminal's Ctrl-C reaches this program alone.
    async fn stop(&mut self) -> rustix::process::Signal {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        rustix::process::Signal::TERM
    }

    /// What the trainers are to be sent.
    async fn next(&mut self) -> rustix::process::Signal {
        tokio::select! {
            _ = self.terminate.recv() => rustix::process::Signal::TERM,
            _ = self.interrupt.recv() => rustix::process::Signal::TERM,
            _ = self.user.recv() => rustix::process::Signal::USR1,
        }
    }
}

/// Keeps a trainer on each device; `tell` is given each end that was not a good one.
async fn keep<F, T>(plan: Plan, devices: &[Device], mut signals: Signals, tell: T) -> Result<u8>
where
    T: Fn(v1::ExitReport) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (pass_on, _) = broadcast::channel(16);
    let (plan, mut trainers) = (Arc::new(plan), JoinSet::new());
    for device in devices {
        trainers.spawn(keep_one(plan.clone(), *device, pass_on.subscribe(), tell.clone()));
    }
    let mut code = 0u8;
    loop {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            ended = trainers.join_next() => match ended {
                None => return Ok(code),
                Some(Ok(of_one)) => { code = code.max(of_one); continue }
                Some(Err(e)) => { eprintln!("the supervisor is broken: {e}"); code = code.max(1); continue }
            }
        };
        // Without a receiver there is no trainer left.
        let _ = pass_on.send(signal);
    }
}

/// One device's trainers, one after the other. Returns the exit code of the last.
async fn keep_one<F: Future<Output = ()> + Send + 'static>(
    plan: Arc<Plan>,
    device: Device,
    mut signals: broadcast::Receiver<rustix::process::Signal>,
    tell: impl Fn(v1::ExitReport) -> F,
) -> u8 {
    // How often it was told to stop, and how often its trainers ended without a step in between.
    let (mut stops, mut in_a_row) = (0, 0);
    loop {
        let kills = exit::memory_kills();
        let mut trainer = match Trainer::start(&plan, device) {
            Ok(trainer) => trainer,
            Err(e) => {
                eprintln!("[{device}] error: failed to {e}");
                return 1;
            }
        };
        let pid = trainer.child.id().unwrap_or_default();
        let status = loop {
            tokio::select! {
                status = trainer.child.wait() => break status,
                Ok(signal) = signals.recv() => {
                    stops += u32::from(signal == rustix::process::Signal::TERM);
                    trainer.send(signal);
                }
            }
        };
        let said = trainer.last_words().await;
        let status = match status {
            Ok(status) => status,
            Err(e) => {
                eprintln!("[{device}] the trainer is lost: {e}");
                return 1;
            }
        };
        // Told to stop before it could ask to be let go; told twice, it has left nothing in order.
        let told = stops == 1 && cut_off(status);
        if status.success() || told {
            return 0;
        }
        in_a_row = if said.stepped { 1 } else { in_a_row + 1 };
        let hopeless = matches!(status.code(), Some(code) if code == 2 || code == i32::from(FINAL));
        let restarts = stops == 0 && !hopeless && in_a_row <= plan.restarts;
        let cause = match status.code() {
            Some(code) if code == i32::from(AGAIN) => "it was let go to be replaced".into(),
            _ => exit::cause(status, pid, exit::memory_kills() > kills),
        };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let report = v1::ExitReport {
            worker: format!("{host}-{pid}-{device}"),
            host,
            device: device.to_string(),
            cause: cause.clone(),
            last_lines: said.lines.into(),
            restarts,
        };
        if !restarts {
            tell(report).await;
            eprintln!("[{device}] the trainer ended: {cause}");
            if let Some(error) = said.error {
                eprintln!("error: failed to train on {device}: {error}");
            }
            return if status.code() == Some(2) { 2 } else { 1 };
        }
        let pause = (plan.pause * 2u32.saturating_pow(in_a_row - 1)).min(LONGEST);
        eprintln!(
            "[{device}] the trainer ended: {cause}; it is started again in {:.0} s ({in_a_row} of {} times in a row)",
            pause.as_secs_f64(),
            plan.restarts
        );
        let paused = async { tokio::join!(tell(report), sleep(pause)) };
        let told = async { while !matches!(signals.recv().await, Ok(rustix::process::Signal::TERM)) {} };
        tokio::select! {
            _ = paused => {}
            () = told => return 0,
        }
    }
}

/// Ended by SIGTERM, caught or not.
fn cut_off(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal() == Some(15) || status.code() == Some(143)
}

/// Tells the coordinator of a trainer's end, if one can be reached soon.
async fn tell(address: String, access: Access, run: Location, report: v1::ExitReport) {
    let to = async |address: &str| {
        let channel = session::connect(address, &access).await.ok()?;
        CoordinatorClient::new(channel).report_exit(report.clone()).await.ok()
    };
    let told = timeout(TELL, async {
        if to(&address).await.is_some() {
            return Some(());
        }
        // It may have moved.
        let moved = session::leader(&run).await.ok()??;
        to(&moved).await.map(|_| ())
    });
    if !matches!(told.await, Ok(Some(()))) {
        tracing::debug!("the coordinator was not told of the end of {}", report.worker);
    }
}

/// A running trainer and the threads that copy its log.
struct Trainer {
    child: Child,
    said: Arc<Mutex<Said>>,
    log: Vec<JoinHandle<()>>,
}

/// What a trainer has said.
#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<String>,
    /// What it failed to do, in its own words.
    error: Option<String>,
    stepped: bool,
}

impl Trainer {
    fn start(plan: &Plan, device: Device) -> Result<Self> {
        let mut child = command(&plan.program)
            .args(&plan.args)
            .args(["--device", &device.to_string()])
            .spawn()
            .map_err(|source| Error::Io { path: plan.program.display().to_string(), source })?;
        let io = |source| Error::Io { path: format!("the log of {device}"), source };
        let (said, mut log) = (Arc::<Mutex<Said>>::default(), vec![]);
        if let Some(out) = child.stdout.take() {
            log.push(copy_lines(std::fs::File::from(out.into_owned_fd().map_err(io)?), device, &said, false));
        }
        if let Some(err) = child.stderr.take() {
            log.push(copy_lines(std::fs::File::from(err.into_owned_fd().map_err(io)?), device, &said, true));
        }
        Ok(Self { child, said, log })
    }

    fn send(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // One that is gone already needs no signal.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// After its end: some of it may still be in the pipes.
    async fn last_words(self) -> Said {
        let log = self.log;
        let _ = tokio::task::spawn_blocking(|| log.into_iter().for_each(|l| drop(l.join()))).await;
        std::mem::take(&mut *self.said.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Copies a trainer's lines to ours, each with its device's name, and keeps the last.
fn copy_lines(
    from: impl Read + Send + 'static,
    device: Device,
    said: &Arc<Mutex<Said>>,
    errors: bool,
) -> JoinHandle<()> {
    let said = said.clone();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(std::result::Result::ok) {
            let mut said = said.lock().unwrap_or_else(|e| e.into_inner());
            if !errors && line == STEPPED {
                said.stepped = true;
                continue;
            }
            if let Some(error) = line.strip_prefix("error: failed to ").filter(|_| errors) {
                said.error = Some(error.into());
            }
            match errors {
                true => eprintln!("[{device}] {line}"),
                false => println!("[{device}] {line}"),
            }
            if said.lines.len() == LAST_LINES {
                said.lines.pop_front();
            }
            said.lines.push_back(line);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trainer played by a shell, which counts its starts in `starts`.
    async fn keep_shell(dir: &Path, script: &str, restarts: u32) -> (u8, usize, Vec<v1::ExitReport>) {
        let starts = dir.join("starts");
        let script = format!("echo x >> {}\n{script}", starts.display());
        let plan = Plan {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script, "trainer".into()],
            restarts,
            pause: Duration::from_millis(1),
        };
        let told = Arc::<Mutex<Vec<v1::ExitReport>>>::default();
        let tell = {
            let told = told.clone();
            move |report| {
                told.lock().unwrap().push(report);
                std::future::ready(())
            }
        };
        let code = keep(plan, &[Device::Cpu(0)], Signals::catch().unwrap(), tell).await.unwrap();
        let starts = std::fs::read_to_string(starts).unwrap().lines().count();
        let told = told.lock().unwrap().clone();
        (code, starts, told)
    }

    #[tokio::test]
    async fn a_trainer_that_gets_nowhere_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (code, starts, told) =
            keep_shell(dir.path(), "for i in $(seq 30); do echo line $i >&2; done; kill -SEGV $$", 2).await;
        assert_eq!((code, starts, told.len()), (1, 3, 3));
        assert!(told[0].cause.contains("SIGSEGV"), "{told:?}");
        assert_eq!(told.iter().map(|r| r.restarts).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(told[0].last_lines.len(), LAST_LINES);
        assert_eq!(told[0].last_lines.last().map(String::as_str), Some("line 30"));
    }

    #[tokio::test]
    async fn a_step_in_between_sets_the_count_back() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "[ $(wc -l < {}/starts) -ge 5 ] && exit 0; echo '{STEPPED}'; exit 1",
            dir.path().display()
        );
        let (code, starts, told) = keep_shell(dir.path(), &script, 1).await;
        assert_eq!((code, starts, told.len()), (0, 5, 4));
        assert!(told.iter().all(|r| r.restarts && r.cause == "exit status 1"), "{told:?}");
    }

    #[tokio::test]
    async fn mistakes_and_final_ends_are_not_repeated() {
        for (status, code) in [(0, 0), (2, 2), (i32::from(FINAL), 1)] {
            let dir = tempfile::tempdir().unwrap();
            let (got, starts, _) = keep_shell(dir.path(), &format!("exit {status}"), 9).await;
            assert_eq!((got, starts), (code, 1), "exit status {status}");
        }
    }

    #[tokio::test]
    async fn one_that_was_let_go_to_be_replaced_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("[ $(wc -l < {}/starts) -ge 2 ] && exit 0; exit {AGAIN}", dir.path().display());
        let (code, starts, told) = keep_shell(dir.path(), &script, 1).await;
        assert_eq!((code, starts, told.len()), (0, 2, 1));
        assert!(told[0].restarts && told[0].cause.contains("replaced"), "{told:?}");
    }
}
