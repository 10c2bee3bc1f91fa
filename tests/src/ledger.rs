//! What became of a run, counted anew from its files and from what its workers said: which clips every step of the
//! surviving history showed, the losses, the generations, the checkpoints.

use crate::job::{self, checkpoint, events};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Training clips of [`crate::small::Fixture`]'s dataset: so many an epoch.
const CLIPS: usize = 60;
/// Two runs of different world sizes add in another order: their losses differ by this much at most, relatively.
const ROUNDING: f64 = 1e-5;

/// A run's history, every rule of the house that can be checked by it alone checked.
#[derive(Debug)]
pub struct Ledger {
    run: PathBuf,
    /// By step.
    losses: BTreeMap<u64, f64>,
    /// Epoch and clips, sorted, by step.
    shown: BTreeMap<u64, (u64, Vec<String>)>,
    /// The world size of each generation.
    worlds: Vec<usize>,
}

impl Ledger {
    /// Reads a run that has ended. `said` is all that its workers said. `whole`: no step's report may be missing; where
    /// the coordinator and all who could report again die at once, what was not written yet is gone.
    ///
    /// # Panics
    /// Where a step, a journal entry or a generation is missing, a clip was shown twice in an epoch or not at all, or a
    /// manifest names an object that is not there or not the one that was written.
    #[track_caller]
    pub fn read(run: &Path, said: &[String], whole: bool) -> Self {
        let ledger = Self {
            run: run.into(),
            losses: job::losses(run),
            shown: job::clips(said.iter().map(String::as_str)),
            worlds: journal(run),
        };
        let steps: Vec<u64> = (1..=ledger.steps()).collect();
        assert_eq!(ledger.shown.keys().copied().collect::<Vec<_>>(), steps, "the clips of {}", run.display());
        let missing: Vec<_> = steps.iter().filter(|step| !ledger.losses.contains_key(step)).collect();
        assert!(!whole || missing.is_empty(), "{} lacks the reports of {missing:?}", run.display());
        ledger.check_epochs();
        check_manifests(run);
        ledger
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.losses.keys().last().copied().unwrap_or(0)
    }

    /// How many workers each generation had.
    pub fn worlds(&self) -> &[usize] {
        &self.worlds
    }

    /// Workers that were lost, by rank.
    pub fn lost(&self) -> Vec<u64> {
        let lost = events(&self.run).into_iter().filter(|e| e["kind"] == "lost");
        lost.map(|e| e["rank"].as_u64().expect("a rank")).collect()
    }

    /// What cost the run time.
    pub fn incidents(&self) -> Vec<Value> {
        events(&self.run).into_iter().filter(|e| e["kind"] == "incident").collect()
    }

    /// The same clips in each step, and the same losses up to rounding, which adds up from step to step.
    #[track_caller]
    pub fn follows(&self, straight: &Self) {
        assert_eq!(self.steps(), straight.steps());
        for (step, clips) in &self.shown {
            assert_eq!(clips, &straight.shown[step], "the clips of step {step}");
        }
        for (step, loss) in &self.losses {
            let want = straight.losses[step];
            assert!(
                (loss - want).abs() <= ROUNDING * (1.0 + *step as f64 / 100.0) * want.abs(),
                "step {step}: loss {loss}, undisturbed {want}"
            );
        }
    }

    /// The same to the last bit: losses, and all that the last checkpoint holds.
    #[track_caller]
    pub fn equals(&self, straight: &Self) {
        self.follows(straight);
        for (step, loss) in &self.losses {
            assert_eq!(*loss, straight.losses[step], "the loss of step {step}, to the last bit");
        }
        let (ours, theirs) = [self, straight].map(|l| checkpoint(&l.run, l.steps())).into();
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        // After a generation that ended, rank 0 may be another worker than before, whose running statistics are its own.
        let counts = |k: &str| self.worlds.len() == 1 || !k.contains(".running_");
        let other = ours.iter().filter(|(k, v)| counts(k) && theirs[*k] != **v).map(|(k, _)| k);
        let other: Vec<&String> = other.collect();
        assert!(other.is_empty(), "these tensors of the last checkpoint differ: {other:?}");
    }

    /// Every clip once in each whole epoch, and at most once in the last.
    #[track_caller]
    fn check_epochs(&self) {
        let mut epochs: BTreeMap<u64, BTreeMap<&str, u64>> = BTreeMap::new();
        for (epoch, clips) in self.shown.values() {
            let counts = epochs.entry(*epoch).or_default();
            clips.iter().for_each(|clip| *counts.entry(clip).or_default() += 1);
        }
        let last = epochs.keys().last().copied().unwrap_or(0);
        for (epoch, counts) in epochs {
            let twice: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).collect();
            assert!(twice.is_empty(), "epoch {epoch} showed these more than once: {twice:?}");
            assert!(
                epoch == last || counts.len() == CLIPS,
                "epoch {epoch} showed {} of {CLIPS}",
                counts.len()
            );
        }
    }
}

/// The world sizes of the generations that the journal has, which must be numbered without gaps, as its entries are.
#[track_caller]
fn journal(run: &Path) -> Vec<usize> {
    let entries = in_order(&run.join("coordinator/journal"));
    let numbers: Vec<u64> = entries.keys().map(|name| name.parse().expect("a number")).collect();
    let first = numbers.first().copied().expect("a journal");
    assert_eq!(numbers, (first..first + numbers.len() as u64).collect::<Vec<_>>(), "the journal has gaps");
    let mut worlds = vec![];
    let mut epoch = 0;
    for (name, entry) in &entries {
        let led_by = entry["epoch"].as_u64().expect("an epoch");
        assert!(led_by >= epoch, "entry {name} is a superseded coordinator's: {led_by} after {epoch}");
        epoch = led_by;
        if entry["kind"] == "generation" {
            worlds.push(entry["members"].as_array().expect("members").len());
            assert_eq!(
                entry["generation"].as_u64(),
                Some(worlds.len() as u64),
                "generations have gaps: {name}"
            );
        }
    }
    worlds
}

/// The JSON files of a folder by their names without ending.
fn in_order(folder: &Path) -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path());
    let json = files.filter(|f| f.extension().is_some_and(|e| e == "json"));
    json.map(|file| {
        let bytes = std::fs::read(&file).expect("a file");
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, serde_json::from_slice(&bytes).expect("JSON"))
    })
    .collect()
}

/// Every object that a manifest names is there, and the one that was written.
#[track_caller]
fn check_manifests(run: &Path) {
    for step in std::fs::read_dir(run.join("checkpoints")).into_iter().flatten() {
        let folder = step.expect("an entry").path();
        let Ok(manifest) = std::fs::read(folder.join("manifest.json")) else { continue };
        let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
        for file in manifest["files"].as_array().expect("files") {
            let key = file["key"].as_str().expect("a key");
            let bytes = std::fs::read(folder.join(key));
            let bytes = bytes.unwrap_or_else(|e| panic!("{}: {key}: {e}", folder.display()));
            let digest = storage::sha256_hex(&bytes);
            assert_eq!(file["sha256"].as_str(), Some(digest.as_str()), "{}: {key}", folder.display());
        }
    }
}
