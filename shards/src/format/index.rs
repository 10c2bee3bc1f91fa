//! index.parquet: one row a clip, with all that is needed to fetch and verify any run of it.

use super::{Clip, Clips};
use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int32Array, ListArray, ListBuilder, PrimitiveArray,
    PrimitiveBuilder, RecordBatch, StringArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Float64Type, Int32Type, Schema, SchemaRef, UInt32Type, UInt64Type,
};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use parquet::basic::Encoding;
use parquet::file::{properties::WriterProperties, reader::ChunkReader};
use parquet::schema::types::ColumnPath;
use std::sync::Arc;

/// One clip, as the index knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClipMeta {
    /// Unique in the dataset.
    pub clip_id: String,
    /// The video it was cut from.
    pub source: String,
    /// Where the clip begins in its source, seconds.
    pub start_s: f64,
    /// Label id; `None`: unlabelled.
    pub label: Option<i32>,
    /// All label ids of a clip with several.
    pub labels: Vec<i32>,
    pub split: Arc<str>,
    /// Place of its data file in the manifest's `files`.
    pub file: u32,
    /// First byte of the payload in the data file.
    pub offset: u64,
    /// Bytes of the payload.
    pub bytes: u64,
    pub num_frames: u32,
    /// Frames a second as stored.
    pub fps: f64,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Start of each run of 16 frames relative to the payload, then the end.
    pub run_offsets: Vec<u32>,
    /// CRC32C of each run.
    pub run_crcs: Vec<u32>,
}

/// The columns of index.parquet.
pub fn index_schema() -> SchemaRef {
    let list = |t| DataType::List(Arc::new(Field::new_list_field(t, true)));
    let column = |name: &str, t| Field::new(name, t, name == "label");
    Arc::new(Schema::new(vec![
        column("clip_id", DataType::Utf8),
        column("source", DataType::Utf8),
        column("start_s", DataType::Float64),
        column("label", DataType::Int32),
        column("labels", list(DataType::Int32)),
        column("split", DataType::Utf8),
        column("file", DataType::UInt32),
        column("offset", DataType::UInt64),
        column("bytes", DataType::UInt64),
        column("num_frames", DataType::UInt32),
        column("fps", DataType::Float64),
        column("width", DataType::UInt32),
        column("height", DataType::UInt32),
        column("run_offsets", list(DataType::UInt64)),
        column("run_crcs", list(DataType::UInt32)),
    ]))
}

/// The bytes of index.parquet.
///
/// # Errors
/// In words; only the Parquet writer's own.
pub fn encode_index(clips: &[ClipMeta]) -> Result<Vec<u8>, String> {
    let schema = index_schema();
    let text =
        |f: fn(&ClipMeta) -> &str| Arc::new(StringArray::from_iter_values(clips.iter().map(f))) as ArrayRef;
    let real =
        |f: fn(&ClipMeta) -> f64| Arc::new(Float64Array::from_iter_values(clips.iter().map(f))) as ArrayRef;
    let u32s =
        |f: fn(&ClipMeta) -> u32| Arc::new(UInt32Array::from_iter_values(clips.iter().map(f))) as ArrayRef;
    let u64s =
        |f: fn(&ClipMeta) -> u64| Arc::new(UInt64Array::from_iter_values(clips.iter().map(f))) as ArrayRef;
    let columns = vec![
        text(|c| &c.clip_id),
        text(|c| &c.source),
        real(|c| c.start_s),
        Arc::new(Int32Array::from_iter(clips.iter().map(|c| c.label))),
        lists::<Int32Type, _>(clips, |c| c.labels.iter().copied()),
        text(|c| &c.split),
        u32s(|c| c.file),
        u64s(|c| c.offset),
        u64s(|c| c.bytes),
        u32s(|c| c.num_frames),
        real(|c| c.fps),
        u32s(|c| c.width),
        u32s(|c| c.height),
        lists::<UInt64Type, _>(clips, |c| c.run_offsets.iter().map(|&at| u64::from(at))),
        lists::<UInt32Type, _>(clips, |c| c.run_crcs.iter().copied()),
    ];
    let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, schema, Some(encodings())).map_err(|e| e.to_string())?;
    writer.write(&batch).map_err(|e| e.to_string())?;
    writer.close().map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// Names share beginnings and runs follow each other: their differences take a third of the bytes.
fn encodings() -> WriterProperties {
    let column = |path: &[&str]| ColumnPath::new(path.iter().map(|p| (*p).to_string()).collect());
    let mut properties = WriterProperties::builder();
    for (path, encoding) in [
        (column(&["clip_id"]), Encoding::DELTA_BYTE_ARRAY),
        (column(&["source"]), Encoding::DELTA_BYTE_ARRAY),
        (column(&["offset"]), Encoding::DELTA_BINARY_PACKED),
        (column(&["run_offsets", "list", "item"]), Encoding::DELTA_BINARY_PACKED),
        // As good as random: a dictionary of them only costs.
        (column(&["run_crcs", "list", "item"]), Encoding::PLAIN),
    ] {
        properties =
            properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding);
    }
    properties.build()
}

/// The clips of index.parquet. Columns it does not know are ignored. Reads a page at a time.
///
/// # Errors
/// In words: not Parquet, a column missing or of another type, a value missing.
pub fn decode_index(input: impl ChunkReader + 'static) -> Result<Clips, String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(input).map_err(|e| e.to_string())?;
    let reader = builder.with_batch_size(4096).build().map_err(|e| e.to_string())?;
    let mut clips = Clips::default();
    for batch in reader {
        decode_batch(&batch.map_err(|e| e.to_string())?, &mut clips)?;
    }
    Ok(clips)
}

fn decode_batch(batch: &RecordBatch, clips: &mut Clips) -> Result<(), String> {
    let text = |name| column(batch, name, |c| c.as_string_opt::<i32>());
    let real = |name| column(batch, name, |c| c.as_primitive_opt::<Float64Type>());
    let u32s = |name| column(batch, name, |c| c.as_primitive_opt::<UInt32Type>());
    let u64s = |name| column(batch, name, |c| c.as_primitive_opt::<UInt64Type>());
    let list = |name| column(batch, name, |c| c.as_list_opt::<i32>());
    let (clip_id, source, split) = (text("clip_id")?, text("source")?, text("split")?);
    let (start_s, fps) = (real("start_s")?, real("fps")?);
    let label: &Int32Array = nullable(batch, "label", |c| c.as_primitive_opt::<Int32Type>())?;
    let (file, num_frames) = (u32s("file")?, u32s("num_frames")?);
    let (width, height) = (u32s("width")?, u32s("height")?);
    let (offset, bytes) = (u64s("offset")?, u64s("bytes")?);
    let (labels, run_offsets, run_crcs) = (list("labels")?, list("run_offsets")?, list("run_crcs")?);
    let labels = Values::<Int32Type>::of(labels, "labels")?;
    let run_offsets = Values::<UInt64Type>::of(run_offsets, "run_offsets")?;
    let run_crcs = Values::<UInt32Type>::of(run_crcs, "run_crcs")?;
    let mut offsets = Vec::new();
    for row in 0..batch.num_rows() {
        offsets.clear();
        for &at in run_offsets.row(row) {
            let at = u32::try_from(at)
                .map_err(|_| format!("clip {:?} has a run at byte {at}", clip_id.value(row)))?;
            offsets.push(at);
        }
        clips.push(Clip {
            clip_id: clip_id.value(row),
            source: source.value(row),
            start_s: start_s.value(row),
            label: label.is_valid(row).then(|| label.value(row)),
            labels: labels.row(row),
            split: split.value(row),
            file: file.value(row),
            offset: offset.value(row),
            bytes: bytes.value(row),
            num_frames: num_frames.value(row),
            fps: fps.value(row),
            width: width.value(row),
            height: height.value(row),
            run_offsets: &offsets,
            run_crcs: run_crcs.row(row),
        })?;
    }
    Ok(())
}

fn column<'a, A: Array + 'a>(
    batch: &'a RecordBatch,
    name: &str,
    cast: impl Fn(&'a ArrayRef) -> Option<&'a A>,
) -> Result<&'a A, String> {
    let array = nullable(batch, name, cast)?;
    match array.null_count() {
        0 => Ok(array),
        n => Err(format!("its column {name} lacks {n} values")),
    }
}

fn nullable<'a, A: Array + 'a>(
    batch: &'a RecordBatch,
    name: &str,
    cast: impl Fn(&'a ArrayRef) -> Option<&'a A>,
) -> Result<&'a A, String> {
    let array = batch.column_by_name(name).ok_or(format!("it has no column {name}"))?;
    cast(array).ok_or_else(|| format!("its column {name} is {}", array.data_type()))
}

/// A column of lists without gaps.
struct Values<'a, T: ArrowPrimitiveType> {
    ends: &'a [i32],
    values: &'a [T::Native],
}

impl<'a, T: ArrowPrimitiveType> Values<'a, T> {
    fn of(array: &'a ListArray, name: &str) -> Result<Self, String> {
        let values: &PrimitiveArray<T> = array
            .values()
            .as_primitive_opt()
            .ok_or_else(|| format!("its column {name} is a list of {}", array.values().data_type()))?;
        match values.null_count() {
            0 => Ok(Self { ends: array.value_offsets(), values: values.values() }),
            n => Err(format!("its column {name} lacks {n} values")),
        }
    }

    fn row(&self, row: usize) -> &'a [T::Native] {
        // Arrow holds its offsets to be ascending and inside the values.
        &self.values[self.ends[row] as usize..self.ends[row + 1] as usize]
    }
}

fn lists<'a, T: ArrowPrimitiveType, I: IntoIterator<Item = T::Native>>(
    clips: &'a [ClipMeta],
    f: impl Fn(&'a ClipMeta) -> I,
) -> ArrayRef {
    let mut builder = ListBuilder::new(PrimitiveBuilder::<T>::new());
    for clip in clips {
        f(clip).into_iter().for_each(|value| builder.values().append_value(value));
        builder.append(true);
    }
    Arc::new(builder.finish())
}
