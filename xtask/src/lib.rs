//! Chores of the house: tidiness, the labelled motion videos, a local S3 server, the demo.
//!
//! A library as well as a program, so that the end-to-end tests use the same videos and the same
//! server as the demo.

pub mod demo;
pub mod motion;
pub mod s3;
pub mod tidy;

use std::{path::PathBuf, time::Instant};

/// The checkout's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(Into::into).unwrap_or_default()
}

/// The cache folder that set-up fills.
pub(crate) fn cache() -> PathBuf {
    match std::env::var_os("MAREY_CACHE") {
        Some(folder) => folder.into(),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/marey"),
    }
}

/// The clock, read in this one place.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
