//! The running generation: who sits where, who failed, who is done.

use super::types::{Generation, Now, Rank, Step, WorkerId};

/// A generation that was announced and is not over.
#[derive(Clone, Debug)]
pub struct Running {
    pub generation: Generation,
    /// The last step that rank 0 reported; none yet if `None`.
    pub step: Option<Step>,
    /// By rank.
    seats: Vec<Seat>,
    failing_since: Option<Now>,
}

#[derive(Clone, Debug)]
struct Seat {
    worker: WorkerId,
    name: String,
    finished: bool,
    failure: Option<(Step, String)>,
}

impl Running {
    /// `workers` with their names, by rank.
    pub fn new(generation: Generation, workers: impl Iterator<Item = (WorkerId, String)>) -> Self {
        let seats =
            workers.map(|(worker, name)| Seat { worker, name, finished: false, failure: None }).collect();
        Self { generation, step: None, seats, failing_since: None }
    }

    pub fn world(&self) -> u32 {
        self.seats.len() as u32
    }

    pub fn workers(&self) -> impl Iterator<Item = WorkerId> {
        self.seats.iter().map(|s| s.worker)
    }

    pub fn rank_of(&self, worker: WorkerId) -> Option<Rank> {
        self.seats.iter().position(|s| s.worker == worker).map(|rank| Rank(rank as u32))
    }

    pub fn finished(&mut self, worker: WorkerId, step: Step) {
        // A generation that resumes at the very end reports no step of its own.
        self.step = self.step.max(Some(step));
        if let Some(s) = self.seat(worker) {
            s.finished = true;
        }
    }

    pub fn failed(&mut self, now: Now, worker: WorkerId, step: Step, error: String) {
        if let Some(s) = self.seat(worker) {
            s.failure.get_or_insert((step, error));
            self.failing_since.get_or_insert(now);
        }
    }

    /// True where the generation cannot go on without this worker.
    pub fn needs(&self, worker: WorkerId) -> bool {
        self.unfinished().any(|w| w == worker)
    }

    pub fn unfinished(&self) -> impl Iterator<Item = WorkerId> {
        self.seats.iter().filter(|s| !s.finished).map(|s| s.worker)
    }

    pub fn all_finished(&self) -> bool {
        self.seats.iter().all(|s| s.finished)
    }

    /// Since when the generation is failing, and the first failure in words.
    pub fn failure(&self) -> Option<(Now, String)> {
        let first = self.seats.iter().find(|s| s.failure.is_some())?;
        Some((self.failing_since?, self.failure_of(first.worker)?))
    }

    /// How this worker failed, in words.
    pub fn failure_of(&self, worker: WorkerId) -> Option<String> {
        let rank = self.rank_of(worker)?;
        let seat = self.seats.get(rank.0 as usize)?;
        let (step, error) = seat.failure.as_ref()?;
        Some(format!("worker {} (rank {rank}) failed at step {step}: {error}", seat.name))
    }

    /// Members of a failing generation that have not noticed.
    pub fn silent_in_failure(&self) -> impl Iterator<Item = WorkerId> {
        self.seats.iter().filter(|s| s.failure.is_none() && !s.finished).map(|s| s.worker)
    }

    fn seat(&mut self, worker: WorkerId) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|s| s.worker == worker)
    }
}
