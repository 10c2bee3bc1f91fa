//! Weights in and out of checkpoints: `marey import`, `marey export`, and the start of a run from given weights.

pub mod export;
pub mod import;
pub mod init;

use crate::{Error, Result, checkpoint::load::tensors_of};
use std::{collections::HashMap, path::Path};
use tch::Tensor;

/// The tensors of a safetensors file.
fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let bad = |why: String| Error::Usage(format!("read {}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    Ok(tensors_of(&bytes).map_err(bad)?.into_iter().collect())
}

/// The async runtime of a command.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new().map_err(|source| Error::Io { path: "the async runtime".into(), source })
}
