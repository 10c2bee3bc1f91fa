//! Writes what was offered, behind the reader's back: one thread a process.

use super::core::Filler;
use super::{RunKey, Shared};
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};

/// What the writer is told.
pub(super) enum Message {
    Run(RunKey, Bytes),
    Flush(mpsc::Sender<()>),
}

/// The one of this process that appends.
pub(super) struct Writer {
    shared: Arc<Shared>,
    filler: Filler,
    /// Of the filler's slot; open, it is locked.
    file: Option<File>,
}

impl Writer {
    /// With no slot yet.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { filler: Filler::new(shared.folder.geometry), shared, file: None }
    }

    /// Takes runs until nobody can offer any more.
    pub(super) fn run(mut self, messages: &mpsc::Receiver<Message>) {
        for message in messages {
            match message {
                Message::Run(key, run) => {
                    self.take(key, &run);
                    self.shared.pending.fetch_sub(run.len() as u64, Relaxed);
                }
                Message::Flush(done) => drop(done.send(())),
            }
        }
    }

    fn take(&mut self, key: RunKey, run: &[u8]) {
        let shared = self.shared.clone();
        if shared.off.load(Relaxed) {
            shared.bypassed.fetch_add(1, Relaxed);
            return;
        }
        match self.write(key, run) {
            Ok(true) => {}
            Ok(false) => {
                shared.bypassed.fetch_add(1, Relaxed);
            }
            Err(e) => {
                shared.off.store(true, Relaxed);
                shared.bypassed.fetch_add(1, Relaxed);
                tracing::warn!(
                    "the cache in {} cannot be written ({e}); this process goes on without adding to it: \
                     free some space or choose another data.cache.folder",
                    shared.path.display()
                );
            }
        }
    }

    /// False where the run is not kept.
    fn write(&mut self, key: RunKey, run: &[u8]) -> io::Result<bool> {
        let shared = self.shared.clone();
        if shared.known().runs.contains_key(&key) {
            return Ok(true);
        }
        let (folder, file) = (&shared.folder, &mut self.file);
        let place = self.filler.place(run.len() as u64, |full| {
            let claimed = folder.claim(full.zip(file.take()), &shared.dataset)?;
            Ok::<_, io::Error>(claimed.map(|(open, taken)| {
                shared.evicted.fetch_add(open.evicted.into(), Relaxed);
                *file = Some(taken);
                open
            }))
        })?;
        let (Some(place), Some(file), Some(open)) = (place, &self.file, self.filler.open()) else {
            return Ok(false);
        };
        folder.append(file, &place, key, run)?;
        folder.publish(open, false)?;
        shared.written_bytes.fetch_add(run.len() as u64, Relaxed);
        shared.refresh(&mut shared.known())?;
        Ok(true)
    }
}
