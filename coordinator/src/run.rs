//! Opens the run's location: is it fit for commits, does it belong to this job?

use crate::{Error, Result};
use configs::{Config, Job};
use std::collections::BTreeMap;
use storage::Location;
use toml::{Table, Value};

const CONFIG: &str = "config.toml";

/// Digest of the dataset's `dataset.json`: which clips, in which files, under which labels.
pub async fn dataset_digest(url: &str) -> Result<String> {
    let location = Location::parse(url)?;
    match location.get_opt("dataset.json").await? {
        Some(bytes) => Ok(storage::sha256_hex(&bytes)),
        None => Err(Error::NoDataset { url: location.url().into() }),
    }
}

/// Refuses stores without put-if-absent: two coordinators could both believe they lead. With `single_writer` such
/// a store is taken all the same, with a warning, and its commits look before they write.
pub async fn probe(run: Location, unique: &str, single_writer: bool) -> Result<Location> {
    if run.honours_put_if_absent(&format!("coordinator/probe-{unique}")).await? {
        return Ok(run);
    }
    if !single_writer {
        return Err(storage::Error::NoConditionalPut { url: run.url().into() }.into());
    }
    tracing::warn!(
        "the store of {} has no put-if-absent: with --single-writer NOTHING stops a second coordinator of this run from overwriting this one's commits; never start one while this one may still run",
        run.url()
    );
    Ok(run.with_single_writer())
}

/// Keeps the configuration beside the checkpoints, and refuses to mix two experiments in one run.
pub async fn settle_config(run: &Location, config: &Config) -> Result<()> {
    if let Some(bytes) = run.get_opt(CONFIG).await? {
        let name = run.url_of(CONFIG);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let old = Config::parse(&name, &text, &[])?;
        let keys = forbidden_changes(&old, config);
        if !keys.is_empty() {
            return Err(Error::OtherConfig { url: run.url().into(), keys: keys.join(", ") });
        }
        if text == config.text() {
            return Ok(());
        }
    }
    Ok(run.put(CONFIG, config.text().as_bytes().to_vec()).await?)
}

/// Keys in which the two differ though a run must keep them.
fn forbidden_changes(old: &Config, new: &Config) -> Vec<String> {
    if with_free_fields(old, new) == **new {
        // Equal in meaning: a default written out is no change.
        return vec![];
    }
    let laid_out = old.train.multigrid.is_some();
    let (old, new) = (flat(old.text()), flat(new.text()));
    let kept = |k: &String| !is_free(k) || (laid_out && k == "train.epochs");
    let mut keys: Vec<String> =
        old.keys().chain(new.keys()).filter(|k| old.get(*k) != new.get(*k) && kept(k)).cloned().collect();
    keys.sort();
    keys.dedup();
    keys
}

/// What may change from one start to the next. Keep in step with [`is_free`].
fn with_free_fields(old: &Job, new: &Job) -> Job {
    let mut job = old.clone();
    job.cluster = new.cluster.clone();
    job.checkpoint = new.checkpoint.clone();
    // Multigrid training lays its shapes out over the epochs.
    if old.train.multigrid.is_none() {
        job.train.epochs = new.train.epochs;
    }
    job.train.max_steps = new.train.max_steps;
    job.data.url = new.data.url.clone();
    job.data.prefetch = new.data.prefetch;
    job.data.threads = new.data.threads;
    job
}

fn is_free(key: &str) -> bool {
    key.starts_with("cluster.")
        || key.starts_with("checkpoint.")
        || ["train.epochs", "train.max_steps", "data.url", "data.prefetch", "data.threads"].contains(&key)
}

fn flat(text: &str) -> BTreeMap<String, Value> {
    fn walk(prefix: &str, table: Table, out: &mut BTreeMap<String, Value>) {
        for (key, value) in table {
            let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(t) => walk(&key, t, out),
                v => {
                    out.insert(key, v);
                }
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", text.parse().unwrap_or_default(), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::config;

    fn run() -> (tempfile::TempDir, Location) {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        (dir, run)
    }

    #[tokio::test]
    async fn the_probe_leaves_nothing_behind() {
        let (_dir, run) = run();
        let run = probe(run, "x", false).await.unwrap();
        assert_eq!(run.list("coordinator").await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_run_keeps_its_experiment_but_not_its_cluster() {
        let (_dir, run) = run();
        settle_config(&run, &config("d", &[])).await.unwrap();
        settle_config(&run, &config("d", &["cluster.workers=2", "train.epochs=9"])).await.unwrap();
        // A default written out is the same configuration.
        settle_config(&run, &config("d", &["optimizer.momentum=0.9"])).await.unwrap();
        let stored = run.get(CONFIG).await.unwrap();
        assert!(String::from_utf8_lossy(&stored).contains("momentum"));
        let e = settle_config(&run, &config("d", &["optimizer.lr=0.5", "seed=3"])).await.unwrap_err();
        assert!(e.to_string().contains("optimizer.lr") && e.to_string().contains("seed"), "{e}");
        assert!(e.is_usage());
        assert_eq!(run.get(CONFIG).await.unwrap(), stored);
    }

    #[tokio::test]
    async fn multigrid_training_keeps_its_epochs() {
        let (_dir, run) = run();
        let multigrid = "train.multigrid={ long_cycle = false }";
        settle_config(&run, &config("d", &[multigrid])).await.unwrap();
        settle_config(&run, &config("d", &[multigrid, "train.max_steps=5"])).await.unwrap();
        let e = settle_config(&run, &config("d", &[multigrid, "train.epochs=9"])).await.unwrap_err();
        assert!(e.to_string().contains("differs from this configuration in train.epochs"), "{e}");
    }

    #[tokio::test]
    async fn a_missing_dataset_is_named() {
        let (dir, run) = run();
        let e = dataset_digest(run.url()).await.unwrap_err();
        assert!(e.to_string().contains(dir.path().to_str().unwrap()), "{e}");
        assert!(e.is_usage());
    }
}
