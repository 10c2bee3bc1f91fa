//! Where the job stands, for a person who asks.

use super::{Beat, Core, Epoch, Generation, Now, Rank, State, Step, StepReport};
use std::time::Duration;

/// The whole job.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub coordinator: Epoch,
    pub generation: Generation,
    /// waiting | starting | running | leaving | ended
    pub state: &'static str,
    /// The last one reported.
    pub step: Option<StepReport>,
    /// Of the newest checkpoint.
    pub committed: Option<Step>,
    pub members: Vec<MemberStatus>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberStatus {
    pub worker: String,
    pub host: String,
    pub device: String,
    /// In the running generation.
    pub rank: Option<Rank>,
    pub beat: Beat,
    /// Since it was last heard.
    pub silent: Duration,
    /// Since its trainer last moved.
    pub still: Duration,
    pub leaving: bool,
}

impl Core {
    /// Where the job stands.
    pub fn status(&self, now: Now) -> Status {
        let state = match &self.state {
            State::Waiting(_) => "waiting",
            State::Recording(_) => "starting",
            State::Running(r) if r.leave.is_some() => "leaving",
            State::Running(r) if r.step.is_none() => "starting",
            State::Running(_) => "running",
            State::Ended { .. } => "ended",
        };
        let mut members: Vec<MemberStatus> = self
            .members
            .iter()
            .map(|m| MemberStatus {
                worker: m.name.clone(),
                host: m.node.clone(),
                device: m.device.clone(),
                rank: match &self.state {
                    State::Running(r) => r.rank_of(m.id),
                    _ => None,
                },
                beat: m.beat.clone(),
                silent: m.silent_for(now),
                still: m.still_for(now),
                leaving: m.leaving.is_some(),
            })
            .collect();
        members.sort_by(|a, b| {
            (a.rank.is_none(), a.rank, &a.worker).cmp(&(b.rank.is_none(), b.rank, &b.worker))
        });
        Status {
            coordinator: self.epoch,
            generation: self.generation,
            state,
            step: self.last_step.clone(),
            committed: self.commits.newest(),
            members,
        }
    }
}
