//! Names and contents of a checkpoint's objects, and the dealing of tensors to ranks. No I/O.

use crate::{Error, Result};
use configs::Config;
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// `format` of every manifest.
pub const FORMAT: &str = "marey-checkpoint";
/// The newest layout that this build reads, and the one it writes.
pub const VERSION: u32 = 1;
/// The folder of all checkpoints inside a run.
pub const CHECKPOINTS: &str = "checkpoints";
/// The commit object inside a step's folder.
pub const MANIFEST: &str = "manifest.json";

/// The dataset digest of imported weights.
pub const NO_DATASET: &str = "imported";

/// Where in the run a checkpoint was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Epoch of the next batch.
    pub epoch: u64,
    /// Steps of that epoch that are done.
    pub step_in_epoch: u64,
    /// Steps of the whole run that are done.
    pub step: u64,
}

/// All that a manifest says besides its files. Written by rank 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Epoch of the next batch.
    pub epoch: u64,
    /// Steps of that epoch that are done.
    pub step_in_epoch: u64,
    /// Steps of the whole run that are done.
    pub step: u64,
    /// Ranks that wrote it; any number can read it.
    pub world_size: u32,
    /// The generation that wrote it.
    pub generation: u64,
    /// The network's configuration, defaults filled in.
    pub model: serde_json::Value,
    /// Number of logits.
    pub classes: usize,
    /// Name of each class.
    pub labels: Vec<String>,
    /// SHA-256 of `config_toml`.
    pub config_digest: String,
    /// SHA-256 of the dataset's manifest, or [`NO_DATASET`].
    pub dataset_digest: String,
    /// The whole job's configuration, overrides applied.
    pub config_toml: String,
    /// What the order of the clips is a function of; with the position, all that a data stream resumes from.
    #[serde(default)]
    pub plan: BTreeMap<String, String>,
    /// An evaluation was due here and is still to be done, before the next step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub evaluation_owed: bool,
}

/// One object of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the step's folder.
    pub key: String,
    /// Length.
    pub bytes: u64,
    /// Digest of the whole object, hex.
    pub sha256: String,
}

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(flatten)]
    pub header: Header,
    /// Every safetensors file.
    pub files: Vec<FileEntry>,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Weights and buffers.
    Model,
    /// The optimizer's state, and the loss scaler's.
    Optimizer,
    /// The moving average of the weights, where the job keeps one.
    Ema,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Model, Part::Optimizer, Part::Ema];

    /// As it begins a file's name.
    fn name(self) -> &'static str {
        match self {
            Part::Model => "model",
            Part::Optimizer => "optimizer",
            Part::Ema => "ema",
        }
    }
}

impl Header {
    /// The header of a checkpoint of `config`'s model at `place`.
    pub fn new(
        config: &Config,
        labels: &[String],
        dataset_digest: &str,
        place: Place,
        world_size: u32,
        generation: u64,
    ) -> Result<Self> {
        Ok(Self {
            format: FORMAT.into(),
            version: VERSION,
            epoch: place.epoch,
            step_in_epoch: place.step_in_epoch,
            step: place.step,
            world_size,
            generation,
            model: model_json(&config.model)?,
            classes: labels.len(),
            labels: labels.to_vec(),
            config_digest: config.digest(),
            dataset_digest: dataset_digest.into(),
            config_toml: config.text().into(),
            plan: BTreeMap::new(),
            evaluation_owed: false,
        })
    }

    /// With the identity of the job's plan.
    pub fn with_plan(self, plan: BTreeMap<String, String>) -> Self {
        Self { plan, ..self }
    }

    /// Refuses another order of clips, naming each key that differs.
    pub fn check_plan(&self, url: &str, plan: &BTreeMap<String, String>) -> Result<()> {
        // A checkpoint of imported weights, or of a build that did not write it.
        if self.plan.is_empty() || self.plan == *plan {
            return Ok(());
        }
        let show = |v: Option<&String>| v.map_or("absent".to_string(), Clone::clone);
        let keys: BTreeSet<&String> = self.plan.keys().chain(plan.keys()).collect();
        let differing: Vec<String> = keys
            .into_iter()
            .filter(|k| self.plan.get(*k) != plan.get(*k))
            .map(|k| format!("{k} is {} there and {} here", show(self.plan.get(k)), show(plan.get(k))))
            .collect();
        Err(Error::Usage(format!(
            "resume from {url}: its clips come in another order: {}; set these back, or start a new run",
            differing.join("; ")
        )))
    }

    /// Where training goes on.
    pub fn place(&self) -> Place {
        Place { epoch: self.epoch, step_in_epoch: self.step_in_epoch, step: self.step }
    }

    /// Refuses another network or number of classes, naming each key that differs. What acts only in
    /// training (dropout, drop-path, the first norms) may differ.
    pub fn check_model(&self, url: &str, model: &configs::Model, classes: usize) -> Result<()> {
        const TRAINING_ONLY: [&str; 3] = ["dropout", "drop_path", "zero_init_last_norm"];
        let (ours, theirs) = (model_json(model)?, &self.model);
        let empty = serde_json::Map::new();
        let (a, b) = (ours.as_object().unwrap_or(&empty), theirs.as_object().unwrap_or(&empty));
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let show = |v: Option<&serde_json::Value>| v.map_or("absent".to_string(), ToString::to_string);
        let mut wrong: Vec<String> = keys
            .into_iter()
            .filter(|k| !TRAINING_ONLY.contains(&k.as_str()) && a.get(*k) != b.get(*k))
            .map(|k| format!("model.{k} is {} in the checkpoint and {} here", show(b.get(k)), show(a.get(k))))
            .collect();
        if self.classes != classes {
            wrong.push(format!("it has {} classes and the dataset {classes}", self.classes));
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "use the checkpoint {url} for this model: {}; give its own configuration or start a new run",
            wrong.join("; ")
        )))
    }

    /// Refuses a dataset whose class names differ, naming the first few differences.
    pub fn check_labels(&self, url: &str, labels: &[String]) -> Result<()> {
        let ours = &self.labels;
        if ours == labels {
            return Ok(());
        }
        let name = |l: &[String], i: usize| l.get(i).map_or("none".to_string(), |l| format!("{l:?}"));
        let differing: Vec<usize> =
            (0..ours.len().max(labels.len())).filter(|&i| ours.get(i) != labels.get(i)).collect();
        let shown: Vec<String> = differing
            .iter()
            .take(5)
            .map(|&i| {
                format!(
                    "class {i} is {} in the checkpoint and {} in the dataset",
                    name(ours, i),
                    name(labels, i)
                )
            })
            .collect();
        let more =
            if differing.len() > 5 { format!(" (and {} more)", differing.len() - 5) } else { String::new() };
        Err(Error::Usage(format!(
            "compare the labels of the dataset with those of the checkpoint {url}: {}{more}; use the dataset that it was trained on, or one ingested with the same labels",
            shown.join("; ")
        )))
    }
}

impl Manifest {
    /// As the bytes of `manifest.json`.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::Checkpoint {
            url: format!("step {}", self.header.step),
            why: format!("its manifest cannot be written: {e}"),
        })
    }
}

/// A model's configuration as JSON, defaults filled in.
pub fn model_json(model: &configs::Model) -> Result<serde_json::Value> {
    serde_json::to_value(model)
        .map_err(|e| Error::Usage(format!("write the model's configuration as JSON: {e}")))
}

/// A step's folder inside the run.
pub fn step_folder(step: u64) -> String {
    format!("{CHECKPOINTS}/{}", step_name(step))
}

/// The last part of a step's folder.
pub fn step_name(step: u64) -> String {
    format!("step-{step:09}")
}

/// The step that a folder's name stands for.
pub fn parse_step(name: &str) -> Option<u64> {
    name.strip_prefix("step-").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

/// The folder of one attempt at a checkpoint: each generation has its own, so that a rank of a
/// dead generation never writes over a living one's files.
pub fn attempt(generation: u64) -> String {
    format!("g{generation:06}")
}

/// A file's key relative to the step's folder.
pub fn file_key(attempt: &str, part: Part, rank: u32, world: u32) -> String {
    format!("{attempt}/{}-{}-of-{world}.safetensors", part.name(), rank + 1)
}

/// What the file of this key holds; `None` if it is none of ours.
pub fn part_of(key: &str) -> Option<Part> {
    let name = key.rsplit('/').next()?.split_once('-')?.0;
    Part::ALL.into_iter().find(|p| p.name() == name)
}

/// Deals tensors of these sizes in bytes to `world` ranks: the largest first, each to the rank that
/// has least. `fixed[i]` is a tensor that rank 0 keeps. The same on every rank.
///
/// Returns the rank of each tensor. No rank has more than its fair share by more than the
/// largest tensor, rank 0's fixed ones aside.
pub fn deal(sizes: &[u64], fixed: &[bool], world: u32) -> Vec<u32> {
    let mut ranks = vec![0u32; sizes.len()];
    let mut load = vec![0u64; world.max(1) as usize];
    load[0] = sizes.iter().zip(fixed).filter(|(_, f)| **f).map(|(s, _)| s).sum();
    let mut order: Vec<usize> = (0..sizes.len()).filter(|&i| !fixed[i]).collect();
    order.sort_by_key(|&i| (Reverse(sizes[i]), i));
    for i in order {
        let least = (0..load.len()).min_by_key(|&r| (load[r], r)).unwrap_or(0);
        load[least] += sizes[i];
        ranks[i] = least as u32;
    }
    ranks
}

/// Deals files of these sizes to `world` ranks for reading: the largest first, each to the one that has least of
/// those that hold a copy of it, or of all where none does. The same on every rank.
pub fn share_out(sizes: &[u64], world: u32, holds: impl Fn(u32, usize) -> bool) -> Vec<u32> {
    let (mut ranks, mut load) = (vec![0u32; sizes.len()], vec![0u64; world.max(1) as usize]);
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&i| (Reverse(sizes[i]), i));
    for i in order {
        let rank = (0..world.max(1)).min_by_key(|&r| (!holds(r, i), load[r as usize], r)).unwrap_or(0);
        load[rank as usize] += sizes[i];
        ranks[i] = rank;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        assert_eq!(step_folder(12000), "checkpoints/step-000012000");
        assert_eq!(parse_step("step-000012000"), Some(12000));
        assert_eq!(parse_step("step-1234567890"), Some(1234567890));
        assert_eq!(parse_step("step--1"), None);
        assert_eq!(parse_step("steps"), None);
        let key = file_key(&attempt(3), Part::Optimizer, 1, 2);
        assert_eq!(key, "g000003/optimizer-2-of-2.safetensors");
        assert_eq!(part_of(&key), Some(Part::Optimizer));
        assert_eq!(part_of("g000003/notes.txt"), None);
    }

    #[test]
    fn a_streams_state_is_small_and_another_order_is_refused() {
        use shards::plan::{Order, PlanSpec, Pools, Shape, Stage};
        let spec = PlanSpec {
            dataset_digest: "d".repeat(64),
            seed: u64::MAX,
            clips: 650_000,
            lanes: 1024,
            global_batch: 4096,
            drop_last: true,
            stages: vec![Stage { end: 358, cycle: vec![Shape { batch: 8, frames: 8, side: 158 }; 3] }; 13],
            order: Order::Pools(Pools::of_classes((0..650_000).map(|i| i % 700), 650_000)),
            left_out: "e".repeat(64),
        };
        let place = Place { epoch: u64::MAX, step_in_epoch: u64::MAX, step: u64::MAX };
        let text = include_str!("../../../configs/demo.toml");
        let config = Config::parse("demo", text, &[]).unwrap();
        let header = Header::new(&config, &[], "d", place, 1, 1).unwrap().with_plan(spec.identity());
        // All that a stream resumes from: position and plan.
        let state = serde_json::json!({
            "epoch": header.epoch, "step_in_epoch": header.step_in_epoch, "step": header.step, "plan": header.plan,
        });
        assert!(state.to_string().len() <= 1024, "{} bytes: {state}", state.to_string().len());

        header.check_plan("run", &spec.identity()).unwrap();
        let other = PlanSpec { left_out: "f".repeat(64), lanes: 512, ..spec };
        let said = header.check_plan("run", &other.identity()).unwrap_err().to_string();
        assert!(
            said.contains("data.lanes is 1024 there and 512 here") && said.contains("data.quarantine"),
            "{said}"
        );
    }

    #[test]
    fn copies_are_read_where_they_are() {
        let sizes = [5, 9, 9, 1, 4];
        let nowhere = share_out(&sizes, 2, |_, _| false);
        assert_eq!(nowhere, deal(&sizes, &[false; 5], 2));
        // Rank 2's node holds the first three, ranks 0 and 1 share another's disk with the fourth.
        let held = share_out(&sizes, 3, |rank, file| (rank == 2) == (file < 3) && file < 4);
        assert_eq!(held, [2, 2, 2, 1, 0], "the last is nobody's");
    }

    proptest! {
        #[test]
        fn dealing_is_fair(
            tensors in prop::collection::vec((0u64..10_000, any::<bool>()), 0..200),
            world in 1u32..9,
        ) {
            let (sizes, fixed): (Vec<u64>, Vec<bool>) = tensors.into_iter().unzip();
            let ranks = deal(&sizes, &fixed, world);
            prop_assert_eq!(ranks.len(), sizes.len());
            prop_assert_eq!(&ranks, &deal(&sizes, &fixed, world));
            let mut load = vec![0u64; world as usize];
            for i in 0..sizes.len() {
                prop_assert!(!fixed[i] || ranks[i] == 0);
                load[ranks[i] as usize] += sizes[i];
            }
            let kept: u64 = (0..sizes.len()).filter(|&i| fixed[i]).map(|i| sizes[i]).sum();
            let fair = sizes.iter().sum::<u64>() / u64::from(world) + 1;
            let largest = sizes.iter().max().copied().unwrap_or(0);
            for l in load {
                prop_assert!(l <= fair.max(kept) + largest);
            }
        }
    }
}
