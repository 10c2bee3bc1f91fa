//! Writes what happened to the run: `metrics/generation-%06d.jsonl`, one JSON object a line.
//!
//! An object cannot be appended to on S3, so a generation's file is rewritten whole, rarely
//! enough that a long one costs little, and at once after what a person would look for. Incidents have one
//! file for the whole run, `metrics/incidents.jsonl`.

use crate::{
    Error, Result,
    core::{Generation, Incident, Notice},
    journal::Journal,
    watch::Stamped,
};
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use storage::Location;
use tokio::sync::{Mutex, mpsc};

/// Seconds between two rewrites, and once more for each MiB the file has.
const EVERY: u32 = 5;

const INCIDENTS: &str = "metrics/incidents.jsonl";

/// What the run has been told before this start, a JSON line each.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub incidents: String,
    /// The last generation, which may be running still, and the lines of its file.
    pub last: Option<(Generation, String)>,
}

/// Takes notices until the channel closes, then writes the rest and returns. Once another coordinator has taken the
/// run, these files are its own to write.
pub async fn write(
    run: Location,
    journal: Arc<Mutex<Journal>>,
    history: History,
    mut notices: mpsc::UnboundedReceiver<Stamped>,
) {
    let out = Out { run, journal };
    let mut file = File::default();
    if let Some((generation, lines)) = history.last {
        (file.generation, file.lines) = (Some(generation), lines);
    }
    let mut told = Incidents { lines: history.incidents, dirty: false };
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        let at_once = tokio::select! {
            notice = notices.recv() => match notice {
                Some(stamped) if matches!(stamped.notice, Notice::Incident(_)) => {
                    told.dirty |= append(&mut told.lines, &stamped);
                    told.put(&out).await;
                    false
                }
                Some(stamped) => file.add(&out, stamped).await,
                None => break,
            },
            _ = second.tick() => {
                told.put(&out).await;
                file.is_due()
            }
        };
        if at_once {
            file.put(&out).await;
        }
    }
    told.put(&out).await;
    file.put(&out).await;
}

/// Reads what the run has been told so far; `last` is its newest generation.
pub async fn history(run: &Location, last: Generation) -> Result<History> {
    let lines = async |key: &str| {
        let bytes = run.get_opt(key).await?.unwrap_or_default();
        Ok::<_, Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let running = match last {
        Generation(0) => None,
        last => Some((last, lines(&file_of(last)).await?)),
    };
    Ok(History { incidents: lines(INCIDENTS).await?, last: running })
}

fn file_of(generation: Generation) -> String {
    format!("metrics/generation-{:06}.jsonl", generation.0)
}

/// The incidents that `lines` tell of.
pub fn parse(run: &Location, lines: &str) -> Result<Vec<Stamped>> {
    let bad = |e: serde_json::Error| Error::Damaged { url: run.url_of(INCIDENTS), why: e.to_string() };
    let one = |line: &str| {
        let told: Told = serde_json::from_str(line).map_err(bad)?;
        Ok(Stamped { unix_ms: told.unix_ms, notice: Notice::Incident(told.incident) })
    };
    lines.lines().map(one).collect()
}

#[derive(serde::Deserialize)]
struct Told {
    unix_ms: u64,
    #[serde(flatten)]
    incident: Incident,
}

struct Incidents {
    lines: String,
    dirty: bool,
}

impl Incidents {
    async fn put(&mut self, out: &Out) {
        if self.dirty {
            self.dirty = !out.put(INCIDENTS, &self.lines).await;
        }
    }
}

/// Adds a line; true if that could be done.
fn append(lines: &mut String, stamped: &Stamped) -> bool {
    let line = Line { notice: &stamped.notice, unix_ms: stamped.unix_ms };
    match serde_json::to_string(&line) {
        Ok(text) => {
            lines.push_str(&text);
            lines.push('\n');
            true
        }
        Err(e) => {
            tracing::warn!("failed to write a metrics line: {e}");
            false
        }
    }
}

#[derive(Default)]
struct File {
    generation: Option<Generation>,
    lines: String,
    dirty: bool,
    /// Seconds since the first line that is not yet written.
    waited: u32,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    notice: &'a Notice,
    unix_ms: u64,
}

impl File {
    /// Adds a line; true if it should be written at once.
    async fn add(&mut self, out: &Out, stamped: Stamped) -> bool {
        if let Notice::Generation { generation, .. } = &stamped.notice {
            // What came before the first generation opens its file.
            if self.generation.is_some() {
                self.put(out).await;
                self.lines.clear();
            }
            self.generation = Some(*generation);
        }
        if matches!(stamped.notice, Notice::Beat { .. }) {
            return false;
        }
        append(&mut self.lines, &stamped);
        self.dirty = true;
        !matches!(stamped.notice, Notice::Step(_) | Notice::Log { .. })
    }

    /// Asked once a second.
    fn is_due(&mut self) -> bool {
        self.waited += u32::from(self.dirty);
        self.waited >= EVERY * (1 + (self.lines.len() >> 20) as u32)
    }

    async fn put(&mut self, out: &Out) {
        let Some(generation) = self.generation.filter(|_| self.dirty) else { return };
        self.dirty = !out.put(&file_of(generation), &self.lines).await;
        self.waited = 0;
    }
}

/// Where the files go, as long as this coordinator leads the run.
struct Out {
    run: Location,
    journal: Arc<Mutex<Journal>>,
}

impl Out {
    /// True if it was written. Metrics never stop a job: the next rewrite has these lines too.
    async fn put(&self, key: &str, lines: &str) -> bool {
        let put = async {
            self.journal.lock().await.still_leads().await?;
            Ok::<_, Error>(self.run.put(key, lines.as_bytes().to_vec()).await?)
        };
        let done = put.await;
        if let Err(e) = &done {
            tracing::warn!("failed to write {key}: failed to {e}");
        }
        done.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{EvalReport, Level, Rank, Step, StepReport, What},
        journal::Claimant,
    };

    /// Another coordinator takes the run.
    async fn claim(run: &Location, leader: &str) -> Arc<Mutex<Journal>> {
        let me = Claimant {
            leader: leader.into(),
            address: format!("{leader}:1"),
            dataset_digest: "d".into(),
            dataset_url: "data".into(),
        };
        Arc::new(Mutex::new(Journal::claim(run, me, 0).await.unwrap().0))
    }

    #[tokio::test]
    async fn each_generation_has_its_file_of_json_lines() {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let (tx, rx) = mpsc::unbounded_channel();
        let send = |notice| tx.send(Stamped { unix_ms: 7, notice }).unwrap();
        send(Notice::Log { level: Level::Info, text: "before".into() });
        for g in [1, 2] {
            send(Notice::Generation { generation: Generation(g), members: vec!["w".into()] });
            send(Notice::Step(StepReport { step: Step(g), loss: f64::NAN, ..Default::default() }));
            send(Notice::Beat { worker: "w".into(), rank: Rank(0), beat: Default::default() });
            send(Notice::Eval(EvalReport { top1: 0.5, ..Default::default() }));
        }
        send(Notice::Ended { ok: true, reason: "done".into() });
        drop(tx);
        let first = claim(&run, "a").await;
        write(run.clone(), first.clone(), History::default(), rx).await;
        let read = async |g: u64| {
            let bytes = run.get(&format!("metrics/generation-{g:06}.jsonl")).await.unwrap();
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<serde_json::Value>>()
        };
        let kinds = |lines: &[serde_json::Value]| {
            lines.iter().map(|l| l["kind"].as_str().unwrap().to_string()).collect::<Vec<_>>().join(" ")
        };
        let (one, two) = (read(1).await, read(2).await);
        assert_eq!(kinds(&one), "log generation step eval");
        assert_eq!(kinds(&two), "generation step eval ended");
        assert_eq!(one[2]["unix_ms"], 7);
        assert!(one[2]["loss"].is_null());
        assert_eq!(two[2]["top1"], 0.5);

        // A coordinator that was started again while generation 2 went on.
        let (tx, rx) = mpsc::unbounded_channel();
        let step = Notice::Step(StepReport { step: Step(3), ..Default::default() });
        tx.send(Stamped { unix_ms: 8, notice: step }).unwrap();
        drop(tx);
        let before = history(&run, Generation(2)).await.unwrap();
        write(run.clone(), claim(&run, "b").await, before, rx).await;
        assert_eq!(kinds(&read(2).await), "generation step eval ended step");

        // The first one wakes up and still has something to say.
        let (tx, rx) = mpsc::unbounded_channel();
        for notice in [
            Notice::Generation { generation: Generation(2), members: vec!["w".into()] },
            Notice::Ended { ok: false, reason: "superseded".into() },
        ] {
            tx.send(Stamped { unix_ms: 9, notice }).unwrap();
        }
        drop(tx);
        write(run.clone(), first, History::default(), rx).await;
        assert_eq!(kinds(&read(2).await), "generation step eval ended step");
    }

    #[tokio::test]
    async fn incidents_have_one_file_for_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let incident = |generation| Incident {
            generation: Generation(generation),
            what: What::Lost,
            worker: "w".into(),
            rank: Some(Rank(1)),
            host: "h".into(),
            step: Step(7),
            phase: "training".into(),
            collective: "vote, number 3 of its generation".into(),
            clip: "a".into(),
            cause: "killed by SIGKILL".into(),
            seconds: 1.5,
            last_lines: vec!["the end".into()],
        };
        for start in 1..=2 {
            let (tx, rx) = mpsc::unbounded_channel();
            let before = history(&run, Generation(0)).await.unwrap();
            tx.send(Stamped { unix_ms: start, notice: Notice::Incident(incident(start)) }).unwrap();
            drop(tx);
            write(run.clone(), claim(&run, &format!("c{start}")).await, before, rx).await;
        }
        let told = parse(&run, &history(&run, Generation(0)).await.unwrap().incidents).unwrap();
        let expected = [1, 2].map(|n| Stamped { unix_ms: n, notice: Notice::Incident(incident(n)) });
        assert_eq!(told, expected);
        assert!(matches!(parse(&run, "{"), Err(Error::Damaged { .. })));
    }
}
