//! Which videos go in: the folder, joined with the labels file. All mistakes are found here, before
//! anything is decoded.

use super::labels::{Cut, Labels};
use crate::{Error, Result};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
};

/// One video, or one cut of it, to become one clip or several.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    pub path: PathBuf,
    /// Relative to the folder, with `/` between parts.
    pub source: String,
    /// The id of its clip, or how its clips' ids begin.
    pub clip_id: String,
    /// Size of the file.
    pub bytes: u64,
    pub labels: Vec<i32>,
    pub split: String,
    pub cut: Option<Cut>,
}

/// How the folder and the labels file are read.
#[derive(Clone, Debug)]
pub struct Sources {
    /// A folder, searched whole, or one file.
    pub videos: PathBuf,
    pub labels: Option<PathBuf>,
    /// Accept videos that the labels file does not name.
    pub allow_unlabelled: bool,
    /// The split of videos for which the labels file names none.
    pub split: String,
}

/// What a folder offers: the inputs in their final order, and the label names.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub inputs: Vec<Input>,
    pub labels: Vec<String>,
}

/// File name endings that are taken for video in a folder. A labels file may name others.
const ENDINGS: [&str; 31] = [
    "3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "h264", "hevc", "ivf", "m2ts", "m2v",
    "m4v", "mjpeg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "ogv", "rm", "ts", "vob", "webm",
    "wmv", "y4m", "rmvb",
];
/// Of many like mistakes, this many are told.
const TOLD: usize = 3;

impl Sources {
    /// Finds every input, sorted by source and cut.
    ///
    /// # Errors
    /// No videos, a labelled file that is missing (with the nearest name there is), a video without a
    /// label, or a row given twice.
    pub fn find(&self) -> Result<Found> {
        let files = self.files()?;
        let root = self.root();
        let (names, mut inputs) = match &self.labels {
            None => {
                let inputs = files.iter().map(|(source, path)| self.input(source, path, vec![], None, None));
                (vec![], inputs.collect::<Result<Vec<_>>>()?)
            }
            Some(labels) => {
                let parsed = Labels::read(labels)?;
                let inputs = self.join(&labels.display().to_string(), &parsed, &files, root)?;
                (parsed.names, inputs)
            }
        };
        if inputs.is_empty() {
            return Err(Error::Usage(format!(
                "find videos in {}: it holds no file that ends in .mp4, .mkv, .webm, .avi, .mov or the like",
                self.videos.display()
            )));
        }
        inputs.sort_by(|a, b| {
            let key =
                |i: &Input| i.cut.map_or((0.0, f64::INFINITY), |c| (c.start, c.end.unwrap_or(f64::INFINITY)));
            let (ka, kb) = (key(a), key(b));
            a.source.cmp(&b.source).then(ka.0.total_cmp(&kb.0)).then(ka.1.total_cmp(&kb.1))
        });
        name_clips(&mut inputs);
        Ok(Found { inputs, labels: names })
    }

    /// The folder that sources are relative to.
    fn root(&self) -> &Path {
        match self.videos.is_dir() {
            true => &self.videos,
            false => self.videos.parent().unwrap_or(Path::new("")),
        }
    }

    /// Videos by source.
    fn files(&self) -> Result<BTreeMap<String, PathBuf>> {
        let meta = std::fs::metadata(&self.videos)
            .map_err(|e| Error::Usage(format!("find videos in {}: {e}", self.videos.display())))?;
        let mut files = BTreeMap::new();
        if meta.is_file() {
            files.insert(source_of(&self.videos, self.root()), self.videos.clone());
        } else {
            let top = self.videos.canonicalize().map_err(|e| io(&self.videos, e))?;
            walk(&self.videos, &self.videos, &mut vec![top], &mut files)?;
        }
        Ok(files)
    }

    fn join(
        &self,
        name: &str,
        labels: &Labels,
        files: &BTreeMap<String, PathBuf>,
        root: &Path,
    ) -> Result<Vec<Input>> {
        let mut seen: HashMap<(String, String), u64> = HashMap::new();
        let mut inputs = Vec::new();
        let mut problems = Vec::new();
        for row in &labels.rows {
            let path = root.join(&row.path);
            let source = source_of(&path, root);
            // Of one video alone, the rest of the labels file does not matter.
            if !self.videos.is_dir() && !files.contains_key(&source) {
                continue;
            }
            if !files.contains_key(&source) && !path.is_file() {
                problems.push(format!(
                    "row {}: there is no file {}{}",
                    row.line,
                    row.path,
                    nearest(&source, files)
                ));
                continue;
            }
            let key = (source.clone(), format!("{:?}", row.cut));
            if let Some(before) = seen.insert(key, row.line) {
                problems.push(format!("row {}: {} is in row {before} already", row.line, row.path));
                continue;
            }
            let split = row.split.clone();
            inputs.push(self.input(&source, &path, row.labels.clone(), split, row.cut)?);
        }
        if !problems.is_empty() {
            return Err(Error::Usage(format!("use {name}: {}", told(&problems))));
        }
        let labelled: HashSet<String> = inputs.iter().map(|i| i.source.clone()).collect();
        let missing: Vec<_> = files.iter().filter(|(source, _)| !labelled.contains(*source)).collect();
        if !missing.is_empty() && !self.allow_unlabelled {
            let names: Vec<String> = missing.iter().map(|(s, _)| (*s).clone()).collect();
            return Err(Error::Usage(format!(
                "label every video: {name} has no row for {}; add it, or accept that with --allow-unlabelled",
                told(&names)
            )));
        }
        for (source, path) in missing {
            inputs.push(self.input(source, path, vec![], None, None)?);
        }
        Ok(inputs)
    }

    fn input(
        &self,
        source: &str,
        path: &Path,
        labels: Vec<i32>,
        split: Option<String>,
        cut: Option<Cut>,
    ) -> Result<Input> {
        Ok(Input {
            path: path.into(),
            source: source.into(),
            clip_id: String::new(),
            bytes: std::fs::metadata(path).map_err(|e| io(path, e))?.len(),
            labels,
            split: split.unwrap_or_else(|| self.split.clone()),
            cut,
        })
    }
}

/// Ids are sources without their ending, unless two files differ in nothing else; cuts add their times.
fn name_clips(inputs: &mut [Input]) {
    let stem = |source: &str| {
        let (folder, file) = source.rsplit_once('/').map_or(("", source), |(d, f)| (d, f));
        let file = file.rsplit_once('.').map_or(file, |(s, _)| if s.is_empty() { file } else { s });
        if folder.is_empty() { file.to_string() } else { format!("{folder}/{file}") }
    };
    let mut sources: HashMap<String, HashSet<String>> = HashMap::new();
    for i in inputs.iter() {
        sources.entry(stem(&i.source)).or_default().insert(i.source.clone());
    }
    for i in inputs {
        let stem = stem(&i.source);
        let name = if sources[&stem].len() > 1 { i.source.clone() } else { stem };
        i.clip_id = match i.cut {
            None => name,
            Some(Cut { start, end: None }) => format!("{name}@{start}-"),
            Some(Cut { start, end: Some(end) }) => format!("{name}@{start}-{end}"),
        };
    }
}

/// Adds the videos below `dir`; `above` are the real folders on the way, so that links cannot go in circles.
fn walk(
    root: &Path,
    dir: &Path,
    above: &mut Vec<PathBuf>,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|e| io(dir, e))? {
        let path = entry.map_err(|e| io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.starts_with('.') {
            continue;
        }
        // A link to nothing is no video.
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if meta.is_dir() {
            let real = path.canonicalize().map_err(|e| io(&path, e))?;
            if !above.contains(&real) {
                above.push(real);
                walk(root, &path, above, files)?;
                above.pop();
            }
        } else if meta.is_file() && name.rsplit_once('.').is_some_and(|(_, e)| ENDINGS.contains(&e)) {
            files.insert(source_of(&path, root), path);
        }
    }
    Ok(())
}

fn source_of(path: &Path, root: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts = relative.components().filter(|c| !matches!(c, std::path::Component::CurDir));
    parts.collect::<PathBuf>().to_string_lossy().into_owned()
}

fn nearest(source: &str, files: &BTreeMap<String, PathBuf>) -> String {
    let best = files.keys().map(|f| (strsim::jaro_winkler(source, f), f)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score > 0.7).map_or(String::new(), |(_, f)| format!(" (the nearest is {f})"))
}

fn told(problems: &[String]) -> String {
    let shown = problems.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(TOLD) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new(files: &[&str], csv: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for f in files {
                let path = dir.path().join("videos").join(f);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, f).unwrap();
            }
            std::fs::write(dir.path().join("labels.csv"), csv).unwrap();
            Self(dir)
        }

        fn find(&self, labelled: bool, allow_unlabelled: bool) -> std::result::Result<Found, String> {
            let videos = self.0.path().join("videos");
            let labels = labelled.then(|| self.0.path().join("labels.csv"));
            let sources = Sources { videos, labels, allow_unlabelled, split: "train".into() };
            sources.find().map_err(|e| {
                assert!(e.is_usage(), "{e}");
                e.to_string()
            })
        }
    }

    fn ids(found: &Found) -> Vec<&str> {
        found.inputs.iter().map(|i| i.clip_id.as_str()).collect()
    }

    #[test]
    fn a_folder_is_searched_whole_and_sorted() {
        let f = Folder::new(&["b/x.mp4", "a.MKV", "a.mp4", "notes.txt", ".hidden.mp4", "b.c.avi"], "");
        let found = f.find(false, false).unwrap();
        // Two files called a: their endings tell them apart.
        assert_eq!(ids(&found), ["a.MKV", "a.mp4", "b.c", "b/x"]);
        assert!(found.inputs.iter().all(|i| i.labels.is_empty() && i.split == "train" && i.bytes > 0));
    }

    #[test]
    fn labels_splits_and_cuts_are_joined() {
        let csv =
            "path,label,split,start_s,end_s\n./b.mp4,run,val,2,3.5\nb.mp4,walk,,0,1\na.mp4,run;walk,,,\n";
        let found = Folder::new(&["a.mp4", "b.mp4"], csv).find(true, false).unwrap();
        assert_eq!(ids(&found), ["a", "b@0-1", "b@2-3.5"]);
        assert_eq!(found.labels, ["run", "walk"]);
        assert_eq!(found.inputs[0].labels, [0, 1]);
        assert_eq!(found.inputs[2].split, "val");
    }

    #[test]
    fn mistakes_are_told_before_any_work() {
        let e =
            Folder::new(&["walking_01.mp4"], "path,label\nwalkin_01.mp4,x\n").find(true, false).unwrap_err();
        assert!(e.contains("row 2: there is no file walkin_01.mp4 (the nearest is walking_01.mp4)"), "{e}");
        let e = Folder::new(&["a.mp4", "b.mp4"], "path,label\na.mp4,x\n").find(true, false).unwrap_err();
        assert!(e.contains("no row for b.mp4") && e.contains("--allow-unlabelled"), "{e}");
        let e = Folder::new(&["a.mp4"], "path,label\na.mp4,x\n./a.mp4,y\n").find(true, false).unwrap_err();
        assert!(e.contains("row 3: ./a.mp4 is in row 2 already"), "{e}");
        let e = Folder::new(&["readme.txt"], "").find(false, false).unwrap_err();
        assert!(e.contains("holds no file"), "{e}");
        let found = Folder::new(&["a.mp4", "b.mp4"], "path,label\na.mp4,x\n").find(true, true).unwrap();
        assert!(found.inputs[1].labels.is_empty());
    }

    #[test]
    fn one_file_takes_its_own_rows() {
        let f = Folder::new(&["a.mp4", "b.mp4"], "path,label\na.mp4,x\nb.mp4,y\ngone.mp4,z\n");
        let (videos, labels) = (f.0.path().join("videos/b.mp4"), Some(f.0.path().join("labels.csv")));
        let found = Sources { videos, labels, allow_unlabelled: false, split: "test".into() }.find().unwrap();
        assert_eq!((ids(&found), found.inputs[0].labels.as_slice()), (vec!["b"], &[1][..]));
    }

    #[cfg(unix)]
    #[test]
    fn links_in_circles_end() {
        let f = Folder::new(&["sub/a.mp4"], "");
        std::os::unix::fs::symlink(f.0.path().join("videos"), f.0.path().join("videos/sub/loop")).unwrap();
        assert_eq!(ids(&f.find(false, false).unwrap()), ["sub/a"]);
    }
}
