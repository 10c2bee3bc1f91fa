//! ledger.parquet: every input that was skipped or repaired, and why.

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What became of an input that was not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Nothing of it is in the dataset.
    Skipped,
    /// It is in the dataset, but not as it was.
    Repaired,
}

/// One row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The input, relative to the folder that was ingested.
    pub source: String,
    pub action: Action,
    /// A few words that many inputs may share: "no video stream", "damaged".
    pub reason: String,
    /// All that is known, for this input.
    pub detail: String,
}

impl Action {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Skipped => "skipped",
            Action::Repaired => "repaired",
        }
    }
}

/// The bytes of ledger.parquet.
///
/// # Errors
/// In words; only the Parquet writer's own.
pub fn encode_ledger(entries: &[LedgerEntry]) -> Result<Vec<u8>, String> {
    let column = |f: fn(&LedgerEntry) -> &str| {
        Arc::new(StringArray::from_iter_values(entries.iter().map(f))) as ArrayRef
    };
    let names = ["source", "action", "reason", "detail"];
    let schema = Arc::new(Schema::new(names.map(|n| Field::new(n, DataType::Utf8, false)).to_vec()));
    let columns = vec![
        column(|e| &e.source),
        column(|e| e.action.as_str()),
        column(|e| &e.reason),
        column(|e| &e.detail),
    ];
    let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, None).map_err(|e| e.to_string())?;
    writer.write(&batch).map_err(|e| e.to_string())?;
    writer.close().map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// The rows of ledger.parquet.
///
/// # Errors
/// In words: not Parquet, or a column is missing or of another type.
pub fn decode_ledger(bytes: Bytes) -> Result<Vec<LedgerEntry>, String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?;
    let mut entries = Vec::new();
    for batch in builder.build().map_err(|e| e.to_string())? {
        let batch = batch.map_err(|e| e.to_string())?;
        let column = |name: &str| {
            let array = batch.column_by_name(name).ok_or(format!("it has no column {name}"))?;
            array.as_string_opt::<i32>().ok_or_else(|| format!("its column {name} is {}", array.data_type()))
        };
        let (source, action) = (column("source")?, column("action")?);
        let (reason, detail) = (column("reason")?, column("detail")?);
        for row in 0..batch.num_rows() {
            entries.push(LedgerEntry {
                source: source.value(row).into(),
                action: match action.value(row) {
                    "skipped" => Action::Skipped,
                    "repaired" => Action::Repaired,
                    other => return Err(format!("its row {row} has the action {other:?}")),
                },
                reason: reason.value(row).into(),
                detail: detail.value(row).into(),
            });
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let entry = |source: &str, action| LedgerEntry {
            source: source.into(),
            action,
            reason: "damaged".into(),
            detail: "it ends at 1.00 of 2.00 s".into(),
        };
        for entries in [vec![], vec![entry("a/ü.mp4", Action::Repaired), entry("b.mp4", Action::Skipped)]] {
            let bytes = encode_ledger(&entries).unwrap();
            assert_eq!(decode_ledger(bytes.into()).unwrap(), entries);
        }
        assert!(decode_ledger(Bytes::from_static(b"PAR1 no")).is_err());
    }
}
