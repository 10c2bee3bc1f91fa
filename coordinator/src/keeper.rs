//! Commits checkpoints and deletes old ones, one after the other, so that a sweep never meets a commit half
//! done. Before anything goes, the newest is read back.

use crate::{
    Error, Result,
    core::{Action, Event, Step, WholeCheckpoint},
    driver::{Input, report},
    journal::Journal,
    manifest::{self, Written},
};
use std::{sync::Arc, time::Duration};
use storage::Location;
use tokio::{
    sync::{Mutex, mpsc},
    task::{JoinError, JoinSet},
    time::timeout,
};

/// Seconds before a checkpoint is tried again after the store failed.
const PAUSES: [u64; 7] = [1, 4, 15, 30, 60, 60, 60];
/// At the end of the job the newest checkpoint may take so long to be read back.
const LAST_LOOK: Duration = Duration::from_secs(10);

/// Does the commits and prunes among `jobs` until the channel closes.
pub async fn keep(
    run: Location,
    journal: Arc<Mutex<Journal>>,
    jobs: mpsc::UnboundedReceiver<Action>,
    loopback: mpsc::Sender<Input>,
) {
    Keeper { run, journal, loopback, old: Old::default() }.keep(jobs).await;
}

struct Keeper {
    run: Location,
    journal: Arc<Mutex<Journal>>,
    loopback: mpsc::Sender<Input>,
    old: Old,
}

/// What is to be deleted.
#[derive(Default)]
struct Old {
    /// Some may be from times when the newest could not be read back.
    steps: Vec<Step>,
    /// Not looked at yet.
    newest: Option<Step>,
}

/// What came of reading a checkpoint back, and the older ones that may go if it is whole.
struct ReadBack {
    newest: Step,
    steps: Vec<Step>,
    may: Result<bool>,
}

impl Keeper {
    async fn keep(mut self, mut jobs: mpsc::UnboundedReceiver<Action>) {
        // Reading a checkpoint back takes long, and no commit waits for it.
        let mut reading = JoinSet::new();
        loop {
            self.read_back(&mut reading);
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(Action::Commit(whole)) => {
                        // It takes the place of one that could not be deleted.
                        self.old.steps.retain(|step| *step != whole.step);
                        self.commit(whole).await;
                    }
                    Some(Action::Prune { delete, newest }) => {
                        self.old.steps.extend(delete);
                        self.old.newest = Some(newest);
                    }
                    Some(_) => {}
                    None => break,
                },
                Some(read) = reading.join_next() => self.read(read).await,
            }
        }
        // What stays is found by the next start.
        let rest = async {
            self.read_back(&mut reading);
            while let Some(read) = reading.join_next().await {
                self.read(read).await;
                self.read_back(&mut reading);
            }
        };
        if timeout(LAST_LOOK, rest).await.is_err() {
            tracing::info!("old checkpoints are left to the next start");
        }
    }

    /// Starts to read the newest checkpoint back, where something is to be deleted once it is whole.
    fn read_back(&mut self, reading: &mut JoinSet<ReadBack>) {
        if reading.is_empty()
            && let Some(newest) = self.old.newest.take()
        {
            let (run, steps) = (self.run.clone(), std::mem::take(&mut self.old.steps));
            reading.spawn(async move {
                let may = manifest::may_prune(&run, &steps, newest).await;
                ReadBack { newest, steps, may }
            });
        }
    }

    async fn commit(&self, mut whole: WholeCheckpoint) {
        let (step, mut pauses) = (whole.step, PAUSES.iter());
        let done = loop {
            let done = commit(&self.run, &self.journal, &mut whole).await;
            let (e, pause) = match (done, pauses.next()) {
                (Err(Error::Storage(e)), Some(pause)) if e.is_passing() => (e, pause),
                (done, _) => break done,
            };
            tracing::warn!("failed to {e}; trying again in {pause} s");
            tokio::time::sleep(Duration::from_secs(*pause)).await;
        };
        let event = match done {
            Ok(w) => Event::Committed { step, bytes: w.bytes, manifest: w.url },
            Err(e @ Error::Superseded { .. }) => return report(&self.loopback, e).await,
            Err(e) => Event::CommitFailed { step, error: format!("failed to {e}") },
        };
        let _ = self.loopback.send(Input::Event(event)).await;
    }

    /// The newest checkpoint was read back, or not.
    async fn read(&mut self, read: std::result::Result<ReadBack, JoinError>) {
        let ReadBack { newest, steps, may } = match read {
            Ok(read) => read,
            Err(e) => return tracing::warn!("failed to read the newest checkpoint back: {e}"),
        };
        let pruned = match may {
            Ok(true) => self.prune(&steps, newest).await,
            Ok(false) => Ok(()),
            Err(e) => Err(e),
        };
        match pruned {
            Ok(()) => {}
            Err(e @ Error::Superseded { .. }) => report(&self.loopback, e).await,
            // Old checkpoints that stay cost space, not correctness.
            Err(e) => {
                tracing::warn!("old checkpoints stay: failed to {e}");
                self.old.steps.extend(steps);
            }
        }
    }

    async fn prune(&self, steps: &[Step], newest: Step) -> Result<()> {
        self.journal.lock().await.still_leads().await?;
        manifest::prune(&self.run, steps, newest).await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{CheckpointFile, Generation, Scores},
        journal::Claimant,
    };

    /// A checkpoint of one file, which is there.
    async fn whole(run: &Location, step: u64) -> WholeCheckpoint {
        let key = "g1/model-1-of-1.safetensors".to_string();
        run.put(&format!("checkpoints/step-{step:09}/{key}"), vec![7u8; 10]).await.unwrap();
        WholeCheckpoint {
            generation: Generation(1),
            step: Step(step),
            attempt: "g1".into(),
            files: vec![CheckpointFile { key, bytes: 10, sha256: storage::sha256_hex(&[7; 10]) }],
            header_json: "{}".into(),
            scores: Scores::default(),
            replaces: false,
        }
    }

    /// Which steps are left after these were committed one after the other, of which 20 was damaged in the store.
    async fn left(steps: &[u64]) -> Vec<u64> {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let me = Claimant {
            leader: "me".into(),
            address: String::new(),
            dataset_digest: "d".into(),
            dataset_url: "data".into(),
        };
        let (journal, _) = Journal::claim(&run, me, 0).await.unwrap();
        let (jobs, todo) = mpsc::unbounded_channel();
        let (loopback, mut done) = mpsc::channel(16);
        let keeper = tokio::spawn(keep(run.clone(), Arc::new(Mutex::new(journal)), todo, loopback));
        for step in steps {
            jobs.send(Action::Commit(whole(&run, *step).await)).unwrap();
            let committed = done.recv().await;
            assert!(
                matches!(committed, Some(Input::Event(Event::Committed { step: of, .. })) if of.0 == *step)
            );
            if *step == 20 {
                // Of the right size, but not what was written.
                let file = "checkpoints/step-000000020/g1/model-1-of-1.safetensors";
                run.put(file, vec![8u8; 10]).await.unwrap();
            }
            // The newest alone is to stay.
            let delete = steps.iter().filter(|s| **s + 10 == *step).map(|s| Step(*s)).collect();
            jobs.send(Action::Prune { delete, newest: Step(*step) }).unwrap();
        }
        drop(jobs);
        keeper.await.unwrap();
        manifest::committed(&run).await.unwrap().into_keys().map(|step| step.0).collect()
    }

    #[tokio::test]
    async fn nothing_old_goes_before_the_newest_was_read_back() {
        assert_eq!(left(&[10]).await, [10]);
        assert_eq!(left(&[10, 20]).await, [10, 20]);
        assert_eq!(left(&[10, 20, 30]).await, [30], "what had to stay goes later");
    }
}
