//! What can go wrong in the coordinator, by what the caller does next. Messages complete "failed to ...".

use std::net::SocketAddr;

/// A coordinator's failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another coordinator has taken over: stop, and write nothing more.
    #[error(
        "write {url}: another coordinator has written it, so it leads this run now, and this one stops; the job goes on there"
    )]
    Superseded { url: String },
    /// A coordinator of this run is alive.
    #[error(
        "lead the run {url}: the coordinator at {address} does, and answers; stop it, or give --take-over to lead in its place, or give this job its own --run"
    )]
    Led { url: String, address: String },
    /// The run was begun under another configuration.
    #[error(
        "continue the run {url}: its config.toml differs from this configuration in {keys}; take a new --run for another experiment, or set these back (cluster.*, checkpoint.*, train.epochs, train.max_steps, data.url, data.prefetch and data.threads may change)"
    )]
    OtherConfig { url: String, keys: String },
    /// The run was begun on another dataset.
    #[error(
        "continue the run {url}: it was begun on the dataset with digest {before}, and {data} has digest {now}; point data.url at the same dataset, or take a new --run"
    )]
    OtherDataset { url: String, data: String, before: String, now: String },
    /// No dataset where the configuration says.
    #[error(
        "read the dataset {url}: there is no dataset.json; make one with `marey ingest ... --out {url}`, or fix data.url"
    )]
    NoDataset { url: String },
    /// The address is taken.
    #[error(
        "listen on {address}: another program has this port; stop it, or give --listen another port (0 takes a free one)"
    )]
    Occupied { address: SocketAddr },
    /// The address cannot be used.
    #[error("listen on {address}: {source}; give --listen an address of this machine")]
    Listen { address: SocketAddr, source: std::io::Error },
    /// What lets strangers in off loopback must be asked for.
    #[error(
        "listen on {address}: it is not a loopback address, and {lacks}; or --insecure, if the network is trusted"
    )]
    Insecure { address: SocketAddr, lacks: &'static str },
    /// Certificates or keys that cannot be used.
    #[error("serve TLS: {why}")]
    Tls { why: String },
    #[error(transparent)]
    Access(#[from] proto::AccessError),
    /// A rank's report cannot become a manifest.
    #[error("write the manifest of step {step}: {why}")]
    BadCheckpoint { step: u64, why: String },
    /// Something in the run is not what a coordinator wrote.
    #[error("read {url}: {why}; it was changed by hand or by another program")]
    Damaged { url: String, why: String },
    /// The server stopped by itself.
    #[error("serve on {address}: {source}")]
    Serve { address: SocketAddr, source: tonic::transport::Error },
    #[error(transparent)]
    Config(#[from] configs::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// Coordinator result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// True where the user must change an argument, the configuration or a location: exit status 2.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Storage(e) => e.is_usage(),
            Error::Superseded { .. }
            | Error::BadCheckpoint { .. }
            | Error::Damaged { .. }
            | Error::Serve { .. } => false,
            _ => true,
        }
    }
}
