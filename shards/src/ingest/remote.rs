//! A Parquet file in a store, for the synchronous reader: only what is asked for is fetched.

use bytes::Bytes;
use parquet::{
    errors::{ParquetError, Result},
    file::reader::{ChunkReader, Length},
};
use std::{
    io::{BufReader, Read},
    sync::{Arc, Mutex},
};
use storage::Location;
use tokio::runtime::Handle;

/// Bytes fetched at a time where only a page's header is wanted.
const WINDOW: usize = 16 << 10;

/// One object. Cheap to clone; not to be read from async code.
#[derive(Clone, Debug)]
pub struct Remote {
    pub location: Location,
    pub key: String,
    size: u64,
    handle: Handle,
    /// What the store said first: a Parquet error would hide it.
    failure: Arc<Mutex<Option<storage::Error>>>,
}

impl Remote {
    /// Asks for the object's size.
    ///
    /// # Errors
    /// The store's own.
    pub fn open(location: &Location, key: &str, handle: &Handle) -> storage::Result<Self> {
        let (size, _) = handle.block_on(location.head(key))?;
        let (location, key, handle) = (location.clone(), key.into(), handle.clone());
        Ok(Self { location, key, size, handle, failure: Arc::default() })
    }

    /// The store's failure, once, if there was one.
    pub fn failure(&self) -> Option<storage::Error> {
        self.failure.lock().ok()?.take()
    }

    fn fetch(&self, start: u64, length: usize) -> Result<Bytes> {
        let end = start.saturating_add(length as u64);
        if end > self.size {
            return Err(ParquetError::EOF(format!("bytes {start}..{end} lie beyond its {}", self.size)));
        }
        if length == 0 {
            return Ok(Bytes::new());
        }
        self.handle.block_on(self.location.get_range(&self.key, start..end)).map_err(|e| {
            let text = e.to_string();
            if let Ok(mut failure) = self.failure.lock() {
                failure.get_or_insert(e);
            }
            ParquetError::General(text)
        })
    }
}

impl Length for Remote {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Remote {
    type T = BufReader<From>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(BufReader::with_capacity(WINDOW, From { remote: self.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.fetch(start, length)
    }
}

/// Reads on from a place.
pub struct From {
    remote: Remote,
    at: u64,
}

impl Read for From {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let left = self.remote.size.saturating_sub(self.at);
        let length = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let bytes = self.remote.fetch(self.at, length).map_err(std::io::Error::other)?;
        into[..length].copy_from_slice(&bytes);
        self.at += length as u64;
        Ok(length)
    }
}
