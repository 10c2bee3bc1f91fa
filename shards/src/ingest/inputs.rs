//! Which inputs go in: a folder of videos or of folders of images, joined with its labels. All mistakes are
//! found here, before anything is decoded.

use super::{
    builder::entry,
    images::is_image,
    labels::{Cut, Labels, Span},
    layouts::Layout,
    table::Group,
};
use crate::{
    Error, Result,
    error::told,
    ledger::{Action, LedgerEntry},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// One video, or one cut of it, to become one clip or several; or a folder of images; or rows of a table.
#[derive(Clone, Debug)]
pub struct Input {
    pub media: Media,
    pub path: PathBuf,
    /// Relative to the folder, with `/` between parts.
    pub source: String,
    /// The id of its clip, or how its clips' ids begin.
    pub clip_id: String,
    /// Bytes of the video, images in the folder, or bytes of the rows' images.
    pub size: u64,
    pub labels: Vec<i32>,
    /// When each label holds, where that is known.
    pub spans: Vec<Span>,
    pub split: String,
    pub cut: Option<Cut>,
}

/// What an input is made of.
#[derive(Clone, Debug)]
pub enum Media {
    /// A video file.
    Video,
    /// A folder of images that were taken at this rate, frames a second.
    Images { fps: f64 },
    /// Rows of a Parquet file, a clip each.
    Rows(Arc<Group>),
}

/// How the folder and the labels are read.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A folder, searched whole, or one video.
    pub videos: PathBuf,
    /// A labels file, or a file or folder of published annotations.
    pub labels: Option<PathBuf>,
    /// The form of `labels`; `None`: found out.
    pub layout: Option<Layout>,
    /// The official split of UCF101 and HMDB51, 1 to 3.
    pub fold: u8,
    /// Kinetics files that are named by their id alone are whole videos: cut them by the list's times.
    pub untrimmed: bool,
    /// Not videos but folders of images, a clip each, taken at this rate, frames a second.
    pub images_fps: Option<f64>,
    /// Accept videos that the labels do not name.
    pub allow_unlabelled: bool,
    /// The split of videos for which the labels name none.
    pub split: String,
}

/// What there is to ingest: the inputs in their final order, the label names, and what is left out already.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub inputs: Vec<Input>,
    pub labels: Vec<String>,
    pub ledger: Vec<LedgerEntry>,
}

/// A video, or a folder of images.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    path: PathBuf,
    size: u64,
    is_folder: bool,
}

impl Input {
    /// The labels that hold at some time from `start` to `end`, seconds after the source's first picture.
    pub fn labels_between(&self, start: f64, end: f64) -> Vec<i32> {
        let holds =
            |label: i32| self.spans.iter().any(|s| s.label == label && s.start < end && s.end > start);
        let known = !self.spans.is_empty();
        self.labels.iter().copied().filter(|&l| !known || holds(l)).collect()
    }
}

impl Media {
    /// Hands on what distinguishes it, for a digest.
    pub fn describe(&self, field: &mut dyn FnMut(&str)) {
        match self {
            Media::Video => {}
            Media::Images { fps } => field(&format!("images at {fps}")),
            Media::Rows(group) => group.describe(field),
        }
    }
}

impl File {
    /// The name by which lists know it.
    pub fn stem<'a>(&self, source: &'a str) -> &'a str {
        let name = source.rsplit('/').next().unwrap_or(source);
        match self.is_folder {
            true => name,
            false => name.rsplit_once('.').map_or(name, |(stem, _)| stem),
        }
    }
}

/// File name endings that are taken for video in a folder. A labels file may name others.
const ENDINGS: [&str; 31] = [
    "3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "h264", "hevc", "ivf", "m2ts", "m2v",
    "m4v", "mjpeg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "ogv", "rm", "ts", "vob", "webm",
    "wmv", "y4m", "rmvb",
];

impl Sources {
    /// Finds every input, sorted by source and cut.
    ///
    /// # Errors
    /// No videos, a labelled file that is missing (with the nearest name there is), a video without a
    /// label, or a row given twice. Of published annotations, only a malformed line and a name that several
    /// files have are errors.
    pub fn find(&self) -> Result<Found> {
        if let Some(fps) = self.images_fps.filter(|f| !(*f >= 0.01 && *f <= 1000.0)) {
            let why = "it must be 0.01 to 1000 frames a second";
            return Err(Error::Usage(format!("use --source-fps {fps}: {why}")));
        }
        if !(1..=3).contains(&self.fold) {
            return Err(Error::Usage(format!("use --fold {}: it must be 1, 2 or 3", self.fold)));
        }
        let files = self.files()?;
        // Labels may name files of other endings.
        if files.is_empty() && self.labels.is_none() {
            let what = match self.images_fps {
                None => "file that ends in .mp4, .mkv, .webm, .avi, .mov or the like",
                Some(_) => "folder with images that end in .jpg, .jpeg or .png",
            };
            let folder = self.videos.display();
            return Err(Error::Usage(format!("find videos in {folder}: it holds no {what}")));
        }
        let layout = match (&self.labels, self.layout) {
            (Some(labels), None) => Some(Layout::detect(labels)?),
            (_, layout) => layout,
        };
        let mut found = match (&self.labels, layout) {
            (None, Some(_)) => {
                return Err(Error::Usage("use --layout: it needs the annotations, with --labels".into()));
            }
            (Some(labels), Some(layout)) if layout != Layout::Csv => {
                self.join_listing(labels, layout, &files)?
            }
            (Some(labels), _) => self.join(&Labels::read(labels)?, &labels.display().to_string(), &files)?,
            (None, None) => Found {
                inputs: files.iter().map(|(source, file)| self.input(source, file)).collect(),
                ..Found::default()
            },
        };
        found.inputs.sort_by(|a, b| {
            let key =
                |i: &Input| i.cut.map_or((0.0, f64::INFINITY), |c| (c.start, c.end.unwrap_or(f64::INFINITY)));
            let (ka, kb) = (key(a), key(b));
            a.source.cmp(&b.source).then(ka.0.total_cmp(&kb.0)).then(ka.1.total_cmp(&kb.1))
        });
        name_clips(&mut found.inputs);
        Ok(found)
    }

    /// The folder that sources are relative to.
    fn root(&self) -> &Path {
        match self.videos.is_dir() {
            true => &self.videos,
            false => self.videos.parent().unwrap_or(Path::new("")),
        }
    }

    /// Videos or folders of images, by source.
    fn files(&self) -> Result<BTreeMap<String, File>> {
        let meta = std::fs::metadata(&self.videos)
            .map_err(|e| Error::Usage(format!("find videos in {}: {e}", self.videos.display())))?;
        let mut files = BTreeMap::new();
        if meta.is_dir() {
            let top = self.videos.canonicalize().map_err(|e| io(&self.videos, e))?;
            walk(&self.videos, &self.videos, self.images_fps.is_some(), &mut vec![top], &mut files)?;
        } else if self.images_fps.is_some() {
            let why = "it is no folder, and --from-frames takes a folder of folders of images";
            return Err(Error::Usage(format!("find images in {}: {why}", self.videos.display())));
        } else {
            let file = File { path: self.videos.clone(), size: meta.len(), is_folder: false };
            files.insert(source_of(&self.videos, self.root()), file);
        }
        Ok(files)
    }

    /// With Marey's own CSV.
    fn join(&self, labels: &Labels, name: &str, files: &BTreeMap<String, File>) -> Result<Found> {
        let root = self.root();
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
            // The labels may name videos whose endings the search does not know.
            let file = match (files.get(&source), std::fs::metadata(&path)) {
                (Some(file), _) => file.clone(),
                (None, Ok(meta)) if meta.is_file() && self.images_fps.is_none() => {
                    File { path, size: meta.len(), is_folder: false }
                }
                _ => {
                    let near = nearest(&source, files);
                    problems.push(format!("row {}: there is no file {}{near}", row.line, row.path));
                    continue;
                }
            };
            let key = (source.clone(), format!("{:?}", row.cut));
            if let Some(before) = seen.insert(key, row.line) {
                problems.push(format!("row {}: {} is in row {before} already", row.line, row.path));
                continue;
            }
            let plain = self.input(&source, &file);
            let split = row.split.clone().unwrap_or_else(|| self.split.clone());
            inputs.push(Input { labels: row.labels.clone(), split, cut: row.cut, ..plain });
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
        inputs.extend(missing.into_iter().map(|(source, file)| self.input(source, file)));
        Ok(Found { inputs, labels: labels.names.clone(), ledger: vec![] })
    }

    /// With annotations as they are published.
    fn join_listing(&self, labels: &Path, layout: Layout, files: &BTreeMap<String, File>) -> Result<Found> {
        let listing = layout.read(labels, self.fold, self.untrimmed)?;
        let joined = listing.join(files)?;
        let mut inputs: Vec<Input> = Vec::with_capacity(joined.rows.len());
        for (row, source, cut) in joined.rows {
            let Some(file) = files.get(source) else { continue };
            inputs.push(Input {
                labels: row.labels.clone(),
                spans: row.spans.clone(),
                split: row.split.clone().unwrap_or_else(|| self.split.clone()),
                cut,
                ..self.input(source, file)
            });
        }
        let mut ledger = joined.ledger;
        for source in joined.unlisted {
            match files.get(source).filter(|_| self.allow_unlabelled) {
                Some(file) => inputs.push(self.input(source, file)),
                None => ledger.push(entry(source, Action::Skipped, "not listed", "no list names it")),
            }
        }
        Ok(Found { inputs, labels: listing.names, ledger })
    }

    fn input(&self, source: &str, file: &File) -> Input {
        Input {
            media: self.images_fps.map_or(Media::Video, |fps| Media::Images { fps }),
            path: file.path.clone(),
            source: source.into(),
            clip_id: String::new(),
            size: file.size,
            labels: vec![],
            spans: vec![],
            split: self.split.clone(),
            cut: None,
        }
    }
}

/// Ids are sources without their ending, unless two files differ in nothing else; cuts add their times.
fn name_clips(inputs: &mut [Input]) {
    let stem = |i: &Input| {
        if !matches!(i.media, Media::Video) {
            return i.source.clone();
        }
        let (folder, file) = i.source.rsplit_once('/').map_or(("", i.source.as_str()), |(d, f)| (d, f));
        let file = file.rsplit_once('.').map_or(file, |(s, _)| if s.is_empty() { file } else { s });
        if folder.is_empty() { file.to_string() } else { format!("{folder}/{file}") }
    };
    let mut sources: HashMap<String, HashSet<String>> = HashMap::new();
    for i in inputs.iter() {
        sources.entry(stem(i)).or_default().insert(i.source.clone());
    }
    for i in inputs {
        let stem = stem(i);
        let name = if sources[&stem].len() > 1 { i.source.clone() } else { stem };
        i.clip_id = match i.cut {
            None => name,
            Some(Cut { start, end: None }) => format!("{name}@{start}-"),
            Some(Cut { start, end: Some(end) }) => format!("{name}@{start}-{end}"),
        };
    }
}

/// Adds the videos below `dir`, or with `images` the folders that hold some; `above` are the real folders
/// on the way, so that links cannot go in circles.
fn walk(
    root: &Path,
    dir: &Path,
    images: bool,
    above: &mut Vec<PathBuf>,
    files: &mut BTreeMap<String, File>,
) -> Result<()> {
    let mut count = 0;
    for found in std::fs::read_dir(dir).map_err(|e| io(dir, e))? {
        let found = found.map_err(|e| io(dir, e))?;
        let (path, name) = (found.path(), found.file_name().to_string_lossy().to_lowercase());
        if name.starts_with('.') {
            continue;
        }
        // Frames come by the million: no look at each.
        if images && is_image(&name) {
            count += 1;
            continue;
        }
        // A link to nothing is no video.
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if meta.is_dir() {
            let real = path.canonicalize().map_err(|e| io(&path, e))?;
            if !above.contains(&real) {
                above.push(real);
                walk(root, &path, images, above, files)?;
                above.pop();
            }
        } else if !images
            && meta.is_file()
            && name.rsplit_once('.').is_some_and(|(_, e)| ENDINGS.contains(&e))
        {
            let file = File { path, size: meta.len(), is_folder: false };
            files.insert(source_of(&file.path, root), file);
        }
    }
    if count > 0 {
        let own = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = Some(source_of(dir, root)).filter(|s| !s.is_empty()).unwrap_or(own);
        files.insert(source, File { path: dir.into(), size: count, is_folder: true });
    }
    Ok(())
}

fn source_of(path: &Path, root: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts = relative.components().filter(|c| !matches!(c, std::path::Component::CurDir));
    parts.collect::<PathBuf>().to_string_lossy().into_owned()
}

fn nearest(source: &str, files: &BTreeMap<String, File>) -> String {
    let best = files.keys().map(|f| (strsim::jaro_winkler(source, f), f)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score > 0.7).map_or(String::new(), |(_, f)| format!(" (the nearest is {f})"))
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
            let split = "train".into();
            let sources = Sources { videos, labels, allow_unlabelled, split, fold: 1, ..Sources::default() };
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
        assert!(found.inputs.iter().all(|i| i.labels.is_empty() && i.split == "train" && i.size > 0));
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
        let sources = Sources { videos, labels, split: "test".into(), fold: 1, ..Sources::default() };
        let found = sources.find().unwrap();
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
