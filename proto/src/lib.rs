//! The wire contract between coordinator, workers and watchers, and who may speak over it.
#![allow(clippy::large_enum_variant, clippy::unwrap_used, missing_docs)]

mod access;
pub use access::{Access, AccessArgs, AccessError, Connection, ShowToken, chain, token_of};

/// Generated from `protos/marey/v1/marey.proto`.
pub mod v1 {
    tonic::include_proto!("marey.v1");
}

/// Both sides refuse a peer that speaks another version.
pub const PROTOCOL_VERSION: u32 = 2;

/// HTTP/2 pings on every connection, both ways: a peer that vanished without closing is noticed.
pub const KEEPALIVE_EVERY: std::time::Duration = std::time::Duration::from_secs(5);
/// A ping unanswered for this long ends the connection.
pub const KEEPALIVE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Neither side takes in a larger message: reports of a checkpoint and a job's configuration stay far below.
pub const LARGEST_MESSAGE: usize = 4 << 20;
