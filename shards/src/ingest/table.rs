//! Parquet tables with a column of encoded images a clip, such as Hugging Face datasets write: found, and
//! their rows ingested a few pages at a time.

use super::{
    Found, Input, Media, NewClip, Options,
    builder::{ClipBuilder, entry, outcome_entries},
    cells::{Labelled, images, label_cells, text_cells, whole_numbers},
    images::add_images,
    remote::Remote,
};
use crate::{
    Error, Result,
    ledger::{Action, LedgerEntry},
};
use arrow::array::{ArrayRef, RecordBatch};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{
            ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
            ParquetRecordBatchReaderBuilder,
        },
    },
    file::metadata::PageIndexPolicy,
};
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
};
use storage::Location;
use tokio::runtime::Handle;

/// Which columns of a table are what.
#[derive(Clone, Debug, Default)]
pub struct TableSources {
    /// One .parquet file, or a prefix that holds some.
    pub url: String,
    /// A list of encoded images a row: binary, or a struct with the field `bytes`.
    pub frames: String,
    /// Names or ids; one or a list.
    pub label: Option<String>,
    pub id: Option<String>,
    pub split: Option<String>,
    /// Frames a second at which the images were taken.
    pub fps: Option<String>,
    /// The same for rows without the column.
    pub source_fps: Option<f64>,
    /// The split of rows for which neither column nor file name gives one.
    pub default_split: String,
}

/// The rows of one row group.
#[derive(Debug)]
pub struct Group {
    file: Arc<TableFile>,
    number: usize,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct TableFile {
    remote: Remote,
    metadata: ArrowReaderMetadata,
    /// Place of the column of images.
    frames: usize,
}

#[derive(Clone, Debug)]
struct Row {
    /// In the file, from 0 on.
    number: u64,
    clip_id: String,
    labels: Vec<i32>,
    split: String,
    fps: f64,
    /// Why it cannot be used.
    refused: Option<(&'static str, String)>,
}

impl Group {
    /// Hands on what distinguishes it, for a digest.
    pub fn describe(&self, field: &mut dyn FnMut(&str)) {
        for row in &self.rows {
            field(&format!("{} {:?} {:?} {}", row.number, row.labels, row.split, row.fps));
            field(&row.clip_id);
        }
    }
}

impl TableSources {
    /// Finds every row; reads all columns but the images.
    ///
    /// # Errors
    /// No table there, a column that is missing or of another type, or the store's own.
    pub fn find(&self, handle: &Handle) -> Result<Found> {
        let wrong = self.source_fps.filter(|f| !(*f >= 0.01 && *f <= 1000.0));
        if wrong.is_some() || (self.source_fps.is_none() && self.fps.is_none()) {
            let why = "the images' frame rate must be known: 0.01 to 1000 a second, by --source-fps or --fps-column";
            return Err(Error::Usage(format!("read the table {}: {why}", self.url)));
        }
        let mut files: Vec<(Arc<TableFile>, Vec<RawRow>)> = Vec::new();
        let mut names_given = None;
        for remote in self.files(handle)? {
            let file = Arc::new(self.open(remote)?);
            names_given = names_given.or_else(|| class_names(&file.metadata, self.label.as_deref()?));
            let rows = self.rows(&file)?;
            files.push((file, rows));
        }
        let all = files.iter().flat_map(|(_, rows)| rows.iter().map(|r| &r.label));
        let names = Names::of(all, names_given)
            .map_err(|why| Error::Usage(format!("read the labels of {}: {why}", self.url)))?;
        let mut seen: HashMap<String, String> = HashMap::new();
        let mut inputs = Vec::new();
        for (file, rows) in files {
            let mut rows = rows.into_iter();
            for (number, group) in file.metadata.metadata().row_groups().iter().enumerate() {
                let count = group.num_rows().max(0) as usize;
                let rows: Vec<Row> =
                    rows.by_ref().take(count).map(|r| self.row(&file, r, &names, &mut seen)).collect();
                let size = group.compressed_size().max(0) as u64;
                inputs.push(input(Group { file: file.clone(), number, rows }, size));
            }
        }
        if inputs.is_empty() {
            return Err(Error::Usage(format!("read the table {}: it has no rows", self.url)));
        }
        Ok(Found { inputs, labels: names.names, ledger: vec![] })
    }

    fn files(&self, handle: &Handle) -> Result<Vec<Remote>> {
        let url = self.url.trim_end_matches('/');
        let (location, keys) = if url.ends_with(".parquet") {
            let (folder, key) = url.rsplit_once('/').unwrap_or((".", url));
            let folder = if folder.is_empty() { "/" } else { folder };
            (Location::parse(folder)?, vec![key.to_string()])
        } else {
            let location = Location::parse(url)?;
            let hidden = |key: &str| key.split('/').any(|p| p.starts_with(['.', '_']));
            let keys = handle.block_on(location.list(""))?.into_iter().map(|o| o.key);
            let keys = keys.filter(|k| k.ends_with(".parquet") && !hidden(k)).collect();
            (location, keys)
        };
        if keys.is_empty() {
            return Err(Error::Usage(format!(
                "read the table {url}: there is no file that ends in .parquet"
            )));
        }
        keys.iter().map(|key| Ok(Remote::open(&location, key, handle)?)).collect()
    }

    fn open(&self, remote: Remote) -> Result<TableFile> {
        let url = remote.location.url_of(&remote.key);
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&remote, options).map_err(|e| unreadable(&remote, &e))?;
        let names: Vec<&str> = metadata.schema().fields().iter().map(|f| f.name().as_str()).collect();
        let place = |name: &str| names.iter().position(|n| *n == name);
        let wanted = [Some(&self.frames), self.label.as_ref(), self.id.as_ref(), self.split.as_ref()];
        for name in wanted.into_iter().flatten().chain(&self.fps) {
            if place(name).is_none() {
                let all = names.join(", ");
                return Err(Error::Usage(format!("read {url}: it has no column {name:?}; it has: {all}")));
            }
        }
        let frames = place(&self.frames).unwrap_or_default();
        super::cells::check_images(metadata.schema().field(frames).data_type())
            .map_err(|why| Error::Usage(format!("read {url}: its column {:?} {why}", self.frames)))?;
        Ok(TableFile { remote, metadata, frames })
    }

    /// The rows of a file, without images.
    fn rows(&self, file: &TableFile) -> Result<Vec<RawRow>> {
        let columns = [&self.label, &self.id, &self.split, &self.fps];
        let count = file.metadata.metadata().file_metadata().num_rows().max(0) as u64;
        let mut rows: Vec<RawRow> = (0..count).map(|number| RawRow { number, ..RawRow::default() }).collect();
        if columns.iter().all(|c| c.is_none()) {
            return Ok(rows);
        }
        let schema = file.metadata.schema();
        let places = columns.iter().filter_map(|c| schema.index_of(c.as_ref()?).ok());
        let reader = file.reader(places.collect(), |b| b.with_batch_size(4096))?;
        let mut at = 0;
        for batch in reader {
            let batch = batch.map_err(|e| unreadable(&file.remote, &e))?;
            let into = rows.get_mut(at..at + batch.num_rows()).unwrap_or_default();
            self.fill(&batch, into).map_err(|why| {
                Error::Usage(format!("read {}: {why}", file.remote.location.url_of(&file.remote.key)))
            })?;
            at += batch.num_rows();
        }
        Ok(rows)
    }

    fn fill(&self, batch: &RecordBatch, rows: &mut [RawRow]) -> std::result::Result<(), String> {
        fn column<'a>(
            batch: &'a RecordBatch,
            name: &'a Option<String>,
        ) -> Option<(&'a String, &'a ArrayRef)> {
            let name = name.as_ref()?;
            Some((name, batch.column_by_name(name)?))
        }
        let told = |name: &String, why: String| format!("its column {name:?} {why}");
        if let Some((name, c)) = column(batch, &self.label) {
            let cells = label_cells(c).map_err(|why| told(name, why))?;
            rows.iter_mut().zip(cells).for_each(|(row, label)| row.label = label);
        }
        if let Some((name, c)) = column(batch, &self.id) {
            let cells = text_cells(c).map_err(|why| told(name, why))?;
            rows.iter_mut().zip(cells).for_each(|(row, id)| row.id = id);
        }
        if let Some((name, c)) = column(batch, &self.split) {
            let cells = text_cells(c).map_err(|why| told(name, why))?;
            rows.iter_mut().zip(cells).for_each(|(row, split)| row.split = split);
        }
        if let Some((name, c)) = column(batch, &self.fps) {
            let cells = super::cells::numbers(c).map_err(|why| told(name, why))?;
            rows.iter_mut().zip(cells).for_each(|(row, fps)| row.fps = fps);
        }
        Ok(())
    }

    fn row(&self, file: &TableFile, raw: RawRow, names: &Names, seen: &mut HashMap<String, String>) -> Row {
        let key = &file.remote.key;
        let place = format!("{key}#{}", raw.number);
        let stem = key.strip_suffix(".parquet").unwrap_or(key);
        let mut refused = None;
        let clip_id = match (&self.id, raw.id) {
            (None, _) => format!("{stem}-{:06}", raw.number),
            (Some(_), Some(id)) if !id.is_empty() => id,
            _ => {
                refused = Some(("no id", "its id is empty".into()));
                String::new()
            }
        };
        if refused.is_none()
            && let Some(before) = seen.insert(clip_id.clone(), place)
        {
            refused = Some(("duplicate id", format!("{before} has the id {clip_id:?} already, and counts")));
            seen.insert(clip_id.clone(), before);
        }
        let fps = raw.fps.or(self.source_fps).unwrap_or_default();
        if !(0.01..=1000.0).contains(&fps) {
            refused = Some(("no frame rate", format!("its frame rate is {fps}")));
        }
        let split = raw.split.filter(|s| !s.is_empty()).or_else(|| split_of(key));
        Row {
            number: raw.number,
            clip_id,
            labels: names.ids(&raw.label),
            split: split.unwrap_or_else(|| self.default_split.clone()),
            fps,
            refused,
        }
    }
}

/// Ingests the rows of a group from `first_piece` on; a clip's piece is its row's place in the group.
///
/// # Errors
/// The store's own. Rows that cannot be used are no error: they go into the ledger.
pub fn ingest_group(
    group: &Group,
    options: &Options,
    first_piece: u32,
    emit: &mut dyn FnMut(NewClip) -> bool,
) -> Result<Vec<LedgerEntry>> {
    let file = &group.file;
    let source = |row: &Row| format!("{}#{}", file.remote.key, row.number);
    let mut ledger = Vec::new();
    let mut reader =
        file.reader(vec![file.frames], |b| b.with_row_groups(vec![group.number]).with_batch_size(1))?;
    for (piece, row) in (0..).zip(&group.rows) {
        let batch = match reader.next() {
            Some(Ok(batch)) => batch,
            other => {
                if let Some(failure) = file.remote.failure() {
                    return Err(failure.into());
                }
                let why = other.and_then(|r| r.err()).map_or("its rows end early".into(), |e| e.to_string());
                let rest = &group.rows[piece as usize..];
                ledger.extend(
                    rest.iter().map(|r| entry(&source(r), Action::Skipped, "damaged Parquet", why.as_str())),
                );
                return Ok(ledger);
            }
        };
        if let Some((reason, why)) = &row.refused {
            ledger.push(entry(&source(row), Action::Skipped, reason, why.as_str()));
            continue;
        }
        let images = match images(batch.column(0)) {
            Ok(images) => images,
            Err(why) => {
                ledger.push(entry(&source(row), Action::Skipped, "no images", why));
                continue;
            }
        };
        let clip = Input {
            media: Media::Images { fps: row.fps },
            path: PathBuf::new(),
            source: source(row),
            clip_id: row.clip_id.clone(),
            size: 0,
            labels: row.labels.clone(),
            spans: vec![],
            split: row.split.clone(),
            cut: None,
        };
        let names: Vec<String> = (0..images.len()).map(|i| format!("image {i}")).collect();
        let mut wanted = true;
        // Rows whose clips are stored already are decoded again for what the ledger says of them.
        let mut pass_on = |clip: NewClip| {
            wanted = piece < first_piece || emit(NewClip { piece, ..clip });
            wanted
        };
        let whole = Options { clip_seconds: None, ..options.clone() };
        let mut clips = ClipBuilder::new(&clip, &whole, 0, &mut pass_on);
        let outcome = add_images(&mut clips, &whole, row.fps, &names, &mut |i| Ok(images[i]));
        let pieces = clips.pieces();
        ledger.extend(outcome_entries(&clip.source, outcome, pieces));
        if !wanted {
            break;
        }
    }
    Ok(ledger)
}

impl TableFile {
    fn reader(
        &self,
        columns: Vec<usize>,
        with: impl FnOnce(ParquetRecordBatchReaderBuilder<Remote>) -> ParquetRecordBatchReaderBuilder<Remote>,
    ) -> Result<ParquetRecordBatchReader> {
        let builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(self.remote.clone(), self.metadata.clone());
        let only = ProjectionMask::roots(builder.parquet_schema(), columns);
        with(builder.with_projection(only)).build().map_err(|e| unreadable(&self.remote, &e))
    }
}

fn input(group: Group, size: u64) -> Input {
    let source = format!("{}, row group {}", group.file.remote.key, group.number);
    Input {
        media: Media::Rows(Arc::new(group)),
        path: PathBuf::new(),
        clip_id: String::new(),
        source,
        size,
        labels: vec![],
        spans: vec![],
        split: String::new(),
        cut: None,
    }
}

/// The store's failure where there was one, else what Parquet says.
fn unreadable(remote: &Remote, e: &dyn std::fmt::Display) -> Error {
    match remote.failure() {
        Some(failure) => failure.into(),
        None => Error::Damaged { url: remote.location.url_of(&remote.key), why: e.to_string() },
    }
}

/// Hugging Face names its files after the split.
fn split_of(key: &str) -> Option<String> {
    let file = key.rsplit('/').next().unwrap_or(key);
    let known = [("train", "train"), ("validation", "val"), ("val", "val"), ("test", "test")];
    known.iter().find(|(part, _)| file.starts_with(part)).map(|(_, split)| (*split).into())
}

/// The names of a Hugging Face `ClassLabel`, from the file's own metadata.
fn class_names(metadata: &ArrowReaderMetadata, label: &str) -> Option<Vec<String>> {
    let pairs = metadata.metadata().file_metadata().key_value_metadata()?;
    let text = pairs.iter().find(|p| p.key == "huggingface")?.value.as_ref()?;
    let info: serde_json::Value = serde_json::from_str(text).ok()?;
    let feature = &info["info"]["features"][label];
    let names = feature.get("names").or_else(|| feature.get("feature")?.get("names"))?;
    serde_json::from_value(names.clone()).ok()
}

#[derive(Debug, Default)]
struct RawRow {
    number: u64,
    label: Labelled,
    id: Option<String>,
    split: Option<String>,
    fps: Option<f64>,
}

/// Label names, and how cells mean them.
struct Names {
    names: Vec<String>,
}

impl Names {
    fn of<'a>(
        cells: impl Iterator<Item = &'a Labelled> + Clone,
        given: Option<Vec<String>>,
    ) -> std::result::Result<Self, String> {
        const MOST: i64 = 1_000_000;
        let texts: BTreeSet<&String> = cells.clone().flat_map(Labelled::names).collect();
        if !texts.is_empty() {
            return Ok(Self { names: texts.into_iter().cloned().collect() });
        }
        let largest = whole_numbers(cells).max().unwrap_or(-1);
        match given {
            Some(names) if largest < names.len() as i64 => Ok(Self { names }),
            Some(names) => {
                Err(format!("the label id {largest} is beyond the {} names in the file", names.len()))
            }
            None if largest > MOST => Err(format!("the label id {largest} exceeds {MOST}")),
            None => Ok(Self { names: (0..=largest).map(|n| n.to_string()).collect() }),
        }
    }

    /// Ids below 0 mean "unlabelled", as Hugging Face has it.
    fn ids(&self, cell: &Labelled) -> Vec<i32> {
        let mut ids: Vec<i32> = Vec::new();
        let of_names = cell.names().filter_map(|n| self.names.binary_search(n).ok()).map(|i| i as i32);
        let of_numbers = cell.numbers().filter_map(|n| i32::try_from(n).ok()).filter(|n| *n >= 0);
        for id in of_names.chain(of_numbers) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }
}
