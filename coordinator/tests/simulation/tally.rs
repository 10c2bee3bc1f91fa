//! What happened, counted by name, and what must have happened at least once in a usual run.

use crate::faults::FAULTS;
use std::collections::BTreeMap;

/// Consequences without which the faults have tested little.
const CONSEQUENCES: [&str; 14] = [
    "checkpoints",
    "directives disobeyed",
    "generations",
    "heals",
    "incidents",
    "incidents: stragglers",
    "jobs given up",
    "jobs stopped",
    "loads",
    "loads past a damaged checkpoint",
    "steps",
    "store: a reply lost",
    "store: a request failed",
    "superseded coordinators",
];

/// Counts by name.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    counts: BTreeMap<&'static str, u64>,
    most_workers: usize,
}

impl Tally {
    /// Of a job that begins with so many workers.
    pub fn of_job(workers: usize) -> Self {
        Self { most_workers: workers, ..Default::default() }
    }

    pub fn add(&mut self, name: &'static str, n: u64) {
        *self.counts.entry(name).or_default() += n;
    }

    pub fn add_all(&mut self, other: &Self) {
        other.counts.iter().for_each(|(name, n)| self.add(name, *n));
        self.most_workers = self.most_workers.max(other.most_workers);
    }

    /// Faults and consequences that never came about.
    pub fn never(&self) -> Vec<&'static str> {
        let names = FAULTS.iter().map(|fault| fault.name()).chain(CONSEQUENCES);
        names.filter(|name| self.counts.get(name).is_none_or(|n| *n == 0)).collect()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "up to {} workers", self.most_workers)?;
        self.counts.iter().try_for_each(|(name, n)| writeln!(f, "{n:>12}  {name}"))
    }
}
