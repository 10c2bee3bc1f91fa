//! Checkpoints in the run: writes the manifest when every part is there, deletes what is old.
//!
//! A checkpoint exists if and only if `checkpoints/step-%09d/manifest.json` does; it is written
//! last, put-if-absent, and deleted first.

use crate::{
    Error, Result,
    core::{CheckpointFile, Generation, Kept, Scores, Step, WholeCheckpoint},
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use storage::{Location, PutOutcome};

const FOLDER: &str = "checkpoints";
/// HEADs and DELETEs in flight.
const PARALLEL: usize = 16;

/// A manifest that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of all files together.
    pub bytes: u64,
    pub url: String,
}

/// Steps whose manifest exists, and what it says; nothing where it cannot be read.
pub async fn committed(run: &Location) -> Result<BTreeMap<Step, Kept>> {
    let listed = run.list(FOLDER).await?;
    let steps = listed.iter().filter(|o| o.key == manifest_key_of(&o.key)).filter_map(|o| step_of(&o.key));
    let kept = steps.map(|step| kept(run.clone(), step)).collect::<Vec<_>>();
    stream::iter(kept).buffer_unordered(PARALLEL).try_collect().await
}

async fn kept(run: Location, step: Step) -> Result<(Step, Kept)> {
    let bytes = run.get_opt(&manifest_key(step)).await?.unwrap_or_default();
    let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let attempt = manifest["attempt"].as_str().unwrap_or_default().into();
    let generation = Generation(manifest["generation"].as_u64().unwrap_or_default());
    let scores = manifest.get("scores").and_then(|s| Scores::deserialize(s).ok()).unwrap_or_default();
    Ok((step, Kept { generation, attempt, scores }))
}

/// Checks that every file is there at its size, then writes the manifest: the header that rank 0
/// gave, the attempt, and the files. Then checks the files again: a process that stands still in between may
/// come after another coordinator's sweep, and takes the manifest back.
pub async fn commit(run: &Location, whole: &WholeCheckpoint) -> Result<Written> {
    let step = whole.step.0;
    let bad = |why: String| Error::BadCheckpoint { step, why };
    let mut manifest: Map<String, Value> = serde_json::from_str(&whole.header_json)
        .map_err(|e| bad(format!("rank 0's header is not a JSON object: {e}")))?;
    let mut keys = BTreeSet::new();
    for f in &whole.files {
        if f.key.is_empty() || f.key.starts_with('/') || f.key.split('/').any(|p| p == "..") {
            return Err(bad(format!("the file key {:?} does not stay below the step's folder", f.key)));
        }
        if !keys.insert(&f.key) {
            return Err(bad(format!("two ranks reported the file {}", f.key)));
        }
    }
    check_files(run, whole).await?;
    manifest.insert("attempt".into(), whole.attempt.clone().into());
    let files = serde_json::to_value(&whole.files).map_err(|e| bad(e.to_string()))?;
    manifest.insert("files".into(), files);
    if !whole.scores.is_empty() {
        let scores = serde_json::to_value(whole.scores).map_err(|e| bad(e.to_string()))?;
        manifest.insert("scores".into(), scores);
    }
    let body = serde_json::to_vec_pretty(&manifest).map_err(|e| bad(e.to_string()))?;

    let written = put(run, whole, body).await?;
    if let Err(e @ Error::BadCheckpoint { .. }) = check_files(run, whole).await {
        run.delete(&manifest_key(whole.step)).await?;
        return Err(e);
    }
    Ok(written)
}

/// Writes the manifest over none, or over one that was refused.
async fn put(run: &Location, whole: &WholeCheckpoint, body: Vec<u8>) -> Result<Written> {
    let key = manifest_key(whole.step);
    let written = Written { bytes: whole.files.iter().map(|f| f.bytes).sum(), url: run.url_of(&key) };
    // A store may answer a retried put with "exists" although the first try was ours.
    if run.put_if_absent(&key, body.clone()).await? == PutOutcome::Created || run.get(&key).await? == body {
        return Ok(written);
    }
    if !whole.replaces {
        return Err(Error::Superseded { url: written.url });
    }
    // Every rank has refused the old one (damaged): this attempt takes its place.
    tracing::warn!(manifest = %written.url, "replacing a checkpoint that was refused");
    run.delete(&key).await?;
    match run.put_if_absent(&key, body.clone()).await? {
        PutOutcome::Created => Ok(written),
        PutOutcome::Exists if run.get(&key).await? == body => Ok(written),
        PutOutcome::Exists => Err(Error::Superseded { url: written.url }),
    }
}

/// Whether [`prune`] would find anything to delete. If so the checkpoint of `newest`, on which all depends from then
/// on, has been read back, every byte of it: an error says what is wrong with it.
pub async fn may_prune(run: &Location, old: &[Step], newest: Step) -> Result<bool> {
    let any =
        !old.is_empty() || !strays(run, old, newest, generation_of(run, newest).await?).await?.is_empty();
    if any {
        verify(run, newest).await?;
    }
    Ok(any)
}

/// Deletes the folders of `old` steps, manifest first; then what no manifest names in the folders
/// of steps before `newest`: attempts that were never committed, and uploads that were never finished. At `newest`
/// itself another attempt may be on its way, and so may those of a later generation than its own, which has found it
/// damaged and gone back. See [`may_prune`] for what must come first.
pub async fn prune(run: &Location, old: &[Step], newest: Step) -> Result<()> {
    for step in old {
        run.delete(&manifest_key(*step)).await?;
    }
    let generation = generation_of(run, newest).await?;
    for (step, stray) in strays(run, old, newest, generation).await? {
        let deletions = stray.iter().map(|key| delete(run.clone(), key.clone())).collect::<Vec<_>>();
        stream::iter(deletions).buffer_unordered(PARALLEL).try_collect::<()>().await?;
        // One that led before may have written a manifest of them meanwhile, unaware that it leads no longer.
        let manifest = manifest_key(step);
        let now = files_named(run, &manifest).await?;
        if now.is_some_and(|named| stray.iter().any(|key| named.contains(key))) {
            run.delete(&manifest).await?;
        }
    }
    let over = |key: &str| step_of(key).is_some_and(|s| s < newest) && !is_after(key, generation);
    let unfinished = run.remove_unfinished(FOLDER, over).await?;
    if unfinished > 0 {
        tracing::info!("removed {unfinished} uploads of checkpoints that were never finished");
    }
    Ok(())
}

/// The generation that took a committed checkpoint.
async fn generation_of(run: &Location, step: Step) -> Result<Generation> {
    Ok(kept(run.clone(), step).await?.1.generation)
}

/// What no manifest names in the folders of steps before `newest`, which `generation` took, and of `old` ones, by step.
async fn strays(
    run: &Location,
    old: &[Step],
    newest: Step,
    generation: Generation,
) -> Result<BTreeMap<Step, Vec<String>>> {
    let mut by_step: BTreeMap<Step, Vec<String>> = BTreeMap::new();
    for object in run.list(FOLDER).await?.into_iter().filter(|o| !is_after(&o.key, generation)) {
        if let Some(step) = step_of(&object.key).filter(|s| *s < newest || old.contains(s)) {
            by_step.entry(step).or_default().push(object.key);
        }
    }
    let mut strays = BTreeMap::new();
    for (step, mut keys) in by_step {
        let manifest = manifest_key(step);
        if keys.contains(&manifest) {
            match files_named(run, &manifest).await? {
                Some(named) => keys.retain(|k| *k != manifest && !named.contains(k)),
                // Not ours to judge: leave the folder as it is.
                None => continue,
            }
        }
        if !keys.is_empty() {
            strays.insert(step, keys);
        }
    }
    Ok(strays)
}

async fn check_files(run: &Location, whole: &WholeCheckpoint) -> Result<()> {
    let folder = folder(whole.step);
    let check =
        |f: &CheckpointFile| check_file(run.clone(), whole.step.0, format!("{folder}/{}", f.key), f.bytes);
    let checks = whole.files.iter().map(check).collect::<Vec<_>>();
    stream::iter(checks).buffer_unordered(PARALLEL).try_collect().await
}

/// An error unless the manifest of `step` can be read and each of its files is what it says, to the last byte.
async fn verify(run: &Location, step: Step) -> Result<()> {
    let bad = |why: String| Error::BadCheckpoint { step: step.0, why };
    let bytes = run.get(&manifest_key(step)).await?;
    let files: Option<Vec<CheckpointFile>> = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|mut manifest| serde_json::from_value(manifest.get_mut("files")?.take()).ok());
    for file in files.ok_or_else(|| bad("its manifest was read back as something else".into()))? {
        let key = format!("{}/{}", folder(step), file.key);
        check_file(run.clone(), step.0, key.clone(), file.bytes).await?;
        let digest = run.sha256_of(&key).await?;
        if digest != file.sha256 {
            return Err(bad(format!(
                "{} was read back with the SHA-256 {digest}; its rank wrote {}",
                run.url_of(&key),
                file.sha256
            )));
        }
    }
    Ok(())
}

/// An error unless the object is there with `expected` bytes: a report is not yet an upload.
async fn check_file(run: Location, step: u64, key: String, expected: u64) -> Result<()> {
    let bad = |why| Err(Error::BadCheckpoint { step, why });
    let url = run.url_of(&key);
    match run.head(&key).await {
        Ok((bytes, _)) if bytes == expected => Ok(()),
        Ok((bytes, _)) => bad(format!("{url} has {bytes} bytes, its rank wrote {expected}")),
        Err(e) if e.is_not_found() => bad(format!("{url} is not there, though its rank has reported it")),
        Err(e) => Err(e.into()),
    }
}

async fn delete(run: Location, key: String) -> storage::Result<()> {
    run.delete(&key).await
}

/// Whole keys of the files that a manifest names; `None` if it cannot be read as a manifest.
async fn files_named(run: &Location, key: &str) -> Result<Option<BTreeSet<String>>> {
    let Some(bytes) = run.get_opt(key).await? else { return Ok(Some(BTreeSet::new())) };
    let folder = key.trim_end_matches("/manifest.json");
    let named = || {
        let manifest: Value = serde_json::from_slice(&bytes).ok()?;
        let files = manifest.get("files")?.as_array()?;
        files.iter().map(|f| Some(format!("{folder}/{}", f.get("key")?.as_str()?))).collect()
    };
    Ok(named())
}

fn folder(step: Step) -> String {
    format!("{FOLDER}/step-{:09}", step.0)
}

fn manifest_key(step: Step) -> String {
    format!("{}/manifest.json", folder(step))
}

/// The key of the manifest beside or above `key`.
fn manifest_key_of(key: &str) -> String {
    step_of(key).map(manifest_key).unwrap_or_default()
}

fn step_of(key: &str) -> Option<Step> {
    let (step, _) = key.strip_prefix(FOLDER)?.strip_prefix("/step-")?.split_once('/')?;
    step.parse().ok().map(Step)
}

/// True for a file in the attempt of a later generation, `checkpoints/step-N/gG/...`.
fn is_after(key: &str, generation: Generation) -> bool {
    let attempt = key.split('/').nth(2).and_then(|a| a.strip_prefix('g')?.parse().ok());
    attempt.is_some_and(|of: u64| of > generation.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> (tempfile::TempDir, Location) {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        (dir, run)
    }

    async fn whole(run: &Location, step: u64, attempt: &str) -> WholeCheckpoint {
        let key = format!("{attempt}/model-0-of-1.safetensors");
        run.put(&format!("checkpoints/step-{step:09}/{key}"), vec![5u8; 10]).await.unwrap();
        WholeCheckpoint {
            generation: Generation(1),
            step: Step(step),
            attempt: attempt.into(),
            files: vec![CheckpointFile { key, bytes: 10, sha256: storage::sha256_hex(&[5; 10]) }],
            header_json: r#"{"format":"marey-checkpoint","version":1,"generation":1}"#.into(),
            scores: Scores { top1: (step == 20).then_some(0.75), map: None },
            replaces: false,
        }
    }

    fn of_one(attempt: &str) -> BTreeMap<Step, Kept> {
        BTreeMap::from([(Step(12000), Kept { generation: Generation(1), ..attempt.into() })])
    }

    fn keys(run: &Location) -> impl Future<Output = Vec<String>> {
        let run = run.clone();
        async move { run.list("checkpoints").await.unwrap().into_iter().map(|o| o.key).collect() }
    }

    #[tokio::test]
    async fn a_manifest_is_written_once_and_only_over_whole_files() {
        let (_dir, run) = run();
        let w = whole(&run, 12000, "g1").await;
        let written = commit(&run, &w).await.unwrap();
        assert_eq!(written.bytes, 10);
        assert_eq!(commit(&run, &w).await.unwrap(), written, "a lost reply is no error");
        let text = run.get("checkpoints/step-000012000/manifest.json").await.unwrap();
        let json: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["format"], "marey-checkpoint");
        assert_eq!(json["files"][0]["key"], "g1/model-0-of-1.safetensors");
        assert_eq!(committed(&run).await.unwrap(), of_one("g1"));

        let other = whole(&run, 12000, "g2").await;
        assert!(matches!(commit(&run, &other).await, Err(Error::Superseded { .. })));
        commit(&run, &WholeCheckpoint { replaces: true, ..other }).await.unwrap();

        let mut short = whole(&run, 13000, "g2").await;
        short.files[0].bytes = 11;
        let e = commit(&run, &short).await.unwrap_err().to_string();
        assert!(e.contains("step 13000") && e.contains("10 bytes"), "{e}");
        short.files[0].key = "../escape".into();
        assert!(matches!(commit(&run, &short).await, Err(Error::BadCheckpoint { .. })));
        assert_eq!(committed(&run).await.unwrap(), of_one("g2"));
    }

    #[tokio::test]
    async fn pruning_takes_the_old_and_the_abandoned_and_nothing_else() {
        let (_dir, run) = run();
        for step in [10, 20, 30] {
            commit(&run, &whole(&run, step, "g1").await).await.unwrap();
        }
        // Abandoned: never committed, and a second attempt beside a committed one.
        whole(&run, 15, "g1").await;
        whole(&run, 20, "g0").await;
        whole(&run, 30, "g0").await;
        // Being uploaded now; the second one by a generation that has found step 30 damaged.
        whole(&run, 40, "g1").await;
        whole(&run, 25, "g2").await;
        let kept = committed(&run).await.unwrap();
        assert_eq!(kept.values().map(|k| k.scores.top1).collect::<Vec<_>>(), [None, Some(0.75), None]);

        // The newest is not what was written: nothing may go.
        let file = "checkpoints/step-000000030/g1/model-0-of-1.safetensors";
        for wrong in [vec![5u8; 9], vec![6u8; 10]] {
            run.put(file, wrong).await.unwrap();
            for old in [&[Step(10)][..], &[]] {
                let e = may_prune(&run, old, Step(30)).await.unwrap_err().to_string();
                assert!(e.contains(file), "{e}");
            }
        }
        run.put(file, vec![5u8; 10]).await.unwrap();

        assert!(may_prune(&run, &[Step(10)], Step(30)).await.unwrap());
        prune(&run, &[Step(10)], Step(30)).await.unwrap();
        assert!(!may_prune(&run, &[], Step(30)).await.unwrap(), "nothing is left");
        assert_eq!(
            keys(&run).await,
            [
                "checkpoints/step-000000020/g1/model-0-of-1.safetensors",
                "checkpoints/step-000000020/manifest.json",
                "checkpoints/step-000000025/g2/model-0-of-1.safetensors",
                "checkpoints/step-000000030/g0/model-0-of-1.safetensors",
                "checkpoints/step-000000030/g1/model-0-of-1.safetensors",
                "checkpoints/step-000000030/manifest.json",
                "checkpoints/step-000000040/g1/model-0-of-1.safetensors",
            ]
        );
    }
}
