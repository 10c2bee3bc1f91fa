//! Where a job stands: its members, its newest checkpoint, what went wrong lately; and letting a worker go.

use crate::{Error, Result, words};
use proto::{
    AccessArgs, Connection,
    v1::{
        Incident, JobEvent, JobStatus, MemberStatus, ReleaseRequest, StatusRequest,
        coordinator_client::CoordinatorClient, job_event::Kind,
    },
};
use serde_json::{Value, json};

/// Incidents that are printed; `--json` has all that the coordinator tells.
const INCIDENTS: usize = 10;

/// Show where a job stands.
#[derive(clap::Args)]
pub struct StatusArgs {
    /// The coordinator's address, host:port
    #[arg(value_name = "ADDR")]
    coordinator: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

/// Let a worker go at the next step boundary.
#[derive(clap::Args)]
pub struct ReleaseArgs {
    /// Its name, as `marey status` shows it
    #[arg(value_name = "WORKER")]
    worker: String,
    /// The coordinator's address, host:port
    #[arg(long, value_name = "ADDR")]
    coordinator: String,
    /// Why, for the log
    #[arg(long, value_name = "TEXT", default_value = "released by request")]
    reason: String,
    #[command(flatten)]
    access: AccessArgs,
}

/// Prints the status; returns the exit status.
pub fn status(args: &StatusArgs) -> Result<u8> {
    let status = ask(&args.coordinator, &args.access, async |mut client| {
        client.status(StatusRequest {}).await.map(tonic::Response::into_inner)
    })?;
    let text = if args.json { format!("{:#}", as_json(&status)) } else { as_text(&status) };
    println!("{text}");
    Ok(0)
}

/// Asks for the release; returns the exit status.
pub fn release(args: &ReleaseArgs) -> Result<u8> {
    let request = ReleaseRequest { worker: args.worker.clone(), reason: args.reason.clone() };
    ask(&args.coordinator, &args.access, async |mut client| client.release(request).await)?;
    println!("{} leaves at the next step boundary", args.worker);
    Ok(0)
}

/// One call of the coordinator at `address`.
fn ask<T>(
    address: &str,
    access: &AccessArgs,
    call: impl AsyncFnOnce(CoordinatorClient<Connection>) -> std::result::Result<T, tonic::Status>,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    runtime.block_on(async {
        let client = CoordinatorClient::new(access.read()?.connection(address)?);
        call(client).await.map_err(|s| match s.code() {
            tonic::Code::NotFound => Error::NoWorker { why: s.message().into(), address: address.into() },
            _ => Error::Unreachable { address: address.into(), why: words::refusal(&s) },
        })
    })
}

fn as_text(s: &JobStatus) -> String {
    let mut lines = vec![format!("run          {}", s.run_url)];
    lines.push(format!("coordinator  number {}", s.coordinator));
    lines.push(format!("generation   {}, {}", s.generation, s.state));
    if let Some(step) = &s.step {
        let (n, total, loss) = (step.step, step.total_steps, step.loss);
        lines.push(format!("step         {n} of {total}, loss {loss:.4}"));
    }
    lines.push(match s.committed {
        0 => "checkpoint   none yet".into(),
        step => format!("checkpoint   of step {step}"),
    });
    let mut table =
        vec![["rank", "worker", "host", "device", "phase", "step", "silent", "still"].map(String::from)];
    table.extend(s.members.iter().map(row));
    let width = |i: usize| table.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    lines.push(String::new());
    lines.extend(table.iter().map(|r| {
        let cells: Vec<String> = r.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        cells.join("  ").trim_end().to_string()
    }));
    let from = s.incidents.len().saturating_sub(INCIDENTS);
    if !s.incidents.is_empty() {
        lines.extend([String::new(), "incidents".to_string()]);
    }
    lines.extend(
        incidents(&s.incidents[from..]).map(|(at, i)| format!("{}  {}", words::time(at), words::incident(i))),
    );
    lines.join("\n")
}

fn row(m: &MemberStatus) -> [String; 8] {
    let beat = m.beat.clone().unwrap_or_default();
    let phase = match (m.leaving, m.rank) {
        (true, _) => "leaving".into(),
        (false, None) => "at the door".into(),
        (false, Some(_)) => beat.phase,
    };
    [
        m.rank.map_or("-".into(), |r| r.to_string()),
        m.worker.clone(),
        m.host.clone(),
        m.device.clone(),
        phase,
        beat.step.to_string(),
        format!("{:.1} s", m.silent_seconds),
        format!("{:.1} s", m.still_seconds),
    ]
}

fn as_json(s: &JobStatus) -> Value {
    let members: Vec<Value> = s
        .members
        .iter()
        .map(|m| {
            let beat = m.beat.clone().unwrap_or_default();
            json!({
                "worker": m.worker, "host": m.host, "device": m.device, "rank": m.rank, "leaving": m.leaving,
                "phase": beat.phase, "step": beat.step, "step_seconds": beat.step_seconds,
                "data_wait_seconds": beat.data_wait_seconds, "exchange_wait_seconds": beat.exchange_wait_seconds,
                "silent_seconds": m.silent_seconds, "still_seconds": m.still_seconds,
            })
        })
        .collect();
    let incidents: Vec<Value> = incidents(&s.incidents)
        .map(|(at, i)| {
            json!({
                "unix_ms": at, "incident": i.kind, "generation": i.generation, "worker": i.worker, "rank": i.rank,
                "host": i.host, "step": i.step, "phase": i.phase, "collective": i.collective, "clip": i.clip, "cause": i.cause, "seconds": i.seconds,
                "last_lines": i.last_lines,
            })
        })
        .collect();
    json!({
        "run": s.run_url, "coordinator": s.coordinator, "generation": s.generation, "state": s.state,
        "step": s.step.as_ref().map(|r| r.step), "total_steps": s.step.as_ref().map(|r| r.total_steps),
        "loss": s.step.as_ref().map(|r| r.loss), "checkpoint": (s.committed > 0).then_some(s.committed),
        "members": members, "incidents": incidents,
    })
}

fn incidents(events: &[JobEvent]) -> impl Iterator<Item = (u64, &Incident)> {
    events.iter().filter_map(|e| match &e.kind {
        Some(Kind::Incident(i)) => Some((e.unix_ms, i)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{Beat, StepReport};

    fn sample() -> JobStatus {
        let beat = Beat { phase: "training".into(), step: 41, ..Default::default() };
        let member = |rank, worker: &str| MemberStatus {
            worker: worker.into(),
            host: "node1".into(),
            device: "cuda:0".into(),
            rank,
            beat: Some(beat.clone()),
            silent_seconds: 0.25,
            ..Default::default()
        };
        let incident = Incident {
            kind: "lost".into(),
            worker: "b".into(),
            rank: 1,
            step: 40,
            cause: "killed by SIGKILL".into(),
            seconds: 1.5,
            ..Default::default()
        };
        JobStatus {
            coordinator: 3,
            generation: 2,
            state: "running".into(),
            step: Some(StepReport { step: 41, total_steps: 90, loss: 0.5, ..Default::default() }),
            committed: 30,
            members: vec![member(Some(0), "a"), member(None, "a-long-name")],
            incidents: vec![JobEvent { unix_ms: 86_400_000, kind: Some(Kind::Incident(incident)) }],
            run_url: "s3://b/r".into(),
        }
    }

    #[test]
    fn a_person_sees_members_checkpoint_and_incidents() {
        let text = as_text(&sample());
        let expected = "\
run          s3://b/r
coordinator  number 3
generation   2, running
step         41 of 90, loss 0.5000
checkpoint   of step 30

rank  worker       host   device  phase        step  silent  still
0     a            node1  cuda:0  training     41    0.2 s   0.0 s
-     a-long-name  node1  cuda:0  at the door  41    0.2 s   0.0 s

incidents
1970-01-02 00:00:00  lost b (rank 1) at step 40, 1.5 s: killed by SIGKILL";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_program_gets_all_of_it() {
        let json = as_json(&sample());
        assert_eq!(json["members"][1]["rank"], Value::Null);
        assert_eq!(json["incidents"][0]["cause"], "killed by SIGKILL");
        assert_eq!((json["checkpoint"].as_u64(), json["total_steps"].as_u64()), (Some(30), Some(90)));
    }
}
