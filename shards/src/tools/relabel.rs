//! `marey dataset relabel`: other labels for some clips, or other names for labels.

use super::{Opened, check_vacant, places, read_pairs};
use crate::{
    Error, Result,
    error::told,
    format::{ClipMeta, Manifest},
    publish::{Contents, publish},
};
use std::{collections::HashMap, path::Path, path::PathBuf};
use storage::Location;

/// What changes.
#[derive(Clone, Debug)]
pub enum Relabel {
    /// A CSV of `clip_id,label`: several labels separated by `;`, none for "unlabelled". Clips that it does
    /// not name keep theirs; names that are new follow the others.
    Clips(PathBuf),
    /// A CSV of `old,new`: names of labels. Where the new name is another label's, the two become one.
    Names(PathBuf),
}

/// Writes to `out` the dataset at `from` with other labels.
///
/// # Errors
/// A file that names no such clip or label, a destination that is taken, or the stores' own.
pub async fn relabel(
    from: &Location,
    out: &Location,
    what: &Relabel,
    copied: &mut dyn FnMut(u64),
) -> Result<Manifest> {
    let mut opened = Opened::open(from).await?;
    check_vacant(out).await?;
    let old = opened.dataset.manifest.labels.clone();
    let labels = match what {
        Relabel::Clips(path) => relabel_clips(&mut opened.clips, old, path)?,
        Relabel::Names(path) => rename(&mut opened.clips, &old, path)?,
    };
    let origin = serde_json::json!({ "made_by": "relabel", "from": opened.origin() });
    let files = opened.copy_files(out, |_, key| key.into(), copied).await?;
    let manifest = &opened.dataset.manifest;
    let (codec, quality) = (manifest.codec, manifest.quality);
    let (clips, ledger) = (&opened.clips[..], &opened.ledger[..]);
    publish(out, Contents { codec, quality, labels, files, clips, ledger, origin }).await
}

fn relabel_clips(clips: &mut [ClipMeta], mut names: Vec<String>, path: &Path) -> Result<Vec<String>> {
    let mut ids: HashMap<String, i32> = (0..).zip(&names).map(|(i, n)| (n.clone(), i)).collect();
    let known = places(clips);
    let (mut changes, mut problems) = (Vec::new(), Vec::new());
    for (line, id, cell) in read_pairs(path, ["clip_id", "label"])? {
        let Some(&place) = known.get(id.as_str()) else {
            problems.push(format!("row {line}: there is no clip {id:?}"));
            continue;
        };
        let mut labels: Vec<i32> = Vec::new();
        for name in cell.split(';').map(str::trim).filter(|n| !n.is_empty()) {
            let label = *ids.entry(name.into()).or_insert_with(|| {
                names.push(name.into());
                names.len() as i32 - 1
            });
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        changes.push((place, labels));
    }
    if !problems.is_empty() {
        return Err(Error::Usage(format!("use {}: {}", path.display(), told(&problems))));
    }
    for (place, labels) in changes {
        clips[place].label = labels.first().copied();
        clips[place].labels = labels;
    }
    Ok(names)
}

fn rename(clips: &mut [ClipMeta], old: &[String], path: &Path) -> Result<Vec<String>> {
    let mut new: Vec<String> = old.to_vec();
    let mut problems = Vec::new();
    for (line, from, to) in read_pairs(path, ["old", "new"])? {
        match old.iter().position(|n| *n == from) {
            _ if to.is_empty() => problems.push(format!("row {line}: the new name of {from:?} is empty")),
            Some(place) => new[place] = to,
            None => problems.push(format!("row {line}: there is no label {from:?}")),
        }
    }
    if !problems.is_empty() {
        return Err(Error::Usage(format!("use {}: {}", path.display(), told(&problems))));
    }
    let mut names: Vec<String> = Vec::new();
    let ids = new.iter().map(|name| match names.iter().position(|n| n == name) {
        Some(id) => id as i32,
        None => {
            names.push(name.clone());
            names.len() as i32 - 1
        }
    });
    let ids: Vec<i32> = ids.collect();
    for clip in clips {
        // Every label of an opened dataset has a name.
        clip.label = clip.label.map(|l| ids[l as usize]);
        let mut labels: Vec<i32> = Vec::new();
        for label in clip.labels.iter().map(|l| ids[*l as usize]) {
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        clip.labels = labels;
    }
    Ok(names)
}
