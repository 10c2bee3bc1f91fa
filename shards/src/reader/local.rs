//! Datasets in a local folder are read where they are decoded: the bytes stay in that core's cache.

use super::{Reader, Runs, check, fetch_bytes, runs_of, spans};
use crate::format::{Clip, ClipIndex};
use crate::{Error, Result};
use bytes::Bytes;
use std::fs::File;
use std::future::ready;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

impl Reader {
    /// True where the dataset lies in a local folder and no cache stands before it, as it may before a network's
    /// folder: then [`Reader::fetch_here`] serves.
    pub fn reads_here(&self) -> bool {
        self.cache.is_none() && self.dataset.location.local_file("").is_some()
    }

    /// [`Reader::fetch`] in this thread, from a local folder: the decoder finds the bytes in its core's cache.
    ///
    /// # Errors
    /// As [`Reader::fetch`].
    pub fn fetch_here(&self, clip: ClipIndex, frames: &[u32]) -> Result<Runs> {
        let clip = self.dataset.clip(clip);
        self.needed.fetch_add(fetch_bytes(clip, frames), Relaxed);
        let path = self.dataset.location.local_file(self.dataset.file_key(clip)).unwrap_or_default();
        let get = |span: Range<u32>| ready(self.read(clip, &path, span));
        let mut runs = Vec::new();
        for span in spans(runs_of(frames)) {
            runs.append(&mut futures::executor::block_on(self.verified(clip, span, get))?);
        }
        Ok(Runs(runs))
    }

    /// Reads whole neighbouring runs that hold just `frames`, from a local folder, to where they belong.
    ///
    /// # Errors
    /// As [`Reader::fetch`].
    pub fn read_into(&self, clip: ClipIndex, frames: &[u32], out: &mut [u8]) -> Result<()> {
        let clip = self.dataset.clip(clip);
        self.needed.fetch_add(fetch_bytes(clip, frames), Relaxed);
        let path = self.dataset.location.local_file(self.dataset.file_key(clip)).unwrap_or_default();
        let mut rest = out;
        for span in spans(runs_of(frames)) {
            let range = clip.run_bytes(span.clone());
            let part = rest.split_off_mut(..(range.end - range.start) as usize).unwrap_or_default();
            self.read_runs(clip, &path, &span, part)?;
            for run in span {
                let at = clip.run_bytes(run..run + 1);
                let bytes = &mut part[(at.start - range.start) as usize..(at.end - range.start) as usize];
                if let Err(first) = check(clip, run, bytes) {
                    self.refetches.fetch_add(1, Relaxed);
                    tracing::warn!(
                        file = self.url(clip),
                        clip = clip.clip_id,
                        run,
                        "{first}; reading it again"
                    );
                    self.read_runs(clip, &path, &(run..run + 1), bytes)?;
                    check(clip, run, bytes).map_err(|why| self.damaged(clip, run, why))?;
                }
            }
        }
        Ok(())
    }

    fn read_runs(&self, clip: Clip<'_>, path: &Path, span: &Range<u32>, out: &mut [u8]) -> Result<()> {
        self.read_here.fetch_add(1, Relaxed);
        let offset = clip.offset + clip.run_bytes(span.clone()).start;
        let result = File::open(path).and_then(|file| match file.read_exact_at(out, offset) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(Some(file.metadata()?.len())),
            other => other.map(|()| None),
        });
        match result {
            Ok(None) => {
                self.bytes.fetch_add(out.len() as u64, Relaxed);
                Ok(())
            }
            Ok(Some(size)) => Err(self.cut_off(clip, span, size)),
            Err(e) => Err(self.unreadable(clip, path, span.start, e)),
        }
    }

    fn unreadable(&self, clip: Clip<'_>, path: &Path, run: u32, source: std::io::Error) -> Error {
        match source.kind() {
            ErrorKind::NotFound => self.missing(clip, run),
            _ => Error::Io { path: path.display().to_string(), source },
        }
    }

    fn read(&self, clip: Clip<'_>, path: &Path, span: Range<u32>) -> Result<Bytes> {
        let range = clip.run_bytes(span.clone());
        let wanted = range.end - range.start;
        self.read_here.fetch_add(1, Relaxed);
        let (bytes, size) = read_file(path, clip.offset + range.start, wanted)
            .map_err(|e| self.unreadable(clip, path, span.start, e))?;
        self.bytes.fetch_add(bytes.len() as u64, Relaxed);
        match bytes.len() as u64 == wanted {
            true => Ok(bytes),
            false => Err(self.cut_off(clip, &span, size)),
        }
    }
}

/// Up to `length` bytes of a file from `offset` on, and the file's size.
fn read_file(path: &Path, offset: u64, length: u64) -> std::io::Result<(Bytes, u64)> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::with_capacity(length as usize);
    file.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok((bytes.into(), file.metadata()?.len()))
}
