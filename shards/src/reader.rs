//! Fetches just the runs of 16 frames that a view needs, by ranged GET, and verifies each one.

mod group;
mod local;

pub use group::Group;

use crate::cache::{self, Cache, RunKey, Wanted};
use crate::format::{Clip, ClipIndex, Dataset, RUN_FRAMES, crc32c};
use crate::{Error, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use storage::{Reads, RequestPolicy};

/// What a reader has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of frames that arrived.
    pub bytes: u64,
    /// Ranged GETs, retries and second copies included.
    pub requests: u64,
    /// Runs asked for a second time because the first answer was wrong.
    pub refetches: u64,
    /// Bytes of the runs that the views so far needed: `bytes / needed` is the read amplification.
    pub needed: u64,
    /// GETs sent again because they failed.
    pub retries: u64,
    /// GETs refused because the store had too much to do.
    pub throttled: u64,
    /// GETs beyond a deadline.
    pub timeouts: u64,
    /// Second GETs sent for a slow answer.
    pub hedges: u64,
    /// Second GETs that answered first.
    pub hedges_won: u64,
}

impl Stats {
    /// Bytes that arrived for each byte of the runs that were needed.
    pub fn amplification(&self) -> f64 {
        self.bytes as f64 / self.needed.max(1) as f64
    }
}

impl std::iter::Sum for Stats {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            bytes: a.bytes + b.bytes,
            requests: a.requests + b.requests,
            refetches: a.refetches + b.refetches,
            needed: a.needed + b.needed,
            retries: a.retries + b.retries,
            throttled: a.throttled + b.throttled,
            timeouts: a.timeouts + b.timeouts,
            hedges: a.hedges + b.hedges,
            hedges_won: a.hedges_won + b.hedges_won,
        })
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} GETs, {:.1} MB", self.requests, self.bytes as f64 / 1e6)?;
        write!(f, ", {:.3} times what was needed", self.amplification())?;
        let rare = [
            (self.retries, "sent again"),
            (self.throttled, "refused by a busy store"),
            (self.timeouts, "too late"),
            (self.hedges, "second copies of slow ones"),
            (self.refetches, "runs fetched again after a wrong answer"),
        ];
        rare.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, what)| write!(f, ", {n} {what}"))
    }
}

/// Verified runs of one clip.
#[derive(Clone, Debug, Default)]
pub struct Runs(Vec<(u32, Bytes)>);

impl Runs {
    /// The stored bytes of a run; `None` if it was not asked for.
    pub fn get(&self, run: u32) -> Option<&Bytes> {
        let place = self.0.binary_search_by_key(&run, |r| r.0).ok()?;
        Some(&self.0[place].1)
    }

    /// Runs held.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads clips of one dataset.
#[derive(Debug)]
pub struct Reader {
    dataset: Arc<Dataset>,
    reads: Reads,
    /// Files that bear another ETag than the manifest says, and which. Their content decides.
    replaced: Mutex<BTreeMap<u32, String>>,
    cache: Option<Arc<Cache>>,
    bytes: AtomicU64,
    needed: AtomicU64,
    refetches: AtomicU64,
    /// Reads of local files, which no policy guards.
    read_here: AtomicU64,
}

impl Reader {
    /// A reader that asks by `policy`.
    ///
    /// # Errors
    /// A client that cannot be made: the location's own.
    pub fn new(dataset: Arc<Dataset>, policy: RequestPolicy) -> Result<Self> {
        Ok(Self {
            reads: dataset.location.reads(policy)?,
            dataset,
            replaced: Mutex::default(),
            cache: None,
            bytes: AtomicU64::new(0),
            needed: AtomicU64::new(0),
            refetches: AtomicU64::new(0),
            read_here: AtomicU64::new(0),
        })
    }

    /// The reader that asks the node's cache first, and offers it what it fetched.
    pub fn with_cache(self, cache: Option<Arc<Cache>>) -> Self {
        Self { cache, ..self }
    }

    /// What the cache has done for this process so far; `None` without one.
    pub fn cache_stats(&self) -> Option<cache::Stats> {
        self.cache.as_ref().map(|c| c.stats())
    }

    /// The dataset it reads.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        let sent = self.reads.stats();
        Stats {
            bytes: self.bytes.load(Relaxed),
            requests: sent.sent + self.read_here.load(Relaxed),
            refetches: self.refetches.load(Relaxed),
            needed: self.needed.load(Relaxed),
            retries: sent.retries,
            throttled: sent.throttled,
            timeouts: sent.timeouts,
            hedges: sent.hedges,
            hedges_won: sent.hedges_won,
        }
    }

    /// The runs that hold the stored `frames`, each checked against its CRC32C.
    /// Neighbouring runs come in one request; a wrong run is asked for once more, alone.
    ///
    /// # Errors
    /// Storage, or damage that a second request did not mend: names file, clip and run.
    pub async fn fetch(&self, clip: ClipIndex, frames: &[u32]) -> Result<Runs> {
        let clip = self.dataset.clip(clip);
        self.needed.fetch_add(fetch_bytes(clip, frames), Relaxed);
        let mut runs = self.cached(clip, runs_of(frames)).await;
        let missing = runs.iter().filter(|(_, bytes)| bytes.is_empty()).map(|(run, _)| *run);
        let verified = |span| self.verified(clip, span, |range| self.get(clip, range));
        for (run, bytes) in try_join_all(spans(missing).into_iter().map(verified)).await?.concat() {
            if let Some(cache) = &self.cache {
                cache.offer(key(clip, run), bytes.clone());
            }
            let place = runs.partition_point(|(known, _)| *known < run);
            runs[place].1 = bytes;
        }
        Ok(Runs(runs))
    }

    /// The wanted runs, ascending, as far as the cache has them; no run is without bytes, so the others are empty.
    async fn cached(&self, clip: Clip<'_>, wanted: BTreeSet<u32>) -> Vec<(u32, Bytes)> {
        let Some(cache) = &self.cache else { return wanted.into_iter().map(|r| (r, Bytes::new())).collect() };
        let in_index = |&run: &u32| {
            let at = clip.run_bytes(run..run + 1);
            Wanted { key: key(clip, run), bytes: at.end - at.start, crc32c: clip.run_crcs[run as usize] }
        };
        let found = cache.get(wanted.iter().map(in_index).collect()).await;
        wanted.into_iter().zip(found.into_iter().map(Option::unwrap_or_default)).collect()
    }

    /// The runs of a span, fetched with `get`, each verified and if need be fetched again.
    async fn verified<F: Future<Output = Result<Bytes>>>(
        &self,
        clip: Clip<'_>,
        span: Range<u32>,
        get: impl Fn(Range<u32>) -> F,
    ) -> Result<Vec<(u32, Bytes)>> {
        let whole = get(span.clone()).await?;
        let base = clip.run_bytes(span.clone()).start;
        let mut runs = Vec::with_capacity(span.len());
        for run in span {
            let at = clip.run_bytes(run..run + 1);
            let part = (at.start - base) as usize..(at.end - base) as usize;
            // An answer that is too short is as wrong as one with a wrong CRC.
            let mut bytes = if part.end <= whole.len() { whole.slice(part) } else { Bytes::new() };
            if let Err(first) = check(clip, run, &bytes) {
                self.refetches.fetch_add(1, Relaxed);
                tracing::warn!(file = self.url(clip), clip = clip.clip_id, run, "{first}; fetching it again");
                bytes = get(run..run + 1).await?;
                if let Err(why) = check(clip, run, &bytes) {
                    return Err(self.worded(clip, run, why, bytes.len() as u64).await);
                }
            }
            runs.push((run, bytes));
        }
        Ok(runs)
    }

    async fn get(&self, clip: Clip<'_>, span: Range<u32>) -> Result<Bytes> {
        let part = clip.run_bytes(span.clone());
        let range = clip.offset + part.start..clip.offset + part.end;
        let key = self.dataset.file_key(clip);
        let file = &self.dataset.manifest.files[clip.file as usize];
        let known = file.etag.as_deref().filter(|_| self.dataset.location.has_etags());
        let etag = known.filter(|_| self.found_etag(clip).is_none());
        let mut answer = self.reads.get_range(key, range.clone(), etag).await;
        if matches!(answer, Err(storage::Error::Changed { .. })) {
            self.look_at_replaced(clip, span.start).await?;
            answer = self.reads.get_range(key, range.clone(), None).await;
        }
        match answer {
            Ok(bytes) => {
                self.bytes.fetch_add(bytes.len() as u64, Relaxed);
                Ok(bytes)
            }
            Err(e) if e.is_not_found() => Err(self.missing(clip, span.start)),
            Err(e @ (storage::Error::Store { .. } | storage::Error::Io { .. })) => {
                // Stores word a range beyond the end in many ways: ask for the size instead.
                match self.dataset.location.head(key).await {
                    Ok((size, _)) if size < range.end => Err(self.cut_off(clip, &span, size)),
                    _ => Err(self.unread(clip, span.start, e)),
                }
            }
            Err(e) => Err(self.unread(clip, span.start, e)),
        }
    }

    /// The file is another object than was written. A copy into another bucket may well have another ETag, so its
    /// content decides, by size here and by CRC with every run from now on.
    async fn look_at_replaced(&self, clip: Clip<'_>, run: u32) -> Result<()> {
        let head = self.dataset.location.head(self.dataset.file_key(clip)).await;
        let (size, found) = match head {
            Ok((size, etag)) => (size, etag.unwrap_or_default()),
            Err(e) if e.is_not_found() => return Err(self.missing(clip, run)),
            Err(e) => return Err(self.unread(clip, run, e)),
        };
        let file = &self.dataset.manifest.files[clip.file as usize];
        let expected = file.etag.as_deref().unwrap_or_default();
        if size != file.bytes {
            let why = format!(
                "the object was replaced: it has {size} bytes and the ETag {found}, not {} and {expected}",
                file.bytes
            );
            return Err(self.damaged(clip, run, why));
        }
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        if replaced.insert(clip.file, found.clone()).is_none() {
            tracing::warn!(
                "{} has the ETag {found}, not {expected}: it was copied or replaced; it is read as long as its CRCs are right",
                self.url(clip)
            );
        }
        Ok(())
    }

    fn found_etag(&self, clip: Clip<'_>) -> Option<String> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).get(&clip.file).cloned()
    }

    /// The error of a run that is wrong for good: one of which only `found` bytes came may lie at a cut-off end.
    async fn worded(&self, clip: Clip<'_>, run: u32, why: String, found: u64) -> Error {
        let part = clip.run_bytes(run..run + 1);
        if found < part.end - part.start
            && let Ok((size, _)) = self.dataset.location.head(self.dataset.file_key(clip)).await
            && size < clip.offset + part.end
        {
            return self.cut_off(clip, &(run..run + 1), size);
        }
        self.damaged(clip, run, why)
    }

    fn missing(&self, clip: Clip<'_>, run: u32) -> Error {
        self.damaged(clip, run, "the manifest names the file but it is missing".into())
    }

    /// The error of a span that ends beyond its file of `size` bytes.
    fn cut_off(&self, clip: Clip<'_>, span: &Range<u32>, size: u64) -> Error {
        let whole = self.dataset.manifest.files[clip.file as usize].bytes;
        let run = span.clone().find(|&r| clip.offset + clip.run_bytes(r..r + 1).end > size);
        let why = format!("the file is cut off: {size} bytes of {whole}");
        self.damaged(clip, run.unwrap_or(span.start), why)
    }

    fn unread(&self, clip: Clip<'_>, run: u32, source: storage::Error) -> Error {
        Error::Unread { clip: clip.clip_id.to_string(), run, source: source.into() }
    }

    /// The error that names file, clip and run.
    pub fn damaged(&self, clip: Clip<'_>, run: u32, why: String) -> Error {
        let file = &self.dataset.manifest.files[clip.file as usize];
        let why = match (self.found_etag(clip), &file.etag) {
            (Some(found), Some(expected)) => {
                format!("{why}; the object was replaced: its ETag is {found}, not {expected}")
            }
            _ => why,
        };
        Error::DamagedClip { file: self.url(clip), clip: clip.clip_id.to_string(), run, why }
    }

    fn url(&self, clip: Clip<'_>) -> String {
        self.dataset.location.url_of(self.dataset.file_key(clip))
    }
}

/// Bytes that [`Reader::fetch`] asks for.
pub fn fetch_bytes(clip: Clip<'_>, frames: &[u32]) -> u64 {
    let size = |span| {
        let at = clip.run_bytes(span);
        at.end - at.start
    };
    spans(runs_of(frames)).into_iter().map(size).sum()
}

/// The runs that hold `frames`.
pub(crate) fn runs_of(frames: &[u32]) -> BTreeSet<u32> {
    frames.iter().map(|f| f / RUN_FRAMES).collect()
}

/// Ascending runs, neighbours joined: each span is one request.
pub(crate) fn spans(runs: impl IntoIterator<Item = u32>) -> Vec<Range<u32>> {
    let mut spans: Vec<Range<u32>> = Vec::new();
    for run in runs {
        match spans.last_mut() {
            Some(last) if run == last.end => last.end += 1,
            _ => spans.push(run..run + 1),
        }
    }
    spans
}

/// A run's place in the dataset.
pub(crate) fn key(clip: Clip<'_>, run: u32) -> RunKey {
    RunKey { file: clip.file, offset: clip.offset + clip.run_bytes(run..run + 1).start }
}

fn check(clip: Clip<'_>, run: u32, bytes: &[u8]) -> std::result::Result<(), String> {
    let at = clip.run_bytes(run..run + 1);
    let (expected, length) = (clip.run_crcs[run as usize], at.end - at.start);
    if bytes.len() as u64 != length {
        return Err(format!("{} bytes came, not {length}", bytes.len()));
    }
    match crc32c(bytes) {
        found if found == expected => Ok(()),
        found => Err(format!("its CRC32C is {found:08x}, not {expected:08x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Codec;
    use crate::testing::write_dataset;
    use std::cell::Cell;

    #[test]
    fn neighbouring_runs_are_joined() {
        assert_eq!(spans(runs_of(&[0, 3, 15, 16, 40, 41, 80])), [0..3, 5..6]);
        assert_eq!(spans(runs_of(&[5, 5, 70, 90, 300])), [0..1, 4..6, 18..19]);
        assert_eq!(spans(runs_of(&[60, 70, 2, 12])), [0..1, 3..5], "a clip that begins anew");
        assert_eq!(spans(runs_of(&[])), Vec::<Range<u32>>::new());
    }

    const NONE: Stats = Stats {
        bytes: 0,
        requests: 0,
        refetches: 0,
        needed: 0,
        retries: 0,
        throttled: 0,
        timeouts: 0,
        hedges: 0,
        hedges_won: 0,
    };

    #[tokio::test]
    async fn only_what_is_needed_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let location = write_dataset(folder.path(), Codec::Raw, &[(70, 24, 16)]);
        let dataset = Arc::new(Dataset::open(&location).await.unwrap());
        let (reader, clip) = (Reader::new(dataset.clone(), RequestPolicy::default()).unwrap(), ClipIndex(0));
        let run = dataset.clip(clip).run_bytes(0..1).end;
        for (frames, runs, stats) in [
            (vec![20, 33], vec![1, 2], Stats { bytes: 2 * run, requests: 1, needed: 2 * run, ..NONE }),
            (vec![0, 40], vec![0, 2], Stats { bytes: 4 * run, requests: 3, needed: 4 * run, ..NONE }),
        ] {
            let found = reader.fetch(clip, &frames).await.unwrap();
            assert_eq!((0..5).filter(|&r| found.get(r).is_some()).collect::<Vec<u32>>(), runs);
            assert_eq!(found.len(), runs.len());
            assert_eq!(reader.stats(), stats);
            assert_eq!(fetch_bytes(dataset.clip(clip), &frames), 2 * run);
        }
    }

    #[tokio::test]
    async fn a_run_that_comes_right_the_second_time_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let location = write_dataset(folder.path(), Codec::Raw, &[(70, 24, 16)]);
        let dataset = Arc::new(Dataset::open(&location).await.unwrap());
        let reader = Reader::new(dataset.clone(), RequestPolicy::default()).unwrap();
        let clip = dataset.clip(ClipIndex(0));
        let whole = reader.fetch(ClipIndex(0), &(0..70).collect::<Vec<u32>>()).await.unwrap();
        for damage in [|b: &mut Vec<u8>| b[30_000] ^= 1, |b: &mut Vec<u8>| b.truncate(30_000)] {
            let asked = Cell::new(0);
            let before = reader.stats().refetches;
            let (reader, asked) = (&reader, &asked);
            // The network spoils the first answer, which holds all runs.
            let get = |span: Range<u32>| async move {
                let mut bytes = reader.get(clip, span).await?.to_vec();
                if asked.replace(asked.get() + 1) == 0 {
                    damage(&mut bytes);
                }
                Ok(Bytes::from(bytes))
            };
            let found = reader.verified(clip, 0..5, get).await.unwrap();
            assert!((0..5).all(|run| Some(&found[run as usize].1) == whole.get(run)));
            let refetched = reader.stats().refetches - before;
            assert!(refetched >= 1 && u64::from(asked.get() as u32) == 1 + refetched);
        }
    }
}
