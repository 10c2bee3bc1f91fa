//! Inputs decoded in parallel, their clips handed on in the order of the inputs.
//!
//! Each worker takes the next input and opens a short queue for its clips; the queues stand in line in
//! the order of the inputs. Both are bounded, so however uneven the inputs are, only a few clips a
//! worker are ever held, and the first in line can always go on.

use super::{
    Input, Media, NewClip, Options, clips::ingest_video, images::ingest_folder, journal::Position,
    table::ingest_group,
};
use crate::{Error, Result, ledger::LedgerEntry};
use std::sync::{
    Mutex,
    mpsc::{Receiver, SyncSender, sync_channel},
};

/// Finished clips that one input may have waiting.
const CLIPS_WAITING: usize = 1;

/// What comes out, in order.
#[derive(Debug)]
pub enum Event {
    /// A clip of the input at that place.
    Clip(u64, Box<NewClip>),
    /// The next input is through; what the ledger says of it.
    Done(Vec<LedgerEntry>),
    /// The next input cannot be read now, for no fault of its own.
    Failed(Error),
}

/// An input's place, and the clips that come of it.
type Queue = (u64, Receiver<Event>);

/// Decodes `inputs` from `start` on with `jobs` threads and calls `consume` in order, on this thread.
///
/// # Errors
/// The first one of `consume`, after which the workers are stopped.
pub fn run(
    inputs: &[Input],
    options: &Options,
    start: Position,
    jobs: usize,
    consume: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<()> {
    let jobs = jobs.max(1);
    let (line_in, line) = sync_channel::<Queue>(jobs / 2 + 1);
    let door = Mutex::new((start.input, line_in));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| work(inputs, options, start, &door));
        }
        // Moved into the scope: dropped on an error, it turns the waiting workers away.
        let line = line;
        for expected in start.input..inputs.len() as u64 {
            let stopped = || Error::Stopped(format!("ingest input {expected}: its worker ended early"));
            let (input, events) = line.recv().map_err(|_| stopped())?;
            debug_assert_eq!(input, expected);
            let mut done = false;
            for event in events {
                done |= matches!(event, Event::Done(_));
                consume(event)?;
            }
            if !done {
                return Err(stopped());
            }
        }
        Ok(())
    })
}

/// Takes inputs until there are none, or nobody wants more.
fn work(inputs: &[Input], options: &Options, start: Position, door: &Mutex<(u64, SyncSender<Queue>)>) {
    loop {
        let (place, queue) = {
            let Ok(mut door) = door.lock() else { return };
            let place = door.0;
            if place >= inputs.len() as u64 {
                return;
            }
            let (queue, events) = sync_channel(CLIPS_WAITING);
            // Sent under the lock: the line is in the order of the inputs.
            if door.1.send((place, events)).is_err() {
                return;
            }
            door.0 = place + 1;
            (place, queue)
        };
        let first = if place == start.input { start.piece } else { 0 };
        let mut wanted = true;
        let input = &inputs[place as usize];
        let emit = &mut |clip| {
            wanted = queue.send(Event::Clip(place, Box::new(clip))).is_ok();
            wanted
        };
        let ledger = match &input.media {
            Media::Video => Ok(ingest_video(input, options, first, emit)),
            Media::Images { fps } => Ok(ingest_folder(input, options, *fps, first, emit)),
            Media::Rows(group) => ingest_group(group, options, first, emit),
        };
        let last = ledger.map_or_else(Event::Failed, Event::Done);
        if !wanted || queue.send(last).is_err() {
            return;
        }
    }
}
