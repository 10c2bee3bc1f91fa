//! The journal: numbered objects, each written put-if-absent, so that one coordinator leads a run.
//!
//! `coordinator/journal/0000000042.json`. A coordinator claims the run by writing the next number;
//! one that finds its own next number taken has been superseded. Works alike on S3 and on disk.

use crate::{
    Error, Result,
    core::{Epoch, Generation, Membership},
};
use serde::{Deserialize, Serialize};
use storage::{Location, PutOutcome};

const FOLDER: &str = "coordinator/journal";
/// Losing the race for a claim this often means that something restarts coordinators in a loop.
const CLAIMS: u32 = 5;

/// Writes the run's journal for one coordinator.
#[derive(Debug)]
pub struct Journal {
    run: Location,
    me: Claimant,
    epoch: Epoch,
    next: u64,
}

/// A coordinator that wants to lead, or does.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// Unlike any other process.
    pub leader: String,
    /// Where workers and people reach it, `host:port`.
    pub address: String,
    pub dataset_digest: String,
    pub dataset_url: String,
}

/// One object of the journal. Each holds all that the next coordinator needs, so that it reads only the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    version: u32,
    kind: Kind,
    unix_ms: u64,
    /// Tells this coordinator's entries from any other's.
    leader: String,
    /// The number of the leader's claim.
    #[serde(default)]
    epoch: u64,
    /// Where the leader is reached.
    #[serde(default)]
    address: String,
    dataset_digest: String,
    /// The newest generation when this was written.
    generation: u64,
    /// Its members by rank, and their hosts.
    members: Vec<String>,
    #[serde(default)]
    nodes: Vec<String>,
    /// The host of each rank, also of those that were vacant.
    #[serde(default)]
    chairs: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// A coordinator took the run.
    Claim,
    Generation,
}

/// Who wrote last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub epoch: Epoch,
    pub address: String,
}

/// The coordinator that wrote last; `None`: nobody yet, or one that left no address.
pub async fn leader(run: &Location) -> Result<Option<Leader>> {
    let last = last(run).await?.map(|(_, e)| Leader { epoch: Epoch(e.epoch), address: e.address });
    Ok(last.filter(|l| !l.address.is_empty()))
}

impl Journal {
    /// Takes the run over and returns its newest generation.
    pub async fn claim(run: &Location, me: Claimant, unix_ms: u64) -> Result<(Self, Membership)> {
        let mut journal = Self { run: run.clone(), me, epoch: Epoch(1), next: 1 };
        for attempt in 1.. {
            let mut membership = Membership::default();
            if let Some((number, last)) = last(run).await? {
                if last.dataset_digest != journal.me.dataset_digest {
                    return Err(Error::OtherDataset {
                        url: run.url().into(),
                        data: journal.me.dataset_url,
                        before: last.dataset_digest,
                        now: journal.me.dataset_digest,
                    });
                }
                journal.next = number + 1;
                membership = Membership {
                    generation: Generation(last.generation),
                    names: last.members.into(),
                    nodes: last.nodes,
                    chairs: last.chairs,
                };
            }
            journal.epoch = Epoch(journal.next);
            match journal.append(Kind::Claim, &membership, unix_ms).await {
                Ok(()) => return Ok((journal, membership)),
                Err(Error::Superseded { .. }) if attempt < CLAIMS => {}
                Err(e) => return Err(e),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// The number of this coordinator's claim.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Makes a generation durable.
    pub async fn record(&mut self, membership: &Membership, unix_ms: u64) -> Result<()> {
        self.append(Kind::Generation, membership, unix_ms).await
    }

    /// An error if another coordinator has taken the run.
    pub async fn still_leads(&self) -> Result<()> {
        let key = key(self.next);
        match self.run.head(&key).await {
            // A write of ours may have come through although its reply did not.
            Ok(_) if read(&self.run, &key).await?.leader == self.me.leader => Ok(()),
            Ok(_) => Err(Error::Superseded { url: self.run.url_of(&key) }),
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    async fn append(&mut self, kind: Kind, membership: &Membership, unix_ms: u64) -> Result<()> {
        let entry = Entry {
            version: 1,
            kind,
            unix_ms,
            leader: self.me.leader.clone(),
            epoch: self.epoch.0,
            address: self.me.address.clone(),
            dataset_digest: self.me.dataset_digest.clone(),
            generation: membership.generation.0,
            members: membership.names.to_vec(),
            nodes: membership.nodes.clone(),
            chairs: membership.chairs.clone(),
        };
        let key = key(self.next);
        let url = self.run.url_of(&key);
        let bytes = serde_json::to_vec(&entry)
            .map_err(|e| Error::Damaged { url: url.clone(), why: e.to_string() })?;
        if self.run.put_if_absent(&key, bytes).await? == PutOutcome::Exists
            // A lost reply looks the same as a lost race: whose is it?
            && read(&self.run, &key).await? != entry
        {
            return Err(Error::Superseded { url });
        }
        self.next += 1;
        Ok(())
    }
}

/// The newest entry and its number.
async fn last(run: &Location) -> Result<Option<(u64, Entry)>> {
    let objects = run.list(FOLDER).await?;
    let number = objects
        .iter()
        .filter_map(|o| o.key.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".json")?.parse().ok())
        .max();
    match number {
        None => Ok(None),
        Some(n) => Ok(Some((n, read(run, &key(n)).await?))),
    }
}

async fn read(run: &Location, key: &str) -> Result<Entry> {
    let bytes = run.get(key).await?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Damaged { url: run.url_of(key), why: e.to_string() })
}

fn key(number: u64) -> String {
    format!("{FOLDER}/{number:010}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn claim(run: &Location, leader: &str, data: &str) -> Result<(Journal, Membership)> {
        let me = Claimant {
            leader: leader.into(),
            address: format!("{leader}:1"),
            dataset_digest: data.into(),
            dataset_url: "d".into(),
        };
        Journal::claim(run, me, 0).await
    }

    fn membership(generation: u64) -> Membership {
        Membership {
            generation: Generation(generation),
            names: vec!["w".to_string()].into(),
            nodes: vec!["h".into()],
            chairs: vec!["gone".into(), "h".into()],
        }
    }

    #[tokio::test]
    async fn generations_go_on_and_the_old_coordinator_is_fenced() {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(leader(&run).await.unwrap(), None);
        let (mut old, found) = claim(&run, "a", "d1").await.unwrap();
        assert_eq!((old.epoch(), found), (Epoch(1), Membership::default()));
        old.record(&membership(1), 0).await.unwrap();
        old.record(&membership(2), 0).await.unwrap();
        old.still_leads().await.unwrap();
        let led = Leader { epoch: Epoch(1), address: "a:1".into() };
        assert_eq!(leader(&run).await.unwrap(), Some(led));

        let (mut new, found) = claim(&run, "b", "d1").await.unwrap();
        assert_eq!((new.epoch(), found), (Epoch(4), membership(2)), "members, hosts and chairs too");
        assert!(matches!(old.still_leads().await, Err(Error::Superseded { .. })));
        assert!(matches!(old.record(&membership(3), 0).await, Err(Error::Superseded { .. })));
        new.record(&membership(3), 0).await.unwrap();

        let e = claim(&run, "c", "d2").await.unwrap_err();
        assert!(e.to_string().contains("d1") && e.to_string().contains("d2"), "{e}");
        assert!(e.is_usage());
    }

    #[tokio::test]
    async fn an_entry_of_the_first_release_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(dir.path().to_str().unwrap()).unwrap();
        let old = r#"{"version":1,"kind":"generation","unix_ms":0,"leader":"x","dataset_digest":"d",
            "generation":7,"members":["w"]}"#;
        run.put(&key(9), old.as_bytes().to_vec()).await.unwrap();
        assert_eq!(leader(&run).await.unwrap(), None, "it left no address");
        let (journal, found) = claim(&run, "b", "d").await.unwrap();
        assert_eq!((journal.epoch(), found.generation, found.names.len()), (Epoch(10), Generation(7), 1));
    }
}
