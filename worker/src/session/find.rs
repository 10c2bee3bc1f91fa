//! Ways to the coordinator: its address, a channel to it, and where the run's newest one says that it is.

use crate::{Error, Result};
use proto::{
    Access, Connection,
    v1::{self, coordinator_client::CoordinatorClient},
};
use std::net::{ToSocketAddrs, UdpSocket};
use storage::Location;

/// Where coordinators keep their journal, one JSON object an entry.
const JOURNAL: &str = "coordinator/journal";

/// Connects to the coordinator, with keep-alive, so that a dead peer or network is noticed.
pub async fn connect(address: &str, access: &Access) -> Result<Connection> {
    let channel = access.endpoint(address)?.connect().await;
    let channel =
        channel.map_err(|e| Error::Coordinator { address: address.into(), why: proto::chain(&e) })?;
    Ok(access.over(channel))
}

/// What the worker needs to know before it can join.
pub async fn get_job(channel: Connection, address: &str) -> Result<v1::Job> {
    let request = v1::GetJobRequest { protocol_version: proto::PROTOCOL_VERSION };
    let job = CoordinatorClient::new(channel)
        .get_job(request)
        .await
        .map_err(|s| refusal(address, &s))?
        .into_inner();
    if job.protocol_version != proto::PROTOCOL_VERSION {
        return Err(Error::Rejected(format!(
            "the coordinator speaks protocol {}, this worker {}; run the same version of Marey on every host",
            job.protocol_version,
            proto::PROTOCOL_VERSION
        )));
    }
    Ok(job)
}

/// Whether others train already, who will have to wait for this worker; not, where the coordinator does not say.
pub async fn is_training(channel: Connection) -> bool {
    let status = CoordinatorClient::new(channel).status(v1::StatusRequest {}).await;
    status.is_ok_and(|status| matches!(&*status.into_inner().state, "running" | "leaving"))
}

/// Where the coordinator that wrote last to the run's journal is reached. `None`: nobody has, or left no address.
pub async fn leader(run: &Location) -> Result<Option<String>> {
    // Numbers have leading zeros.
    let Some(last) = run.list(JOURNAL).await?.into_iter().map(|o| o.key).max() else { return Ok(None) };
    let entry: serde_json::Value = serde_json::from_slice(&run.get(&last).await?).unwrap_or_default();
    Ok(entry["address"].as_str().filter(|a| !a.is_empty()).map(String::from))
}

/// This host's address on the way to the coordinator: what the collectives listen on. No packet is sent.
pub fn local_address(coordinator: &str) -> Result<String> {
    let host = coordinator.split_once("://").map_or(coordinator, |(_, rest)| rest);
    let fail = |e: std::io::Error| Error::Coordinator { address: coordinator.into(), why: e.to_string() };
    let to = host.to_socket_addrs().map_err(fail)?.next();
    let to = to.ok_or_else(|| fail(std::io::Error::other("the name has no address")))?;
    let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(from).map_err(fail)?;
    socket.connect(to).map_err(fail)?;
    Ok(socket.local_addr().map_err(fail)?.ip().to_string())
}

/// A failed call: refused for good, or worth another try.
pub(super) fn refusal(address: &str, s: &tonic::Status) -> Error {
    match s.code() {
        tonic::Code::FailedPrecondition
        | tonic::Code::InvalidArgument
        | tonic::Code::PermissionDenied
        | tonic::Code::Unauthenticated => Error::Rejected(s.message().to_string()),
        _ => Error::Coordinator { address: address.into(), why: format!("{}: {}", s.code(), s.message()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_entry_names_the_address() {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(leader(&run).await.unwrap(), None);
        let entries = [r#"{"kind":"claim","address":"a:1"}"#, r#"{"kind":"generation","address":"b:2"}"#];
        for (i, text) in entries.iter().enumerate() {
            run.put(&format!("{JOURNAL}/{:010}.json", i + 9), text.as_bytes().to_vec()).await.unwrap();
        }
        assert_eq!(leader(&run).await.unwrap().as_deref(), Some("b:2"));
        run.put(&format!("{JOURNAL}/0000000011.json"), b"{}".to_vec()).await.unwrap();
        assert_eq!(leader(&run).await.unwrap(), None);
    }
}
