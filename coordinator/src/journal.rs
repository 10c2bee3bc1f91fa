//! The journal: numbered objects, each written put-if-absent, so that one coordinator leads a run.
//!
//! `coordinator/journal/0000000042.json`. A coordinator claims the run by writing the next number;
//! one that finds its own next number taken has been superseded. Works alike on S3 and on disk.

use crate::{Error, Result, core::Generation};
use serde::{Deserialize, Serialize};
use storage::{Location, PutOutcome};

const FOLDER: &str = "coordinator/journal";
/// Losing the race for a claim this often means that something restarts coordinators in a loop.
const CLAIMS: u32 = 5;

/// Writes the run's journal for one coordinator.
#[derive(Debug)]
pub struct Journal {
    run: Location,
    leader: String,
    dataset_digest: String,
    next: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    version: u32,
    kind: Kind,
    unix_ms: u64,
    /// Tells this coordinator's entries from any other's.
    leader: String,
    dataset_digest: String,
    /// The newest generation when this was written.
    generation: u64,
    members: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// A coordinator took the run.
    Claim,
    Generation,
}

impl Journal {
    /// Takes the run over for `leader` (unique per process) and returns its newest generation.
    pub async fn claim(
        run: &Location,
        leader: &str,
        dataset_digest: &str,
        dataset_url: &str,
        unix_ms: u64,
    ) -> Result<(Self, Generation)> {
        let mut journal =
            Self { run: run.clone(), leader: leader.into(), dataset_digest: dataset_digest.into(), next: 1 };
        for attempt in 1.. {
            let mut generation = 0;
            if let Some((number, last)) = journal.last().await? {
                if last.dataset_digest != dataset_digest {
                    return Err(Error::OtherDataset {
                        url: run.url().into(),
                        data: dataset_url.into(),
                        before: last.dataset_digest,
                        now: dataset_digest.into(),
                    });
                }
                journal.next = number + 1;
                generation = last.generation;
            }
            match journal.append(Kind::Claim, Generation(generation), vec![], unix_ms).await {
                Ok(()) => return Ok((journal, Generation(generation))),
                Err(Error::Superseded { .. }) if attempt < CLAIMS => {}
                Err(e) => return Err(e),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Makes a generation durable.
    pub async fn record(&mut self, generation: Generation, members: Vec<String>, unix_ms: u64) -> Result<()> {
        self.append(Kind::Generation, generation, members, unix_ms).await
    }

    /// An error if another coordinator has taken the run.
    pub async fn still_leads(&self) -> Result<()> {
        let key = key(self.next);
        match self.run.head(&key).await {
            Ok(_) => Err(Error::Superseded { url: self.run.url_of(&key) }),
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    async fn append(
        &mut self,
        kind: Kind,
        generation: Generation,
        members: Vec<String>,
        unix_ms: u64,
    ) -> Result<()> {
        let entry = Entry {
            version: 1,
            kind,
            unix_ms,
            leader: self.leader.clone(),
            dataset_digest: self.dataset_digest.clone(),
            generation: generation.0,
            members,
        };
        let key = key(self.next);
        let url = self.run.url_of(&key);
        let bytes = serde_json::to_vec(&entry)
            .map_err(|e| Error::Damaged { url: url.clone(), why: e.to_string() })?;
        if self.run.put_if_absent(&key, bytes).await? == PutOutcome::Exists
            // A lost reply looks the same as a lost race: whose is it?
            && self.read(&key).await? != entry
        {
            return Err(Error::Superseded { url });
        }
        self.next += 1;
        Ok(())
    }

    async fn last(&self) -> Result<Option<(u64, Entry)>> {
        let number = self
            .run
            .list(FOLDER)
            .await?
            .iter()
            .filter_map(|o| {
                o.key.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".json")?.parse().ok()
            })
            .max();
        match number {
            None => Ok(None),
            Some(n) => Ok(Some((n, self.read(&key(n)).await?))),
        }
    }

    async fn read(&self, key: &str) -> Result<Entry> {
        let bytes = self.run.get(key).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::Damaged { url: self.run.url_of(key), why: e.to_string() })
    }
}

fn key(number: u64) -> String {
    format!("{FOLDER}/{number:010}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn claim(run: &Location, leader: &str, data: &str) -> Result<(Journal, Generation)> {
        Journal::claim(run, leader, data, "d", 0).await
    }

    #[tokio::test]
    async fn generations_go_on_and_the_old_coordinator_is_fenced() {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let (mut old, g) = claim(&run, "a", "d1").await.unwrap();
        assert_eq!(g, Generation(0));
        old.record(Generation(1), vec!["w".into()], 0).await.unwrap();
        old.record(Generation(2), vec!["w".into()], 0).await.unwrap();
        old.still_leads().await.unwrap();

        let (mut new, g) = claim(&run, "b", "d1").await.unwrap();
        assert_eq!(g, Generation(2));
        assert!(matches!(old.still_leads().await, Err(Error::Superseded { .. })));
        assert!(matches!(old.record(Generation(3), vec![], 0).await, Err(Error::Superseded { .. })));
        new.record(Generation(3), vec![], 0).await.unwrap();

        let e = claim(&run, "c", "d2").await.unwrap_err();
        assert!(e.to_string().contains("d1") && e.to_string().contains("d2"), "{e}");
        assert!(e.is_usage());
    }
}
