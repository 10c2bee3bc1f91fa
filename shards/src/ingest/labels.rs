//! The labels file: a CSV with a header, one row a video or a cut of one.
//!
//! Columns, in any order: `path` (or `video`, or `file`), `label`; optional `split`, `start_s`, `end_s`.
//! Several labels stand in one cell, separated by `;`. Labels are names, or ids if all of them are
//! whole numbers.

use crate::{Error, Result};
use std::{collections::BTreeSet, path::Path};

/// Part of a video, seconds after its first picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    pub start: f64,
    /// `None`: to the end.
    pub end: Option<f64>,
}

/// An action inside a video, seconds after its first picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub label: i32,
    pub start: f64,
    pub end: f64,
}

/// One row of the labels file.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelRow {
    /// Line in the file, the header being 1.
    pub line: u64,
    pub path: String,
    /// Label ids, none twice, in the order of the cell.
    pub labels: Vec<i32>,
    pub split: Option<String>,
    pub cut: Option<Cut>,
}

/// The whole labels file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels {
    /// Names; the place is the id. Sorted, unless the file gives ids: then they are the ids' digits.
    pub names: Vec<String>,
    pub rows: Vec<LabelRow>,
}

/// Ids beyond this are taken for a mistake.
const LARGEST_ID: i32 = 1_000_000;

impl Labels {
    /// Reads a labels file.
    ///
    /// # Errors
    /// Names the file and the row: not CSV, a column missing or unknown, an empty label, an impossible cut.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| Error::Usage(format!("read {name}: {e}")))?;
        Self::parse(&name, &text)
    }

    /// Parses the text of a labels file, called `name` in messages.
    ///
    /// # Errors
    /// As [`Labels::read`].
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let bad = |line: u64, why: String| Error::Usage(format!("read {name}, row {line}: {why}"));
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
        let header = reader.headers().map_err(|e| bad(1, e.to_string()))?.clone();
        let columns = Columns::find(&header).map_err(|why| bad(1, why))?;
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|e| {
                let line = e.position().map_or(0, |p| p.line());
                bad(line, e.to_string())
            })?;
            let line = record.position().map_or(0, |p| p.line());
            rows.push(columns.row(&record, line).map_err(|why| bad(line, why))?);
        }
        if rows.is_empty() {
            return Err(Error::Usage(format!("read {name}: it has no rows below its header")));
        }
        let names = name_labels(&rows).map_err(|(line, why)| bad(line, why))?;
        let id = |label: &String| match label.parse::<i32>() {
            Ok(n) if names.ids => n,
            _ => names.names.binary_search(label).unwrap_or(0) as i32,
        };
        let rows = rows
            .into_iter()
            .map(|r| LabelRow {
                line: r.line,
                path: r.path,
                labels: r.labels.iter().map(id).collect(),
                split: r.split,
                cut: r.cut,
            })
            .collect();
        Ok(Self { names: names.names, rows })
    }
}

struct RawRow {
    line: u64,
    path: String,
    labels: Vec<String>,
    split: Option<String>,
    cut: Option<Cut>,
}

struct Columns {
    path: usize,
    label: usize,
    split: Option<usize>,
    start: Option<usize>,
    end: Option<usize>,
}

impl Columns {
    fn find(header: &csv::StringRecord) -> std::result::Result<Self, String> {
        let at = |names: &[&str]| header.iter().position(|h| names.iter().any(|n| h.eq_ignore_ascii_case(n)));
        let all = header.iter().collect::<Vec<_>>().join(", ");
        let need = |names: &[&str]| {
            at(names).ok_or(format!("there is no column {:?}; the header has: {all}", names.join(" or ")))
        };
        Ok(Self {
            path: need(&["path", "video", "file"])?,
            label: need(&["label", "labels"])?,
            split: at(&["split"]),
            start: at(&["start_s"]),
            end: at(&["end_s"]),
        })
    }

    fn row(&self, record: &csv::StringRecord, line: u64) -> std::result::Result<RawRow, String> {
        let cell = |i: usize| record.get(i).unwrap_or("");
        let filled = |i: Option<usize>| i.map(cell).filter(|c| !c.is_empty());
        let seconds = |name: &str, i: Option<usize>| {
            let Some(text) = filled(i) else { return Ok(None) };
            match text.parse::<f64>() {
                Ok(s) if s.is_finite() && s >= 0.0 => Ok(Some(s)),
                _ => Err(format!("{name} is {text:?}, not seconds")),
            }
        };
        let path = cell(self.path);
        if path.is_empty() {
            return Err("its path is empty".into());
        }
        let mut labels: Vec<String> = Vec::new();
        for label in cell(self.label).split(';').map(str::trim) {
            if label.is_empty() {
                return Err(format!("{path} has an empty label"));
            }
            if !labels.iter().any(|l| l == label) {
                labels.push(label.into());
            }
        }
        let (start, end) = (seconds("start_s", self.start)?, seconds("end_s", self.end)?);
        let cut = match (start, end) {
            (None, None) => None,
            (start, end) => Some(Cut { start: start.unwrap_or(0.0), end }),
        };
        if let Some(Cut { start, end: Some(end) }) = cut
            && end <= start
        {
            return Err(format!("its cut ends at {end} s, not after its start at {start} s"));
        }
        let split = filled(self.split).map(str::to_string);
        Ok(RawRow { line, path: path.into(), labels, split, cut })
    }
}

struct Names {
    names: Vec<String>,
    /// The file gives ids.
    ids: bool,
}

fn name_labels(rows: &[RawRow]) -> std::result::Result<Names, (u64, String)> {
    let mut largest = 0;
    let mut ids = true;
    for (row, label) in rows.iter().flat_map(|r| r.labels.iter().map(move |l| (r, l))) {
        match label.parse::<i32>() {
            Ok(n) if n > LARGEST_ID => {
                return Err((row.line, format!("the label id {n} exceeds {LARGEST_ID}")));
            }
            Ok(n) if n >= 0 => largest = largest.max(n),
            _ => ids = false,
        }
    }
    let names = if ids {
        (0..=largest).map(|n| n.to_string()).collect()
    } else {
        rows.iter().flat_map(|r| r.labels.iter().cloned()).collect::<BTreeSet<_>>().into_iter().collect()
    };
    Ok(Names { names, ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<Labels, String> {
        Labels::parse("labels.csv", text).map_err(|e| e.to_string())
    }

    #[test]
    fn names_are_sorted_and_cells_may_hold_several() {
        let l = parse("\u{feff}Label,PATH,split\nwalk, a.mp4 ,train\nrun; walk;run,b/b.mp4,\n").unwrap();
        assert_eq!(l.names, ["run", "walk"]);
        assert_eq!(l.rows[0].labels, [1]);
        assert_eq!((l.rows[0].path.as_str(), l.rows[0].line), ("a.mp4", 2));
        assert_eq!(l.rows[1].labels, [0, 1]);
        assert_eq!(l.rows[1].split, None);
    }

    #[test]
    fn numbers_are_ids_only_if_all_are() {
        let l = parse("video,label\na,3\nb,1\n").unwrap();
        assert_eq!(l.names, ["0", "1", "2", "3"]);
        assert_eq!(l.rows[0].labels, [3]);
        let l = parse("video,label\na,3\nb,x\n").unwrap();
        assert_eq!(l.names, ["3", "x"]);
        assert_eq!(l.rows[0].labels, [0]);
        assert!(parse("video,label\na,2000000000\n").unwrap_err().contains("row 2"));
    }

    #[test]
    fn cuts() {
        let l = parse("file,label,start_s,end_s\na,x,1.5,3\nb,x,,2\nc,x,4,\nd,x,,\n").unwrap();
        let cuts: Vec<_> = l.rows.iter().map(|r| r.cut).collect();
        assert_eq!(cuts[0], Some(Cut { start: 1.5, end: Some(3.0) }));
        assert_eq!(cuts[1], Some(Cut { start: 0.0, end: Some(2.0) }));
        assert_eq!(cuts[2], Some(Cut { start: 4.0, end: None }));
        assert_eq!(cuts[3], None);
    }

    #[test]
    fn mistakes_name_the_row() {
        for (text, part) in [
            ("a,b\n1,2\n", "row 1: there is no column \"path or video or file\""),
            ("path\nx\n", "no column \"label or labels\""),
            ("path,label\n", "no rows"),
            ("path,label\na,x\nb,\n", "row 3: b has an empty label"),
            ("path,label\na,x;;y\n", "empty label"),
            ("path,label\n,x\n", "row 2: its path is empty"),
            ("path,label,start_s,end_s\na,x,3,2\n", "not after its start"),
            ("path,label,start_s\na,x,soon\n", "\"soon\", not seconds"),
            ("path,label\na,x,y\n", "row 2"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(part), "{e:?} lacks {part:?}");
        }
    }
}
