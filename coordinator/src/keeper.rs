//! Commits checkpoints and deletes old ones, one after the other, so that a sweep never meets a commit half
//! done.

use crate::{
    Error, Result,
    core::{Action, Event, WholeCheckpoint},
    driver::{Input, report},
    journal::Journal,
    manifest::{self, Written},
};
use std::{sync::Arc, time::Duration};
use storage::Location;
use tokio::sync::{Mutex, mpsc};

/// Seconds before a checkpoint is tried again after the store failed.
const PAUSES: [u64; 7] = [1, 4, 15, 30, 60, 60, 60];

/// Does the commits and prunes among `jobs` until the channel closes.
pub async fn keep(
    run: Location,
    journal: Arc<Mutex<Journal>>,
    mut jobs: mpsc::UnboundedReceiver<Action>,
    loopback: mpsc::Sender<Input>,
) {
    while let Some(job) = jobs.recv().await {
        match job {
            Action::Commit(mut whole) => {
                let (step, mut pauses) = (whole.step, PAUSES.iter());
                let done = loop {
                    let done = commit(&run, &journal, &mut whole).await;
                    let (e, pause) = match (done, pauses.next()) {
                        (Err(Error::Storage(e)), Some(pause)) if e.is_passing() => (e, pause),
                        (done, _) => break done,
                    };
                    tracing::warn!("failed to {e}; trying again in {pause} s");
                    tokio::time::sleep(Duration::from_secs(*pause)).await;
                };
                let event = match done {
                    Ok(w) => Event::Committed { step, bytes: w.bytes, manifest: w.url },
                    Err(e @ Error::Superseded { .. }) => {
                        report(&loopback, e).await;
                        continue;
                    }
                    Err(e) => Event::CommitFailed { step, error: format!("failed to {e}") },
                };
                let _ = loopback.send(Input::Event(event)).await;
            }
            Action::Prune { delete, newest } => {
                let leads = journal.lock().await.still_leads().await;
                let pruned = match leads {
                    Ok(()) => manifest::prune(&run, &delete, newest).await,
                    Err(e @ Error::Superseded { .. }) => {
                        report(&loopback, e).await;
                        continue;
                    }
                    Err(e) => Err(e),
                };
                // Old checkpoints that stay cost space, not correctness.
                if let Err(e) = pruned {
                    tracing::warn!("failed to delete old checkpoints: failed to {e}");
                }
            }
            _ => {}
        }
    }
}

/// Writes the manifest as the leader of the run; looks again afterwards, for this process may have stood still
/// meanwhile: whatever went wrong then is nobody's concern.
async fn commit(run: &Location, journal: &Mutex<Journal>, whole: &mut WholeCheckpoint) -> Result<Written> {
    let leads = async || journal.lock().await.still_leads().await;
    leads().await?;
    let mut done = manifest::commit(run, whole).await;
    leads().await?;
    if let (Err(Error::Superseded { .. }), false) = (&done, whole.replaces) {
        // A coordinator before this one wrote it when it led no longer.
        whole.replaces = true;
        done = manifest::commit(run, whole).await;
        leads().await?;
    }
    done
}
