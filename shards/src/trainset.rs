//! What a job trains on: the clips of its datasets less those of the quarantine list, and the plan of their order.
//! The trainer, the simulator and the measurement all begin here.

use crate::format::{ClipIndex, Dataset};
use crate::job::plan_spec;
use crate::plan::{Order, Plan, PlanSpec, Pools, Shares, by_weight};
use crate::stream::{Source, Sources};
use crate::{Error, Result};
use configs::{Config, Sampling};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use storage::{Location, sha256_hex};

/// The training clips and their order.
#[derive(Clone, Debug)]
pub struct TrainSet {
    pub sources: Sources,
    /// As the sources number them.
    pub clips: Vec<ClipIndex>,
    pub plan: Arc<Plan>,
    /// What a person should know of it: clips left out, shares of a mixture.
    pub notes: Vec<String>,
}

impl TrainSet {
    /// Opens what the job names besides its dataset. An unknown clip in the quarantine list, a label that the job
    /// does not know and an empty split are errors.
    pub async fn open(config: &Config, dataset: &Arc<Dataset>) -> Result<Self> {
        let data = &config.data;
        let (sources, parts) = match data.mixture.is_empty() {
            true => (dataset.clone().into(), vec![dataset.clips_of(&data.train_split)?]),
            false => mixture(config, dataset).await?,
        };
        let sources: Sources = sources;
        let (mut notes, mut left_out) = (vec![], String::new());
        let mut parts = parts;
        if let Some(url) = &data.quarantine {
            let ids = read_list(url).await?;
            check_known(url, &ids, &sources)?;
            let before: usize = parts.iter().map(Vec::len).sum();
            for part in &mut parts {
                part.retain(|clip| !ids.contains(sources.clip(*clip).clip_id));
            }
            let gone = before - parts.iter().map(Vec::len).sum::<usize>();
            notes.push(format!("{gone} of {before} training clips are left out: they are listed in {url}"));
            left_out = sha256_hex(ids.iter().map(String::as_str).collect::<Vec<_>>().join("\n").as_bytes());
        }
        let clips: Vec<ClipIndex> = parts.concat();
        let mut spec = PlanSpec { left_out, ..plan_spec(config, dataset, &clips) };
        if let Some(pools) = pools(config, &sources, &parts, &mut notes)? {
            spec = PlanSpec { dataset_digest: sources.digest(), order: Order::Pools(pools), ..spec };
        }
        let plan = Plan::new(spec)?;
        Ok(Self { sources, clips, plan: Arc::new(plan), notes })
    }

    /// The names of training clips, by their places.
    pub fn clip_ids(&self, places: &[u32]) -> Vec<String> {
        let clip = |place: &u32| self.clips.get(*place as usize);
        places.iter().filter_map(clip).map(|clip| self.sources.clip(*clip).clip_id.to_string()).collect()
    }
}

/// The datasets of the job's mixture, and the clips of each one's split.
async fn mixture(config: &Config, dataset: &Arc<Dataset>) -> Result<(Sources, Vec<Vec<ClipIndex>>)> {
    let mut all = vec![];
    for part in &config.data.mixture {
        let opened = match part.url == config.data.url {
            true => dataset.clone(),
            false => Arc::new(Dataset::open(&Location::parse(&part.url)?).await?),
        };
        all.push(Source::named(opened, &dataset.manifest.labels, &part.rename)?);
    }
    let sources = Sources::new(all)?;
    let parts = config.data.mixture.iter().enumerate();
    let clips = parts.map(|(i, part)| sources.clips_of(i, &part.split));
    let clips = clips.collect::<Result<Vec<_>>>()?;
    Ok((sources, clips))
}

/// The pools that the clips, part after part, are drawn from; `None` where each is simply shown once.
fn pools(
    config: &Config,
    sources: &Sources,
    parts: &[Vec<ClipIndex>],
    notes: &mut Vec<String>,
) -> Result<Option<Pools>> {
    let data = &config.data;
    let clips: u64 = parts.iter().map(|p| p.len() as u64).sum();
    let epoch = data.epoch_clips.unwrap_or(clips);
    if !data.mixture.is_empty() {
        let weights: Vec<f64> = data.mixture.iter().map(|p| p.weight).collect();
        let each = by_weight(&weights, epoch)
            .map_err(|(i, why)| Error::Usage(format!("mix {} in: {why}", data.mixture[i].url)))?;
        let mut next = 0;
        let mut pools: Vec<Vec<u32>> = vec![];
        for ((part, share), named) in parts.iter().zip(&each).zip(&data.mixture) {
            pools.push((next..next + part.len() as u32).collect());
            next += part.len() as u32;
            let (url, clips) = (&named.url, part.len());
            notes.push(format!(
                "mixture: {share} clips an epoch of the {clips} of {url}, split {}",
                named.split
            ));
        }
        return Ok(Some(Pools { pools: Arc::new(pools), shares: Shares::Fixed(each) }));
    }
    if data.sampling == Sampling::Uniform {
        return Ok(None);
    }
    let class = |clip: &ClipIndex| {
        sources.label_ids(*clip).first().copied().ok_or_else(|| {
            Error::Usage(format!(
                "balance the classes: clip {:?} has no label; leave it out by data.quarantine, or use sampling = \"uniform\"",
                sources.clip(*clip).clip_id
            ))
        })
    };
    let labels = parts.iter().flatten().map(class).collect::<Result<Vec<i32>>>()?;
    let pools = Pools::of_classes(labels, epoch);
    let (classes, each) = (pools.pools.len(), epoch as f64 / pools.pools.len().max(1) as f64);
    notes.push(format!("class-balanced: {epoch} clips an epoch, {each:.1} of each of {classes} classes"));
    Ok(Some(pools))
}

/// The ids in a text file: one a line; blank lines and lines that begin with # are skipped.
async fn read_list(url: &str) -> Result<BTreeSet<String>> {
    let (folder, name) = url.rsplit_once('/').unwrap_or((".", url));
    let folder = if folder.is_empty() { "/" } else { folder };
    let bytes = Location::parse(folder)?.get(name).await?;
    let text = String::from_utf8(bytes.to_vec())
        .map_err(|e| Error::Usage(format!("read the quarantine list {url}: it is not UTF-8 ({e})")))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(String::from).collect())
}

fn check_known(url: &str, ids: &BTreeSet<String>, sources: &Sources) -> Result<()> {
    let known: HashSet<&str> = sources.datasets().flat_map(|d| d.clips.iter()).map(|c| c.clip_id).collect();
    let unknown: Vec<&String> = ids.iter().filter(|id| !known.contains(id.as_str())).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let shown: Vec<&&String> = unknown.iter().take(5).collect();
    Err(Error::Usage(format!(
        "leave out the clips of {url}: {} of its ids are no clips of the job's datasets, like {shown:?}; correct the list",
        unknown.len()
    )))
}
