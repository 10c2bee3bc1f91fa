//! A run's history from its `metrics/*.jsonl`: what was done, by which generation, and what was repeated.

use super::Error;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use storage::Location;

/// Everything the metrics tell.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct History {
    /// By step; where a step was repeated, the latest generation's.
    pub steps: BTreeMap<u64, Step>,
    /// Steps that a later generation did again.
    pub repeated: Vec<Step>,
    pub evals: BTreeMap<u64, Measured>,
    /// Steps of the checkpoints that were written.
    pub checkpoints: Vec<u64>,
    pub generations: Vec<Generation>,
    /// Said by the coordinator of lost workers.
    pub lost: Vec<String>,
    /// What cost the run time.
    pub incidents: Vec<Incident>,
}

/// One line of `metrics/incidents.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Incident {
    pub incident: String,
    pub worker: String,
    pub step: u64,
    pub cause: String,
    pub seconds: f64,
}

/// A membership of workers.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Generation {
    pub number: u64,
    pub workers: usize,
    /// First and last step it reported.
    pub steps: Option<(u64, u64)>,
    /// Milliseconds since 1970 of its first and last line.
    pub began: u64,
    pub ended: u64,
}

/// One optimizer step.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Step {
    pub generation: u64,
    pub epoch: u64,
    pub step: u64,
    /// Absent where the loss was not a number.
    pub loss: Option<f64>,
    pub accuracy: Option<f64>,
    pub clips: u64,
    pub step_seconds: f64,
    pub data_wait_seconds: f64,
    #[serde(default)]
    pub exchange_wait_seconds: f64,
    #[serde(default)]
    pub peak_memory_bytes: u64,
    /// Damaged clips that it was taken without.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// One evaluation during training.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Measured {
    pub epoch: u64,
    pub step: u64,
    pub loss: Option<f64>,
    pub top1: Option<f64>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Generation {
        generation: u64,
        members: Vec<String>,
    },
    Step(Step),
    Eval(Measured),
    Checkpoint {
        step: u64,
    },
    Lost {
        worker: String,
        reason: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Stamp {
    unix_ms: u64,
}

impl History {
    /// Reads every generation's metrics.
    pub async fn read(run: &Location) -> Result<Self, Error> {
        let mut history = Self::default();
        for file in run.list("metrics").await? {
            if file.key.ends_with(".jsonl") {
                let text = run.get(&file.key).await?;
                let (url, text) = (run.url_of(&file.key), String::from_utf8_lossy(&text).into_owned());
                match file.key.ends_with("/incidents.jsonl") {
                    true => history.add_incidents(&url, &text)?,
                    false => history.add(&url, &text)?,
                }
            }
        }
        if history.steps.is_empty() {
            let why = "there is no step in it; is this a run, and has it trained?".into();
            return Err(Error::Metrics { url: run.url().into(), why });
        }
        Ok(history)
    }

    /// Adds one file's lines. Files come in the order of generations.
    fn add(&mut self, url: &str, text: &str) -> Result<(), Error> {
        for (number, line) in text.lines().enumerate() {
            let bad = |e: serde_json::Error| Error::Metrics {
                url: url.into(),
                why: format!("line {}: {e}", number + 1),
            };
            let at: Stamp = serde_json::from_str(line).map_err(bad)?;
            self.take(serde_json::from_str(line).map_err(bad)?, at.unix_ms);
        }
        Ok(())
    }

    fn add_incidents(&mut self, url: &str, text: &str) -> Result<(), Error> {
        for (number, line) in text.lines().enumerate() {
            let why = |e: serde_json::Error| format!("line {}: {e}", number + 1);
            let parsed = serde_json::from_str(line).map_err(why);
            self.incidents.push(parsed.map_err(|why| Error::Metrics { url: url.into(), why })?);
        }
        Ok(())
    }

    fn take(&mut self, line: Line, unix_ms: u64) {
        if let Line::Generation { generation, members } = &line {
            self.generations.push(Generation {
                number: *generation,
                workers: members.len(),
                began: unix_ms,
                ..Default::default()
            });
        }
        if let Some(current) = self.generations.last_mut() {
            current.ended = unix_ms;
            if let Line::Step(s) = &line {
                let first = current.steps.map_or(s.step, |(first, _)| first);
                current.steps = Some((first, s.step));
            }
        }
        match line {
            Line::Step(s) => self.repeated.extend(self.steps.insert(s.step, s)),
            Line::Eval(e) => drop(self.evals.insert(e.step, e)),
            Line::Checkpoint { step } => self.checkpoints.push(step),
            Line::Lost { worker, reason } => self.lost.push(format!("{worker}: {reason}")),
            Line::Generation { .. } | Line::Other => {}
        }
    }

    /// Where the run went on after a stop: (last step before it, steps done by the checkpoint).
    pub fn resumes(&self) -> Vec<(u64, u64)> {
        let done: Vec<_> = self.generations.iter().filter_map(|g| g.steps).collect();
        done.windows(2).map(|pair| (pair[0].1, pair[1].0.saturating_sub(1))).collect()
    }

    /// Clips a second of the whole job, over the steps' own time.
    pub fn clips_per_second(&self) -> f64 {
        let clips: u64 = self.steps.values().map(|s| s.clips).sum();
        clips as f64 / self.total(|s| s.step_seconds)
    }

    /// Share of the steps' time.
    pub fn share(&self, seconds: impl Fn(&Step) -> f64) -> f64 {
        self.total(seconds) / self.total(|s| s.step_seconds)
    }

    /// Damaged clips that steps were taken without.
    pub fn missing(&self) -> BTreeSet<&str> {
        self.steps.values().flat_map(|s| &s.missing).map(String::as_str).collect()
    }

    /// Most resident memory of the first rank.
    pub fn peak_memory(&self) -> u64 {
        self.steps.values().map(|s| s.peak_memory_bytes).max().unwrap_or(0)
    }

    /// Seconds during which a generation was at work, start-up and evaluation included.
    pub fn seconds(&self) -> f64 {
        self.generations.iter().map(|g| (g.ended - g.began.min(g.ended)) as f64 / 1e3).sum()
    }

    fn total(&self, seconds: impl Fn(&Step) -> f64) -> f64 {
        self.steps.values().map(seconds).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two generations of a run that was killed after step 6 and went on from step 4.
    pub fn sample() -> History {
        let mut history = History::default();
        for (generation, steps) in [(1u64, 1..=6u64), (2, 5..=12)] {
            let mut text = format!(
                "{{\"kind\":\"generation\",\"generation\":{generation},\"members\":[\"a\",\"b\"],\"unix_ms\":{}}}\n",
                generation * 100_000
            );
            for step in steps {
                text += &format!(
                    "{{\"kind\":\"step\",\"generation\":{generation},\"epoch\":0,\"step\":{step},\"loss\":{},\"accuracy\":0.5,\"lr\":0.1,\"clips\":8,\"step_seconds\":0.5,\"data_wait_seconds\":0.05,\"peak_memory_bytes\":7,\"unix_ms\":{}}}\n",
                    2.0 / step as f64,
                    generation * 100_000 + step * 1000
                );
                if step % 4 == 0 {
                    text += &format!(
                        "{{\"kind\":\"eval\",\"epoch\":{},\"step\":{step},\"loss\":1.0,\"top1\":0.{step:02},\"unix_ms\":{}}}\n{{\"kind\":\"checkpoint\",\"step\":{step},\"bytes\":1,\"manifest\":\"m\",\"unix_ms\":1}}\n{{\"kind\":\"log\",\"level\":\"info\",\"text\":\"x\",\"unix_ms\":{}}}\n",
                        step / 4,
                        generation * 100_000 + step * 1000,
                        generation * 100_000 + step * 1000 + 1
                    );
                }
            }
            history.add("metrics", &text).unwrap();
        }
        history
    }

    #[test]
    fn clips_that_steps_lack_are_told_once() {
        let mut history = History::default();
        for (step, missing) in [(1, r#"["b","a"]"#), (2, r#"["a"]"#)] {
            let line = format!(
                "{{\"kind\":\"step\",\"generation\":1,\"epoch\":0,\"step\":{step},\"loss\":1,\"clips\":6,\"step_seconds\":1,\"data_wait_seconds\":0,\"missing\":{missing},\"unix_ms\":1}}\n"
            );
            history.add("metrics", &line).unwrap();
        }
        assert_eq!(history.missing().into_iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn the_latest_generation_counts() {
        let h = sample();
        assert_eq!(h.steps.len(), 12);
        assert_eq!(h.repeated.iter().map(|s| s.step).collect::<Vec<_>>(), [5, 6]);
        assert!(h.repeated.iter().all(|s| s.generation == 1));
        assert_eq!(h.steps[&5].generation, 2);
        assert_eq!(h.resumes(), [(6, 4)]);
        assert_eq!(h.checkpoints, [4, 8, 12]);
        assert_eq!(h.evals.len(), 3);
        assert!((h.clips_per_second() - 16.0).abs() < 1e-9);
        assert!((h.share(|s| s.data_wait_seconds) - 0.1).abs() < 1e-9);
    }

    #[test]
    fn incidents_are_read_as_the_coordinator_writes_them() {
        let mut history = History::default();
        let line = r#"{"kind":"incident","generation":1,"incident":"lost","worker":"b","rank":1,"host":"h","step":7,"phase":"training","cause":"killed by SIGKILL","seconds":1.5,"unix_ms":9}"#;
        history.add_incidents("u", line).unwrap();
        assert_eq!((history.incidents[0].incident.as_str(), history.incidents[0].seconds), ("lost", 1.5));
        let e = history.add_incidents("u", "{}").unwrap_err();
        assert!(e.to_string().contains("line 1"), "{e}");
    }

    #[test]
    fn a_damaged_line_is_named() {
        let e = History::default().add("u", "{\"kind\":\"log\",\"unix_ms\":1}\n{").unwrap_err();
        assert!(e.to_string().contains("line 2"), "{e}");
    }
}
