//! Listed videos to files.

use super::{Listed, Listing};
use crate::{
    Error, Result,
    error::told,
    ingest::{Cut, builder::entry, inputs::File},
    ledger::{Action, LedgerEntry},
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What became of the lists.
#[derive(Debug, Default)]
pub struct Joined<'a> {
    /// A row, the source of its file, and the cut to take.
    pub rows: Vec<(&'a Listed, &'a str, Option<Cut>)>,
    pub ledger: Vec<LedgerEntry>,
    /// Sources that no row names.
    pub unlisted: Vec<&'a str>,
}

impl Listing {
    /// Finds each listed video among `files`, which are given by source.
    ///
    /// # Errors
    /// A name that several files have, or none of the listed videos is there.
    pub fn join<'a>(&'a self, files: &'a BTreeMap<String, File>) -> Result<Joined<'a>> {
        let mut by_stem: HashMap<&str, Vec<&str>> = HashMap::new();
        for (source, file) in files {
            by_stem.entry(file.stem(source)).or_default().push(source);
        }
        let mut joined = Joined { ledger: self.ledger.clone(), ..Joined::default() };
        let mut taken: HashMap<(&str, String), &Listed> = HashMap::new();
        let mut named: HashSet<&str> = HashSet::new();
        // What the lists themselves leave out is told of once.
        for left_out in &self.ledger {
            let file = left_out.source.rsplit('/').next().unwrap_or_default();
            let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
            named.extend(by_stem.get(stem).into_iter().flatten());
        }
        let mut problems = Vec::new();
        for row in &self.rows {
            let here = format!("{}, line {}", row.file, row.line);
            let found = row.stems.iter().find_map(|(stem, cut)| Some((by_stem.get(stem.as_str())?, *cut)));
            let Some((sources, cut)) = found else {
                let stems: Vec<&str> = row.stems.iter().map(|(s, _)| s.as_str()).collect();
                let detail = format!("{here}: there is no file {}", stems.join(" or "));
                joined.ledger.push(entry(stems[0], Action::Skipped, "missing", detail));
                continue;
            };
            let Some(source) = the_one(sources, &row.folders) else {
                problems.push(format!("{here} may mean {}", sources.join(" or ")));
                continue;
            };
            named.insert(source);
            // Some published lists hold a video twice.
            if let Some(first) = taken.insert((source, format!("{cut:?}")), row) {
                let detail =
                    format!("{here}: {}, line {} has it already, and counts", first.file, first.line);
                joined.ledger.push(entry(source, Action::Repaired, "listed twice", detail));
                taken.insert((source, format!("{cut:?}")), first);
                continue;
            }
            joined.rows.push((row, source, cut));
        }
        if !problems.is_empty() {
            return Err(Error::Usage(format!("find the listed videos: {}", told(&problems))));
        }
        if joined.rows.is_empty() {
            let missing = joined.ledger.iter().find(|e| e.reason == "missing");
            let example = missing.map_or(String::new(), |e| format!("; {}", e.detail));
            let (listed, there) = (self.rows.len(), files.len());
            return Err(Error::Usage(format!(
                "find the listed videos: none of {listed} is among the {there} files there{example}"
            )));
        }
        joined.unlisted = files.keys().map(String::as_str).filter(|s| !named.contains(s)).collect();
        Ok(joined)
    }
}

/// Of several files of one name, the one that lies in the most of the listed folders.
fn the_one<'a>(sources: &[&'a str], folders: &[String]) -> Option<&'a str> {
    let score = |source: &str| {
        let parts = source.split('/').rev().skip(1);
        parts.filter(|p| folders.iter().any(|f| f.eq_ignore_ascii_case(p))).count()
    };
    let best = sources.iter().map(|s| score(s)).max()?;
    let mut with_best = sources.iter().filter(|s| score(s) == best);
    match (with_best.next(), with_best.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    }
}
