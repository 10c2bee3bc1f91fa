//! What a worker must not forget between two connections: the newest coordinator, its place in the generation, and
//! reports that were not answered yet. Pure.

use proto::v1::{Directive, Hello, WorkerMessage, directive, worker_message::Kind};
use std::collections::VecDeque;

/// So many of the last steps and evaluations are told again after a break: nobody answers them, and the last ones
/// may have been lost on the way. Whoever reads the metrics takes the latest of each step.
const TOLD_AGAIN: usize = 4096;

/// One worker's standing with the coordinators of its job.
#[derive(Debug)]
pub struct Standing {
    hello: Hello,
    /// Generation and rank, from its assignment to its end.
    place: Option<(u64, u32)>,
    /// The newest epoch of a coordinator that was heard.
    epoch: u64,
    /// Reports that wait for their answer, oldest first.
    unanswered: Vec<Kind>,
    recent: VecDeque<Kind>,
}

impl Standing {
    /// Of a worker that introduces itself by `hello`.
    pub fn new(hello: Hello) -> Self {
        Self { hello, place: None, epoch: 0, unanswered: vec![], recent: VecDeque::new() }
    }

    /// What a connection begins with: the Hello, and all that an earlier one may have lost.
    pub fn opening(&self) -> Vec<WorkerMessage> {
        let (generation, rank) = self.place.unwrap_or_default();
        let hello = Hello { generation, rank, coordinator: self.epoch, ..self.hello.clone() };
        let again = self.recent.iter().chain(&self.unanswered).cloned();
        [Kind::Hello(hello)].into_iter().chain(again).map(|k| WorkerMessage { kind: Some(k) }).collect()
    }

    /// Takes note of a message that goes out.
    pub fn says(&mut self, kind: &Kind) {
        match kind {
            Kind::Shard(_) | Kind::Failed(_) | Kind::Finished(_) | Kind::Left(_) | Kind::Leaving(_) => {
                self.unanswered.push(kind.clone());
            }
            Kind::Step(_) | Kind::Eval(_) => {
                if self.recent.len() == TOLD_AGAIN {
                    self.recent.pop_front();
                }
                self.recent.push_back(kind.clone());
            }
            Kind::Hello(_) | Kind::Beat(_) | Kind::Log(_) => {}
        }
    }

    /// Takes note of a directive. `None`: there is nothing to obey, because it is empty or comes from a coordinator
    /// that has been superseded.
    pub fn hears(&mut self, directive: Directive) -> Option<directive::Kind> {
        if directive.coordinator < self.epoch {
            return None;
        }
        self.epoch = directive.coordinator;
        let kind = directive.kind?;
        match &kind {
            directive::Kind::Assigned(a) => {
                self.place = Some((a.generation, a.rank));
                self.recent.clear();
                self.unanswered.retain(|k| matches!(k, Kind::Shard(_) | Kind::Leaving(_)));
            }
            directive::Kind::Stop(s) => self.place = self.place.filter(|(g, _)| *g > s.generation),
            directive::Kind::Committed(c) => {
                self.unanswered.retain(|k| !matches!(k, Kind::Shard(s) if s.step <= c.step));
            }
            directive::Kind::Shutdown(_) => self.unanswered.clear(),
            directive::Kind::Welcome(_) | directive::Kind::Leave(_) | directive::Kind::CheckpointNow(_) => {}
        }
        Some(kind)
    }

    /// The newest coordinator epoch that was heard.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1;

    fn said(epoch: u64, kind: directive::Kind) -> Directive {
        Directive { kind: Some(kind), coordinator: epoch }
    }

    fn assigned(generation: u64) -> directive::Kind {
        directive::Kind::Assigned(v1::Assigned { generation, rank: 1, world_size: 2, ..Default::default() })
    }

    fn shard(step: u64) -> Kind {
        Kind::Shard(v1::CheckpointShard { step, ..Default::default() })
    }

    fn opening(s: &Standing) -> (Hello, Vec<Kind>) {
        let mut all = s.opening().into_iter().filter_map(|m| m.kind);
        let Some(Kind::Hello(hello)) = all.next() else { panic!("no Hello") };
        (hello, all.collect())
    }

    #[test]
    fn a_superseded_coordinator_is_not_obeyed() {
        let mut s = Standing::new(Hello::default());
        assert!(s.hears(said(3, assigned(7))).is_some());
        assert!(s.hears(said(2, assigned(8))).is_none());
        assert!(s.hears(Directive { kind: None, coordinator: 4 }).is_none());
        assert!(s.hears(said(3, assigned(8))).is_none(), "the fourth has spoken");
        let (hello, _) = opening(&s);
        assert_eq!((hello.generation, hello.rank, hello.coordinator), (7, 1, 4));
    }

    #[test]
    fn it_sits_in_its_generation_until_that_is_stopped() {
        let mut s = Standing::new(Hello::default());
        let stop = |generation| directive::Kind::Stop(v1::Stop { generation, reason: String::new() });
        s.hears(said(1, assigned(7)));
        s.says(&Kind::Left(v1::Left { generation: 7, step: 3 }));
        s.hears(said(1, stop(6)));
        assert_eq!(opening(&s).0.generation, 7, "an earlier one was meant");
        s.hears(said(1, stop(7)));
        let (hello, again) = opening(&s);
        assert_eq!((hello.generation, again.len()), (0, 1));
    }

    #[test]
    fn reports_are_kept_until_they_are_answered() {
        let mut s = Standing::new(Hello::default());
        s.hears(said(1, assigned(7)));
        for kind in [
            shard(10),
            shard(20),
            Kind::Leaving(v1::Leaving { reason: "SIGTERM".into() }),
            Kind::Finished(v1::Finished { generation: 7, step: 20 }),
            Kind::Beat(v1::Beat::default()),
            Kind::Log(v1::Log::default()),
        ] {
            s.says(&kind);
        }
        assert_eq!(opening(&s).1.len(), 4);
        s.hears(said(1, directive::Kind::Committed(v1::Committed { step: 10 })));
        assert_eq!(opening(&s).1.first(), Some(&shard(20)));
        s.hears(said(1, assigned(8)));
        let (_, again) = opening(&s);
        assert!(matches!(again[..], [Kind::Shard(_), Kind::Leaving(_)]), "{again:?}");
        s.hears(said(1, directive::Kind::Shutdown(v1::Shutdown::default())));
        assert_eq!(opening(&s).1, []);
    }

    #[test]
    fn the_last_steps_are_told_again() {
        let mut s = Standing::new(Hello::default());
        s.hears(said(1, assigned(1)));
        let last = TOLD_AGAIN as u64 + 44;
        for step in 1..=last {
            s.says(&Kind::Step(v1::StepReport { step, ..Default::default() }));
        }
        let steps: Vec<u64> = opening(&s)
            .1
            .into_iter()
            .filter_map(|k| match k {
                Kind::Step(r) => Some(r.step),
                _ => None,
            })
            .collect();
        assert_eq!(steps, (45..=last).collect::<Vec<u64>>());
    }
}
