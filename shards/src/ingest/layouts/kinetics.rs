//! Kinetics-400, 600 and 700: `label,youtube_id,time_start,time_end,split`, one CSV a split; the test
//! lists of 600 and 700 have no labels. Videos are called `<id>_<start>_<end>` with six digits each, or
//! plainly `<id>`.

use super::{Listed, Listing, TextFile, bad, folders, split_name};
use crate::{Result, ingest::Cut};
use std::collections::BTreeSet;

/// Reads every list among `files`; other CSVs are left alone.
pub fn read(files: &[TextFile], untrimmed: bool) -> Result<Listing> {
    let mut found: Vec<(Listed, Option<String>)> = Vec::new();
    for file in files {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file.text.as_bytes());
        let header = reader.headers().map_err(|e| bad(file, 1, e))?.clone();
        let column = |name: &str| header.iter().position(|h| h.eq_ignore_ascii_case(name));
        let Some(id) = column("youtube_id") else { continue };
        let (Some(start), Some(end)) = (column("time_start"), column("time_end")) else {
            return Err(bad(file, 1, "the header has youtube_id, but not time_start and time_end"));
        };
        let (label, split) = (column("label"), column("split"));
        for record in reader.records() {
            let record = record.map_err(|e| bad(file, e.position().map_or(0, |p| p.line()), &e))?;
            let line = record.position().map_or(0, |p| p.line());
            let filled = |c: Option<usize>| c.and_then(|c| record.get(c)).filter(|c| !c.is_empty());
            let id = filled(Some(id)).ok_or_else(|| bad(file, line, "its youtube_id is empty"))?;
            let time = |what: &str, c: usize| {
                let text = record.get(c).unwrap_or_default();
                let seconds = text.parse::<f64>().ok().filter(|s| s.is_finite() && *s >= 0.0);
                seconds.ok_or_else(|| bad(file, line, format!("its {what} is {text:?}, not seconds")))
            };
            let (start, end) = (time("time_start", start)?, time("time_end", end)?);
            if end <= start {
                return Err(bad(file, line, format!("it ends at {end} s, not after its start at {start} s")));
            }
            let label = filled(label);
            let split = filled(split).map(split_name).or_else(|| split_of(&file.file));
            let cut = untrimmed.then_some(Cut { start, end: Some(end) });
            let listed = Listed {
                file: file.name.clone(),
                line,
                stems: vec![(format!("{id}_{:06}_{:06}", start as u64, end as u64), None), (id.into(), cut)],
                folders: folders(split.as_deref(), label),
                labels: vec![],
                spans: vec![],
                split,
            };
            found.push((listed, label.map(String::from)));
        }
    }
    let names: BTreeSet<&String> = found.iter().filter_map(|(_, label)| label.as_ref()).collect();
    let names: Vec<String> = names.into_iter().cloned().collect();
    let id = |label: &String| names.binary_search(label).ok().map(|i| i as i32);
    let rows = found
        .into_iter()
        .map(|(row, label)| Listed { labels: label.as_ref().and_then(id).into_iter().collect(), ..row })
        .collect();
    Ok(Listing { names, rows, ledger: vec![] })
}

/// By the list's name, where it has no column for it.
fn split_of(file: &str) -> Option<String> {
    let name = file.to_lowercase();
    let known = [("train", "train"), ("val", "val"), ("test", "test"), ("holdout", "holdout")];
    known.iter().find(|(part, _)| name.contains(part)).map(|(_, split)| (*split).into())
}
