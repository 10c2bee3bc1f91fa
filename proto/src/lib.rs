//! The wire contract between coordinator, workers and watchers, and nothing else.
#![allow(clippy::large_enum_variant, clippy::unwrap_used, missing_docs)]

/// Generated from `protos/marey/v1/marey.proto`.
pub mod v1 {
    tonic::include_proto!("marey.v1");
}

/// Both sides refuse a peer that speaks another version.
pub const PROTOCOL_VERSION: u32 = 1;
