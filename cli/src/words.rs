//! What happens in a job, in one line each.

use proto::v1::{self, job_event::Kind};

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
        Kind::Ended(e) if e.ok => format!("the job is done: {}", e.reason),
        Kind::Ended(e) => format!("the job failed: {}", e.reason),
        Kind::Step(_) | Kind::Beat(_) | Kind::Incident(_) => return None,
    })
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

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn size(bytes: u64) -> String {
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
    fn what_a_person_should_see_and_what_not() {
        let ended = Kind::Ended(v1::JobEnded { ok: false, reason: "no".into() });
        assert_eq!(describe(&ended).unwrap(), "the job failed: no");
        let checkpoint = v1::CheckpointCommitted { step: 7, bytes: 3 << 20, manifest: "m".into() };
        assert_eq!(describe(&Kind::Checkpoint(checkpoint)).unwrap(), "checkpoint of step 7: 3.0 MiB in m");
        assert_eq!(describe(&Kind::Step(v1::StepReport::default())), None);
        assert_eq!(describe(&Kind::Beat(v1::WorkerBeat::default())), None);
    }
}
