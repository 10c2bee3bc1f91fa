//! Who is here: sessions that were accepted, when each was last heard and last moved, and the
//! order in which they would take their ranks.

use super::seating::Chairs;
use super::straggler::Pace;
use super::types::{Generation, Membership, Now, Rank, Settings, Step, WorkerId};
use super::{Beat, Hello, Running};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// One accepted worker.
#[derive(Clone, Debug)]
pub struct Member {
    pub id: WorkerId,
    pub name: String,
    /// Its host; workers of one share a cache.
    pub node: String,
    pub device: String,
    /// Its rank in the running generation, or else in the last one it belonged to.
    pub rank: Option<Rank>,
    pub beat: Beat,
    /// It was in a generation that did a step, and keeps what it had then in memory.
    pub has_state: bool,
    /// It wants to go, and why.
    pub leaving: Option<String>,
    /// Another process shall take its place then.
    pub replaced: bool,
    /// Its stream has ended after a silence; it may come back by another.
    pub cut_off: bool,
    pub pace: Pace,
    heard_at: Now,
    progress_at: Now,
    /// Since when nothing is asked of it: it stands at the door or its generation is over.
    idle_since: Option<Now>,
}

impl Member {
    pub fn silent_for(&self, now: Now) -> Duration {
        now.since(self.heard_at)
    }

    pub fn still_for(&self, now: Now) -> Duration {
        now.since(self.progress_at)
    }

    /// What its trainer was seen to do.
    pub fn phase(&self) -> &str {
        if self.beat.phase.is_empty() { "joining" } else { &self.beat.phase }
    }
}

/// All accepted workers.
#[derive(Clone, Debug, Default)]
pub struct Members {
    by_id: BTreeMap<WorkerId, Member>,
    by_name: HashMap<String, WorkerId>,
    /// How many want to go.
    leaving: usize,
    /// As the last generation sat.
    chairs: Chairs,
}

/// Who would form the next generation.
#[derive(Clone, Debug)]
pub struct Roster {
    /// By rank.
    pub workers: Vec<WorkerId>,
    pub membership: Membership,
}

impl Members {
    /// Nobody yet; hosts that come back get the chairs that they had.
    pub fn new(last: &Membership) -> Self {
        Self { chairs: Chairs::of(last.chairs.clone()), ..Default::default() }
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn get(&self, id: WorkerId) -> Option<&Member> {
        self.by_id.get(&id)
    }

    pub fn get_mut(&mut self, id: WorkerId) -> Option<&mut Member> {
        self.by_id.get_mut(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    pub fn named(&self, name: &str) -> Option<&Member> {
        self.by_id.get(self.by_name.get(name)?)
    }

    pub fn admit(&mut self, now: Now, id: WorkerId, hello: &Hello) {
        let member = Member {
            id,
            name: hello.name.clone(),
            node: hello.node.clone(),
            device: hello.device.clone(),
            rank: None,
            beat: Beat::default(),
            has_state: false,
            leaving: None,
            replaced: false,
            cut_off: false,
            pace: Pace::default(),
            heard_at: now,
            progress_at: now,
            idle_since: Some(now),
        };
        self.by_name.insert(hello.name.clone(), id);
        self.by_id.insert(id, member);
    }

    /// The same worker by another session.
    pub fn moved(&mut self, now: Now, from: WorkerId, to: WorkerId) {
        if let Some(member) = self.by_id.remove(&from) {
            self.by_name.insert(member.name.clone(), to);
            self.by_id.insert(to, Member { id: to, cut_off: false, heard_at: now, ..member });
        }
    }

    /// It says that it sits at this rank of the running generation.
    pub fn sits(&mut self, id: WorkerId, rank: Rank) {
        if let Some(m) = self.by_id.get_mut(&id) {
            m.rank = Some(rank);
            m.idle_since = None;
        }
    }

    pub fn remove(&mut self, id: WorkerId) -> Option<Member> {
        let member = self.by_id.remove(&id)?;
        self.leaving -= usize::from(member.leaving.is_some());
        self.by_name.remove(&member.name);
        Some(member)
    }

    /// The worker wants to go. True if that is new.
    pub fn leaves(&mut self, id: WorkerId, reason: String) -> bool {
        let Some(m) = self.by_id.get_mut(&id).filter(|m| m.leaving.is_none()) else { return false };
        m.leaving = Some(reason);
        self.leaving += 1;
        true
    }

    /// How many do not want to go.
    pub fn staying(&self) -> usize {
        self.by_id.len() - self.leaving
    }

    /// Some want to go.
    pub fn any_leaving(&self) -> bool {
        self.leaving > 0
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
            m.has_state |= beat.step > Step(0);
            m.beat = beat;
        }
    }

    /// Their generation has done a step.
    pub fn have_state(&mut self, workers: impl Iterator<Item = WorkerId>) {
        for id in workers {
            if let Some(m) = self.by_id.get_mut(&id) {
                m.has_state = true;
            }
        }
    }

    /// The coordinator itself stood still for `gap` (suspended, stopped): that is nobody's silence.
    pub fn forgive(&mut self, gap: Duration) {
        for m in self.by_id.values_mut() {
            m.heard_at.0 += gap;
            m.progress_at.0 += gap;
        }
    }

    /// Those who would form the next generation. Where there are too many, newcomers stand by. A node gets
    /// the ranks that it had (see [`Chairs`]).
    pub fn roster(&self, generation: Generation, most: u32) -> Roster {
        let mut all: Vec<&Member> = self.by_id.values().collect();
        all.sort_by_key(|m| (m.rank.is_none(), m.rank, &m.node, &m.device, &m.name, m.id));
        all.truncate(most as usize);
        let nodes: Vec<&str> = all.iter().map(|m| m.node.as_str()).collect();
        let (order, chairs) = self.chairs.seat(&nodes);
        let sitters: Vec<&Member> = order.into_iter().map(|i| all[i]).collect();
        Roster {
            workers: sitters.iter().map(|m| m.id).collect(),
            membership: Membership {
                generation,
                names: sitters.iter().map(|m| m.name.clone()).collect(),
                nodes: sitters.iter().map(|m| m.node.clone()).collect(),
                chairs: chairs.into_nodes(),
            },
        }
    }

    /// Gives the ranks of a new generation; everyone else stands at the door.
    pub fn seat(&mut self, now: Now, roster: &Roster) {
        self.chairs = Chairs::of(roster.membership.chairs.clone());
        for m in self.by_id.values_mut() {
            m.rank = None;
        }
        for (rank, id) in roster.workers.iter().enumerate() {
            if let Some(m) = self.by_id.get_mut(id) {
                m.rank = Some(Rank(rank as u32));
                m.pace = Pace::default();
                // Idle time is not stuck time; what came before it is.
                if let Some(idle) = m.idle_since.take() {
                    m.progress_at = now.min(Now(m.progress_at.0 + now.since(idle)));
                }
            }
        }
    }

    /// This worker has come out of its generation: it is not expected to move until the next.
    pub fn rests(&mut self, now: Now, id: WorkerId) {
        if let Some(m) = self.by_id.get_mut(&id) {
            m.idle_since.get_or_insert(now);
        }
    }

    /// The generation is over: nobody is expected to move until the next.
    pub fn dismiss(&mut self, now: Now) {
        for m in self.by_id.values_mut() {
            m.idle_since.get_or_insert(now);
        }
    }

    /// Those who would like to take part but are not in the running generation, and since when the first waits.
    pub fn at_the_door(&self, r: &Running) -> Option<(Now, Vec<&Member>)> {
        let outside = |m: &&Member| r.rank_of(m.id).is_none() && m.leaving.is_none();
        let waiting: Vec<&Member> = self.by_id.values().filter(outside).collect();
        let first = waiting.iter().filter_map(|m| m.idle_since).min()?;
        Some((first, waiting))
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
