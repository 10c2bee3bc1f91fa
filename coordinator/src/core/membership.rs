//! Who is here: sessions that were accepted, when each was last heard and last moved, and the
//! order in which they would take their ranks.

use super::seating::Chairs;
use super::types::{Beat, Hello, Now, Rank, Settings, WorkerId};
use std::{collections::BTreeMap, time::Duration};

/// One accepted worker.
#[derive(Clone, Debug)]
pub struct Member {
    pub id: WorkerId,
    pub name: String,
    /// Its host; workers of one share a cache.
    node: String,
    device: String,
    /// Its rank in the running generation, or else in the last one it belonged to.
    pub rank: Option<Rank>,
    pub beat: Beat,
    heard_at: Now,
    progress_at: Now,
    /// Since when nothing is asked of it: it stands at the door or its generation is over.
    idle_since: Option<Now>,
}

/// All accepted workers.
#[derive(Clone, Debug, Default)]
pub struct Members {
    by_id: BTreeMap<WorkerId, Member>,
    /// As the last generation sat.
    chairs: Chairs,
}

impl Members {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn get(&self, id: WorkerId) -> Option<&Member> {
        self.by_id.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    pub fn named(&self, name: &str) -> Option<&Member> {
        self.by_id.values().find(|m| m.name == name)
    }

    pub fn admit(&mut self, now: Now, id: WorkerId, hello: &Hello) {
        let member = Member {
            id,
            name: hello.name.clone(),
            node: hello.node.clone(),
            device: hello.device.clone(),
            rank: None,
            beat: Beat::default(),
            heard_at: now,
            progress_at: now,
            idle_since: Some(now),
        };
        self.by_id.insert(id, member);
    }

    pub fn remove(&mut self, id: WorkerId) -> Option<Member> {
        self.by_id.remove(&id)
    }

    /// Any message counts as a sign of life.
    pub fn heard(&mut self, now: Now, id: WorkerId) {
        if let Some(m) = self.by_id.get_mut(&id) {
            m.heard_at = now;
        }
    }

    pub fn beat(&mut self, now: Now, id: WorkerId, beat: Beat) {
        if let Some(m) = self.by_id.get_mut(&id) {
            if beat.progress != m.beat.progress {
                m.progress_at = now;
            }
            m.beat = beat;
        }
    }

    /// The coordinator itself stood still for `gap` (suspended, stopped): that is nobody's silence.
    pub fn forgive(&mut self, gap: Duration) {
        for m in self.by_id.values_mut() {
            m.heard_at.0 += gap;
            m.progress_at.0 += gap;
        }
    }

    /// Those who would form the next generation, in the order of their ranks. Where there are too many,
    /// newcomers stand by. A node gets the ranks that it had (see [`Chairs`]).
    pub fn roster(&self, most: u32) -> Vec<WorkerId> {
        let mut all: Vec<&Member> = self.by_id.values().collect();
        all.sort_by_key(|m| (m.rank.is_none(), m.rank, &m.node, &m.device, &m.name, m.id));
        all.truncate(most as usize);
        let nodes: Vec<&str> = all.iter().map(|m| m.node.as_str()).collect();
        self.chairs.seat(&nodes).0.into_iter().map(|i| all[i].id).collect()
    }

    /// Gives the ranks of a new generation; everyone else stands at the door.
    pub fn seat(&mut self, now: Now, roster: &[WorkerId]) {
        let nodes = roster.iter().filter_map(|id| self.by_id.get(id)).map(|m| m.node.as_str());
        self.chairs = self.chairs.seat(&nodes.collect::<Vec<_>>()).1;
        for m in self.by_id.values_mut() {
            m.rank = None;
        }
        for (rank, id) in roster.iter().enumerate() {
            if let Some(m) = self.by_id.get_mut(id) {
                m.rank = Some(Rank(rank as u32));
                // Idle time is not stuck time; what came before it is.
                if let Some(idle) = m.idle_since.take() {
                    m.progress_at = now.min(Now(m.progress_at.0 + now.since(idle)));
                }
            }
        }
    }

    /// The generation is over: nobody is expected to move until the next.
    pub fn dismiss(&mut self, now: Now) {
        for m in self.by_id.values_mut() {
            m.idle_since.get_or_insert(now);
        }
    }

    /// Workers that have been silent for too long, and why each is given up.
    pub fn silent(&self, now: Now, settings: &Settings) -> Vec<(WorkerId, String)> {
        let limit = settings.beat_timeout;
        self.by_id
            .values()
            .filter(|m| now.since(m.heard_at) > limit)
            .map(|m| (m.id, format!("no beat for {:.1} s (cluster.beat_timeout)", limit.as_secs_f64())))
            .collect()
    }

    /// True where the worker's trainer has not moved for longer than `limit`.
    pub fn stands_still(&self, now: Now, id: WorkerId, limit: Duration) -> bool {
        self.by_id.get(&id).is_some_and(|m| m.idle_since.is_none() && now.since(m.progress_at) > limit)
    }
}
