//! Which checkpoints are whole, being committed, committed, and to be deleted.
//!
//! A set of parts belongs to one generation, and its attempt folder to that alone. A set that becomes whole
//! after its generation has ended still counts, unless a later generation has done its step again: whether
//! it has is known from the first step that the later one reports, so until then the set is held.

use super::{
    Shard,
    retention::{Kept, Retention, Scores},
    types::{Generation, Membership, Rank, Step, WholeCheckpoint},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Generations whose late parts are still taken.
const REMEMBERED: usize = 16;

/// The checkpoints of the run as the core knows them.
#[derive(Clone, Debug, Default)]
pub struct Commits {
    /// Steps whose manifest exists.
    committed: BTreeMap<Step, Kept>,
    /// Evaluations at steps that have no manifest yet.
    evaluated: BTreeMap<Step, Scores>,
    generations: BTreeMap<Generation, Known>,
    /// Parts that have come, by generation and step; a whole set stays until it is decided on.
    collecting: BTreeMap<(Generation, Step), BTreeMap<Rank, Shard>>,
    in_flight: BTreeMap<Step, (Generation, String)>,
    /// Sets that were handed out.
    delivered: BTreeSet<(Generation, Step)>,
}

/// What must be known of a generation to take its parts.
#[derive(Clone, Debug)]
struct Known {
    names: Arc<[String]>,
    /// The first step that it was heard to do.
    first: Option<Step>,
    /// The last one.
    told: Option<Step>,
    ended: bool,
    /// Another coordinator announced it, and may have heard of earlier steps.
    restored: bool,
}

/// What became of a rank's part.
#[derive(Clone, Debug, PartialEq)]
pub enum Offer {
    /// Wait: for other parts, for the manifest, or to be decided on.
    Noted,
    /// The manifest of this step, or of a later one in its place, is written.
    Committed(Step),
    /// The part contradicts the generation or the others.
    Refused(String),
}

/// What became of a whole set.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    Commit(WholeCheckpoint),
    /// The manifest of this step is there already, and is as good.
    Committed(Step),
    /// Another generation has done the step again.
    Overtaken(Generation, Step),
}

impl Commits {
    /// Starts from the manifests found in the run, and the generation that may still be running.
    pub fn new(committed: BTreeMap<Step, Kept>, last: &Membership) -> Self {
        let mut commits = Self { committed, ..Default::default() };
        if last.generation > Generation(0) {
            commits.announced(last.generation, last.names.clone(), true);
        }
        commits
    }

    /// A generation begins.
    pub fn announced(&mut self, generation: Generation, names: Arc<[String]>, restored: bool) {
        let known = Known { names, first: None, told: None, ended: false, restored };
        self.generations.insert(generation, known);
        while self.generations.len() > REMEMBERED {
            if let Some((old, _)) = self.generations.pop_first() {
                self.collecting.retain(|(g, _), _| *g > old);
                self.delivered.retain(|(g, _)| *g > old);
            }
        }
    }

    /// A generation is over.
    pub fn generation_over(&mut self, generation: Generation) {
        if let Some(known) = self.generations.get_mut(&generation) {
            known.ended = true;
        }
    }

    /// A generation has done this step.
    pub fn step(&mut self, generation: Generation, step: Step) {
        if let Some(known) = self.generations.get_mut(&generation) {
            known.first.get_or_insert(step);
            known.told = known.told.max(Some(step));
        }
    }

    /// Notes what was measured at a step: rank 0 reports that before its part of the checkpoint.
    pub fn evaluated(&mut self, step: Step, scores: Scores) {
        self.evaluated.insert(step, scores);
    }

    /// A member of a generation that is over tells of a step: its rank 0 was cut off, or is gone. True if that is news.
    pub fn told_late(&mut self, by: &str, generation: Generation, step: Step) -> bool {
        let of = self.generations.get_mut(&generation).filter(|k| k.ended);
        let Some(known) = of.filter(|k| k.told < Some(step) && k.names.iter().any(|n| n == by)) else {
            return false;
        };
        known.told = Some(step);
        true
    }

    /// Takes one rank's part from the worker called `from`; see [`Commits::decide`] for what follows.
    pub fn offer(&mut self, from: &str, shard: Shard) -> Offer {
        let (generation, step, rank) = (shard.generation, shard.step, shard.rank);
        // Of an older one nothing is known: its parts could not be told from anybody's.
        let Some(known) = self.generations.get(&generation) else { return Offer::Noted };
        let world = known.names.len();
        if shard.world_size as usize != world || rank.0 as usize >= world {
            return Offer::Refused(format!(
                "rank {rank} reported a part of step {step} for {} workers; generation {generation} has {world}",
                shard.world_size
            ));
        }
        if known.names[rank.0 as usize] != from {
            let seat = &known.names[rank.0 as usize];
            return Offer::Refused(format!(
                "{from} reported a checkpoint part of rank {rank} of generation {generation}, which is {seat}"
            ));
        }
        if self.committed.get(&step).is_some_and(|kept| kept.attempt == shard.attempt) {
            return Offer::Committed(step);
        }
        // Too late to matter, and perhaps swept away: what follows it in the same history is there.
        let mut after = self.committed.range(step..).skip_while(|(s, _)| **s == step);
        if let Some((later, _)) = after.find(|(_, c)| c.generation >= generation) {
            return Offer::Committed(*later);
        }
        if self.delivered.contains(&(generation, step)) {
            return Offer::Noted;
        }
        let parts = self.collecting.entry((generation, step)).or_default();
        if let Some(other) = parts.values().find(|p| p.attempt != shard.attempt) {
            return Offer::Refused(format!(
                "rank {rank} reported attempt {} of step {step}, and rank {} attempt {}",
                shard.attempt, other.rank, other.attempt
            ));
        }
        parts.insert(rank, shard);
        Offer::Noted
    }

    /// What follows for the sets that are whole. Some are held while it is not known whether the running
    /// generation does their step again.
    pub fn decide(&mut self) -> Vec<Decision> {
        let world = |g: &Generation| self.generations.get(g).map_or(usize::MAX, |k| k.names.len());
        let whole: Vec<_> = self
            .collecting
            .iter()
            .filter(|((g, _), parts)| parts.len() == world(g))
            .map(|(key, _)| *key)
            .collect();
        whole.into_iter().filter_map(|(generation, step)| self.decide_one(generation, step)).collect()
    }

    fn decide_one(&mut self, generation: Generation, step: Step) -> Option<Decision> {
        let later = || self.generations.range(generation.next()..).map(|(_, k)| k);
        let redone = later().any(|k| k.first.is_some_and(|first| first <= step));
        let passed = later().any(|k| k.first.is_some_and(|first| first > step));
        if !redone && !passed && later().any(|k| !k.ended) {
            return None;
        }
        // One manifest of a step after the other.
        if self.in_flight.contains_key(&step) {
            return None;
        }
        let parts = self.collecting.remove(&(generation, step))?;
        self.delivered.insert((generation, step));
        if redone {
            return Some(Decision::Overtaken(generation, step));
        }
        // A manifest of a step that this generation had still to do was refused when it began.
        let refused = self
            .generations
            .get(&generation)
            .is_some_and(|k| k.restored || k.first.is_some_and(|first| first <= step));
        let replaces = self.committed.contains_key(&step);
        if replaces && !refused {
            return Some(Decision::Committed(step));
        }
        let head = parts.get(&Rank(0))?;
        self.in_flight.insert(step, (generation, head.attempt.clone()));
        Some(Decision::Commit(WholeCheckpoint {
            generation,
            step,
            attempt: head.attempt.clone(),
            header_json: head.header_json.clone(),
            files: parts.values().flat_map(|p| p.files.iter().cloned()).collect(),
            scores: self.evaluated.get(&step).copied().unwrap_or_default(),
            replaces,
        }))
    }

    /// The manifest of `step` is there. Returns the steps to delete by `rules`.
    ///
    /// A manifest of a later step was refused by the generation that wrote this one (it would
    /// have started from it otherwise), so it does not count among those kept; it is left for a
    /// person to look at until its step is reached and written again.
    pub fn committed(&mut self, step: Step, rules: &Retention) -> Vec<Step> {
        if let Some((generation, attempt)) = self.in_flight.remove(&step) {
            let scores = self.evaluated.remove(&step).unwrap_or_default();
            self.evaluated.retain(|s, _| *s > step);
            self.committed.insert(step, Kept { generation, attempt, scores });
            // They would be swept away half made.
            self.collecting.retain(|(g, s), _| *g > generation || *s > step);
        }
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

    /// True if the manifest of `step` exists.
    pub fn has(&self, step: Step) -> bool {
        self.committed.contains_key(&step)
    }

    /// The newest step that has a manifest.
    pub fn newest(&self) -> Option<Step> {
        self.committed.last_key_value().map(|(step, _)| *step)
    }

    /// What the newest generation that has one committed last: it may have gone back in steps, from one that
    /// it refused.
    pub fn last(&self) -> Option<(Generation, Step)> {
        self.committed.iter().map(|(step, kept)| (kept.generation, *step)).max()
    }

    /// True while a manifest is being written.
    pub fn busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Steps of this generation for which only some ranks have reported.
    pub fn incomplete(&self, generation: Generation) -> impl Iterator<Item = Step> {
        self.collecting.keys().filter(move |(g, _)| *g == generation).map(|(_, step)| *step)
    }
}
