//! Data files: Parquet with one clip a page, so that a payload is one known byte range of the file.
//!
//! The column `frames` is required, PLAIN, uncompressed, without dictionary or statistics, and has one
//! value a page (data page v1): a page's body is the value's length in 4 bytes, then the payload. So
//! the payload ends where its page ends, and every Parquet reader still reads the file.

use crate::format::{ClipMeta, DataFile, Payload, crc32c};
use crate::{Error, Result};
use arrow::array::{
    ArrayRef, BinaryArray, Float64Array, Int32Array, ListBuilder, PrimitiveBuilder, RecordBatch, StringArray,
    UInt32Array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions};
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;
use std::sync::Arc;
use storage::{Location, sha256_hex};

/// The column that holds a clip's payload.
pub const FRAMES: &str = "frames";
/// A row group is closed from here on: 8 to 16 MiB, or one larger clip.
const ROW_GROUP: u64 = 8 << 20;
/// How a file is handed to the store.
const PART: usize = 16 << 20;
/// What a row costs beside its payload, about; counted towards the size of a file.
const ROW_OVERHEAD: u64 = 512;

/// One data file being filled, in memory.
pub struct DataFileWriter {
    writer: ArrowWriter<Vec<u8>>,
    schema: SchemaRef,
    rows: Vec<ClipMeta>,
    group: u64,
    size: u64,
}

/// A whole data file, not yet stored.
pub struct FinishedFile {
    pub bytes: Bytes,
    /// Its clips, with their offsets.
    pub rows: Vec<ClipMeta>,
}

impl DataFileWriter {
    /// An empty file.
    ///
    /// # Errors
    /// The Parquet writer's own.
    pub fn new() -> Result<Self> {
        let schema = data_schema();
        let options = ArrowWriterOptions::new().with_properties(properties());
        let writer =
            ArrowWriter::try_new_with_options(Vec::new(), schema.clone(), options).map_err(|e| failed(&e))?;
        Ok(Self { writer, schema, rows: Vec::new(), group: 0, size: 0 })
    }

    /// Size that the file would have with another payload of `bytes`, about.
    pub fn size_with(&self, bytes: u64) -> u64 {
        self.size + bytes + ROW_OVERHEAD
    }

    /// Clips so far.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True without clips.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Appends a clip. Of `clip`, the fields that describe the payload and its place are filled in here.
    ///
    /// # Errors
    /// The Parquet writer's own, or a payload beyond 2 GiB.
    pub fn push(&mut self, clip: ClipMeta, payload: Payload) -> Result<()> {
        let bytes = payload.bytes.len() as u64;
        if i32::try_from(bytes + 4).is_err() {
            return Err(Error::Stopped(format!(
                "write clip {:?}: its {bytes} bytes exceed 2 GiB",
                clip.clip_id
            )));
        }
        if self.group > 0 && self.group + bytes > 2 * ROW_GROUP {
            self.close_group()?;
        }
        self.writer.write(&self.batch(&clip, &payload)?).map_err(|e| failed(&e))?;
        self.group += bytes;
        self.size += bytes + ROW_OVERHEAD;
        let Payload { num_frames, run_offsets, run_crcs, .. } = payload;
        self.rows.push(ClipMeta { bytes, num_frames, run_offsets, run_crcs, ..clip });
        if self.group >= ROW_GROUP {
            self.close_group()?;
        }
        Ok(())
    }

    /// Closes the file, and finds and checks the place of every payload.
    ///
    /// # Errors
    /// The Parquet writer's own, or a page that does not lie where it must.
    pub fn finish(mut self) -> Result<FinishedFile> {
        let bytes = Bytes::from(self.writer.into_inner().map_err(|e| failed(&e))?);
        // Parsed from the bytes as every later reader will, not taken from the writer's memory.
        let metadata = ParquetMetaDataReader::new()
            .with_offset_index_policy(PageIndexPolicy::Required)
            .parse_and_finish(&bytes)
            .map_err(|e| failed(&e))?;
        let ends = payload_ends(&metadata).map_err(Error::Stopped)?;
        if ends.len() != self.rows.len() {
            let (pages, clips) = (ends.len(), self.rows.len());
            return Err(Error::Stopped(format!("write a data file: {pages} pages for {clips} clips")));
        }
        for (row, end) in self.rows.iter_mut().zip(ends) {
            row.offset = end.wrapping_sub(row.bytes);
            check_place(&bytes, row)
                .map_err(|why| Error::Stopped(format!("write clip {:?}: {why}", row.clip_id)))?;
        }
        Ok(FinishedFile { bytes, rows: self.rows })
    }

    fn close_group(&mut self) -> Result<()> {
        self.group = 0;
        self.writer.flush().map_err(|e| failed(&e))
    }

    fn batch(&self, clip: &ClipMeta, payload: &Payload) -> Result<RecordBatch> {
        let mut labels = ListBuilder::new(PrimitiveBuilder::<Int32Type>::new());
        labels.values().append_slice(&clip.labels);
        labels.append(true);
        let text = |s: &str| Arc::new(StringArray::from_iter_values([s])) as ArrayRef;
        let real = |x| Arc::new(Float64Array::from_iter_values([x])) as ArrayRef;
        let count = |x| Arc::new(UInt32Array::from_iter_values([x])) as ArrayRef;
        let columns = vec![
            text(&clip.clip_id),
            text(&clip.source),
            real(clip.start_s),
            real(clip.fps),
            count(clip.width),
            count(clip.height),
            count(payload.num_frames),
            Arc::new(Int32Array::from_iter([clip.label])),
            Arc::new(labels.finish()),
            text(&clip.split),
            Arc::new(BinaryArray::from_vec(vec![&payload.bytes])),
        ];
        RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| Error::Stopped(format!("write clip {:?}: {e}", clip.clip_id)))
    }
}

impl FinishedFile {
    /// Stores the file atomically, large ones in parts, under the key that `name` makes of its SHA-256. A file
    /// of that key and size that is there already is left as it is.
    ///
    /// # Errors
    /// The store's own.
    pub async fn store(&self, location: &Location, name: impl FnOnce(&str) -> String) -> Result<DataFile> {
        let bytes = self.bytes.clone();
        let sha256 = tokio::task::spawn_blocking(move || sha256_hex(&bytes))
            .await
            .map_err(|e| Error::Stopped(format!("write a data file: {e}")))?;
        let (key, size) = (name(&sha256), self.bytes.len() as u64);
        let there = match location.head(&key).await {
            Ok(found) => Some(found).filter(|(bytes, _)| *bytes == size),
            Err(e) if e.is_not_found() => None,
            Err(e) => return Err(e.into()),
        };
        let (_, etag) = match there {
            Some(found) => found,
            None => {
                // Slices share the file's memory; each is one part of the upload.
                let slice = |at| self.bytes.slice(at..self.bytes.len().min(at + PART));
                let parts = (0..self.bytes.len()).step_by(PART).map(slice).collect();
                location.put_chunks(&key, parts).await?;
                location.head(&key).await?
            }
        };
        // On a local disk the tag names inode and time: nothing that another copy would share.
        let etag = etag.filter(|_| location.has_etags());
        Ok(DataFile { key, bytes: size, etag, sha256, rows: self.rows.len() as u64 })
    }
}

/// Where each value of `frames` ends in a data file, in row order.
///
/// # Errors
/// In words: no such column, no offset index, or more than one value a page.
pub fn payload_ends(metadata: &ParquetMetaData) -> std::result::Result<Vec<u64>, String> {
    let columns = metadata.file_metadata().schema_descr().columns();
    let column = columns
        .iter()
        .position(|c| c.path().string() == FRAMES)
        .ok_or(format!("it has no column {FRAMES}"))?;
    let mut ends = Vec::new();
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let index = metadata.page_index_for_row_group(number);
        let pages = index.offset_index(column).ok_or("it has no offset index")?.page_locations();
        if pages.len() as i64 != group.num_rows() {
            return Err(format!("{} pages hold {} clips", pages.len(), group.num_rows()));
        }
        for page in pages {
            let end = page.offset.checked_add(page.compressed_page_size.into());
            ends.push(end.and_then(|e| u64::try_from(e).ok()).ok_or("its offset index is wrong")?);
        }
    }
    Ok(ends)
}

/// Checks that `row`'s payload lies at its offset: the length before it, then every run's CRC.
fn check_place(file: &[u8], row: &ClipMeta) -> std::result::Result<(), String> {
    let misplaced = || format!("its page does not hold it at {}+{}", row.offset, row.bytes);
    let start = usize::try_from(row.offset).ok().filter(|s| *s >= 4).ok_or_else(misplaced)?;
    let body = file.get(start - 4..start + row.bytes as usize).ok_or_else(misplaced)?;
    let (length, payload) = body.split_at(4);
    if length != (row.bytes as u32).to_le_bytes() {
        return Err(misplaced());
    }
    for (run, ends) in row.run_offsets.windows(2).enumerate() {
        if crc32c(&payload[ends[0] as usize..ends[1] as usize]) != row.run_crcs[run] {
            return Err(format!("run {run} is not what was written"));
        }
    }
    Ok(())
}

/// The columns of a data file.
pub fn data_schema() -> SchemaRef {
    let labels = DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true)));
    let column = |name: &str, t| Field::new(name, t, name == "label");
    Arc::new(Schema::new(vec![
        column("clip_id", DataType::Utf8),
        column("source", DataType::Utf8),
        column("start_s", DataType::Float64),
        column("fps", DataType::Float64),
        column("width", DataType::UInt32),
        column("height", DataType::UInt32),
        column("num_frames", DataType::UInt32),
        column("label", DataType::Int32),
        column("labels", labels),
        column("split", DataType::Utf8),
        column(FRAMES, DataType::Binary),
    ]))
}

fn properties() -> WriterProperties {
    let frames = || ColumnPath::from(FRAMES);
    WriterProperties::builder()
        .set_created_by(format!("marey {}", env!("CARGO_PKG_VERSION")))
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_max_row_group_row_count(None)
        // The page limit is looked at after each batch of values.
        .set_write_batch_size(1)
        .set_compression(Compression::UNCOMPRESSED)
        .set_column_encoding(frames(), Encoding::PLAIN)
        .set_column_dictionary_enabled(frames(), false)
        .set_column_statistics_enabled(frames(), EnabledStatistics::None)
        .set_column_data_page_row_count_limit(frames(), 1)
        .build()
}

fn failed(e: &parquet::errors::ParquetError) -> Error {
    Error::Stopped(format!("write a data file: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::PayloadBuilder;
    use arrow::array::AsArray;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    fn clip(i: u32) -> ClipMeta {
        ClipMeta {
            clip_id: format!("clip{i}"),
            source: "x.mp4".into(),
            start_s: 0.5,
            label: (i > 1).then_some(1),
            labels: if i > 1 { vec![1, 2] } else { vec![] },
            split: "train".into(),
            file: 0,
            offset: 0,
            bytes: 0,
            num_frames: 0,
            fps: 30.0,
            width: 8,
            height: 4,
            run_offsets: vec![],
            run_crcs: vec![],
        }
    }

    fn payload(frames: u32, size: usize) -> Payload {
        let mut b = PayloadBuilder::default();
        for f in 0..frames {
            b.push(&vec![f as u8; size]);
        }
        b.finish()
    }

    #[test]
    fn payloads_lie_where_the_rows_say() {
        let mut w = DataFileWriter::new().unwrap();
        // Small ones share a row group; the large one stands alone; one frame only at the end.
        let sizes = [(5, 100), (40, 3000), (30, 600_000), (17, 400_000), (1, 1)];
        for (i, &(frames, size)) in sizes.iter().enumerate() {
            w.push(clip(i as u32), payload(frames, size)).unwrap();
        }
        let f = w.finish().unwrap();
        for (row, &(frames, size)) in f.rows.iter().zip(&sizes) {
            let at = row.offset as usize;
            let expected = payload(frames, size);
            assert_eq!(f.bytes[at..at + row.bytes as usize], expected.bytes, "{}", row.clip_id);
            assert_eq!((row.num_frames, &row.run_crcs), (frames, &expected.run_crcs));
        }
        let reader = ParquetRecordBatchReaderBuilder::try_new(f.bytes.clone()).unwrap();
        assert!(reader.metadata().num_row_groups() >= 2);
        let mut rows = 0;
        for batch in reader.build().unwrap() {
            let batch = batch.unwrap();
            for value in batch.column_by_name(FRAMES).unwrap().as_binary::<i32>().iter() {
                assert_eq!(value.unwrap(), payload(sizes[rows].0, sizes[rows].1).bytes);
                rows += 1;
            }
        }
        assert_eq!(rows, sizes.len());
    }

    #[test]
    fn the_same_clips_give_the_same_bytes() {
        let file = || {
            let mut w = DataFileWriter::new().unwrap();
            (0..20).for_each(|i| w.push(clip(i), payload(3, 50)).unwrap());
            w.finish().unwrap().bytes
        };
        assert_eq!(file(), file());
    }

    #[tokio::test]
    async fn large_files_go_up_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let mut w = DataFileWriter::new().unwrap();
        w.push(clip(0), payload(40, 1 << 20)).unwrap();
        let f = w.finish().unwrap();
        let stored = f.store(&location, |_| "data/x/0.parquet".into()).await.unwrap();
        assert_eq!(location.get("data/x/0.parquet").await.unwrap(), f.bytes);
        assert_eq!((stored.bytes, stored.rows), (f.bytes.len() as u64, 1));
        assert_eq!(stored.sha256, sha256_hex(&f.bytes));
        assert_eq!(stored.etag, None);
    }
}
