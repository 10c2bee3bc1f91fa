//! What outlives a generation, and how the ranks of a new one agree on it.
//!
//! Survivors keep their state in memory. In a new group each rank says what it has; the newest step wins, for whoever
//! has taken a step has heard the vote of all ranks on it. The lowest rank that holds it is the source, and whoever
//! holds another step, or another digest of the same step, takes over the source's state. Newer is what a later
//! generation has done, whatever its step: one that began from a checkpoint has gone back. So a worker that was cut off
//! for long never overrules what the others have done or committed meanwhile.

use super::Job;
use crate::{
    Error, Result,
    checkpoint::layout::Place,
    session::{Age, Assignment, Session},
    state::State,
};
use collective::{Buckets, Group, ReduceOp};
use proto::v1;
use std::collections::{BTreeSet, VecDeque};
use storage::Bandwidth;
use tch::{Tensor, kind::Element};
use tokio::task::JoinHandle;

/// Reports of so many steps are kept: more than a coordinator leaves a silent rank 0 the time for.
const REPORTS: usize = 4096;

/// One rank's training as it stands at a step boundary.
pub(super) struct Kept {
    pub(super) state: State,
    /// Where the state stands; means nothing before `begun`.
    pub(super) position: Place,
    /// The state is the job's, not just fresh weights.
    pub(super) begun: bool,
    /// The generation that took the last step, or the last checkpoint.
    pub(super) generation: u64,
    pub(super) owed: Owed,
    /// How gradients are exchanged; known from the first generation on that takes a step.
    pub(super) buckets: Option<Buckets>,
    /// Steps skipped in a row.
    pub(super) skipped: u64,
    /// Damaged clips that were spoken of, by their places in the split.
    pub(super) told: BTreeSet<u32>,
    /// What its rank 0 had to report of the last steps of the generation, if that is another: it may be gone with it.
    pub(super) reports: VecDeque<v1::StepReport>,
    /// The last generation broke off: its rank 0 may not have reported all steps.
    pub(super) broke: bool,
    /// This rank is the one that tells them.
    pub(super) tells: bool,
    /// This rank's share of the last checkpoint, on its way; a generation's end does not stop it.
    pub(super) upload: Option<Upload>,
    /// The last step that this rank took its share of a checkpoint of.
    pub(super) saved: Option<u64>,
    /// This process has finished a step.
    pub(super) stepped: bool,
}

/// A share of a checkpoint on its way.
pub(super) struct Upload {
    pub(super) task: JoinHandle<Result<()>>,
    /// Lifted when the rest of the job waits for it.
    pub(super) limit: Option<Bandwidth>,
}

/// What is still to be done at the boundary where the state stands, before the next step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Owed {
    pub(super) measure: bool,
    pub(super) checkpoint: bool,
}

/// What one rank brings into a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    begun: bool,
    age: Age,
    digest: u64,
}

/// Whose state counts, and who must take it over.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Agreement {
    source: usize,
    behind: Vec<usize>,
}

impl Kept {
    /// Fresh weights and nothing done.
    pub(super) fn new(state: State) -> Self {
        Self {
            state,
            position: Place::default(),
            begun: false,
            generation: 0,
            owed: Owed::default(),
            buckets: None,
            skipped: 0,
            told: BTreeSet::new(),
            reports: VecDeque::new(),
            broke: false,
            tells: false,
            upload: None,
            saved: None,
            stepped: false,
        }
    }

    /// The generation broke off. What it saved and is not committed yet may never be whole: it is owed anew.
    pub(super) fn break_off(&mut self, session: &Session) {
        self.broke = true;
        self.owed.checkpoint |= self.saved.is_some_and(|step| session.committed() < Some(step));
    }

    /// Another rank has reported this step, as far as is known here.
    pub(super) fn remember(&mut self, report: v1::StepReport) {
        if self.reports.len() == REPORTS {
            self.reports.pop_front();
        }
        self.reports.push_back(report);
    }

    /// Agrees with the other ranks of a new group, and leaves this one with the state that counts. False: nobody has
    /// any, or `saved`, the newest checkpoint, is newer. Every rank takes part.
    pub(super) fn agree(
        &mut self,
        job: &Job,
        mine: Claim,
        saved: Option<Age>,
        at: &Assignment,
        group: &Group,
    ) -> Result<bool> {
        let claims = exchange(&mine, at, group, job)?;
        let Some(agreed) = agreed(&claims, saved) else { return Ok(false) };
        let (source, sent) = (agreed.source, claims[agreed.source]);
        if at.rank == source {
            tell(&claims, &agreed);
        }
        self.tells = self.broke && at.rank == source;
        self.buckets = self.hear_buckets(source, group, job)?;
        let (place, owed, skipped) = self.hear_place(source, group, job)?;
        let behind = agreed.behind.contains(&at.rank);
        if !agreed.behind.is_empty() {
            // What a survivor has stays until all of the other state is here: the source may die on the way.
            self.state.broadcast(group, source, behind && self.begun)?;
        }
        if behind {
            let step = place.step;
            tracing::info!("rank {} takes over the state of rank {source} at step {step}", at.rank);
            let got = self.state.digest()?;
            self.begun = got == sent.digest;
            self.saved = None;
            if !self.begun {
                return Err(Error::Unlike { source_rank: source, step, got, sent: sent.digest });
            }
        }
        (self.position, self.owed, self.skipped) = (place, owed, skipped);
        self.generation = sent.age.generation;
        Ok(true)
    }

    /// What this rank brings into the next group.
    pub(super) fn claim(&self) -> Result<Claim> {
        Ok(match self.begun {
            true => {
                let age = Age { generation: self.generation, step: self.position.step };
                Claim { begun: true, age, digest: self.state.digest()? }
            }
            false => Claim::default(),
        })
    }

    /// The source's, who may know none yet.
    fn hear_buckets(&self, source: usize, group: &Group, job: &Job) -> Result<Option<Buckets>> {
        let parameters = self.state.parameters().len();
        let numbers = self.buckets.as_ref().map_or(vec![-1; parameters], Buckets::to_numbers);
        let numbers = broadcast(&numbers, source, group, job)?;
        Ok((!numbers.contains(&-1)).then(|| Buckets::of_numbers(&numbers)))
    }

    /// The source's position, what it owes there, and how many steps were skipped.
    fn hear_place(&self, source: usize, group: &Group, job: &Job) -> Result<(Place, Owed, u64)> {
        let Place { epoch, step_in_epoch, step } = self.position;
        let owed = [self.owed.measure, self.owed.checkpoint].map(u64::from);
        let numbers = [epoch, step_in_epoch, step, owed[0], owed[1], self.skipped];
        let numbers = broadcast(&numbers.map(|n| n as i64), source, group, job)?;
        let number = |i: usize| numbers.get(i).map_or(0, |n| *n as u64);
        let place = Place { epoch: number(0), step_in_epoch: number(1), step: number(2) };
        Ok((place, Owed { measure: number(3) != 0, checkpoint: number(4) != 0 }, number(5)))
    }
}

/// Every rank gets rank `root`'s numbers, which are as many everywhere.
pub(super) fn broadcast<T: Element + Copy>(
    numbers: &[T],
    root: usize,
    group: &Group,
    job: &Job,
) -> Result<Vec<T>> {
    let numbers = Tensor::from_slice(numbers).f_to_device(job.options.device.torch())?;
    group.broadcast(&numbers, root)?.wait()?;
    Ok(Vec::try_from(&numbers.f_to_device(tch::Device::Cpu)?)?)
}

/// What each rank brings, by rank.
fn exchange(mine: &Claim, at: &Assignment, group: &Group, job: &Job) -> Result<Vec<Claim>> {
    let mut rows = vec![0i64; 4 * at.world];
    let row = [u64::from(mine.begun), mine.age.generation, mine.age.step, mine.digest].map(|n| n as i64);
    rows[4 * at.rank..4 * (at.rank + 1)].copy_from_slice(&row);
    let rows = Tensor::from_slice(&rows).f_to_device(job.options.device.torch())?;
    group.all_reduce(&rows, ReduceOp::Sum)?.wait()?;
    let rows = Vec::<i64>::try_from(&rows.f_to_device(tch::Device::Cpu)?)?;
    let claim = |r: &[i64]| {
        let age = Age { generation: r[1] as u64, step: r[2] as u64 };
        Claim { begun: r[0] != 0, age, digest: r[3] as u64 }
    };
    Ok(rows.chunks(4).map(claim).collect())
}

/// The newest wins, and among those who hold it the lowest rank. `None`: nobody has begun, or what is saved is newer
/// than what anybody has.
fn agreed(claims: &[Claim], saved: Option<Age>) -> Option<Agreement> {
    let newest = claims.iter().filter(|c| c.begun).map(|c| c.age).max()?;
    if saved > Some(newest) {
        return None;
    }
    let source = claims.iter().position(|c| c.begun && c.age == newest)?;
    // The same state may have been saved by one rank and not yet by another.
    let what = |c: &Claim| (c.begun, c.age.step, c.digest);
    let behind = (0..claims.len()).filter(|r| what(&claims[*r]) != what(&claims[source])).collect();
    Some(Agreement { source, behind })
}

/// Says who goes on from where, and whose state should have been the same.
fn tell(claims: &[Claim], agreed: &Agreement) {
    let Claim { age: Age { step, .. }, digest, .. } = claims[agreed.source];
    tracing::info!(
        "going on from step {step} with the state in memory of rank {}; ranks that take it over: {:?}",
        agreed.source,
        agreed.behind
    );
    for rank in agreed.behind.iter().filter(|r| claims[**r].begun && claims[**r].age.step == step) {
        tracing::warn!(
            "rank {rank} has another state at step {step}: digest {:016x}, and {digest:016x} at rank {}, which counts",
            claims[*rank].digest,
            agreed.source
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of generation 3.
    fn claim(step: u64, digest: u64) -> Claim {
        Claim { begun: true, age: Age { generation: 3, step }, digest }
    }

    fn later(step: u64, digest: u64) -> Claim {
        Claim { age: Age { generation: 5, step }, ..claim(step, digest) }
    }

    fn of(claims: &[Claim], committed: Option<(u64, u64)>) -> Option<(usize, Vec<usize>)> {
        let committed = committed.map(|(generation, step)| Age { generation, step });
        agreed(claims, committed).map(|a| (a.source, a.behind))
    }

    #[test]
    fn the_newest_step_wins_and_the_lowest_rank_that_holds_it_is_the_source() {
        let newcomer = Claim::default();
        let of = |claims: &[Claim]| of(claims, None);
        assert_eq!(of(&[newcomer, newcomer]), None);
        assert_eq!(of(&[claim(5, 1), claim(5, 1)]), Some((0, vec![])));
        assert_eq!(of(&[newcomer, claim(5, 1), claim(6, 2), claim(6, 2)]), Some((2, vec![0, 1])));
        // The same step with another digest: the source's counts.
        assert_eq!(of(&[claim(6, 2), claim(6, 3), claim(6, 2)]), Some((0, vec![1])));
        // Step 0 of somebody who has begun outranks a newcomer.
        assert_eq!(of(&[newcomer, claim(0, 9)]), Some((1, vec![0])));
        // Only one of them has saved it yet.
        assert_eq!(of(&[claim(6, 2), later(6, 2)]), Some((1, vec![])));
    }

    #[test]
    fn who_was_cut_off_for_long_overrules_nobody() {
        // The others went back to a checkpoint while rank 0 was away.
        assert_eq!(of(&[claim(9, 1), later(7, 2)], None), Some((1, vec![0])));
        assert_eq!(of(&[claim(9, 1), later(9, 2)], None), Some((1, vec![0])), "and did its step again");
        // They are gone, and what they committed is what counts.
        let newcomer = Claim::default();
        assert_eq!(of(&[claim(9, 1), newcomer], Some((3, 8))), Some((0, vec![1])));
        assert_eq!(of(&[claim(9, 1), newcomer], Some((3, 9))), Some((0, vec![1])));
        assert_eq!(of(&[claim(9, 1), newcomer], Some((3, 14))), None);
        assert_eq!(of(&[claim(9, 1), newcomer], Some((5, 7))), None);
        // A later step of an earlier generation was refused by the one that went on from before it.
        assert_eq!(of(&[later(7, 2), newcomer], Some((3, 14))), Some((0, vec![1])));
        assert_eq!(of(&[newcomer], Some((3, 14))), None);
    }
}
