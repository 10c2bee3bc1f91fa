//! The checkpoints of a run as its store shows them: read from one listing and the manifests, without libtorch.

use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use storage::Location;

pub const FOLDER: &str = "checkpoints";
const MANIFEST: &str = "manifest.json";

/// What is of interest in a manifest; the trainer checks the rest when it loads.
#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    pub format: String,
    pub step: u64,
    pub epoch: u64,
    pub step_in_epoch: u64,
    pub world_size: u32,
    #[serde(default)]
    pub scores: Scores,
    pub files: Vec<File>,
}

/// What was measured at its step.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Scores {
    pub top1: Option<f64>,
    pub map: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct File {
    /// Relative to the step's folder.
    pub key: String,
    pub bytes: u64,
    pub sha256: String,
}

/// One step's folder.
#[derive(Debug)]
pub struct Found {
    pub step: u64,
    /// When the manifest was written, else the newest object.
    pub unix_ms: i64,
    /// Of all objects.
    pub bytes: u64,
    /// Keys of all objects, relative to the run.
    pub keys: Vec<String>,
    pub state: State,
}

#[derive(Debug)]
pub enum State {
    /// Every file is there at its size.
    Whole(Manifest),
    /// It was committed, but this is wrong with it.
    Damaged(String),
    /// There is no manifest: it is being written, or never was finished.
    Unfinished,
}

impl Found {
    /// The step's folder, relative to the run.
    pub fn folder(&self) -> String {
        folder(self.step)
    }

    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.state {
            State::Whole(manifest) => Some(manifest),
            _ => None,
        }
    }
}

fn folder(step: u64) -> String {
    format!("{FOLDER}/step-{step:09}")
}

/// The manifest's key of a step, relative to the run.
pub fn manifest_key(step: u64) -> String {
    format!("{}/{MANIFEST}", folder(step))
}

/// The checkpoints of a run, oldest first.
pub async fn checkpoints(run: &Location) -> Result<Vec<Found>> {
    let mut steps: BTreeMap<u64, Vec<storage::Listed>> = BTreeMap::new();
    for object in run.list(FOLDER).await? {
        if let Some(step) = step_of(&object.key) {
            steps.entry(step).or_default().push(object);
        }
    }
    if steps.is_empty() {
        return Err(Error::Usage(format!(
            "find a checkpoint in {}: there is none; give the run's own URL, the one of --run",
            run.url()
        )));
    }
    let mut found = vec![];
    for (step, objects) in steps {
        let manifest = objects.iter().find(|o| o.key == manifest_key(step));
        let newest = objects.iter().map(|o| o.unix_ms).max().unwrap_or_default();
        found.push(Found {
            step,
            unix_ms: manifest.map_or(newest, |m| m.unix_ms),
            bytes: objects.iter().map(|o| o.bytes).sum(),
            state: match manifest {
                None => State::Unfinished,
                Some(_) => {
                    let sizes = objects.iter().map(|o| (o.key.as_str(), o.bytes)).collect();
                    let text = run.get(&manifest_key(step)).await?;
                    judge(step, &text, &sizes).map_or_else(State::Damaged, State::Whole)
                }
            },
            keys: objects.into_iter().map(|o| o.key).collect(),
        });
    }
    Ok(found)
}

/// The manifest of `text`, if the objects that it names are there at their sizes.
fn judge(step: u64, text: &[u8], sizes: &BTreeMap<&str, u64>) -> std::result::Result<Manifest, String> {
    let manifest: Manifest =
        serde_json::from_slice(text).map_err(|e| format!("{MANIFEST} cannot be understood: {e}"))?;
    if manifest.format != "marey-checkpoint" || manifest.step != step {
        return Err(format!("{MANIFEST} is of {:?} and step {}", manifest.format, manifest.step));
    }
    for file in &manifest.files {
        match sizes.get(format!("{}/{}", folder(step), file.key).as_str()) {
            None => return Err(format!("{} is gone", file.key)),
            Some(bytes) if *bytes != file.bytes => {
                return Err(format!("{} has {bytes} bytes instead of {}", file.key, file.bytes));
            }
            Some(_) => {}
        }
    }
    Ok(manifest)
}

fn step_of(key: &str) -> Option<u64> {
    let (step, _) = key.strip_prefix(FOLDER)?.strip_prefix("/step-")?.split_once('/')?;
    step.parse().ok()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    /// A run in a folder with whole checkpoints of these steps, each of one file of ten bytes.
    pub async fn run_of(steps: &[u64]) -> (tempfile::TempDir, Location) {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        for &step in steps {
            let file = vec![step as u8; 10];
            run.put(&format!("{}/g1/model-1-of-1.safetensors", folder(step)), file.clone()).await.unwrap();
            let manifest = json!({
                "format": "marey-checkpoint", "version": 1, "step": step, "epoch": step / 10, "step_in_epoch": 0,
                "world_size": 1, "scores": { "top1": 0.5 },
                "files": [{ "key": "g1/model-1-of-1.safetensors", "bytes": 10, "sha256": storage::sha256_hex(&file) }],
            });
            run.put(&manifest_key(step), manifest.to_string().into_bytes()).await.unwrap();
        }
        (dir, run)
    }

    #[tokio::test]
    async fn each_step_is_whole_damaged_or_unfinished() {
        let (_dir, run) = run_of(&[10, 20, 30]).await;
        run.put("checkpoints/step-000000040/g1/model-1-of-1.safetensors", vec![1u8]).await.unwrap();
        run.put("checkpoints/step-000000020/g1/model-1-of-1.safetensors", vec![1u8; 9]).await.unwrap();
        run.put(&manifest_key(30), b"{".to_vec()).await.unwrap();
        let found = checkpoints(&run).await.unwrap();
        assert_eq!(found.iter().map(|f| f.step).collect::<Vec<_>>(), [10, 20, 30, 40]);
        assert_eq!(found[0].manifest().unwrap().scores.top1, Some(0.5));
        assert!(matches!(&found[1].state, State::Damaged(why) if why.contains("9 bytes instead of 10")));
        assert!(matches!(&found[2].state, State::Damaged(why) if why.contains("manifest.json")));
        assert!(matches!(found[3].state, State::Unfinished));
        let none = Location::parse(tempfile::tempdir().unwrap().path().to_str().unwrap()).unwrap();
        assert_eq!(checkpoints(&none).await.unwrap_err().exit_code(), 2);
    }
}
