//! Something-Something v2: `labels.json` gives each template its id, `train.json` and `validation.json` give
//! videos templates with the objects' places in brackets, `test.json` gives ids alone, whose answers
//! `test-answers.csv` has. The files may carry the prefix `something-something-v2-`.

use super::{Listed, Listing, TextFile, bad, folders, lacking};
use crate::{Error, Result};
use serde::{Deserialize, de::DeserializeOwned};
use std::collections::{BTreeMap, HashMap};

#[derive(Deserialize)]
struct Video {
    id: String,
    template: Option<String>,
}

/// Reads the lists among `files`.
pub fn read(files: &[TextFile]) -> Result<Listing> {
    let find = |ending: &str| files.iter().find(|f| f.file.ends_with(ending));
    let labels = find("labels.json").ok_or_else(|| {
        lacking(files, "labels.json", "give --labels the folder that holds it beside train.json")
    })?;
    let (names, ids) = names(labels)?;
    let answers = find("test-answers.csv").map(|f| answers(f, &ids)).transpose()?.unwrap_or_default();
    let mut rows = Vec::new();
    for (list, split) in [("train.json", "train"), ("validation.json", "val"), ("test.json", "test")] {
        let Some(file) = find(list) else { continue };
        let videos: Vec<Video> = parse(file)?;
        for (i, video) in videos.into_iter().enumerate() {
            // JSON has no lines of its own: the place in the list, from 1 on.
            let line = i as u64 + 1;
            let label = match &video.template {
                Some(template) => Some(label_id(&ids, template).map_err(|why| entry(file, line, &why))?),
                None => answers.get(&video.id).copied(),
            };
            rows.push(Listed {
                file: file.name.clone(),
                line,
                stems: vec![(video.id, None)],
                folders: folders(Some(split), None),
                labels: label.into_iter().collect(),
                spans: vec![],
                split: Some(split.into()),
            });
        }
    }
    Ok(Listing { names, rows, ledger: vec![] })
}

type Ids = HashMap<String, i32>;

fn names(file: &TextFile) -> Result<(Vec<String>, Ids)> {
    let given: BTreeMap<String, String> = parse(file)?;
    let mut names = vec![None; given.len()];
    let mut ids = HashMap::new();
    for (template, id) in given {
        let place = id.parse::<usize>().ok().and_then(|i| names.get_mut(i));
        let Some(place @ None) = place else {
            let why = format!("the id {id:?} of {template:?} is no number below the count, or is taken");
            return Err(bad(file, 1, why));
        };
        // Cannot be cut: an id lies below the number of labels.
        ids.insert(template.clone(), id.parse().unwrap_or_default());
        *place = Some(template);
    }
    Ok((names.into_iter().flatten().collect(), ids))
}

/// `id;template` a line.
fn answers(file: &TextFile, ids: &Ids) -> Result<HashMap<String, i32>> {
    let mut answers = HashMap::new();
    for (line, text) in (1..).zip(file.text.lines()).filter(|(_, t)| !t.trim().is_empty()) {
        let (id, template) =
            text.split_once(';').ok_or_else(|| bad(file, line, format!("{text:?} is no id;template")))?;
        answers.insert(id.trim().into(), label_id(ids, template).map_err(|why| bad(file, line, why))?);
    }
    Ok(answers)
}

/// The lists bracket the places of objects, `labels.json` does not.
fn label_id(ids: &Ids, template: &str) -> std::result::Result<i32, String> {
    let plain = template.trim().replace(['[', ']'], "");
    ids.get(&plain).copied().ok_or(format!("labels.json has no template {plain:?}"))
}

fn parse<T: DeserializeOwned>(file: &TextFile) -> Result<T> {
    serde_json::from_str(&file.text).map_err(|e| bad(file, e.line() as u64, e))
}

fn entry(file: &TextFile, place: u64, why: &str) -> Error {
    Error::Usage(format!("read {}, entry {place}: {why}", file.name))
}
