//! Which generations are over, and the group to abort when that becomes true of the one it belongs to.

use collective::{Aborter, Group};
use std::sync::Mutex;

/// Shared by the trainer, which may be waiting inside a collective, and the session's task, which hears that the
/// others will never come.
#[derive(Default)]
pub struct Watch(Mutex<Watched>);

#[derive(Default)]
struct Watched {
    /// This generation and all before it are over.
    over: u64,
    group: Option<(u64, Aborter)>,
}

impl Watch {
    /// From now on the end of `generation` aborts `group`; at once if it has ended already.
    pub fn set(&self, generation: u64, group: &Group) {
        let mut watched = self.0.lock().unwrap_or_else(|e| e.into_inner());
        watched.group = Some((generation, group.aborter()));
        abort(&mut watched);
    }

    /// `generation` and all before it are over.
    pub fn over(&self, generation: u64) {
        let mut watched = self.0.lock().unwrap_or_else(|e| e.into_inner());
        watched.over = watched.over.max(generation);
        abort(&mut watched);
    }
}

fn abort(watched: &mut Watched) {
    let over = watched.over;
    if let Some((_, aborter)) = watched.group.take_if(|(generation, _)| *generation <= over)
        && let Err(e) = aborter.abort()
    {
        tracing::debug!("failed to {e}");
    }
}
