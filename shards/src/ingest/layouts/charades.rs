//! Charades: `Charades_v1_train.csv` and `Charades_v1_test.csv`, whose column `actions` holds
//! `c092 11.90 21.20;c147 0.00 12.60`, and `Charades_v1_classes.txt` (`c000 Holding some clothes`).
//!
//! A video gets the labels of all its actions, as in PySlowFast's evaluation; cut into clips, each clip gets
//! those that happen during it, as PySlowFast trains.

use super::{Listed, Listing, TextFile, bad, folders, lacking};
use crate::{Result, ingest::Span};
use std::collections::HashMap;

/// Reads the lists among `files`; other CSVs are left alone.
pub fn read(files: &[TextFile]) -> Result<Listing> {
    let classes = files.iter().find(|f| f.file.ends_with("classes.txt")).ok_or_else(|| {
        let how = "give --labels the folder that holds it beside Charades_v1_train.csv";
        lacking(files, "Charades_v1_classes.txt", how)
    })?;
    let (mut names, mut ids) = (Vec::new(), HashMap::new());
    for (line, text) in (1..).zip(classes.text.lines().map(str::trim)).filter(|(_, t)| !t.is_empty()) {
        let (code, name) = text
            .split_once(' ')
            .ok_or_else(|| bad(classes, line, format!("{text:?} is no code and name")))?;
        ids.insert(code, names.len() as i32);
        names.push(name.trim().to_string());
    }
    let mut rows = Vec::new();
    for file in files.iter().filter(|f| f.file.ends_with(".csv")) {
        let mut reader = csv::Reader::from_reader(file.text.as_bytes());
        let header = reader.headers().map_err(|e| bad(file, 1, e))?.clone();
        let column = |name: &str| header.iter().position(|h| h.trim() == name);
        let (Some(id), Some(actions)) = (column("id"), column("actions")) else { continue };
        let split = if file.file.to_lowercase().contains("test") { "test" } else { "train" };
        for record in reader.records() {
            let record = record.map_err(|e| bad(file, e.position().map_or(0, |p| p.line()), &e))?;
            let line = record.position().map_or(0, |p| p.line());
            let id = record.get(id).unwrap_or_default().trim();
            if id.is_empty() {
                return Err(bad(file, line, "its id is empty"));
            }
            let mut spans = Vec::new();
            // A video without actions is published with an empty cell.
            for action in record.get(actions).unwrap_or_default().split(';').filter(|a| !a.trim().is_empty())
            {
                spans.push(span(action, &ids).map_err(|why| bad(file, line, why))?);
            }
            let mut labels: Vec<i32> = Vec::new();
            for span in &spans {
                if !labels.contains(&span.label) {
                    labels.push(span.label);
                }
            }
            rows.push(Listed {
                file: file.name.clone(),
                line,
                stems: vec![(id.into(), None)],
                folders: folders(Some(split), None),
                labels,
                spans,
                split: Some(split.into()),
            });
        }
    }
    Ok(Listing { names, rows, ledger: vec![] })
}

fn span(action: &str, ids: &HashMap<&str, i32>) -> std::result::Result<Span, String> {
    let parts: Vec<&str> = action.split_whitespace().collect();
    let [code, start, end] = parts[..] else {
        return Err(format!("the action {action:?} is not a code, a start and an end"));
    };
    let label = *ids.get(code).ok_or(format!("there is no class {code:?}"))?;
    let seconds = |text: &str| {
        let seconds = text.parse::<f64>().ok().filter(|s| s.is_finite() && *s >= 0.0);
        seconds.ok_or(format!("{text:?} in the action {action:?} is not seconds"))
    };
    Ok(Span { label, start: seconds(start)?, end: seconds(end)? })
}
