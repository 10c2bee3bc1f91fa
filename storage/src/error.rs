//! Storage errors, by what the caller does next. Each message completes "failed to ...".

/// What went wrong in a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL cannot mean a location. Fix the argument.
    #[error("understand the location {url:?}: {why}; give s3://bucket/prefix, file:///path or a path")]
    BadUrl { url: String, why: String },
    /// Nothing there.
    #[error("read {url}: it does not exist")]
    NotFound { url: String },
    /// The bucket is missing.
    #[error("open {url}: there is no such bucket; create it or fix the URL")]
    NoBucket { url: String },
    /// Credentials are missing or refused.
    #[error(
        "open {url}: access denied ({why}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
    )]
    Denied { url: String, why: String },
    /// The bucket is elsewhere.
    #[error("open {url}: the bucket is in another region; set AWS_REGION to the bucket's ({why})")]
    WrongRegion { url: String, why: String },
    /// An object is not the one that was asked for.
    #[error(
        "read {url}: the object was replaced by another: its ETag is no longer the one that was asked for"
    )]
    Changed { url: String },
    /// No answer within the time.
    #[error(
        "read {url}: the answer was not {what} after {limit:?}; look at the store's load and the network, or allow more time"
    )]
    Late { url: String, what: &'static str, limit: std::time::Duration },
    /// Nobody answers at the endpoint.
    #[error("reach {url}: {why}; check AWS_ENDPOINT_URL (now {endpoint}) and the network")]
    Unreachable { url: String, endpoint: String, why: String },
    /// The store does not honour put-if-absent: two writers could both win.
    #[error(
        "use {url}: this store ignores or refuses put-if-absent (If-None-Match), so a commit could be overwritten; use a store that honours it, or give the coordinator --single-writer if you make sure that no other ever runs on this location"
    )]
    NoConditionalPut { url: String },
    /// Anything else the store said.
    #[error("access {url}: {source}")]
    Store { url: String, source: object_store::Error },
    /// Local file trouble.
    #[error("access {path}: {source}")]
    Io { path: String, source: std::io::Error },
}

impl Error {
    /// True where the object or bucket is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }

    /// True where the same request may go well later, or from another host: what a running job waits for.
    pub fn is_passing(&self) -> bool {
        use Error::{Io, Late, Store, Unreachable};
        matches!(self, Unreachable { .. } | Late { .. } | Store { .. } | Io { .. })
    }

    /// True where the user must change an argument, variable or policy: exit status 2.
    pub fn is_usage(&self) -> bool {
        use Error::{Changed, Io, Late, Store};
        !matches!(self, Changed { .. } | Late { .. } | Store { .. } | Io { .. })
    }
}

/// Storage result.
pub type Result<T> = std::result::Result<T, Error>;
