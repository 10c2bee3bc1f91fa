//! The c10d key-value store of the job's collective groups, in memory.
//!
//! Semantics are those of PyTorch's `HashStore`. Keys begin with `g<generation>/`; when a
//! generation ends its keys go, and whoever waits for one of them wakes with the reason.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// Why an operation did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("use the store key {0:?}: it does not begin with g<generation>/")]
    BadKey(String),
    #[error("wait for the store key {key:?}: it was not set within {ms} ms")]
    Timeout { key: String, ms: u64 },
    #[error("use the store key {key:?}: generation {generation} is over ({reason})")]
    Over { key: String, generation: u64, reason: String },
    #[error("add to the store key {0:?}: its value is not a number")]
    NotANumber(String),
}

/// The store. Cheap operations under one lock; waiting never holds it.
#[derive(Default)]
pub struct KeyValue {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    values: HashMap<String, Vec<u8>>,
    /// Why recent generations ended; all before the first of these are over too.
    over: BTreeMap<u64, String>,
}

/// So many endings are remembered with their reasons.
const REMEMBERED: usize = 64;

impl KeyValue {
    pub fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.usable(key)?.values.insert(key.into(), value);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Sets `desired` if the value is `expected`, or if there is none and `expected` is empty.
    /// Returns the value there now; `expected` if there is none.
    pub fn compare_set(&self, key: &str, expected: Vec<u8>, desired: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let mut inner = self.usable(key)?;
        match inner.values.get(key) {
            Some(v) if *v != expected => return Ok(v.clone()),
            None if !expected.is_empty() => return Ok(expected),
            _ => {}
        }
        inner.values.insert(key.into(), desired.clone());
        drop(inner);
        self.changed.notify_waiters();
        Ok(desired)
    }

    /// The value, as soon as there is one.
    pub async fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.until(std::slice::from_ref(&key.to_string()), timeout, |inner| inner.values.get(key).cloned())
            .await
    }

    /// Adds to a decimal number; a missing one counts as 0.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, StoreError> {
        let mut inner = self.usable(key)?;
        let old = match inner.values.get(key) {
            None => 0,
            Some(v) => std::str::from_utf8(v)
                .ok()
                .and_then(|t| t.parse::<i64>().ok())
                .ok_or_else(|| StoreError::NotANumber(key.into()))?,
        };
        let new = old.wrapping_add(amount);
        inner.values.insert(key.into(), new.to_string().into_bytes());
        drop(inner);
        self.changed.notify_waiters();
        Ok(new)
    }

    /// Returns when all keys are there.
    pub async fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), StoreError> {
        self.until(keys, timeout, |inner| keys.iter().all(|k| inner.values.contains_key(k)).then_some(()))
            .await
    }

    pub fn check(&self, keys: &[String]) -> Result<bool, StoreError> {
        let inner = self.lock();
        keys.iter().try_for_each(|k| inner.admits(k))?;
        Ok(keys.iter().all(|k| inner.values.contains_key(k)))
    }

    pub fn delete(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.usable(key)?.values.remove(key).is_some())
    }

    pub fn num_keys(&self) -> i64 {
        self.lock().values.len() as i64
    }

    /// The generation's keys go; waiters wake with the reason.
    pub fn generation_over(&self, generation: u64, reason: String) {
        let mut inner = self.lock();
        let prefix = format!("g{generation}/");
        inner.values.retain(|k, _| !k.starts_with(&prefix));
        inner.over.insert(generation, reason);
        while inner.over.len() > REMEMBERED {
            inner.over.pop_first();
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    async fn until<T>(
        &self,
        keys: &[String],
        timeout: Duration,
        look: impl Fn(&Inner) -> Option<T>,
    ) -> Result<T, StoreError> {
        let attempt = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                // Registered before looking, so that a change in between is not missed.
                changed.as_mut().enable();
                {
                    let inner = self.lock();
                    keys.iter().try_for_each(|k| inner.admits(k))?;
                    if let Some(found) = look(&inner) {
                        return Ok(found);
                    }
                }
                changed.await;
            }
        };
        tokio::time::timeout(timeout, attempt).await.unwrap_or_else(|_| {
            let inner = self.lock();
            let missing = keys.iter().find(|k| !inner.values.contains_key(*k)).or(keys.first());
            Err(StoreError::Timeout {
                key: missing.cloned().unwrap_or_default(),
                ms: timeout.as_millis() as u64,
            })
        })
    }

    /// Locks, if the key's generation is not over.
    fn usable(&self, key: &str) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock();
        inner.admits(key)?;
        Ok(inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn admits(&self, key: &str) -> Result<(), StoreError> {
        let generation = key
            .strip_prefix('g')
            .and_then(|rest| rest.split_once('/'))
            .and_then(|(number, _)| number.parse::<u64>().ok())
            .ok_or_else(|| StoreError::BadKey(key.into()))?;
        let reason = match self.over.get(&generation) {
            Some(reason) => reason.clone(),
            None if self.over.keys().next_back().is_some_and(|last| generation < *last) => {
                "it ended earlier".into()
            }
            None => return Ok(()),
        };
        Err(StoreError::Over { key: key.into(), generation, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn get_waits_for_set() {
        let kv = Arc::new(KeyValue::default());
        let waiting = tokio::spawn({
            let kv = kv.clone();
            async move { kv.get("g1/a", LONG).await }
        });
        tokio::task::yield_now().await;
        kv.set("g1/b", vec![1]).unwrap();
        kv.set("g1/a", vec![7]).unwrap();
        assert_eq!(waiting.await.unwrap(), Ok(vec![7]));
    }

    #[tokio::test]
    async fn waiting_ends_with_the_missing_key() {
        let kv = KeyValue::default();
        kv.set("g1/here", vec![]).unwrap();
        let keys = ["g1/here".to_string(), "g1/gone".to_string()];
        let e = kv.wait(&keys, Duration::from_millis(30)).await.unwrap_err();
        assert_eq!(e, StoreError::Timeout { key: "g1/gone".into(), ms: 30 });
    }

    #[tokio::test]
    async fn the_end_of_a_generation_wakes_its_waiters_and_voids_its_keys() {
        let kv = Arc::new(KeyValue::default());
        kv.set("g3/x", vec![1]).unwrap();
        kv.set("g4/x", vec![2]).unwrap();
        let waiting = tokio::spawn({
            let kv = kv.clone();
            async move { kv.get("g3/never", LONG).await }
        });
        tokio::task::yield_now().await;
        kv.generation_over(3, "lost worker b".into());
        let e = waiting.await.unwrap().unwrap_err();
        assert!(e.to_string().contains("generation 3 is over (lost worker b)"), "{e}");
        assert!(matches!(kv.set("g3/x", vec![]), Err(StoreError::Over { .. })));
        assert!(matches!(kv.set("g2/x", vec![]), Err(StoreError::Over { .. })));
        assert_eq!(kv.get("g4/x", LONG).await, Ok(vec![2]));
        assert_eq!(kv.num_keys(), 1);
    }

    #[test]
    fn values_behave_as_in_the_hash_store() {
        let kv = KeyValue::default();
        assert_eq!(kv.add("g1/n", 2), Ok(2));
        assert_eq!(kv.add("g1/n", -5), Ok(-3));
        kv.set("g1/s", b"text".to_vec()).unwrap();
        assert_eq!(kv.add("g1/s", 1), Err(StoreError::NotANumber("g1/s".into())));
        // Absent: set only when nothing is expected.
        assert_eq!(kv.compare_set("g1/c", b"x".to_vec(), b"y".to_vec()), Ok(b"x".to_vec()));
        assert_eq!(kv.check(&["g1/c".into()]), Ok(false));
        assert_eq!(kv.compare_set("g1/c", vec![], b"y".to_vec()), Ok(b"y".to_vec()));
        assert_eq!(kv.compare_set("g1/c", b"no".to_vec(), b"z".to_vec()), Ok(b"y".to_vec()));
        assert_eq!(kv.compare_set("g1/c", b"y".to_vec(), b"z".to_vec()), Ok(b"z".to_vec()));
        assert_eq!(kv.delete("g1/c"), Ok(true));
        assert_eq!(kv.delete("g1/c"), Ok(false));
        assert_eq!(kv.set("plain", vec![]), Err(StoreError::BadKey("plain".into())));
    }
}
