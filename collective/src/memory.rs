//! A key-value store in memory, for the ranks of one process and for tests.

use crate::KeyValue;
use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Keys and values behind one lock.
#[derive(Debug, Default)]
pub struct MemoryStore {
    values: Mutex<HashMap<String, Vec<u8>>>,
    changed: Condvar,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<u8>>> {
        // Nothing can panic half-way through a change, so a poisoned map is a whole one.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, values: &mut HashMap<String, Vec<u8>>, key: &str, value: Vec<u8>) {
        values.insert(key.into(), value);
        self.changed.notify_all();
    }

    fn present(
        &self,
        keys: &[String],
        timeout: Duration,
    ) -> Result<MutexGuard<'_, HashMap<String, Vec<u8>>>, String> {
        let missing = |v: &HashMap<String, Vec<u8>>| keys.iter().any(|k| !v.contains_key(k));
        let (values, waited) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |v| missing(v))
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            let absent: Vec<&str> =
                keys.iter().filter(|k| !values.contains_key(*k)).map(String::as_str).collect();
            return Err(format!("timed out after {timeout:?} waiting for {}", absent.join(", ")));
        }
        Ok(values)
    }
}

impl KeyValue for MemoryStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.put(&mut self.lock(), key, value.to_vec());
        Ok(())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        let values = self.present(&[key.to_string()], timeout)?;
        Ok(values.get(key).cloned().unwrap_or_default())
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        let mut values = self.lock();
        let now = match values.get(key) {
            None => 0,
            Some(v) => std::str::from_utf8(v)
                .ok()
                .and_then(|t| t.parse::<i64>().ok())
                .ok_or_else(|| format!("add to {key}: its value is no number"))?,
        };
        let sum = now.checked_add(amount).ok_or_else(|| format!("add to {key}: the sum overflows"))?;
        self.put(&mut values, key, sum.to_string().into_bytes());
        Ok(sum)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        let mut values = self.lock();
        let matches = values.get(key).map_or(expected.is_empty(), |v| v == expected);
        if matches {
            self.put(&mut values, key, desired.to_vec());
        }
        Ok(values.get(key).map_or_else(|| expected.to_vec(), Vec::clone))
    }

    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String> {
        self.present(keys, timeout).map(|_| ())
    }

    fn check(&self, keys: &[String]) -> Result<bool, String> {
        let values = self.lock();
        Ok(keys.iter().all(|k| values.contains_key(k)))
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        Ok(self.lock().remove(key).is_some())
    }

    fn num_keys(&self) -> Result<i64, String> {
        Ok(self.lock().len() as i64)
    }
}
