//! Ranks that are slower than the others: each rank's own time of a step against the median's.
//!
//! Own time leaves out the wait for other ranks, which is where the fast ones spend what a slow one costs.

use super::{Action, Beat, Core, Level, Member, Notice, Now, Rank, State, WorkerId, incident, log};
use std::time::Duration;

/// So many beats in a row, each telling of another step, make a straggler.
const PATIENCE: u32 = 20;
/// The median is taken anew this often.
const EVERY: Duration = Duration::from_secs(1);

/// How one rank's steps compared so far.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// The step that was last looked at.
    step: u64,
    /// Beats in a row with a slow step.
    slow: u32,
    told: bool,
}

/// The ranks' median, taken from time to time.
#[derive(Clone, Debug, Default)]
pub struct Median {
    /// Seconds; none while fewer than two ranks have told.
    seconds: Option<f64>,
    at: Option<Now>,
}

impl Median {
    fn refresh<'a>(&mut self, now: Now, beats: impl Iterator<Item = &'a Beat>) {
        if self.at.is_some_and(|at| now.since(at) < EVERY) {
            return;
        }
        self.at = Some(now);
        let mut own: Vec<f64> = beats.filter_map(Beat::own_seconds).filter(|s| s.is_finite()).collect();
        let middle = own.len().saturating_sub(1) / 2;
        self.seconds = (own.len() > 1).then(|| *own.select_nth_unstable_by(middle, f64::total_cmp).1);
    }
}

impl Pace {
    /// Takes a beat; the rank's own seconds if it has just become a straggler.
    fn take(&mut self, beat: &Beat, limit: f64) -> Option<f64> {
        let own = beat.own_seconds()?;
        if beat.step.0 == self.step {
            return None;
        }
        self.step = beat.step.0;
        self.slow = if own > limit { self.slow + 1 } else { 0 };
        if self.slow < PATIENCE || std::mem::replace(&mut self.told, true) {
            return None;
        }
        Some(own)
    }
}

impl Core {
    /// Compares this rank with the others: one warning and one incident a generation.
    pub(super) fn compare(&mut self, now: Now, worker: WorkerId, rank: Rank, out: &mut Vec<Action>) {
        let (Some(factor), State::Running(r)) = (self.settings.straggler_factor, &self.state) else { return };
        let ranks = r.inside().filter_map(|id| self.members.get(id)).map(|m| &m.beat);
        self.median.refresh(now, ranks);
        let generation = r.generation;
        let Some(median) = self.median.seconds.filter(|m| *m > 0.0) else { return };
        let Some(member) = self.members.get_mut(worker) else { return };
        let Some(own) = member.pace.take(&member.beat, factor * median) else { return };
        let Member { name, node, device, beat, .. } = member.clone();
        let cause = format!(
            "its own part of a step takes {own:.3} s, the median rank's {median:.3} s (cluster.straggler_factor)"
        );
        log(out, Level::Warn, format!("{name} (rank {rank}) is a straggler: {cause}"));
        out.push(Action::Publish(Notice::Incident(incident::Incident {
            generation,
            what: incident::What::Straggler,
            worker: name.clone(),
            rank: Some(rank),
            host: node.clone(),
            step: beat.step,
            phase: beat.phase,
            collective: String::new(),
            clip: String::new(),
            cause: cause.clone(),
            seconds: 0.0,
            last_lines: vec![],
        })));
        let enough = self.members.staying() > self.settings.min_workers as usize;
        if self.settings.replace_stragglers && enough {
            // A fresh process helps where the old one was ill; where the next is as slow, it is the host.
            let first = self.replaced.insert((node, device));
            if let Some(member) = self.members.get_mut(worker).filter(|m| m.leaving.is_none()) {
                member.replaced = first;
            }
            self.wants_to_go(now, worker, cause, out);
        }
    }
}
