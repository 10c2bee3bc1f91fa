//! Uploads: large objects in parts, a few under way at a time, no faster than allowed.

use crate::{Location, Result};
use bytes::Bytes;
use object_store::{ObjectStoreExt, PutPayload, WriteMultipart};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Of a multipart upload, the last aside.
const PART: usize = 16 << 20;
/// The smallest that S3 takes: an upload with a limit goes in small bites.
const SMALL_PART: usize = 5 << 20;
/// Parts under way. No copies are made of them: they are slices of what was given.
const AT_ONCE: usize = 4;

/// At most so many bytes a second, over all uploads that share it by cloning, until it is lifted.
#[derive(Clone, Debug)]
pub struct Bandwidth {
    bucket: Arc<Mutex<Bucket>>,
    lifted: watch::Sender<bool>,
    since: Instant,
}

#[derive(Debug)]
struct Bucket {
    bytes_per_second: f64,
    /// When all that was let through so far has had its time.
    until: Duration,
}

impl Bandwidth {
    /// A limit in bytes a second, at least one.
    pub fn new(bytes_per_second: u64) -> Self {
        let bytes_per_second = bytes_per_second.max(1) as f64;
        Self {
            bucket: Arc::new(Mutex::new(Bucket { bytes_per_second, until: Duration::ZERO })),
            lifted: watch::Sender::new(false),
            since: now(),
        }
    }

    /// There is no limit any more; whoever waits goes on at once.
    pub fn lift(&self) {
        self.lifted.send_replace(true);
    }

    /// Waits until `bytes` more may leave.
    async fn let_through(&self, bytes: usize) {
        let wait = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.reserve(now() - self.since, bytes)
        };
        let mut lifted = self.lifted.subscribe();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // This limit holds the sender.
            _ = lifted.wait_for(|lifted| *lifted) => {}
        }
    }
}

impl Bucket {
    /// How long to wait at `now` before sending `bytes`; time unused is not saved up.
    fn reserve(&mut self, now: Duration, bytes: usize) -> Duration {
        let from = self.until.max(now);
        self.until = from + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        from - now
    }
}

impl Location {
    /// Writes or replaces an object that may be large, atomically: in parts of 16 MiB where it has
    /// more, so that no single request outlives the client's time limit. `chunks` are its bytes in order.
    pub async fn put_chunks(&self, key: &str, chunks: Vec<Bytes>) -> Result<()> {
        self.put_chunks_within(key, chunks, None).await
    }

    /// As [`Location::put_chunks`], no faster than `limit` allows.
    pub async fn put_chunks_within(
        &self,
        key: &str,
        chunks: Vec<Bytes>,
        limit: Option<&Bandwidth>,
    ) -> Result<()> {
        let part = if limit.is_some() { SMALL_PART } else { PART };
        let total = chunks.iter().map(Bytes::len).sum::<usize>();
        if total <= part {
            if let Some(limit) = limit {
                limit.let_through(total).await;
            }
            return self.put(key, chunks.into_iter().collect::<PutPayload>()).await;
        }
        let upload = self.store().put_multipart(&self.key(key)).await.map_err(|e| self.error(key, e))?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, part);
        for piece in chunks.into_iter().flat_map(|chunk| pieces(chunk, part)) {
            if let Some(limit) = limit {
                limit.let_through(piece.len()).await;
            }
            if let Err(e) = writer.wait_for_capacity(AT_ONCE).await {
                // The parts would lie about unseen; what matters is why.
                let _ = writer.abort().await;
                return Err(self.error(key, e));
            }
            writer.put(piece);
        }
        writer.finish().await.map_err(|e| self.error(key, e))?;
        Ok(())
    }
}

/// Slices of at most `most` bytes: the writer would begin all parts of a large chunk at once.
fn pieces(mut chunk: Bytes, most: usize) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let next = chunk.split_to(chunk.len().min(most));
        (!next.is_empty()).then_some(next)
    })
}

/// The one reader of the clock here; tests may stop it.
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_through_its_rate_and_saves_nothing_up() {
        let secs = Duration::from_secs;
        let mut bucket = Bucket { bytes_per_second: 100.0, until: Duration::ZERO };
        assert_eq!(bucket.reserve(secs(0), 200), secs(0));
        assert_eq!(bucket.reserve(secs(0), 100), secs(2));
        assert_eq!(bucket.reserve(secs(1), 100), secs(2));
        assert_eq!(bucket.reserve(secs(10), 300), secs(0));
        assert_eq!(bucket.reserve(secs(10), 1), secs(3));
    }

    #[test]
    fn pieces_are_the_chunk_again() {
        let chunk = Bytes::from((0..=255u8).collect::<Vec<_>>());
        let cut: Vec<Bytes> = pieces(chunk.clone(), 100).collect();
        assert_eq!(cut.iter().map(Bytes::len).collect::<Vec<_>>(), [100, 100, 56]);
        assert_eq!(cut.concat(), chunk);
        assert_eq!(pieces(Bytes::new(), 100).count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_takes_the_time_that_its_limit_allows() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let chunks: Vec<Bytes> = [12 << 20, 3, 1 << 20].map(|n: usize| vec![7u8; n].into()).to_vec();
        let before = now();
        location.put_chunks_within("a/b", chunks.clone(), Some(&Bandwidth::new(1 << 20))).await.unwrap();
        // All but the last piece had to have its time: 12 MiB, and three bytes.
        let took = now() - before;
        assert!(took >= Duration::from_secs(12) && took < Duration::from_secs(14), "{took:?}");
        assert_eq!(location.get("a/b").await.unwrap(), chunks.concat());

        // A limit that is lifted under way holds nobody up.
        let (limit, before) = (Bandwidth::new(1 << 20), now());
        let lift = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            limit.lift();
        };
        let (put, ()) = tokio::join!(location.put_chunks_within("a/c", chunks.clone(), Some(&limit)), lift);
        put.unwrap();
        assert!(now() - before < Duration::from_secs(4));
        assert_eq!(location.get("a/c").await.unwrap(), chunks.concat());
    }
}
