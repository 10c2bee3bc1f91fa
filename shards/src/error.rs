//! The crate's errors, by what the caller does next. Each message completes "failed to ...".

/// What went wrong with a dataset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument, option or input cannot mean anything: the user changes it. Exit status 2.
    #[error("{0}")]
    Usage(String),
    /// The place holds no dataset. Exit status 2.
    #[error("open the dataset {url}: it has no dataset.json; check the location, or let the ingest finish")]
    NotADataset { url: String },
    /// Written by a newer program. Exit status 2.
    #[error(
        "open the dataset {url}: its format version is {found}, this program knows up to {known}; use a newer marey"
    )]
    NewerVersion { url: String, found: u64, known: u32 },
    /// An object is there but its content is not what it must be. Restore or ingest it again.
    #[error("read {url}: {why}; the object is damaged: restore it or ingest the dataset again")]
    Damaged { url: String, why: String },
    /// A part of one clip is not what the index says, also after it was fetched again.
    #[error("read clip {clip:?}, run {run}, of {file}: {why}; the file is damaged: run `marey verify`")]
    DamagedClip { file: String, clip: String, run: u32, why: String },
    /// The store would not give a part of one clip, also after it was asked again.
    #[error("read clip {clip:?}, run {run}: the store failed to {source}")]
    Unread { clip: String, run: u32, source: Box<storage::Error> },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// Local file or device trouble.
    #[error("access {path}: {source}")]
    Io { path: String, source: std::io::Error },
    /// A part of this program ended early: a bug or a shutdown, not the user's doing.
    #[error("{0}")]
    Stopped(String),
}

impl Error {
    /// True where the user must change an argument, input or location: exit status 2.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Usage(_) | Error::NotADataset { .. } | Error::NewerVersion { .. } => true,
            Error::Storage(e) => e.is_usage(),
            Error::Unread { source, .. } => source.is_usage(),
            _ => false,
        }
    }

    /// True where the same may go well later, or on another host.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Storage(e) => e.is_passing(),
            Error::Unread { source, .. } => source.is_passing(),
            Error::Io { .. } | Error::Stopped(_) => true,
            _ => false,
        }
    }

    /// The clip that it is about, where it is about one.
    pub fn clip(&self) -> Option<&str> {
        match self {
            Error::DamagedClip { clip, .. } | Error::Unread { clip, .. } => Some(clip),
            _ => None,
        }
    }

    /// True where stored bytes are not what was written.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::DamagedClip { .. })
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The first few of many like mistakes.
pub(crate) fn told(problems: &[String]) -> String {
    const TOLD: usize = 3;
    let shown = problems.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(TOLD) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
