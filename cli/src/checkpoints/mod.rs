//! `marey checkpoints`: what a run holds, whether it is whole, and removing what is no longer wanted.

mod run;

use crate::{
    Error, Rest, Result,
    siblings::{WORKER, become_sibling},
    words::{percent, size},
};
use run::{Found, State};
use serde_json::json;
use std::time::{Duration, UNIX_EPOCH};
use storage::Location;

/// What to do with a run's checkpoints.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List a run's checkpoints: step, epoch, time, size, workers, accuracy, and whether each is whole
    List {
        /// The run: s3://bucket/prefix, file:///path or a path
        run: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Read every byte of a run's checkpoints and compare it with its digest; exit status 1 if any is damaged
    Verify {
        /// The run: s3://bucket/prefix, file:///path or a path
        run: String,
        /// Only these steps
        #[arg(long = "step", value_name = "STEP")]
        steps: Vec<u64>,
    },
    /// Write a checkpoint's weights for its reference implementation (as `marey export`)
    #[command(disable_help_flag = true)]
    Export(Rest),
    /// Remove checkpoints, also unfinished ones
    Rm {
        /// The run: s3://bucket/prefix, file:///path or a path
        run: String,
        /// Steps to remove
        #[arg(required = true, value_name = "STEP")]
        steps: Vec<u64>,
        /// Also the newest whole one, from which the job would go on
        #[arg(long)]
        force: bool,
    },
}

/// Returns the exit status.
pub fn command(command: Command) -> Result<u8> {
    if let Command::Export(rest) = command {
        return become_sibling(WORKER, Some("export"), &rest.args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    runtime.block_on(async {
        match command {
            Command::List { run, json } => list(&Location::parse(&run)?, json).await,
            Command::Verify { run, steps } => verify(&Location::parse(&run)?, &steps).await,
            Command::Rm { run, steps, force } => remove(&Location::parse(&run)?, &steps, force).await,
            Command::Export(_) => Ok(()),
        }
    })?;
    Ok(0)
}

async fn list(run: &Location, json: bool) -> Result<()> {
    let found = run::checkpoints(run).await?;
    if json {
        let all: Vec<_> = found.iter().map(as_json).collect();
        println!("{:#}", serde_json::Value::Array(all));
        return Ok(());
    }
    println!(
        "{:>10}  {:>9}  {:<20}  {:>9}  {:>7}  {:>7}  {:>7}  state",
        "step", "epoch", "written", "size", "workers", "top-1", "mAP"
    );
    found.iter().for_each(|f| println!("{}", as_text(f)));
    Ok(())
}

fn as_text(f: &Found) -> String {
    let figure = |value: Option<f64>| value.map_or("-".into(), percent);
    let (epoch, workers, scores) = match f.manifest() {
        Some(m) if m.step_in_epoch == 0 => (m.epoch.to_string(), m.world_size.to_string(), m.scores),
        Some(m) => (format!("{}+{}", m.epoch, m.step_in_epoch), m.world_size.to_string(), m.scores),
        None => ("-".into(), "-".into(), Default::default()),
    };
    format!(
        "{:>10}  {epoch:>9}  {:<20}  {:>9}  {workers:>7}  {:>7}  {:>7}  {}",
        f.step,
        written(f.unix_ms),
        size(f.bytes),
        figure(scores.top1),
        figure(scores.map),
        state(f)
    )
}

fn as_json(f: &Found) -> serde_json::Value {
    let m = f.manifest();
    json!({
        "step": f.step,
        "epoch": m.map(|m| m.epoch),
        "step_in_epoch": m.map(|m| m.step_in_epoch),
        "written": written(f.unix_ms),
        "bytes": f.bytes,
        "world_size": m.map(|m| m.world_size),
        "top1": m.and_then(|m| m.scores.top1),
        "map": m.and_then(|m| m.scores.map),
        "whole": m.is_some(),
        "state": state(f),
    })
}

fn state(f: &Found) -> String {
    match &f.state {
        State::Whole(_) => "whole".into(),
        State::Damaged(why) => format!("damaged: {why}"),
        State::Unfinished => "unfinished: no manifest".into(),
    }
}

fn written(unix_ms: i64) -> String {
    let since = Duration::from_secs(unix_ms.max(0).unsigned_abs() / 1000);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

async fn verify(run: &Location, steps: &[u64]) -> Result<()> {
    let found = chosen(run, steps).await?;
    let mut damaged = vec![];
    for f in &found {
        let wrong = match &f.state {
            State::Whole(manifest) => wrong_files(run, f, &manifest.files).await?,
            State::Damaged(why) => vec![why.clone()],
            State::Unfinished if steps.is_empty() => {
                println!("step {}: unfinished: no manifest; no job goes on from it", f.step);
                continue;
            }
            State::Unfinished => vec!["it was never finished: there is no manifest".into()],
        };
        if wrong.is_empty() {
            println!("step {}: whole, {} verified", f.step, size(f.bytes));
            continue;
        }
        wrong.iter().for_each(|why| println!("step {}: damaged: {why}", f.step));
        damaged.push(f.step.to_string());
    }
    if damaged.is_empty() {
        return Ok(());
    }
    Err(Error::Damaged(format!(
        "verify {}: step {} is damaged; a job passes over it for the one before; `marey checkpoints rm` removes it",
        run.url(),
        damaged.join(", ")
    )))
}

/// What is wrong with the bytes of a checkpoint's files.
async fn wrong_files(run: &Location, f: &Found, files: &[run::File]) -> Result<Vec<String>> {
    let mut wrong = vec![];
    for file in files {
        let key = format!("{}/{}", f.folder(), file.key);
        match run.sha256_of(&key).await {
            Ok(digest) if digest == file.sha256 => {}
            Ok(digest) => {
                wrong.push(format!(
                    "{}: its SHA-256 is {digest} instead of {}",
                    run.url_of(&key),
                    file.sha256
                ));
            }
            Err(e) if e.is_not_found() => wrong.push(format!("{} is gone", run.url_of(&key))),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(wrong)
}

async fn remove(run: &Location, steps: &[u64], force: bool) -> Result<()> {
    let all = run::checkpoints(run).await?;
    let newest = all.iter().filter(|f| f.manifest().is_some()).map(|f| f.step).max();
    let found = pick(run, all, steps)?;
    if let (Some(newest), false) = (newest.filter(|n| steps.contains(n)), force) {
        return Err(Error::Usage(format!(
            "remove step {newest} of {}: it is the newest whole checkpoint, from which the job would go on; give --force to remove it all the same",
            run.url()
        )));
    }
    for f in found {
        // First, so that nobody takes the rest for a checkpoint.
        run.delete(&run::manifest_key(f.step)).await?;
        for key in &f.keys {
            run.delete(key).await?;
        }
        let folder = f.folder();
        run.remove_unfinished(&folder, |_| true).await?;
        println!("step {}: removed, {}", f.step, size(f.bytes));
    }
    Ok(())
}

/// These steps' checkpoints; all where none is named.
async fn chosen(run: &Location, steps: &[u64]) -> Result<Vec<Found>> {
    let all = run::checkpoints(run).await?;
    if steps.is_empty() { Ok(all) } else { pick(run, all, steps) }
}

fn pick(run: &Location, all: Vec<Found>, steps: &[u64]) -> Result<Vec<Found>> {
    if let Some(step) = steps.iter().find(|s| !all.iter().any(|f| f.step == **s)) {
        let there: Vec<String> = all.iter().map(|f| f.step.to_string()).collect();
        return Err(Error::Usage(format!(
            "find step {step} in {}: there are {}",
            run.url(),
            there.join(", ")
        )));
    }
    Ok(all.into_iter().filter(|f| steps.contains(&f.step)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use run::tests::run_of;

    #[tokio::test]
    async fn verify_reads_every_byte() {
        let (_dir, run) = run_of(&[10, 20]).await;
        verify(&run, &[]).await.unwrap();
        run.put("checkpoints/step-000000010/g1/model-1-of-1.safetensors", vec![9u8; 10]).await.unwrap();
        let e = verify(&run, &[]).await.unwrap_err();
        assert!(e.exit_code() == 1 && e.to_string().contains("step 10 is damaged"), "{e}");
        verify(&run, &[20]).await.unwrap();
        let e = verify(&run, &[30]).await.unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("there are 10, 20"), "{e}");
    }

    #[tokio::test]
    async fn the_newest_is_removed_by_force_only() {
        let (_dir, run) = run_of(&[10, 20, 30]).await;
        run.put("checkpoints/step-000000040/g1/model-1-of-1.safetensors", vec![1u8]).await.unwrap();
        let e = remove(&run, &[10, 30], false).await.unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("step 30"), "{e}");
        let steps = async || run::checkpoints(&run).await.unwrap().iter().map(|f| f.step).collect::<Vec<_>>();
        assert_eq!(steps().await, [10, 20, 30, 40], "nothing is removed of a refused request");
        remove(&run, &[10, 40], false).await.unwrap();
        assert_eq!(steps().await, [20, 30]);
        remove(&run, &[30], true).await.unwrap();
        assert_eq!(steps().await, [20]);
    }

    #[tokio::test]
    async fn a_line_says_what_is_known() {
        let (_dir, run) = run_of(&[10]).await;
        let found = run::checkpoints(&run).await.unwrap();
        let line = as_text(&found[0]);
        assert!(line.contains("50.0 %") && line.ends_with("whole"), "{line}");
        let json = as_json(&found[0]);
        assert_eq!((&json["epoch"], &json["whole"], &json["map"]), (&1.into(), &true.into(), &json!(null)));
        assert_eq!(written(1_700_000_000_000), "2023-11-14T22:13:20Z");
    }
}
