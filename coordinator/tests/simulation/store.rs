//! The run's location: journal, manifests and objects; and what must be true of them after every write.

use coordinator::core::{Epoch, Generation, Kept, Membership, Step};
use std::collections::{BTreeMap, BTreeSet};

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The process that wrote it.
    pub leader: u64,
    pub epoch: Epoch,
    /// Where it is reached.
    pub address: usize,
    pub claim: bool,
    pub membership: Membership,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub origin: Kept,
    pub files: Vec<String>,
    /// Written by a coordinator that stood still after it had looked whether it leads, and led no longer. If its
    /// files are swept, it or the sweeper takes it back; until then readers find out by the digests.
    pub stale: bool,
}

/// The state of a job after some steps: a chain over its batches, so that any other order, a batch left out or
/// one taken twice is another digest.
pub fn digest_after(digest: u64, batch: u64) -> u64 {
    let mut x = digest ^ batch.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[derive(Debug, Default)]
pub struct Store {
    pub journal: BTreeMap<u64, Entry>,
    pub manifests: BTreeMap<Step, Manifest>,
    /// Digest of the state of which each object is a part, by step and key.
    pub objects: BTreeMap<(Step, String), u64>,
    /// What an undisturbed job has after each step.
    pub expected: Vec<u64>,
    pub ever_committed: bool,
    /// Objects of which a bit has changed or all is gone, through no coordinator's fault.
    damaged: BTreeSet<(Step, String)>,
    /// A manifest is being replaced: it may be missing for a moment.
    pub replacing: Option<Step>,
}

impl Store {
    pub fn new(total: u64) -> Self {
        let mut expected = vec![7];
        for batch in 0..total {
            expected.push(digest_after(expected[batch as usize], batch));
        }
        Self { expected, ..Default::default() }
    }

    pub fn last(&self) -> Option<(u64, &Entry)> {
        self.journal.last_key_value().map(|(n, e)| (*n, e))
    }

    /// Put-if-absent: true if this entry is there now.
    pub fn append(&mut self, number: u64, entry: Entry) -> bool {
        if let Some(there) = self.journal.get(&number) {
            return *there == entry;
        }
        let (last, before) = self.last().map_or((0, Generation(0)), |(n, e)| (n, e.membership.generation));
        assert_eq!(number, last + 1, "the journal has no gap");
        let generation = entry.membership.generation;
        let expected = if entry.claim { before } else { before.next() };
        assert_eq!(generation, expected, "generations have no gap: {entry:?}");
        let newest = self.journal.values().map(|e| e.epoch).max().unwrap_or_default();
        assert!(entry.epoch >= newest, "a superseded coordinator has written {entry:?}");
        let names: BTreeSet<_> = entry.membership.names.iter().collect();
        assert_eq!(names.len(), entry.membership.names.len(), "nobody sits twice");
        self.journal.insert(number, entry);
        true
    }

    /// The generation as it was recorded, and by whom.
    pub fn recorded(&self, generation: Generation) -> Option<&Entry> {
        self.journal.values().find(|e| !e.claim && e.membership.generation == generation)
    }

    pub fn put_manifest(&mut self, step: Step, manifest: Manifest) -> bool {
        if let Some(there) = self.manifests.get(&step) {
            return there.origin == manifest.origin;
        }
        let manifest_is_stale = manifest.stale;
        self.manifests.insert(step, manifest);
        self.ever_committed |= !manifest_is_stale;
        self.replacing = self.replacing.filter(|s| *s != step);
        self.check();
        true
    }

    /// Objects of steps before `newest`, or of `old` ones, that no manifest names and no later generation is at.
    pub fn strays(&self, old: &[Step], newest: Step) -> Vec<(Step, String)> {
        let Some(last) = self.manifests.get(&newest).map(|m| m.origin.generation.0) else { return vec![] };
        let attempt = |key: &str| key.strip_prefix('g')?.split('/').next()?.parse::<u64>().ok();
        let swept = |step: &Step| *step < newest || old.contains(step);
        let is_over = |o: &&(Step, String)| swept(&o.0) && attempt(&o.1).is_some_and(|of| of <= last);
        let named =
            |(step, key): &&(Step, String)| self.manifests.get(step).is_some_and(|m| m.files.contains(key));
        self.objects.keys().filter(|o| is_over(o) && !named(o)).cloned().collect()
    }

    /// The checkpoint of the newest step that can be read: each object is there and has its digest.
    pub fn newest_whole(&self) -> Option<(Generation, Step)> {
        let whole = self.manifests.iter().rev().find(|(step, m)| self.is_whole(**step, m));
        whole.map(|(step, m)| (m.origin.generation, *step))
    }

    fn is_whole(&self, step: Step, manifest: &Manifest) -> bool {
        let expected = self.expected[step.0 as usize];
        manifest.files.iter().all(|f| self.objects.get(&(step, f.clone())) == Some(&expected))
    }

    /// A part of a checkpoint is uploaded.
    pub fn put_object(&mut self, step: Step, key: String, digest: u64) {
        self.damaged.remove(&(step, key.clone()));
        self.objects.insert((step, key), digest);
    }

    /// Spoils a part of the newest checkpoint, if the one before can be read and stays: a job of which every
    /// checkpoint is damaged is a person's concern. True if that was possible.
    pub fn damage_newest(&mut self, which: usize, gone: bool, in_flight: &[Step]) -> bool {
        let mut newest = self.manifests.iter().rev();
        let (Some((step, manifest)), Some((before, its))) = (newest.next(), newest.next()) else {
            return false;
        };
        let busy = self.replacing.is_some() || in_flight.iter().any(|s| s == step || s == before);
        if busy || !self.is_whole(*step, manifest) || !self.is_whole(*before, its) {
            return false;
        }
        let object = (*step, manifest.files[which % manifest.files.len()].clone());
        match gone {
            true => drop(self.objects.remove(&object)),
            false => drop(self.objects.entry(object.clone()).and_modify(|digest| *digest ^= 1)),
        }
        self.damaged.insert(object);
        true
    }

    /// Some part of this step's checkpoints was spoilt.
    pub fn is_damaged(&self, step: Step) -> bool {
        self.damaged.iter().any(|(s, _)| *s == step)
    }

    /// Every manifest names what is there, and all of it is of that step's state.
    pub fn check(&self) {
        for (step, manifest) in self.manifests.iter().filter(|(_, m)| !m.stale) {
            for file in manifest.files.iter().filter(|f| !self.damaged.contains(&(*step, (*f).clone()))) {
                let digest = self.objects.get(&(*step, file.clone()));
                let expected = self.expected[step.0 as usize];
                assert_eq!(digest, Some(&expected), "the manifest of step {step} names {file}");
            }
        }
        assert!(
            !self.ever_committed || self.newest_whole().is_some() || self.replacing.is_some(),
            "all checkpoints are gone"
        );
    }
}
