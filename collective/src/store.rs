//! The key-value store through which ranks find each other: a Rust trait that c10d calls.

use crate::{Error, Result, ffi::shim};
use cxx::UniquePtr;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

/// What c10d asks of a store. Calls block, may come from any thread and several at once. An `Err`
/// fails the collective call that asked; so does a panic.
pub trait KeyValue: Send + Sync {
    /// Writes or replaces a value.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String>;
    /// The value, waited for if it is not there yet. A time-out is an `Err` that says "timed out".
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String>;
    /// Adds to a decimal number (absent: 0) and returns the sum.
    fn add(&self, key: &str, amount: i64) -> Result<i64, String>;
    /// Writes `desired` if the value is `expected`, or if there is none and `expected` is empty;
    /// returns the value that is there afterwards (`expected` where there is none).
    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String>;
    /// Returns once all keys are there. A time-out is an `Err` that says "timed out".
    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String>;
    /// Whether all keys are there now.
    fn check(&self, keys: &[String]) -> Result<bool, String>;
    /// Removes a key; says whether it was there.
    fn delete(&self, key: &str) -> Result<bool, String>;
    /// How many keys there are.
    fn num_keys(&self) -> Result<i64, String>;
}

/// A `c10d::Store` in front of a [`KeyValue`]. Its own methods go the whole way through c10d.
pub struct Store {
    pub(crate) inner: UniquePtr<shim::Store>,
}
// Safety: the C++ store keeps a time-out, set once, and the `KeyValue`, which is Send and Sync.
unsafe impl Send for Store {}
unsafe impl Sync for Store {}

impl Store {
    /// `timeout` is the longest that a rank waits for another rank's key.
    pub fn new(keys: Arc<dyn KeyValue>, timeout: Duration) -> Result<Self> {
        let inner = shim::make_store(Box::new(Keys(keys)), millis(timeout))
            .map_err(|e| Error::of_shim("make the group's store", e))?;
        Ok(Self { inner })
    }

    /// See [`KeyValue::set`].
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        self.inner.set(key, value).map_err(|e| of("set", key, e))
    }

    /// See [`KeyValue::get`]; waits for at most the store's time-out.
    pub fn get(&self, key: &str) -> Result<Vec<u8>> {
        self.inner.get(key).map_err(|e| of("get", key, e))
    }

    /// See [`KeyValue::add`].
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        self.inner.add(key, amount).map_err(|e| of("add to", key, e))
    }

    /// See [`KeyValue::compare_set`].
    pub fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>> {
        self.inner.compare_set(key, expected, desired).map_err(|e| of("compare and set", key, e))
    }

    /// See [`KeyValue::wait`]; at most the store's own time-out.
    pub fn wait(&self, key: &str, timeout: Duration) -> Result<()> {
        self.inner.wait_for(key, millis(timeout)).map_err(|e| of("wait for", key, e))
    }

    /// See [`KeyValue::check`].
    pub fn check(&self, key: &str) -> Result<bool> {
        self.inner.check(key).map_err(|e| of("check", key, e))
    }

    /// See [`KeyValue::delete`].
    pub fn delete(&self, key: &str) -> Result<bool> {
        self.inner.remove(key).map_err(|e| of("delete", key, e))
    }

    /// See [`KeyValue::num_keys`].
    pub fn num_keys(&self) -> Result<i64> {
        self.inner.num_keys().map_err(|e| of("count the keys of", "the store", e))
    }
}

/// The trait object as C++ holds it. No panic leaves these methods: unwinding into C++ would end
/// the process.
pub struct Keys(Arc<dyn KeyValue>);

impl Keys {
    pub fn duplicate(&self) -> Box<Keys> {
        Box::new(Keys(self.0.clone()))
    }
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        contained(|| self.0.set(key, value))
    }
    pub fn get(&self, key: &str, timeout_ms: i64) -> Result<Vec<u8>, String> {
        contained(|| self.0.get(key, duration(timeout_ms)))
    }
    pub fn add(&self, key: &str, n: i64) -> Result<i64, String> {
        contained(|| self.0.add(key, n))
    }
    pub fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        contained(|| self.0.compare_set(key, expected, desired))
    }
    pub fn wait(&self, keys: Vec<String>, timeout_ms: i64) -> Result<(), String> {
        contained(|| self.0.wait(&keys, duration(timeout_ms)))
    }
    pub fn check(&self, keys: Vec<String>) -> Result<bool, String> {
        contained(|| self.0.check(&keys))
    }
    pub fn remove(&self, key: &str) -> Result<bool, String> {
        contained(|| self.0.delete(key))
    }
    pub fn num_keys(&self) -> Result<i64, String> {
        contained(|| self.0.num_keys())
    }
}

fn contained<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("the key-value store panicked: {}", text.unwrap_or_default()))
    })
}

fn of(what: &str, key: &str, e: cxx::Exception) -> Error {
    Error::of_shim(format!("{what} {key}"), e)
}

/// Rounded up, so that no wait of less than a millisecond becomes "for ever".
pub(crate) fn millis(d: Duration) -> i64 {
    d.as_micros().div_ceil(1000).try_into().unwrap_or(i64::MAX)
}

fn duration(ms: i64) -> Duration {
    Duration::from_millis(ms.max(0) as u64)
}
