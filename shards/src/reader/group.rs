//! Neighbours in a file that come in one request and are held until the last of them was shown.

use super::{Reader, Runs, fetch_bytes, runs_of, spans};
use crate::Result;
use crate::format::{ClipIndex, Dataset};
use bytes::Bytes;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use tokio::sync::OnceCell;

/// A stretch of a data file, fetched when the first of its clips is asked for.
#[derive(Debug)]
pub struct Group {
    range: Range<u64>,
    /// Empty where the stretch could not be had whole: then each clip is asked for by itself, and says what is wrong.
    bytes: OnceCell<Bytes>,
}

impl Group {
    /// The stretch from the first of `clips`, neighbours of one file, to the last.
    pub fn of(dataset: &Dataset, clips: impl Iterator<Item = ClipIndex>) -> Self {
        let range = clips
            .map(|clip| {
                let clip = dataset.clip(clip);
                clip.offset..clip.offset + clip.bytes
            })
            .reduce(|all, clip| all.start.min(clip.start)..all.end.max(clip.end));
        Self { range: range.unwrap_or_default(), bytes: OnceCell::new() }
    }

    /// Bytes of the stretch.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// The same stretch.
impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.range == other.range
    }
}

impl Reader {
    /// As [`Reader::fetch`], for a clip of `group`.
    ///
    /// # Errors
    /// As [`Reader::fetch`].
    pub async fn fetch_of(&self, group: &Group, clip: ClipIndex, frames: &[u32]) -> Result<Runs> {
        let clip = self.dataset.clip(clip);
        self.needed.fetch_add(fetch_bytes(clip, frames), Relaxed);
        let key = self.dataset.file_key(clip);
        let file = &self.dataset.manifest.files[clip.file as usize];
        let known = file.etag.as_deref().filter(|_| self.dataset.location.has_etags());
        let etag = known.filter(|_| self.found_etag(clip).is_none());
        let whole = group
            .bytes
            .get_or_init(|| async {
                let answer = self.reads.get_range(key, group.range.clone(), etag).await.unwrap_or_default();
                self.bytes.fetch_add(answer.len() as u64, Relaxed);
                answer
            })
            .await;
        let mut runs = Vec::new();
        for span in spans(runs_of(frames)) {
            let at = clip.run_bytes(span.clone());
            let start = (clip.offset - group.range.start + at.start) as usize;
            let part = start.min(whole.len())..(start + (at.end - at.start) as usize).min(whole.len());
            let held = Mutex::new(Some(whole.slice(part)).filter(|_| !whole.is_empty()));
            // What was held first; what is asked for again comes from the store.
            let get = |span: Range<u32>| {
                let held = held.lock().unwrap_or_else(PoisonError::into_inner).take();
                async move {
                    match held {
                        Some(bytes) => Ok(bytes),
                        None => self.get(clip, span).await,
                    }
                }
            };
            runs.append(&mut self.verified(clip, span, get).await?);
        }
        Ok(Runs(runs))
    }
}
