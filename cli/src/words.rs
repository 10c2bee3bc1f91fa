//! What happens in a job, in one line each.

use proto::v1::{self, job_event::Kind};
use std::error::Error;

/// The line for an event that a person should see; steps and beats have their own places.
pub fn describe(kind: &Kind) -> Option<String> {
    Some(match kind {
        Kind::Generation(g) => {
            let n = g.members.len();
            format!("generation {}: {n} worker{}: {}", g.generation, plural(n), g.members.join(", "))
        }
        Kind::Eval(e) => format!(
            "validation after step {} (epoch {}): {}top-1 {}, top-5 {}, loss {:.4}, {} clips in {:.1} s",
            e.step,
            e.epoch,
            e.mean_average_precision.map_or(String::new(), |m| format!("mAP {}, ", percent(m))),
            percent(e.top1),
            percent(e.top5),
            e.loss,
            e.clips,
            e.seconds
        ),
        Kind::Checkpoint(c) => {
            format!("checkpoint of step {}: {} in {}", c.step, size(c.bytes), c.manifest)
        }
        Kind::Lost(l) => l.reason.clone(),
        Kind::Log(l) if l.level == "info" => l.text.clone(),
        Kind::Log(l) => format!("{}: {}", l.level, l.text),
        Kind::Ended(e) if e.ok && e.reason.starts_with("stopped") => e.reason.clone(),
        Kind::Ended(e) if e.ok => format!("the job is done: {}", e.reason),
        Kind::Ended(e) => format!("the job failed: {}", e.reason),
        Kind::Step(_) | Kind::Beat(_) | Kind::Incident(_) => return None,
    })
}

/// What cost the job time.
pub fn incident(i: &v1::Incident) -> String {
    let worker = match (i.worker.as_str(), i.kind.as_str()) {
        ("", _) => String::new(),
        (name, "joined") => format!(" {name}"),
        (name, _) => format!(" {name} (rank {})", i.rank),
    };
    let collective = match i.collective.as_str() {
        "" => String::new(),
        name => format!(" in its {name}"),
    };
    format!("{}{worker} at step {}{collective}, {:.1} s: {}", i.kind, i.step, i.seconds, i.cause)
}

/// Milliseconds since 1970 as a date and time, UTC.
pub fn time(unix_ms: u64) -> String {
    let (days, seconds) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    // Days since 1970 to a date: 400 years have 146,097 days, and years begin in March.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02}")
}

/// A failed call, with all its causes.
pub fn refusal(s: &tonic::Status) -> String {
    match s.source() {
        Some(source) => proto::chain(source),
        None => s.message().to_string(),
    }
}

/// One step, and how fast the last ones went.
pub fn step(r: &v1::StepReport, pace: &Pace) -> String {
    format!(
        "epoch {:.2}  loss {:.4}  acc {}  lr {:.2e}  {:.1} clips/s  data wait {}",
        epochs(r),
        r.loss,
        percent(r.accuracy),
        r.lr,
        pace.clips_per_second(),
        percent(pace.data_wait()),
    )
}

/// One worker.
pub fn worker(rank: u32, name: &str, beat: Option<&v1::Beat>) -> String {
    match beat {
        Some(b) => format!("rank {rank:<3} {:<11} step {:<8} {name}", b.phase, b.step),
        None => format!("rank {rank:<3} {:<11} step {:<8} {name}", "joining", "-"),
    }
}

/// Speed over the last steps; old ones fade.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    clips: f64,
    seconds: f64,
    waited: f64,
}

impl Pace {
    pub fn add(&mut self, r: &v1::StepReport) {
        const FADE: f64 = 0.9;
        self.clips = self.clips * FADE + r.clips as f64;
        self.seconds = self.seconds * FADE + r.step_seconds;
        self.waited = self.waited * FADE + r.data_wait_seconds;
    }

    pub fn clips_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.clips / self.seconds } else { 0.0 }
    }

    /// Share of the time that rank 0 waited for data.
    pub fn data_wait(&self) -> f64 {
        if self.seconds > 0.0 { self.waited / self.seconds } else { 0.0 }
    }
}

fn epochs(r: &v1::StepReport) -> f64 {
    // Epochs of multigrid training differ in their steps.
    r.epoch as f64 + r.step_in_epoch as f64 / r.steps_per_epoch.max(1) as f64
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// Bytes in a unit that suits.
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.2} GiB", b as f64 / (1u64 << 30) as f64),
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / (1u64 << 20) as f64),
        b => format!("{:.1} KiB", b as f64 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_in_one_line() {
        let r = v1::StepReport {
            epoch: 1,
            step: 30,
            step_in_epoch: 10,
            steps_per_epoch: 20,
            loss: 1.25,
            accuracy: 0.5,
            lr: 0.01,
            clips: 16,
            step_seconds: 2.0,
            data_wait_seconds: 0.5,
            ..Default::default()
        };
        let mut pace = Pace::default();
        pace.add(&r);
        pace.add(&r);
        let line = step(&r, &pace);
        assert_eq!(line, "epoch 1.50  loss 1.2500  acc 50.0 %  lr 1.00e-2  8.0 clips/s  data wait 25.0 %");
    }

    #[test]
    fn dates_of_all_sorts() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_704_067_199, "2023-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(time(1000 * seconds), text);
        }
    }

    #[test]
    fn what_a_person_should_see_and_what_not() {
        let ended = Kind::Ended(v1::JobEnded { ok: false, reason: "no".into() });
        assert_eq!(describe(&ended).unwrap(), "the job failed: no");
        let checkpoint = v1::CheckpointCommitted { step: 7, bytes: 3 << 20, manifest: "m".into() };
        assert_eq!(describe(&Kind::Checkpoint(checkpoint)).unwrap(), "checkpoint of step 7: 3.0 MiB in m");
        assert_eq!(describe(&Kind::Step(v1::StepReport::default())), None);
        assert_eq!(describe(&Kind::Beat(v1::WorkerBeat::default())), None);
    }
}
