//! `marey dataset merge`: several datasets of one codec as one.

use super::{Opened, check_vacant};
use crate::{
    Error, Result,
    error::told,
    format::{ClipMeta, Codec, Manifest},
    publish::{Contents, publish},
};
use std::collections::HashMap;
use storage::Location;

/// Writes to `out` all clips of `from`, in that order. Labels are united by name: the first dataset keeps its
/// ids, new names follow. With `prefix_ids` each clip's id begins with its dataset's name and a slash.
///
/// # Errors
/// Fewer than two datasets, different codecs, clip ids in common, a destination that is taken, or the stores' own.
pub async fn merge(
    from: &[Location],
    out: &Location,
    prefix_ids: bool,
    copied: &mut dyn FnMut(u64),
) -> Result<Manifest> {
    if from.len() < 2 {
        return Err(Error::Usage("merge datasets: name two or more".into()));
    }
    let mut all = Vec::new();
    for location in from {
        all.push(Opened::open(location).await?);
    }
    let first = &all[0].dataset;
    let other = all.iter().find(|o| o.dataset.manifest.codec != first.manifest.codec);
    if let Some(other) = other {
        let name = |codec| match codec {
            Codec::Jpeg => "JPEG",
            Codec::Raw => "raw",
        };
        return Err(Error::Usage(format!(
            "merge {} (frames in {}) and {} ({}): a dataset has one codec; ingest one of them anew",
            first.location.url(),
            name(first.manifest.codec),
            other.dataset.location.url(),
            name(other.dataset.manifest.codec)
        )));
    }
    if prefix_ids {
        for (opened, name) in all.iter_mut().zip(names(from)) {
            opened.clips.iter_mut().for_each(|c| c.clip_id = format!("{name}/{}", c.clip_id));
        }
    }
    check_ids(&all)?;
    check_vacant(out).await?;
    let labels = unite(&mut all);
    let (mut files, mut clips, mut ledger) = (Vec::new(), Vec::new(), Vec::new());
    for opened in &all {
        let base = files.len() as u32;
        // Two datasets may name their files alike.
        let folder = format!("data/{}", &opened.dataset.digest[..16]);
        let name = |n: usize, _: &str| format!("{folder}/{n:05}.parquet");
        files.extend(opened.copy_files(out, name, copied).await?);
        clips.extend(opened.clips.iter().map(|c| ClipMeta { file: base + c.file, ..c.clone() }));
        ledger.extend(opened.ledger.iter().cloned());
    }
    let manifest = &all[0].dataset.manifest;
    let quality = manifest.quality.filter(|q| all.iter().all(|o| o.dataset.manifest.quality == Some(*q)));
    let origin = serde_json::json!({
        "made_by": "merge",
        "from": all.iter().map(Opened::origin).collect::<Vec<_>>(),
        "prefix_ids": prefix_ids,
    });
    let (codec, clips, ledger) = (manifest.codec, &clips[..], &ledger[..]);
    publish(out, Contents { codec, quality, labels, files, clips, ledger, origin }).await
}

/// What each dataset is called: the end of its URL, numbered where several have the same.
fn names(from: &[Location]) -> Vec<String> {
    let end = |l: &Location| l.url().trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_string();
    let ends: Vec<String> = from.iter().map(end).collect();
    let alone = |e: &String| ends.iter().filter(|o| *o == e).count() == 1;
    let name = |(i, e): (usize, &String)| if alone(e) { e.clone() } else { format!("{e}-{}", i + 1) };
    ends.iter().enumerate().map(name).collect()
}

fn check_ids(all: &[Opened]) -> Result<()> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut twice = Vec::new();
    for (place, opened) in all.iter().enumerate() {
        for clip in &opened.clips {
            if let Some(before) = seen.insert(&clip.clip_id, place) {
                let url = |place: usize| all[place].dataset.location.url();
                twice.push(format!("{:?} (in {} and {})", clip.clip_id, url(before), url(place)));
            }
        }
    }
    if twice.is_empty() {
        return Ok(());
    }
    let told = told(&twice);
    Err(Error::Usage(format!(
        "merge datasets: they share the clips {told}; tell them apart with --prefix-ids"
    )))
}

/// Gives the clips the ids of all datasets' labels together, which are returned.
fn unite(all: &mut [Opened]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut ids: HashMap<String, i32> = HashMap::new();
    for opened in all {
        let own = opened.dataset.manifest.labels.iter().map(|name| {
            *ids.entry(name.clone()).or_insert_with(|| {
                names.push(name.clone());
                names.len() as i32 - 1
            })
        });
        let own: Vec<i32> = own.collect();
        for clip in &mut opened.clips {
            // Every label of an opened dataset has a name.
            clip.label = clip.label.map(|l| own[l as usize]);
            clip.labels.iter_mut().for_each(|l| *l = own[*l as usize]);
        }
    }
    names
}
