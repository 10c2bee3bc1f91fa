//! What can go wrong in `marey` itself. Messages complete "failed to ...".

use std::path::PathBuf;

/// A failure, with the exit status it leads to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The set of programs is not complete.
    #[error(
        "find {program}: it is neither in {} nor on PATH; build it with `cargo build --release -p {package}` or put it beside marey",
        beside.display()
    )]
    Missing { program: &'static str, package: &'static str, beside: PathBuf },
    #[error("start {}: {source}", program.display())]
    Start { program: PathBuf, source: std::io::Error },
    #[error("use {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Nobody answers, or not as a coordinator does.
    #[error("reach the coordinator at {address}: {why}; is it running, and is the address right?")]
    Unreachable { address: String, why: String },
    #[error("release the worker: {why}; `marey status {address}` names those who are there")]
    NoWorker { why: String, address: String },
    /// The stream of events broke off.
    #[error("follow the job at {address}: {why}")]
    Broken { address: String, why: String },
    /// A child ended before its work was done, without a word.
    #[error("keep {program} running: it ended with {status}; its log is {}", log.display())]
    Died { program: &'static str, status: std::process::ExitStatus, log: PathBuf },
    /// A child said what was wrong.
    #[error("{text}")]
    Said { text: String, status: std::process::ExitStatus },
    /// An argument does not fit what is there.
    #[error("{0}")]
    Usage(String),
    /// Something durable is damaged; what and where was said.
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Access(#[from] proto::AccessError),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Config(#[from] configs::Error),
    #[error(transparent)]
    Report(#[from] crate::report::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// 2 where the user must change something, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Died { status, .. } | Error::Said { status, .. } if status.code() != Some(2) => 1,
            Error::Broken { .. } | Error::Damaged(_) => 1,
            Error::Storage(e) if !e.is_usage() => 1,
            Error::Report(e) => e.exit_code(),
            _ => 2,
        }
    }
}
