//! `--set section.key=value`, applied to the table before it is parsed.

use crate::{Error, Result};
use toml::{Table, Value};

/// Parses `text` and applies each override.
pub fn apply(name: &str, text: &str, overrides: &[String]) -> Result<Table> {
    let mut table: Table =
        text.parse().map_err(|e: toml::de::Error| Error::Syntax { name: name.into(), why: e.to_string() })?;
    for o in overrides {
        set(&mut table, o)?;
    }
    Ok(table)
}

fn set(table: &mut Table, text: &str) -> Result<()> {
    let bad = |why: &str| Error::Override { text: text.into(), why: why.into() };
    let (key, value) = text.split_once('=').ok_or_else(|| bad("write it like train.epochs=10"))?;
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path.pop().filter(|l| !l.is_empty()).ok_or_else(|| bad("the key is empty"))?;
    let mut at = table;
    for part in path {
        at = at
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| bad(&format!("{part} is not a section")))?;
    }
    at.insert(last.into(), parse_value(value.trim()));
    Ok(())
}

/// A TOML value, or else the text itself: `--set data.url=s3://b/k` needs no quotes.
fn parse_value(text: &str) -> Value {
    format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.into()))
}
