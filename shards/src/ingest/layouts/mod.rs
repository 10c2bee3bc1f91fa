//! The annotations of public datasets, read as they are published, and joined with the videos at hand.
//!
//! Published lists name videos that nobody can download any more, and folders are arranged in many ways.
//! So a listed video is found by its file's name wherever it lies below the folder; one that is missing goes into the
//! ledger, as does a video that no list names. A malformed line is an error that names file and line.

mod action_lists;
mod charades;
mod join;
mod kinetics;
mod something;

use super::labels::{Cut, Span};
use crate::{Error, Result, ledger::LedgerEntry};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A published form of annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Kinetics-400, 600 and 700: CSV files of label, youtube_id, time_start, time_end, split.
    Kinetics,
    /// Something-Something v2: labels.json, train.json, validation.json, test.json, test-answers.csv.
    SomethingV2,
    /// UCF101: classInd.txt, trainlist01.txt, testlist01.txt and so on.
    Ucf101,
    /// HMDB51: a file `<class>_test_split1.txt` and so on for each class.
    Hmdb51,
    /// Charades: Charades_v1_train.csv, Charades_v1_test.csv, Charades_v1_classes.txt.
    Charades,
    /// Marey's own CSV.
    Csv,
}

/// All that the published lists say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// Label names; the place is the id.
    pub names: Vec<String>,
    pub rows: Vec<Listed>,
    /// What the lists themselves leave out.
    pub ledger: Vec<LedgerEntry>,
}

/// One listed video.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub file: Arc<str>,
    pub line: u64,
    /// Names that its file may have, without ending, and the cut to take of it then; the first that is there counts.
    pub stems: Vec<(String, Option<Cut>)>,
    /// Folders it may lie in; they decide between files of one name.
    pub folders: Vec<String>,
    pub labels: Vec<i32>,
    pub spans: Vec<Span>,
    /// `None`: the list does not say.
    pub split: Option<String>,
}

/// One annotation file, in memory.
pub(super) struct TextFile {
    /// As messages name it.
    pub name: Arc<str>,
    /// Without its folder.
    pub file: String,
    pub text: String,
}

impl Layout {
    /// What the annotations at `path`, a file or a folder, are.
    ///
    /// # Errors
    /// They cannot be read, or are none of the known forms.
    pub fn detect(path: &Path) -> Result<Self> {
        let files = names(path)?;
        let any = |test: &dyn Fn(&str) -> bool| files.iter().any(|f| test(f));
        if any(&|f| f.ends_with("labels.json") || f.ends_with("validation.json")) {
            return Ok(Self::SomethingV2);
        }
        if any(&|f| f == "classInd.txt" || f.starts_with("trainlist0")) {
            return Ok(Self::Ucf101);
        }
        if any(&|f| action_lists::is_hmdb(f, None)) {
            return Ok(Self::Hmdb51);
        }
        for file in read_texts(path, "csv")? {
            let header = file.text.lines().next().unwrap_or_default().to_lowercase();
            let has = |name: &str| header.split(',').any(|c| c.trim_matches(['"', ' ', '\u{feff}']) == name);
            if has("youtube_id") {
                return Ok(Self::Kinetics);
            }
            if has("actions") && has("id") {
                return Ok(Self::Charades);
            }
        }
        if path.is_file() {
            return Ok(Self::Csv);
        }
        Err(Error::Usage(format!(
            "recognise the annotations in {}: they are neither a CSV with a header nor those of Kinetics, \
             Something-Something v2, UCF101, HMDB51 or Charades as published; name the form with --layout",
            path.display()
        )))
    }

    /// Reads the annotations at `path`, a file or a folder; `fold` is the official split of UCF101 and HMDB51, 1 to 3.
    /// With `untrimmed`, Kinetics files that are named by their id alone are cut by the list's times.
    ///
    /// # Errors
    /// Names file and line.
    pub fn read(self, path: &Path, fold: u8, untrimmed: bool) -> Result<Listing> {
        let listing = match self {
            Self::Kinetics => kinetics::read(&read_texts(path, "csv")?, untrimmed),
            Self::SomethingV2 => {
                let mut files = read_texts(path, "json")?;
                files.extend(read_texts(path, "csv")?);
                something::read(&files)
            }
            Self::Ucf101 => action_lists::read_ucf(&read_texts(path, "txt")?, fold),
            Self::Hmdb51 => action_lists::read_hmdb(&read_texts(path, "txt")?, fold),
            Self::Charades => {
                let mut files = read_texts(path, "csv")?;
                files.extend(read_texts(path, "txt")?);
                charades::read(&files)
            }
            Self::Csv => Ok(Listing::default()),
        }?;
        if self != Self::Csv && listing.rows.is_empty() {
            return Err(Error::Usage(format!("read {}: it lists no videos", path.display())));
        }
        Ok(listing)
    }
}

/// The error of a line that cannot be understood.
fn bad(file: &TextFile, line: u64, why: impl std::fmt::Display) -> Error {
    Error::Usage(format!("read {}, line {line}: {why}", file.name))
}

/// The error of a file that must be there.
fn lacking(files: &[TextFile], what: &str, how: &str) -> Error {
    let seen: Vec<&str> = files.iter().map(|f| &*f.name).take(5).collect();
    Error::Usage(format!("read the annotations: there is no {what} among {}; {how}", seen.join(", ")))
}

/// A split's published name to the one that Marey uses.
fn split_name(published: &str) -> String {
    match published.trim().to_lowercase().as_str() {
        "validate" | "validation" | "val" => "val".into(),
        other => other.into(),
    }
}

/// The folders a video of that split and class may lie in.
fn folders(split: Option<&str>, class: Option<&str>) -> Vec<String> {
    let mut found: Vec<String> = split.into_iter().map(String::from).collect();
    if split == Some("val") {
        found.extend(["validate", "validation"].map(String::from));
    }
    if let Some(class) = class {
        found.push(class.into());
        found.push(class.replace(' ', "_"));
    }
    found
}

fn names(path: &Path) -> Result<Vec<String>> {
    let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(files_in(path)?.iter().map(|p| name(p)).collect())
}

/// The file itself, or the files of the folder, sorted.
fn files_in(path: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| Error::Usage(format!("read {}: {e}", path.display()));
    if std::fs::metadata(path).map_err(failed)?.is_file() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The texts of the files with that ending.
fn read_texts(path: &Path, ending: &str) -> Result<Vec<TextFile>> {
    let mut texts = Vec::new();
    for path in files_in(path)? {
        if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending)) {
            continue;
        }
        let name = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|e| Error::Usage(format!("read {name}: {e}")))?;
        let text = text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text);
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        texts.push(TextFile { name: name.into(), file, text });
    }
    Ok(texts)
}

#[cfg(test)]
mod tests;
