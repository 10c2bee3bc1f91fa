//! Which checkpoints are whole, being committed, committed, and to be deleted.

use super::{
    retention::{Retention, Scores},
    types::{Rank, Shard, Step, WholeCheckpoint},
};
use std::collections::{BTreeMap, BTreeSet};

/// The checkpoints of the run as the core knows them.
#[derive(Clone, Debug, Default)]
pub struct Commits {
    /// Steps whose manifest exists, and what was measured at them.
    committed: BTreeMap<Step, Scores>,
    /// Evaluations since the newest of those.
    evaluated: BTreeMap<Step, Scores>,
    /// Parts of the running generation, by step and attempt.
    collecting: BTreeMap<(Step, String), BTreeMap<Rank, Shard>>,
    /// Steps of which this generation has delivered a whole set already.
    delivered: BTreeSet<Step>,
    in_flight: BTreeSet<Step>,
}

/// What became of a rank's part.
#[derive(Clone, Debug, PartialEq)]
pub enum Offer {
    /// More parts are missing, or the set was delivered before.
    Noted,
    /// The last part: commit this.
    Whole(WholeCheckpoint),
    /// The part contradicts the generation or the others.
    Refused(String),
}

impl Commits {
    /// Starts from the manifests found in the run.
    pub fn new(committed: BTreeMap<Step, Scores>) -> Self {
        Self { committed, ..Default::default() }
    }

    /// Notes what was measured at a step: rank 0 reports that before its part of the checkpoint.
    pub fn evaluated(&mut self, step: Step, scores: Scores) {
        self.evaluated.insert(step, scores);
    }

    /// Takes one rank's part; the caller has checked generation and sender.
    pub fn offer(&mut self, shard: Shard, world: u32) -> Offer {
        let (step, rank) = (shard.step, shard.rank);
        if shard.world_size != world || rank.0 >= world {
            return Offer::Refused(format!(
                "rank {rank} reported a part of step {step} for {} workers; the generation has {world}",
                shard.world_size
            ));
        }
        if self.delivered.contains(&step) {
            return Offer::Noted;
        }
        let key = (step, shard.attempt.clone());
        let parts = self.collecting.entry(key).or_default();
        parts.insert(rank, shard);
        if parts.len() < world as usize {
            return Offer::Noted;
        }
        let parts = std::mem::take(parts);
        self.collecting.retain(|(s, _), _| *s != step);
        self.delivered.insert(step);
        self.in_flight.insert(step);
        let head = &parts[&Rank(0)];
        Offer::Whole(WholeCheckpoint {
            generation: head.generation,
            step,
            attempt: head.attempt.clone(),
            header_json: head.header_json.clone(),
            files: parts.values().flat_map(|p| p.files.iter().cloned()).collect(),
            scores: self.evaluated.get(&step).copied().unwrap_or_default(),
            replaces: self.committed.contains_key(&step),
        })
    }

    /// The manifest of `step` is there. Returns the steps to delete by `rules`.
    ///
    /// A manifest of a later step was refused by the generation that wrote this one (it would
    /// have started from it otherwise), so it does not count among those kept; it is left for a
    /// person to look at until its step is reached and written again.
    pub fn committed(&mut self, step: Step, rules: &Retention) -> Vec<Step> {
        self.in_flight.remove(&step);
        let scores = self.evaluated.remove(&step).unwrap_or_default();
        self.evaluated.retain(|s, _| *s > step);
        self.committed.insert(step, scores);
        let old = rules.outdated(&self.committed, step);
        for s in &old {
            self.committed.remove(s);
        }
        old
    }

    /// The manifest of `step` could not be written.
    pub fn failed(&mut self, step: Step) {
        self.in_flight.remove(&step);
    }

    /// The generation is over: parts that did not make a whole set never will.
    pub fn generation_over(&mut self) {
        self.collecting.clear();
        self.delivered.clear();
    }

    /// True while a manifest is being written.
    pub fn busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Steps for which only some ranks have reported.
    pub fn incomplete(&self) -> impl Iterator<Item = Step> {
        self.collecting.keys().map(|(step, _)| *step)
    }
}
