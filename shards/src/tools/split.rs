//! `marey dataset split`: clips dealt to train, val and test anew.

use super::{Opened, check_vacant, places, read_pairs};
use crate::{
    Error, Result,
    error::told,
    format::{ClipMeta, Manifest},
    publish::{Contents, publish},
};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, path::PathBuf};
use storage::Location;

/// A split's name and its share of the clips.
#[derive(Clone, Debug, PartialEq)]
pub struct Fraction {
    pub name: String,
    pub share: f64,
}

/// What stays together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All clips of one source: frames of one video never stand on both sides.
    Source,
    Clip,
}

/// How clips get their splits.
#[derive(Clone, Debug)]
pub enum SplitBy {
    /// By seeded chance. With `stratify` each label is divided alike.
    Fractions { fractions: Vec<Fraction>, seed: u64, by: By, stratify: bool },
    /// By a CSV of `clip_id,split`; clips that it does not name keep theirs.
    List(PathBuf),
}

/// Writes to `out` the dataset at `from` with other splits. `copied` hears of each copied file's bytes.
///
/// # Errors
/// Impossible fractions, a list that names no clip of the dataset, a destination that is taken, or the stores' own.
pub async fn split(
    from: &Location,
    out: &Location,
    how: &SplitBy,
    copied: &mut dyn FnMut(u64),
) -> Result<Manifest> {
    if let SplitBy::Fractions { fractions, .. } = how {
        check(fractions)?;
    }
    let mut opened = Opened::open(from).await?;
    check_vacant(out).await?;
    let origin = match how {
        SplitBy::Fractions { fractions, seed, by, stratify } => {
            let splits = by_fractions(&opened.clips, fractions, *seed, *by, *stratify);
            for (clip, split) in opened.clips.iter_mut().zip(splits) {
                clip.split = fractions[split].name.as_str().into();
            }
            let shares = fractions.iter().map(|f| (f.name.clone(), f.share.into()));
            serde_json::json!({
                "made_by": "split",
                "from": opened.origin(),
                "fractions": shares.collect::<serde_json::Map<_, _>>(),
                "seed": seed,
                "by": match by { By::Source => "source", By::Clip => "clip" },
                "stratify": stratify,
            })
        }
        SplitBy::List(path) => {
            by_list(&mut opened.clips, path, from)?;
            serde_json::json!({ "made_by": "split by a list", "from": opened.origin() })
        }
    };
    let files = opened.copy_files(out, |_, key| key.into(), copied).await?;
    let old = &opened.dataset.manifest;
    let (codec, quality, labels) = (old.codec, old.quality, old.labels.clone());
    let (clips, ledger) = (&opened.clips[..], &opened.ledger[..]);
    publish(out, Contents { codec, quality, labels, files, clips, ledger, origin }).await
}

/// The split of each unit, as a place in `shares`. Units are a stratum, a key and a weight; `shares` sum to 1.
///
/// Units go in the order of their stratum and then of a hash of seed and key; each goes to the split that lacks
/// the most. So every stratum, and the whole, is divided as the shares say, up to about one unit.
pub fn assign(units: &[(u32, &str, u64)], shares: &[f64], seed: u64) -> Vec<usize> {
    let hash = |key: &str| Sha256::new().chain_update(seed.to_le_bytes()).chain_update(key).finalize();
    let mut order: Vec<_> = (0..units.len()).map(|i| (units[i].0, hash(units[i].1), i)).collect();
    order.sort_unstable();
    let mut has = vec![0.0; shares.len()];
    let mut splits = vec![0; units.len()];
    let mut dealt = 0.0;
    for (_, _, unit) in order {
        let weight = units[unit].2 as f64;
        dealt += weight;
        let lack = |s: &usize| shares[*s] * dealt - has[*s];
        // Of equals the first.
        let neediest = (0..shares.len()).rev().max_by(|a, b| lack(a).total_cmp(&lack(b))).unwrap_or(0);
        has[neediest] += weight;
        splits[unit] = neediest;
    }
    splits
}

fn by_fractions(clips: &[ClipMeta], fractions: &[Fraction], seed: u64, by: By, stratify: bool) -> Vec<usize> {
    let mut units: Vec<(u32, &str, u64)> = Vec::new();
    let mut unit_of: HashMap<&str, usize> = HashMap::new();
    let mut places = Vec::with_capacity(clips.len());
    for clip in clips {
        let key = match by {
            By::Source => clip.source.as_str(),
            By::Clip => clip.clip_id.as_str(),
        };
        // A source of several labels counts for its first one.
        let stratum = if stratify { clip.label.map_or(0, |l| l as u32 + 1) } else { 0 };
        let place = *unit_of.entry(key).or_insert_with(|| {
            units.push((stratum, key, 0));
            units.len() - 1
        });
        units[place].2 += 1;
        places.push(place);
    }
    let shares: Vec<f64> = fractions.iter().map(|f| f.share).collect();
    let splits = assign(&units, &shares, seed);
    places.into_iter().map(|p| splits[p]).collect()
}

fn by_list(clips: &mut [ClipMeta], path: &std::path::Path, from: &Location) -> Result<()> {
    let mut changes = Vec::new();
    let mut problems = Vec::new();
    let known = places(clips);
    for (line, id, split) in read_pairs(path, ["clip_id", "split"])? {
        match known.get(id.as_str()) {
            _ if split.is_empty() => problems.push(format!("row {line}: its split is empty")),
            Some(&place) => changes.push((place, split)),
            None => problems.push(format!("row {line}: {} has no clip {id:?}", from.url())),
        }
    }
    if !problems.is_empty() {
        return Err(Error::Usage(format!("use {}: {}", path.display(), told(&problems))));
    }
    changes.into_iter().for_each(|(place, split)| clips[place].split = split.into());
    Ok(())
}

fn check(fractions: &[Fraction]) -> Result<()> {
    let all: Vec<String> = fractions.iter().map(|f| format!("{}={}", f.name, f.share)).collect();
    let bad = |why: &str| Err(Error::Usage(format!("use --fractions {}: {why}", all.join(","))));
    if fractions.iter().any(|f| f.name.is_empty() || !(f.share > 0.0 && f.share <= 1.0)) {
        return bad("each must be NAME=SHARE with a share above 0");
    }
    if (1..fractions.len()).any(|i| fractions[..i].iter().any(|f| f.name == fractions[i].name)) {
        return bad("a split is named twice");
    }
    let sum: f64 = fractions.iter().map(|f| f.share).sum();
    if (sum - 1.0).abs() > 1e-6 {
        return bad(&format!("they sum to {sum}, not 1"));
    }
    Ok(())
}
