//! One node of a simulation: its ranks' steps, one after another, against its cache.

use super::Job;
use crate::Result;
use crate::cache::{DatasetTag, Filler, Geometry, Open, Place, Table, tag};
use crate::format::ClipIndex;
use crate::reader::{runs_of, spans};
use crate::stream::{BatchPlan, Batches, Grouped};
use std::collections::HashMap;
use std::ops::Range;

/// What a node asks of the store and finds in its cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Views shown.
    pub views: u64,
    /// Ranged GETs.
    pub requests: u64,
    /// Bytes that come by them.
    pub bytes: u64,
    /// Runs found in the cache.
    pub hits: u64,
    /// Runs not found there; without a cache, all.
    pub misses: u64,
    pub hit_bytes: u64,
    /// Bytes written to the cache.
    pub written_bytes: u64,
    /// Runs thrown out of the cache to make room.
    pub evicted: u64,
}

impl Counts {
    /// The sum of two.
    pub fn plus(self, other: &Self) -> Self {
        Self {
            views: self.views + other.views,
            requests: self.requests + other.requests,
            bytes: self.bytes + other.bytes,
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            hit_bytes: self.hit_bytes + other.hit_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            evicted: self.evicted + other.evicted,
        }
    }

    /// Part of the bytes that came from the cache.
    pub fn hit_rate(&self) -> f64 {
        match self.hit_bytes + self.bytes {
            0 => 0.0,
            all => self.hit_bytes as f64 / all as f64,
        }
    }
}

pub(super) struct Node<'a> {
    job: &'a Job,
    dataset: DatasetTag,
    table: Table,
    /// One a rank.
    fillers: Vec<Filler>,
    /// Slot and generation of each run that was written; it is gone where the slot's generation is another.
    runs: HashMap<(SourceClip, u32), (u32, u32)>,
}

/// A dataset of the job, and the clip's number there.
type SourceClip = (usize, ClipIndex);

impl<'a> Node<'a> {
    /// A node with an empty cache.
    pub(super) fn new(job: &'a Job, cache: u64, ranks: usize) -> Self {
        let geometry = Geometry::of(cache);
        Self {
            job,
            // Of one dataset: with several there is no cache.
            dataset: tag(&job.set.sources.digest()),
            table: Table::new(geometry),
            fillers: vec![Filler::new(geometry); ranks],
            runs: HashMap::new(),
        }
    }

    /// What the node's ranks ask in each epoch.
    pub(super) fn run(&mut self, ranks: Range<u32>, world: u32) -> Result<Vec<Counts>> {
        let passes = ranks.map(|rank| Batches::train(&self.job.set.sources, self.job.pass(rank, world)));
        let mut ranks = passes.collect::<Result<Vec<Batches>>>()?;
        let mut epochs = vec![Counts::default(); self.job.epochs as usize];
        loop {
            let mut ended = true;
            for (filler, rank) in ranks.iter_mut().enumerate() {
                let Some(batch) = rank.next() else { continue };
                let BatchPlan { epoch, items, .. } = batch?;
                ended = false;
                let counts = &mut epochs[epoch as usize];
                let mut fetched = Vec::new();
                for item in &items {
                    match &item.group {
                        Some(group) => ask_for(group, &item.frames, counts),
                        None => self.show((item.source, item.clip), &item.frames, counts, &mut fetched),
                    }
                }
                // What a step fetches is written behind it.
                for (clip, run) in fetched {
                    self.keep(filler, clip, run, counts);
                }
            }
            if ended {
                return Ok(epochs);
            }
        }
    }

    fn show(
        &mut self,
        at: SourceClip,
        frames: &[u32],
        counts: &mut Counts,
        fetched: &mut Vec<(SourceClip, u32)>,
    ) {
        let clip = self.job.set.sources.dataset(at.0).clip(at.1);
        let size = |runs: Range<u32>| {
            let range = clip.run_bytes(runs);
            range.end - range.start
        };
        counts.views += 1;
        let mut missing = Vec::new();
        for run in runs_of(frames) {
            match self.find(at, run) {
                Some(slot) => {
                    self.table.touch(slot);
                    counts.hits += 1;
                    counts.hit_bytes += size(run..run + 1);
                }
                None => {
                    counts.misses += 1;
                    missing.push(run);
                }
            }
        }
        fetched.extend(missing.iter().map(|&run| (at, run)));
        for span in spans(missing) {
            counts.requests += 1;
            counts.bytes += size(span);
        }
    }

    fn find(&self, at: SourceClip, run: u32) -> Option<u32> {
        let &(slot, generation) = self.runs.get(&(at, run))?;
        (self.table.slots[slot as usize].generation == generation).then_some(slot)
    }

    fn keep(&mut self, filler: usize, at: SourceClip, run: u32, counts: &mut Counts) {
        if self.find(at, run).is_some() {
            return;
        }
        let range = self.job.set.sources.dataset(at.0).clip(at.1).run_bytes(run..run + 1);
        let bytes = range.end - range.start;
        let others = self.fillers.iter().enumerate().filter(|(i, _)| *i != filler);
        let held: Vec<u32> = others.filter_map(|(_, f)| f.open()).map(|open| open.slot).collect();
        let (table, dataset) = (&mut self.table, &self.dataset);
        let claim = |full: Option<Open>| {
            if let Some(full) = full {
                table.publish(&full, true);
            }
            let open = table.claim(dataset, |slot| !held.contains(&slot));
            counts.evicted += open.map_or(0, |o| u64::from(o.evicted));
            Ok::<_, crate::Error>(open)
        };
        // The closure never fails.
        let Ok(Some(Place { slot, generation, .. })) = self.fillers[filler].place(bytes, claim) else {
            return;
        };
        if let Some(open) = self.fillers[filler].open() {
            self.table.publish(open, false);
        }
        counts.written_bytes += bytes;
        self.runs.insert((at, run), (slot, generation));
    }
}

/// A group comes once, for all of its clips.
fn ask_for(group: &Grouped, frames: &[u32], counts: &mut Counts) {
    counts.views += 1;
    counts.misses += runs_of(frames).len() as u64;
    if group.first {
        counts.requests += 1;
        counts.bytes += group.read.bytes();
    }
}
