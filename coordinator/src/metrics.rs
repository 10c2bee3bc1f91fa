//! Writes what happened to the run: `metrics/generation-%06d.jsonl`, one JSON object a line.
//!
//! An object cannot be appended to on S3, so a generation's file is rewritten whole, rarely
//! enough that a long one costs little, and at once after what a person would look for.

use crate::{
    core::{Generation, Notice},
    watch::Stamped,
};
use serde::Serialize;
use std::time::Duration;
use storage::Location;
use tokio::sync::mpsc;

/// Seconds between two rewrites, and once more for each MiB the file has.
const EVERY: u32 = 5;

/// Takes notices until the channel closes, then writes the rest and returns.
pub async fn write(run: Location, mut notices: mpsc::UnboundedReceiver<Stamped>) {
    let mut file = File::default();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        let at_once = tokio::select! {
            notice = notices.recv() => match notice {
                Some(stamped) => file.add(&run, stamped).await,
                None => break,
            },
            _ = second.tick() => file.is_due(),
        };
        if at_once {
            file.put(&run).await;
        }
    }
    file.put(&run).await;
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
    async fn add(&mut self, run: &Location, stamped: Stamped) -> bool {
        if let Notice::Generation { generation, .. } = &stamped.notice {
            // What came before the first generation opens its file.
            if self.generation.is_some() {
                self.put(run).await;
                self.lines.clear();
            }
            self.generation = Some(*generation);
        }
        let line = Line { notice: &stamped.notice, unix_ms: stamped.unix_ms };
        match (&stamped.notice, serde_json::to_string(&line)) {
            (Notice::Beat { .. }, _) => return false,
            (_, Ok(text)) => {
                self.lines.push_str(&text);
                self.lines.push('\n');
            }
            (_, Err(e)) => tracing::warn!("failed to write a metrics line: {e}"),
        }
        self.dirty = true;
        !matches!(stamped.notice, Notice::Step(_) | Notice::Log { .. })
    }

    /// Asked once a second.
    fn is_due(&mut self) -> bool {
        self.waited += u32::from(self.dirty);
        self.waited >= EVERY * (1 + (self.lines.len() >> 20) as u32)
    }

    async fn put(&mut self, run: &Location) {
        let Some(generation) = self.generation.filter(|_| self.dirty) else { return };
        let key = format!("metrics/generation-{:06}.jsonl", generation.0);
        match run.put(&key, self.lines.clone().into_bytes()).await {
            Ok(()) => self.dirty = false,
            // Metrics never stop a job; the next rewrite has these lines too.
            Err(e) => tracing::warn!("failed to {e}"),
        }
        self.waited = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{EvalReport, Level, Rank, Step, StepReport};

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
        write(run.clone(), rx).await;
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
    }
}
