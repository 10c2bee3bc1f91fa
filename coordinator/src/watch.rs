//! Fans notices out to those who watch: the last known state of each kind first, then everything.

use crate::core::Notice;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};
use tokio::sync::broadcast;

/// A watcher that falls this far behind is told so and goes on with the newest.
const BACKLOG: usize = 1024;

/// A notice with the wall clock, milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamped {
    pub unix_ms: u64,
    pub notice: Notice,
}

/// The hub. Ends (its receivers see `Closed`) when [`Hub::close`] is called.
pub struct Hub {
    inner: Mutex<Inner>,
}

struct Inner {
    sender: Option<broadcast::Sender<Stamped>>,
    generation: Option<Stamped>,
    step: Option<Stamped>,
    eval: Option<Stamped>,
    checkpoint: Option<Stamped>,
    ended: Option<Stamped>,
    beats: BTreeMap<String, Stamped>,
}

impl Hub {
    pub fn new() -> Self {
        let (sender, _) = broadcast::channel(BACKLOG);
        let inner = Inner {
            sender: Some(sender),
            generation: None,
            step: None,
            eval: None,
            checkpoint: None,
            ended: None,
            beats: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// Remembers and sends on.
    pub fn publish(&self, event: Stamped) {
        let mut inner = self.lock();
        let keep = Some(event.clone());
        match &event.notice {
            Notice::Generation { .. } => {
                inner.beats.clear();
                inner.generation = keep;
            }
            Notice::Step(_) => inner.step = keep,
            Notice::Eval(_) => inner.eval = keep,
            Notice::Checkpoint { .. } => inner.checkpoint = keep,
            Notice::Ended { .. } => inner.ended = keep,
            Notice::Beat { worker, .. } => {
                inner.beats.insert(worker.clone(), event.clone());
            }
            Notice::Lost { worker, .. } => {
                inner.beats.remove(worker);
            }
            Notice::Log { .. } | Notice::Incident(_) => {}
        }
        if let Some(sender) = &inner.sender {
            // Nobody watching is fine.
            let _ = sender.send(event);
        }
    }

    /// What is known now, and what comes; `None` after the end.
    pub fn subscribe(&self) -> (Vec<Stamped>, Option<broadcast::Receiver<Stamped>>) {
        let inner = self.lock();
        let known = [&inner.generation, &inner.step, &inner.eval, &inner.checkpoint]
            .into_iter()
            .flatten()
            .chain(inner.beats.values())
            .chain(&inner.ended)
            .cloned()
            .collect();
        (known, inner.sender.as_ref().map(|s| s.subscribe()))
    }

    /// No more notices: watchers see what was sent, then the end.
    pub fn close(&self) {
        self.lock().sender = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}
