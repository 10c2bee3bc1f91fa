//! Finished scores as Parquet: the pieces that an evaluation goes on from, and the table of all views.

use crate::{Error, Result, restore::Judged};
use arrow::{
    array::{
        Array, ArrayRef, AsArray, Float32Builder, Float64Builder, Int32Array, Int32Builder, ListBuilder,
        RecordBatch, StringArray,
    },
    datatypes::{DataType, Field, Float64Type, Schema, SchemaRef},
};
use bytes::Bytes;
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use shards::format::Clip;
use std::{fs::File, path::Path, sync::Arc};
use storage::Location;

/// Holds a file for each finished piece.
pub const FOLDER: &str = "pieces";
const VIEWS: &str = "views";

/// What became of one clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub clip_id: String,
    /// Or what reading it failed to do, where it is damaged.
    pub scores: std::result::Result<Vec<f64>, String>,
}

/// The piece that a key stands for.
pub fn number(key: &str) -> Option<usize> {
    key.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".parquet")?.parse().ok()
}

/// Writes a piece: once its file is there, all of it is. `clips` are the clips of `judged`.
pub async fn write(
    out: &Location,
    piece: usize,
    clips: &[Clip<'_>],
    judged: &[Judged],
    views: bool,
) -> Result<()> {
    let failed = |why: String| Error::Evaluation(format!("write {}: {why}", out.url_of(&key(FOLDER, piece))));
    if views {
        let bytes = encode(view_rows(clips, judged).map_err(&failed)?).map_err(&failed)?;
        out.put_chunks(&key(VIEWS, piece), vec![bytes]).await?;
    }
    let bytes = encode(clip_rows(clips, judged).map_err(&failed)?).map_err(&failed)?;
    Ok(out.put_chunks(&key(FOLDER, piece), vec![bytes]).await?)
}

/// The clips of a piece, in order.
pub async fn read(out: &Location, piece: usize) -> Result<Vec<Row>> {
    let key = key(FOLDER, piece);
    let bytes = out.get(&key).await?;
    decode(bytes).map_err(|why| {
        Error::Evaluation(format!(
            "read {}: {why}; remove it and give the same command again",
            out.url_of(&key)
        ))
    })
}

/// Joins the views of all pieces into one file: `clip_id`, `view`, `label` (null: none), `labels`, `scores`.
/// Damaged clips have no views. It appears by a rename.
pub async fn join_views(out: &Location, pieces: usize, to: &Path) -> Result<()> {
    let partial = to.with_extension("parquet.partial");
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| Error::Io { path, source }
    };
    let failed = |why: String| Error::Evaluation(format!("write {}: {why}", to.display()));
    let file = File::create(&partial).map_err(io(&partial))?;
    let mut writer = ArrowWriter::try_new(file, view_schema(), None).map_err(|e| failed(e.to_string()))?;
    for piece in 0..pieces {
        let key = key(VIEWS, piece);
        let damaged = |why: String| Error::Evaluation(format!("read {}: {why}", out.url_of(&key)));
        for batch in batches(out.get(&key).await?).map_err(&damaged)? {
            writer.write(&batch).map_err(|e| failed(e.to_string()))?;
        }
    }
    writer.close().map_err(|e| failed(e.to_string()))?;
    std::fs::rename(&partial, to).map_err(io(to))
}

fn key(folder: &str, piece: usize) -> String {
    format!("{folder}/{piece:06}.parquet")
}

fn clip_rows(clips: &[Clip<'_>], judged: &[Judged]) -> std::result::Result<RecordBatch, String> {
    let mut lists = ListBuilder::new(Float64Builder::new());
    let mut damage = vec![];
    for judged in judged {
        if let Judged::Score(clip) = judged {
            lists.values().append_slice(&clip.scores);
        }
        lists.append(true);
        damage.push(match judged {
            Judged::Score(_) => None,
            Judged::Damaged { why, .. } => Some(why.as_str()),
        });
    }
    let lists = lists.finish();
    let schema = Schema::new(vec![
        Field::new("clip_id", DataType::Utf8, false),
        Field::new("scores", lists.data_type().clone(), false),
        Field::new("damage", DataType::Utf8, true),
    ]);
    let ids = StringArray::from_iter_values(clips.iter().map(|c| c.clip_id));
    let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(lists), Arc::new(StringArray::from(damage))];
    RecordBatch::try_new(Arc::new(schema), columns).map_err(|e| e.to_string())
}

fn view_schema() -> SchemaRef {
    let list = |t| DataType::List(Arc::new(Field::new_list_field(t, true)));
    Arc::new(Schema::new(vec![
        Field::new("clip_id", DataType::Utf8, false),
        Field::new("view", DataType::Int32, false),
        Field::new("label", DataType::Int32, true),
        Field::new("labels", list(DataType::Int32), false),
        Field::new("scores", list(DataType::Float32), false),
    ]))
}

fn view_rows(clips: &[Clip<'_>], judged: &[Judged]) -> std::result::Result<RecordBatch, String> {
    let rows =
        || clips.iter().zip(judged).flat_map(|(c, j)| (0i32..).zip(j.views()).map(move |(v, p)| (*c, v, p)));
    let mut labels = ListBuilder::new(Int32Builder::new());
    let mut lists = ListBuilder::new(Float32Builder::new());
    for (clip, _, view) in rows() {
        labels.values().append_slice(clip.labels);
        labels.append(true);
        view.iter().for_each(|&p| lists.values().append_value(p as f32));
        lists.append(true);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows().map(|(c, ..)| c.clip_id))),
        Arc::new(Int32Array::from_iter_values(rows().map(|(_, v, _)| v))),
        Arc::new(Int32Array::from_iter(rows().map(|(c, ..)| c.label))),
        Arc::new(labels.finish()),
        Arc::new(lists.finish()),
    ];
    RecordBatch::try_new(view_schema(), columns).map_err(|e| e.to_string())
}

fn encode(rows: RecordBatch) -> std::result::Result<Bytes, String> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), None).map_err(|e| e.to_string())?;
    writer.write(&rows).map_err(|e| e.to_string())?;
    writer.close().map_err(|e| e.to_string())?;
    Ok(bytes.into())
}

fn batches(bytes: Bytes) -> std::result::Result<Vec<RecordBatch>, String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?;
    builder
        .build()
        .map_err(|e| e.to_string())?
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| e.to_string())
}

fn decode(bytes: Bytes) -> std::result::Result<Vec<Row>, String> {
    let mut rows = vec![];
    for batch in batches(bytes)? {
        let ids = batch.column_by_name("clip_id").and_then(|c| c.as_string_opt::<i32>());
        let scores = batch.column_by_name("scores").and_then(|c| c.as_list_opt::<i32>());
        let damage = batch.column_by_name("damage").and_then(|c| c.as_string_opt::<i32>());
        let (Some(ids), Some(scores), Some(damage)) = (ids, scores, damage) else {
            return Err("it lacks a column".into());
        };
        for row in 0..batch.num_rows() {
            let values = scores.value(row);
            let values = values.as_primitive_opt::<Float64Type>().ok_or("its scores are no floats")?;
            let scores = match damage.is_null(row) {
                true => Ok(values.values().to_vec()),
                false => Err(damage.value(row).into()),
            };
            rows.push(Row { clip_id: ids.value(row).into(), scores });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::ClipScore;

    fn clip<'a>(id: &'a str, label: Option<i32>, labels: &'a [i32]) -> Clip<'a> {
        Clip {
            clip_id: id,
            source: "v.mp4",
            start_s: 0.0,
            label,
            labels,
            split: "val",
            file: 0,
            offset: 0,
            bytes: 1,
            num_frames: 1,
            fps: 30.0,
            width: 1,
            height: 1,
            run_offsets: &[0, 1],
            run_crcs: &[0],
        }
    }

    fn score(place: u32, scores: &[f64]) -> Judged {
        let views = vec![scores.into(), vec![0.5; scores.len()]];
        Judged::Score(ClipScore { place, scores: scores.into(), views })
    }

    fn damaged(place: u32) -> Judged {
        Judged::Damaged { place, why: "read clip \"c\"".into() }
    }

    #[tokio::test]
    async fn pieces_come_back_to_the_last_bit() {
        let dir = tempfile::tempdir().unwrap();
        let out = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let clips = [clip("a", Some(1), &[]), clip("c", Some(0), &[]), clip("b", None, &[0, 1])];
        let judged = [score(0, &[0.1, 1.0 / 3.0]), damaged(1), score(2, &[1e-300, 1.0])];
        write(&out, 3, &clips, &judged, false).await.unwrap();
        let rows = read(&out, 3).await.unwrap();
        assert_eq!(rows[0], Row { clip_id: "a".into(), scores: Ok(vec![0.1, 1.0 / 3.0]) });
        assert_eq!(rows[1], Row { clip_id: "c".into(), scores: Err("read clip \"c\"".into()) });
        assert_eq!(rows[2], Row { clip_id: "b".into(), scores: Ok(vec![1e-300, 1.0]) });
        assert_eq!(
            out.list("").await.unwrap().iter().filter_map(|o| number(&o.key)).collect::<Vec<_>>(),
            [3]
        );
        out.put("pieces/000003.parquet", b"PAR1".to_vec()).await.unwrap();
        let said = read(&out, 3).await.unwrap_err().to_string();
        assert!(said.contains("000003.parquet") && said.contains("remove it"), "{said}");
    }

    /// Readable by pyarrow, as a user would read it.
    #[tokio::test]
    async fn pyarrow_reads_the_views() {
        let dir = tempfile::tempdir().unwrap();
        let out = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let clips = [clip("a", Some(1), &[]), clip("b", None, &[0, 1])];
        let first = [clips[0], clip("c", Some(0), &[])];
        write(&out, 0, &first, &[score(0, &[0.25, 0.75]), damaged(1)], true).await.unwrap();
        write(&out, 1, &clips[1..], &[score(0, &[1.0, 0.0])], true).await.unwrap();
        let file = dir.path().join("scores.parquet");
        join_views(&out, 2, &file).await.unwrap();
        let python = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/reference-python");
        let program = "import json, sys, pyarrow.parquet as q; t = q.read_table(sys.argv[1]); \
            print(t.schema.field('scores').type.value_type, json.dumps(t.to_pylist()))";
        let said = std::process::Command::new(python).args(["-c", program]).arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout);
        let want = "float [{\"clip_id\": \"a\", \"view\": 0, \"label\": 1, \"labels\": [], \"scores\": [0.25, 0.75]}, \
            {\"clip_id\": \"a\", \"view\": 1, \"label\": 1, \"labels\": [], \"scores\": [0.5, 0.5]}, \
            {\"clip_id\": \"b\", \"view\": 0, \"label\": null, \"labels\": [0, 1], \"scores\": [1.0, 0.0]}, \
            {\"clip_id\": \"b\", \"view\": 1, \"label\": null, \"labels\": [0, 1], \"scores\": [0.5, 0.5]}]";
        assert_eq!(text.trim(), want, "{}", String::from_utf8_lossy(&said.stderr));
    }
}
