//! A job's configuration: parsed once, whole, before a port is bound or a device touched.
//!
//! [`Config::parse`] turns TOML text and `--set` overrides into a [`Config`], which is a [`Job`]
//! whose invariants hold. The recipes beside this crate's sources are each parsed by a test.

mod data;
mod error;
mod job;
mod model;
mod multigrid;
mod optim;
mod overrides;
mod units;
mod validate;

pub use data::*;
pub use error::{Error, Result};
pub use job::*;
pub use model::*;
pub use multigrid::{Multigrid, Stage, StepShape};
pub use optim::*;
pub use units::{Bytes, Seconds};

use sha2::{Digest, Sha256};
use std::{ops::Deref, path::Path};

/// A configuration that has been checked. Read its fields through [`Job`].
#[derive(Clone, Debug)]
pub struct Config {
    job: Job,
    text: String,
}

impl Config {
    /// Parses TOML `text` (called `name` in messages) with `--set key=value` overrides applied in order.
    pub fn parse(name: &str, text: &str, overrides: &[String]) -> Result<Self> {
        let table = overrides::apply(name, text, overrides)?;
        let text =
            toml::to_string(&table).map_err(|e| Error::Syntax { name: name.into(), why: e.to_string() })?;
        let job: Job =
            serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|e| Error::field(name, e))?;
        validate::check(name, &job)?;
        Ok(Self { job, text })
    }

    /// Reads and parses a file.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: name.clone(), source })?;
        Self::parse(&name, &text, overrides)
    }

    /// The whole configuration as TOML with its overrides applied: what the coordinator hands to workers.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of [`Config::text`], hex. Two workers with different digests never train together.
    pub fn digest(&self) -> String {
        Sha256::digest(self.text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl Deref for Config {
    type Target = Job;
    fn deref(&self) -> &Job {
        &self.job
    }
}
