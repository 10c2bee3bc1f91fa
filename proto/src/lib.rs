//! The wire contract between coordinator, workers and watchers, and nothing else.
#![allow(clippy::large_enum_variant, clippy::unwrap_used, missing_docs)]

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

/// A lazy channel to a coordinator at `address` (`host:port` or `http://host:port`), with
/// keep-alive set. It connects with the first call.
pub fn channel(address: &str) -> Result<tonic::transport::Channel, tonic::transport::Error> {
    let url = if address.contains("://") { address.to_string() } else { format!("http://{address}") };
    Ok(tonic::transport::Endpoint::from_shared(url)?
        .connect_timeout(KEEPALIVE_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_lazy())
}
