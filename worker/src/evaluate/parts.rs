//! The work of an evaluation, in this process or dealt to one process a device.

use super::{pieces, plan::Plan};
use crate::{
    Error, Result,
    device::Device,
    restore::{Opened, Progress, Restored, cores},
};
use shards::{format::Dataset, plan::sequential};
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
};
use storage::Location;

/// One process's part, as the evaluation that started it says.
#[derive(Clone, Debug, clap::Args)]
pub struct PartArgs {
    /// The evaluation's folder, which holds its plan.
    #[arg(long)]
    pub out: String,
    /// The pieces to finish.
    #[arg(long, value_delimiter = ',')]
    pub pieces: Vec<usize>,
    /// "cpu:0" or "cuda:0".
    #[arg(long)]
    pub device: String,
    #[arg(long)]
    pub threads: usize,
    /// Views of one forward pass.
    #[arg(long)]
    pub batch: u32,
}

/// Finishes a part, with a line "done N" on stdout for each piece of N clips.
pub fn part(args: &PartArgs) -> Result<()> {
    let out = Location::parse(&args.out)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    let plan = runtime.block_on(Plan::read(&out))?;
    let opened = Opened::open(&plan.checkpoint)?;
    let dataset = opened.labelled_dataset(&plan.dataset)?;
    for (what, planned, found) in [
        (&plan.checkpoint, &plan.checkpoint_digest, &opened.digest),
        (&plan.dataset, &plan.dataset_digest, &dataset.digest),
    ] {
        if planned != found {
            return Err(Error::Usage(format!("evaluate {what}: it has changed since the evaluation began")));
        }
    }
    let restored = opened.restore(Device::parse(&args.device)?, Some(args.threads))?;
    work(&restored, &dataset, &plan, &out, &args.pieces, args.batch, |clips| println!("done {clips}"))
}

/// Judges the clips of the pieces `todo` and writes each piece as it is finished; `done` hears of its clips.
pub fn work(
    restored: &Restored,
    dataset: &Arc<Dataset>,
    plan: &Plan,
    out: &Location,
    todo: &[usize],
    batch: u32,
    mut done: impl FnMut(usize),
) -> Result<()> {
    let all = plan.clips_of(dataset)?;
    if let Some(bad) = todo.iter().find(|&&p| p >= plan.pieces()) {
        return Err(Error::Usage(format!("evaluate piece {bad}: there are {}", plan.pieces())));
    }
    let clips: Vec<_> = todo.iter().flat_map(|&p| &all[plan.places(p)]).copied().collect();
    let mut left = todo.iter();
    let mut piece = left.next();
    let mut finished = vec![];
    restored.score(dataset, clips.clone(), &plan.test()?, batch, plan.view_scores, |judged| {
        finished.push(judged);
        let Some(&number) = piece.filter(|&&p| plan.places(p).len() == finished.len()) else { return Ok(()) };
        let metas: Vec<_> = finished.iter().map(|f| dataset.clip(clips[f.place() as usize])).collect();
        restored.block_on(pieces::write(out, number, &metas, &finished, plan.view_scores))?;
        done(finished.len());
        finished.clear();
        piece = left.next();
        Ok(())
    })
}

/// Deals `todo` to one process a device, each a contiguous range of it, and waits for all. One that dies does
/// not stop the others.
///
/// # Errors
/// Names every process that failed and how many clips are left to judge.
pub fn spread(
    plan: &Plan,
    out: &Location,
    todo: &[usize],
    devices: &[Device],
    threads: Option<usize>,
    batch: u32,
    progress: &mut Progress,
) -> Result<()> {
    let program =
        std::env::current_exe().map_err(|source| Error::Io { path: "the running program".into(), source })?;
    let threads = (threads.unwrap_or_else(cores) / devices.len()).max(1).to_string();
    let (to, lines) = mpsc::channel();
    let mut children = vec![];
    for (rank, device) in devices.iter().enumerate() {
        let part = sequential(todo.len() as u64, rank as u32, devices.len() as u32);
        let part = &todo[part.start as usize..part.end as usize];
        if part.is_empty() {
            continue;
        }
        let list = part.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let mut child = Command::new(&program)
            .args(["eval-part", "--out", out.url(), "--pieces", &list, "--device", &device.to_string()])
            .args(["--threads", &threads, "--batch", &batch.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Io { path: program.display().to_string(), source })?;
        forward(&mut child, to.clone());
        children.push((*device, child, part));
    }
    drop(to);
    // Ends when the last process has closed its output.
    lines.iter().for_each(|clips| progress.advance(clips));
    let mut failures = vec![];
    let mut code = 0;
    for (device, mut child, part) in children {
        let status =
            child.wait().map_err(|source| Error::Io { path: format!("the process on {device}"), source })?;
        if !status.success() {
            code = code.max(if status.code() == Some(2) { 2 } else { 1 });
            failures.push(format!("{device}, which had {} clips, ended with {status}", plan.count(part)));
        }
    }
    match code {
        0 => Ok(()),
        2 => Err(Error::Usage(format!("evaluate on {}; the reason is above", failures.join("; ")))),
        _ => Err(Error::Evaluation(format!("evaluate on {}", failures.join("; ")))),
    }
}

/// Passes the numbers of "done N" lines on.
fn forward(child: &mut Child, to: mpsc::Sender<usize>) {
    let Some(stdout) = child.stdout.take() else { return };
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
            if let Some(clips) = line.strip_prefix("done ").and_then(|n| n.parse().ok()) {
                // The receiver outlives every sender.
                let _ = to.send(clips);
            }
        }
    });
}
