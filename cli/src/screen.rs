//! Shows a job: bars and live lines on a terminal, plain lines elsewhere.

use crate::words::{self, Pace};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::v1::{JobEvent, StepReport, job_event::Kind};
use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
};

/// Off a terminal, between two step lines.
const STEP_LINE_MS: u64 = 5000;

/// Where the job is shown: standard error.
pub struct Screen {
    pace: Pace,
    generation: u64,
    live: Option<Live>,
    /// When the last plain step line was printed, and whether the next is due anyhow.
    step_line_ms: u64,
    step_line_due: bool,
    /// The newest step, and whether it has been printed.
    last: Option<(StepReport, bool)>,
}

struct Live {
    all: MultiProgress,
    steps: Option<ProgressBar>,
    workers: BTreeMap<String, (u32, ProgressBar)>,
}

impl Screen {
    /// Live on a terminal.
    pub fn new() -> Self {
        Self::with_live(std::io::stderr().is_terminal())
    }

    fn with_live(live: bool) -> Self {
        let live = live.then(|| Live { all: MultiProgress::new(), steps: None, workers: BTreeMap::new() });
        Self { pace: Pace::default(), generation: 0, live, step_line_ms: 0, step_line_due: true, last: None }
    }

    /// Shows one event.
    pub fn event(&mut self, event: &JobEvent) {
        for line in self.take(event) {
            self.line(&line);
        }
    }

    /// One line above the live part.
    pub fn line(&self, text: &str) {
        let shown = match &self.live {
            Some(live) => live.all.println(text),
            None => writeln!(std::io::stderr(), "{text}"),
        };
        // Nobody reads any more: the job goes on.
        let _ = shown;
    }

    /// Ends the live part, leaving the bar as it is.
    pub fn close(&mut self) {
        if let Some(live) = self.live.take() {
            live.workers.values().for_each(|(_, bar)| bar.finish_and_clear());
            if let Some(bar) = live.steps {
                bar.abandon();
            }
        }
    }

    /// Updates the live part and returns the lines to print.
    fn take(&mut self, event: &JobEvent) -> Vec<String> {
        let mut lines = vec![];
        let Some(kind) = &event.kind else { return lines };
        match kind {
            Kind::Step(report) => {
                self.pace.add(report);
                self.step(report, event.unix_ms, &mut lines);
            }
            Kind::Beat(b) => {
                if let Some(live) = &mut self.live {
                    live.worker(b.rank, &b.worker, b.beat.as_ref());
                }
            }
            Kind::Generation(g) => {
                self.generation = g.generation;
                self.step_line_due = true;
                self.pace = Pace::default();
                if let Some(live) = &mut self.live {
                    live.seat(&g.members);
                }
            }
            Kind::Eval(_) | Kind::Ended(_) => self.catch_up(&mut lines),
            Kind::Lost(l) => {
                if let Some((_, bar)) = self.live.as_mut().and_then(|l2| l2.workers.remove(&l.worker)) {
                    bar.finish_and_clear();
                }
            }
            Kind::Checkpoint(_) | Kind::Log(_) | Kind::Incident(_) => {}
        }
        lines.extend(words::describe(kind));
        lines
    }

    fn step(&mut self, report: &StepReport, unix_ms: u64, lines: &mut Vec<String>) {
        if let Some(live) = &mut self.live {
            return live.step(report, words::step(report, &self.pace));
        }
        let due = self.step_line_due || unix_ms >= self.step_line_ms + STEP_LINE_MS;
        self.last = Some((report.clone(), due));
        if due {
            self.step_line_due = false;
            self.step_line_ms = unix_ms;
            lines.push(self.step_line(report));
        }
    }

    /// Prints the newest step before something that refers to it.
    fn catch_up(&mut self, lines: &mut Vec<String>) {
        if let Some((report, false)) = self.last.take() {
            lines.push(self.step_line(&report));
            self.last = Some((report, true));
        }
    }

    fn step_line(&self, r: &StepReport) -> String {
        format!("step {}/{}  {}", r.step, r.total_steps, words::step(r, &self.pace))
    }
}

impl Live {
    fn step(&mut self, report: &StepReport, text: String) {
        let all = &self.all;
        let bar = self.steps.get_or_insert_with(|| {
            let bar = all.add(ProgressBar::new(report.total_steps));
            // Wrong templates would only cost the looks.
            if let Ok(style) =
                ProgressStyle::with_template("{bar:24} {pos}/{len} steps  {msg}  {elapsed}, {eta} left")
            {
                bar.set_style(style);
            }
            // What an earlier start has done says nothing about this one's speed.
            bar.set_position(report.step.saturating_sub(1));
            bar.reset_eta();
            bar
        });
        bar.set_length(report.total_steps);
        bar.set_position(report.step);
        bar.set_message(text);
    }

    fn seat(&mut self, members: &[String]) {
        for (_, bar) in std::mem::take(&mut self.workers).into_values() {
            bar.finish_and_clear();
        }
        for (rank, name) in members.iter().enumerate() {
            self.worker(rank as u32, name, None);
        }
    }

    fn worker(&mut self, rank: u32, name: &str, beat: Option<&proto::v1::Beat>) {
        let all = &self.all;
        let (_, bar) = self.workers.entry(name.to_string()).or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {msg}") {
                bar.set_style(style);
            }
            // Workers stand below the steps.
            (rank, all.add(bar))
        });
        bar.set_message(words::worker(rank, name, beat));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1;

    fn event(unix_ms: u64, kind: Kind) -> JobEvent {
        JobEvent { unix_ms, kind: Some(kind) }
    }

    fn step(n: u64) -> Kind {
        Kind::Step(StepReport { step: n, total_steps: 90, steps_per_epoch: 10, ..Default::default() })
    }

    #[test]
    fn plain_lines_are_few_but_miss_nothing_that_matters() {
        let mut screen = Screen::with_live(false);
        let mut lines = vec![];
        let mut take = |ms, kind| lines.extend(screen.take(&event(ms, kind)));
        take(0, Kind::Generation(v1::GenerationStarted { generation: 1, members: vec!["w".into()] }));
        for n in 1..=8 {
            take(1000 * n, step(n));
        }
        take(8500, Kind::Beat(v1::WorkerBeat::default()));
        take(9000, Kind::Eval(v1::EvalReport { step: 8, ..Default::default() }));
        take(9001, Kind::Ended(v1::JobEnded { ok: true, reason: "all".into() }));
        let heads: Vec<&str> = lines.iter().map(|l| l.split("  ").next().unwrap()).collect();
        assert_eq!(heads.len(), 6, "{heads:?}");
        assert!(heads[0].starts_with("generation 1: 1 worker: w"));
        assert_eq!(heads[1..4], ["step 1/90", "step 6/90", "step 8/90"]);
        assert!(heads[4].starts_with("validation after step 8"));
        assert_eq!(heads[5], "the job is done: all");
    }

    #[test]
    fn live_lines_follow_the_generation() {
        let mut screen = Screen::with_live(true);
        let seat = |g, members: &[&str]| {
            let members = members.iter().map(|m| m.to_string()).collect();
            event(0, Kind::Generation(v1::GenerationStarted { generation: g, members }))
        };
        screen.take(&seat(1, &["a", "b"]));
        assert!(screen.take(&event(0, step(3))).is_empty());
        let lost = v1::WorkerLost { worker: "a".into(), ..Default::default() };
        screen.take(&event(0, Kind::Lost(lost)));
        let live = screen.live.as_ref().unwrap();
        assert_eq!(live.workers.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(live.steps.as_ref().unwrap().position(), 3);
        screen.take(&seat(2, &["b", "c"]));
        let live = screen.live.as_ref().unwrap();
        assert_eq!(live.workers["b"].0, 0);
        assert_eq!(live.workers["c"].1.message(), words::worker(1, "c", None));
    }
}
