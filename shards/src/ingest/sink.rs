//! Clips into data files, and data files into the journal; one file is uploaded while the next is filled.

use super::{
    journal::{Done, Part, Position, Record},
    pipeline::Event,
};
use crate::{Error, Result, format::ClipMeta, ledger::LedgerEntry, writer::DataFileWriter};
use storage::Location;
use tokio::{runtime::Runtime, task::JoinHandle};

/// Takes the clips of one part.
pub struct Sink<'a> {
    runtime: &'a Runtime,
    out: &'a Location,
    part: Part,
    /// Folder of the data files.
    folder: String,
    writer: DataFileWriter,
    uploading: Option<JoinHandle<Result<Option<Position>>>>,
    /// Ledger entries that no record holds yet.
    fresh: Vec<LedgerEntry>,
    /// Files begun, those being uploaded too.
    begun: u32,
    /// Where to go on.
    pub next: Position,
    /// Another machine does this part too and its records differ: begin again from those.
    pub overtaken: bool,
}

impl<'a> Sink<'a> {
    /// Goes on after the part's last record. `found` are ledger entries from before any input.
    ///
    /// # Errors
    /// The store's own, or a damaged record.
    pub fn resume(
        runtime: &'a Runtime,
        out: &'a Location,
        part: Part,
        folder: &str,
        found: &[LedgerEntry],
    ) -> Result<Self> {
        let mut sink = Self {
            runtime,
            out,
            part,
            folder: folder.into(),
            writer: DataFileWriter::new()?,
            uploading: None,
            fresh: vec![],
            begun: 0,
            next: Position::default(),
            overtaken: false,
        };
        while let Some(record) = runtime.block_on(Record::get(out, part, sink.begun))? {
            sink.begun += 1;
            sink.next = record.next;
        }
        if sink.begun == 0 && part.is_first() {
            sink.fresh = found.to_vec();
        }
        Ok(sink)
    }

    /// Takes a clip, or what the ledger says of an input.
    ///
    /// # Errors
    /// The store's or the Parquet writer's own, or [`overtaken`](Self::overtaken).
    pub fn take(&mut self, event: Event, file_size: u64) -> Result<()> {
        match event {
            Event::Done(ledger) => self.fresh.extend(ledger),
            Event::Failed(e) => return Err(e),
            Event::Clip(input, clip) => {
                let size = self.writer.size_with(clip.payload.bytes.len() as u64);
                if !self.writer.is_empty() && size > file_size {
                    self.end_file(Position { input, piece: clip.piece })?;
                }
                // The place among all parts' files is known at the end.
                self.writer.push(ClipMeta { file: 0, ..clip.meta }, clip.payload)?;
            }
        }
        Ok(())
    }

    /// Ends the last file, waits for all uploads, and ends the part's log. False where the part was overtaken.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn close(mut self, end: Position) -> Result<bool> {
        // What an overtaken part still holds must not be recorded: its place is not known.
        let mut ended = Ok(());
        if !self.overtaken {
            ended = match self.writer.is_empty() {
                true => self.settle(),
                false => self.end_file(end).and_then(|()| self.settle()),
            };
        }
        if self.overtaken {
            return Ok(false);
        }
        ended?;
        let done = Done { records: self.begun, ledger: self.fresh };
        self.runtime.block_on(done.put(self.out, self.part))?;
        Ok(true)
    }

    /// Sends the file off; clip `next` is the first of the one after.
    fn end_file(&mut self, next: Position) -> Result<()> {
        // Records must appear in order, and memory holds two files at most.
        self.settle()?;
        let file = std::mem::replace(&mut self.writer, DataFileWriter::new()?).finish()?;
        let ledger = std::mem::take(&mut self.fresh);
        let (n, out, part, folder) = (self.begun, self.out.clone(), self.part, self.folder.clone());
        self.uploading = Some(self.runtime.spawn(async move {
            let stored = file.store(&out, |sha256| part.file_key(&folder, n, sha256)).await?;
            let record = Record { file: stored, clips: file.rows, ledger, next };
            Ok(record.put(&out, part, n).await?.then_some(record.next))
        }));
        self.begun += 1;
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let Some(task) = self.uploading.take() else { return Ok(()) };
        let ended = |e| Error::Stopped(format!("write a data file: its task ended early ({e})"));
        match self.runtime.block_on(task).map_err(ended)?? {
            Some(next) => self.next = next,
            None => {
                self.overtaken = true;
                let part = self.part;
                return Err(Error::Stopped(format!("go on with part {part}: another machine was faster")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{format::PayloadBuilder, ingest::NewClip};

    fn clip(piece: u32, level: u8) -> Event {
        let mut payload = PayloadBuilder::default();
        payload.push(&[level; 100]);
        let meta = ClipMeta { clip_id: format!("clip{piece}"), width: 10, height: 10, ..ClipMeta::default() };
        Event::Clip(0, Box::new(NewClip { piece, meta, payload: payload.finish() }))
    }

    #[test]
    fn of_two_machines_that_differ_the_first_record_stands() {
        let folder = tempfile::tempdir().unwrap();
        let out = Location::parse(folder.path().to_str().unwrap()).unwrap();
        let runtime = Runtime::new().unwrap();
        let resume = || Sink::resume(&runtime, &out, Part::WHOLE, "data/x", &[]).unwrap();
        let (mut fast, mut slow) = (resume(), resume());
        // One clip a file. The slow machine's decoder is of another mind about the pixels.
        for piece in 0..3 {
            fast.take(clip(piece, 1), 1).unwrap();
        }
        assert!(fast.close(Position { input: 1, piece: 0 }).unwrap());
        slow.take(clip(0, 2), 1).unwrap();
        slow.take(clip(1, 2), 1).unwrap();
        assert!(slow.take(clip(2, 2), 1).is_err(), "its first record is taken");
        assert!(!slow.close(Position { input: 1, piece: 0 }).unwrap(), "it must begin again");
        let again = resume();
        assert_eq!((again.begun, again.next), (3, Position { input: 1, piece: 0 }));
        for n in 0..3 {
            let record = runtime.block_on(Record::get(&out, Part::WHOLE, n)).unwrap().unwrap();
            let file = runtime.block_on(out.get(&record.file.key)).unwrap();
            assert_eq!(storage::sha256_hex(&file), record.file.sha256);
        }
        // One that is of the same mind does not even notice.
        let mut same = Sink { begun: 0, next: Position::default(), ..resume() };
        same.take(clip(0, 1), 1).unwrap();
        same.take(clip(1, 1), 1).unwrap();
        same.settle().unwrap();
        assert!(!same.overtaken);
    }
}
