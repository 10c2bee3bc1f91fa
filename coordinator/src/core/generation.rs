//! The running generation: who sits where, who failed, who has left, who is done.

use super::Beat;
use super::types::{Generation, Membership, Now, Rank, Step, WorkerId};
use std::{collections::HashMap, sync::Arc};

/// A generation that was announced and is not over.
#[derive(Clone, Debug)]
pub struct Running {
    pub generation: Generation,
    /// Worker names, by rank.
    pub names: Arc<[String]>,
    /// The last step that rank 0 reported; none yet if `None`.
    pub step: Option<Step>,
    /// Everybody was asked to leave together.
    pub leave: Option<Leave>,
    /// By rank.
    seats: Vec<Seat>,
    ranks: HashMap<WorkerId, Rank>,
    /// Seats whose worker is still in the generation, or supposed to be.
    open: usize,
    finished: usize,
    failing_since: Option<Now>,
    leaving_since: Option<Now>,
    /// After a restart of the coordinator: until when absent members may report.
    pub absent_until: Option<Now>,
}

/// What all members were asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    pub reason: String,
    pub checkpoint: bool,
}

#[derive(Clone, Debug)]
struct Seat {
    /// None: its worker has not reported to this coordinator yet.
    worker: Option<WorkerId>,
    ended: Option<Ended>,
    failure: Option<Failure>,
}

/// How a worker failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub step: Step,
    pub error: String,
    /// Its last sign of life before it said so: where it was.
    pub beat: Beat,
}

/// How a worker came out of its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Finished,
    /// At this step, where it is known.
    Left(Option<Step>),
}

impl Running {
    /// `workers` with their names, by rank.
    pub fn new(generation: Generation, workers: &[WorkerId], names: Arc<[String]>) -> Self {
        let mut running = Self::of(generation, names);
        for (rank, worker) in workers.iter().enumerate() {
            running.occupy(Rank(rank as u32), *worker);
        }
        running
    }

    /// One that another coordinator announced: nobody has reported yet.
    pub fn restored(membership: &Membership) -> Self {
        Self::of(membership.generation, membership.names.clone())
    }

    fn of(generation: Generation, names: Arc<[String]>) -> Self {
        let seat = Seat { worker: None, ended: None, failure: None };
        Self {
            generation,
            step: None,
            leave: None,
            seats: vec![seat; names.len()],
            ranks: HashMap::with_capacity(names.len()),
            open: names.len(),
            finished: 0,
            failing_since: None,
            leaving_since: None,
            absent_until: None,
            names,
        }
    }

    pub fn world(&self) -> u32 {
        self.seats.len() as u32
    }

    pub fn rank_of(&self, worker: WorkerId) -> Option<Rank> {
        self.ranks.get(&worker).copied()
    }

    pub fn name_of(&self, rank: Rank) -> &str {
        self.names.get(rank.0 as usize).map_or("", String::as_str)
    }

    /// The worker in this seat, where one has reported.
    pub fn worker_at(&self, rank: Rank) -> Option<WorkerId> {
        self.seats.get(rank.0 as usize)?.worker
    }

    /// The seat of a worker of this name that has not reported.
    pub fn absent_named(&self, name: &str) -> Option<Rank> {
        self.absent().find(|rank| self.name_of(*rank) == name)
    }

    /// Seats of which nobody has reported.
    pub fn absent(&self) -> impl Iterator<Item = Rank> {
        let empty = |(_, s): &(usize, &Seat)| s.worker.is_none() && s.ended.is_none();
        self.seats.iter().enumerate().filter(empty).map(|(rank, _)| Rank(rank as u32))
    }

    /// The seat's session from now on.
    pub fn occupy(&mut self, rank: Rank, worker: WorkerId) {
        if let Some(seat) = self.seats.get_mut(rank.0 as usize) {
            if let Some(before) = seat.worker.replace(worker) {
                self.ranks.remove(&before);
            }
            self.ranks.insert(worker, rank);
        }
    }

    pub fn finished(&mut self, worker: WorkerId, step: Step) {
        // A generation that resumes at the very end reports no step of its own.
        self.step = self.step.max(Some(step));
        if self.end_seat(worker, Ended::Finished) {
            self.finished += 1;
        }
    }

    /// The worker has left at a step boundary; `None`: it says that it is in no generation.
    pub fn left(&mut self, now: Now, worker: WorkerId, step: Option<Step>) {
        self.end_seat(worker, Ended::Left(step));
        self.leaving_since.get_or_insert(now);
    }

    pub fn failed(&mut self, now: Now, worker: WorkerId, failure: Failure) {
        if let Some(s) = self.seat(worker).filter(|s| s.ended.is_none()) {
            s.failure.get_or_insert(failure);
            self.failing_since.get_or_insert(now);
        }
    }

    /// True where the generation cannot go on without this worker.
    pub fn needs(&self, worker: WorkerId) -> bool {
        self.rank_of(worker).is_some_and(|rank| self.seats[rank.0 as usize].ended.is_none())
    }

    /// Workers that are in the generation, as far as is known.
    pub fn inside(&self) -> impl Iterator<Item = WorkerId> {
        self.seats.iter().filter(|s| s.ended.is_none()).filter_map(|s| s.worker)
    }

    pub fn all_finished(&self) -> bool {
        self.finished == self.seats.len()
    }

    pub fn any_finished(&self) -> bool {
        self.finished > 0
    }

    /// Nobody is inside any more: they left, or some did and the others had finished.
    pub fn all_out(&self) -> bool {
        self.open == 0 && !self.all_finished()
    }

    /// Since when some have left while others are inside.
    pub fn half_left_since(&self) -> Option<Now> {
        self.leaving_since.filter(|_| self.open > 0)
    }

    /// The step boundary at which they left, where it is known.
    pub fn left_at(&self) -> Option<Step> {
        self.seats
            .iter()
            .filter_map(|s| match s.ended {
                Some(Ended::Left(step)) => step,
                _ => None,
            })
            .max()
    }

    /// Since when the generation is failing, the first failure, and that in words.
    pub fn failure(&self) -> Option<(Now, Rank, &Failure, String)> {
        let since = self.failing_since?;
        let rank = Rank(self.seats.iter().position(|s| s.failure.is_some())? as u32);
        let failure = self.seats.get(rank.0 as usize)?.failure.as_ref()?;
        Some((since, rank, failure, self.failure_at(rank)?))
    }

    /// How this worker failed, in words.
    pub fn failure_of(&self, worker: WorkerId) -> Option<String> {
        self.failure_at(self.rank_of(worker)?)
    }

    pub fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    /// Members of a failing generation that have not noticed.
    pub fn silent_in_failure(&self) -> impl Iterator<Item = WorkerId> {
        self.seats.iter().filter(|s| s.failure.is_none() && s.ended.is_none()).filter_map(|s| s.worker)
    }

    fn failure_at(&self, rank: Rank) -> Option<String> {
        let Failure { step, error, .. } = self.seats.get(rank.0 as usize)?.failure.as_ref()?;
        Some(format!("worker {} (rank {rank}) failed at step {step}: {error}", self.name_of(rank)))
    }

    /// True if that seat was open.
    fn end_seat(&mut self, worker: WorkerId, how: Ended) -> bool {
        let Some(seat) = self.seat(worker).filter(|s| s.ended.is_none()) else { return false };
        seat.ended = Some(how);
        self.open -= 1;
        true
    }

    fn seat(&mut self, worker: WorkerId) -> Option<&mut Seat> {
        let rank = self.rank_of(worker)?;
        self.seats.get_mut(rank.0 as usize)
    }
}
