//! What cost the job time: noted when it happens, told when the job has gone on.

use super::types::{Generation, Now, Rank, Step};
use super::{ExitReport, Member, Running};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, time::Duration};

/// A supervisor's report of an end is waited for this long, and belongs to a loss that is no older.
const EXIT_GRACE: Duration = Duration::from_secs(3);
/// Exit reports that came before the loss they explain.
const REPORTS: usize = 256;

/// Kinds of incidents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    Lost,
    Failed,
    Joined,
    Left,
    Straggler,
    Coordinator,
}

impl What {
    /// As the contract calls it.
    pub fn name(self) -> &'static str {
        match self {
            What::Lost => "lost",
            What::Failed => "failed",
            What::Joined => "joined",
            What::Left => "left",
            What::Straggler => "straggler",
            What::Coordinator => "coordinator",
        }
    }
}

/// Something that cost the job time, or may.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub generation: Generation,
    #[serde(rename = "incident")]
    pub what: What,
    pub worker: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<Rank>,
    pub host: String,
    pub step: Step,
    pub phase: String,
    /// In which the worker was when it was heard last, and its number in the generation; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub collective: String,
    /// Over which it failed, where it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub clip: String,
    pub cause: String,
    /// From when it was noticed to the next step.
    pub seconds: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
}

impl Incident {
    /// Something about the whole generation.
    pub fn of_generation(r: &Running, what: What, worker: String, cause: String) -> Self {
        Self {
            generation: r.generation,
            what,
            worker,
            rank: None,
            host: String::new(),
            step: r.step.unwrap_or_default(),
            phase: String::new(),
            collective: String::new(),
            clip: String::new(),
            cause,
            seconds: 0.0,
            last_lines: vec![],
        }
    }

    /// Something about one member of it.
    pub fn of_member(r: &Running, what: What, member: &Member, rank: Option<Rank>, cause: String) -> Self {
        Self {
            rank,
            host: member.node.clone(),
            step: r.step.unwrap_or_default().max(member.beat.step),
            phase: member.phase().into(),
            collective: member.beat.collective.clone(),
            clip: member.beat.clip.clone(),
            ..Self::of_generation(r, what, member.name.clone(), cause)
        }
    }
}

/// Incidents of which the cost is not known yet.
#[derive(Clone, Debug, Default)]
pub struct Incidents {
    open: Vec<Open>,
    exits: VecDeque<(Now, ExitReport)>,
}

#[derive(Clone, Debug)]
struct Open {
    at: Now,
    /// The job has gone on.
    over: bool,
    /// Nothing more will be learnt of its cause.
    explained: bool,
    incident: Incident,
}

impl Incidents {
    /// Something happened.
    pub fn note(&mut self, now: Now, incident: Incident) {
        let explained = !matches!(incident.what, What::Lost | What::Failed);
        let mut open = Open { at: now, over: false, explained, incident };
        let known =
            |(at, r): &(Now, ExitReport)| r.worker == open.incident.worker && now.since(*at) <= EXIT_GRACE;
        if let Some(place) = self.exits.iter().position(known)
            && let Some((_, report)) = self.exits.remove(place)
        {
            open.explain(report);
        }
        self.open.push(open);
    }

    /// A trainer ended, says its supervisor.
    pub fn exited(&mut self, now: Now, report: ExitReport) {
        let of_it = |o: &&mut Open| !o.explained && o.incident.worker == report.worker;
        if let Some(open) = self.open.iter_mut().find(of_it) {
            return open.explain(report);
        }
        self.exits.push_back((now, report));
        if self.exits.len() > REPORTS {
            self.exits.pop_front();
        }
    }

    /// The job has done a step.
    pub fn step(&mut self, now: Now) {
        for open in self.open.iter_mut().filter(|o| !o.over) {
            open.over = true;
            open.incident.seconds = now.since(open.at).as_secs_f64();
        }
    }

    /// Those that are over and explained, or as well explained as they will ever be.
    pub fn settled(&mut self, now: Now) -> Vec<Incident> {
        let ripe = |o: &mut Open| o.over && (o.explained || now.since(o.at) > EXIT_GRACE);
        self.open.extract_if(.., ripe).map(|o| o.incident).collect()
    }

    /// The job ends: all of them, whatever they have cost so far.
    pub fn close(&mut self, now: Now) -> Vec<Incident> {
        self.step(now);
        std::mem::take(&mut self.open).into_iter().map(|o| o.incident).collect()
    }
}

impl Open {
    fn explain(&mut self, report: ExitReport) {
        self.explained = true;
        self.incident.cause = format!("{}: {}", self.incident.cause, report.cause);
        self.incident.last_lines = report.last_lines;
    }
}
