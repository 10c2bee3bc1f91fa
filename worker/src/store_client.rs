//! The c10d key-value store, reached over the coordinator's one gRPC port.

use collective::KeyValue;
use proto::{
    Connection,
    v1::{self, store_client::StoreClient},
};
use std::{future::Future, time::Duration};
use tokio::{runtime::Handle, sync::watch};
use tonic::{Request, Response, Status};

/// Longer than any wait the server is asked for, so that its own answer arrives first.
const GRACE: Duration = Duration::from_secs(5);

/// Blocking client: c10d calls it from its own threads, never from a runtime's.
pub struct StoreOverGrpc {
    /// To whichever coordinator was reached last.
    channel: watch::Receiver<Connection>,
    runtime: Handle,
    timeout: Duration,
}

impl StoreOverGrpc {
    /// `timeout` bounds the calls that do not wait for a key.
    pub fn new(channel: watch::Receiver<Connection>, runtime: Handle, timeout: Duration) -> Self {
        Self { channel, runtime, timeout }
    }

    fn call<Q, A, F>(
        &self,
        what: &str,
        message: Q,
        wait: Duration,
        f: impl FnOnce(StoreClient<Connection>, Request<Q>) -> F,
    ) -> Result<A, String>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(message);
        request.set_timeout(wait + GRACE);
        let client = StoreClient::new(self.channel.borrow().clone());
        let reply = self.runtime.block_on(f(client, request));
        reply.map(Response::into_inner).map_err(|s| format!("{what}: {}: {}", s.code(), s.message()))
    }
}

fn millis(d: Duration) -> u64 {
    d.as_millis().try_into().unwrap_or(u64::MAX)
}

impl KeyValue for StoreOverGrpc {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        let request = v1::SetRequest { key: key.into(), value: value.to_vec() };
        self.call(key, request, self.timeout, |mut c, r| async move { c.set(r).await }).map(|_| ())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        let request = v1::GetRequest { key: key.into(), timeout_ms: millis(timeout) };
        self.call(key, request, timeout, |mut c, r| async move { c.get(r).await }).map(|v| v.value)
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        let request = v1::AddRequest { key: key.into(), amount };
        self.call(key, request, self.timeout, |mut c, r| async move { c.add(r).await }).map(|v| v.value)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        let request =
            v1::CompareSetRequest { key: key.into(), expected: expected.to_vec(), desired: desired.to_vec() };
        self.call(key, request, self.timeout, |mut c, r| async move { c.compare_set(r).await })
            .map(|v| v.value)
    }

    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String> {
        let request = v1::WaitRequest { keys: keys.to_vec(), timeout_ms: millis(timeout) };
        self.call(&keys.join(", "), request, timeout, |mut c, r| async move { c.wait(r).await }).map(|_| ())
    }

    fn check(&self, keys: &[String]) -> Result<bool, String> {
        let request = v1::CheckRequest { keys: keys.to_vec() };
        self.call(&keys.join(", "), request, self.timeout, |mut c, r| async move { c.check(r).await })
            .map(|v| v.all_present)
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        let request = v1::DeleteRequest { key: key.into() };
        self.call(key, request, self.timeout, |mut c, r| async move { c.delete(r).await }).map(|v| v.deleted)
    }

    fn num_keys(&self) -> Result<i64, String> {
        let request = v1::NumKeysRequest {};
        self.call("the store", request, self.timeout, |mut c, r| async move { c.num_keys(r).await })
            .map(|v| v.count)
    }
}
