//! Who sits where. A rank owns a part of the dataset's lanes, and a node's cache holds the clips of its
//! workers' lanes: so a node that stays, or comes back, gets the ranks it had. Pure.

use std::collections::{HashMap, VecDeque};

/// The node of each chair in the order of ranks, vacant ones included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chairs(Vec<String>);

impl Chairs {
    /// As the journal kept them.
    pub fn of(nodes: Vec<String>) -> Self {
        Self(nodes)
    }

    /// The node of each chair.
    pub fn into_nodes(self) -> Vec<String> {
        self.0
    }

    /// Seats workers, given by their nodes: the places in `nodes` in the order of ranks, and the chairs
    /// afterwards. A worker takes a vacant chair of its node, or a new one beside its node's, or else the
    /// first that any node left vacant.
    pub fn seat(&self, nodes: &[&str]) -> (Vec<usize>, Chairs) {
        let mut chairs: Vec<(String, Option<usize>)> = self.0.iter().map(|n| (n.clone(), None)).collect();
        let mut strangers = Vec::new();
        let mut free: HashMap<&str, VecDeque<usize>> = HashMap::new();
        for (chair, node) in self.0.iter().enumerate() {
            free.entry(node).or_default().push_back(chair);
        }
        for (i, node) in nodes.iter().enumerate() {
            match free.get_mut(node).and_then(VecDeque::pop_front) {
                Some(chair) => chairs[chair].1 = Some(i),
                None => strangers.push(i),
            }
        }
        for i in strangers {
            let node = nodes[i];
            let beside = chairs.iter().rposition(|(n, sitter)| n == node && sitter.is_some());
            let vacant = chairs.iter().position(|(_, sitter)| sitter.is_none());
            match (beside, vacant) {
                (Some(mate), _) => chairs.insert(mate + 1, (node.into(), Some(i))),
                (None, Some(chair)) => chairs[chair] = (node.into(), Some(i)),
                (None, None) => chairs.push((node.into(), Some(i))),
            }
        }
        let order = chairs.iter().filter_map(|(_, sitter)| *sitter).collect();
        (order, Chairs(chairs.into_iter().map(|(node, _)| node).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{hello, settings};
    use super::super::{Action, Core, Directive, Event, Found, Hello, Now, Settings, WorkerId};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    /// Nobody is let in while a generation runs.
    const LONG: Duration = Duration::from_secs(3600);

    fn seated<'a>(chairs: &mut Chairs, nodes: &[&'a str]) -> Vec<&'a str> {
        let (order, after) = chairs.seat(nodes);
        *chairs = after;
        order.into_iter().map(|i| nodes[i]).collect()
    }

    #[test]
    fn who_comes_back_gets_its_chair_and_a_stranger_takes_a_vacant_one() {
        let mut chairs = Chairs::default();
        assert_eq!(seated(&mut chairs, &["a", "a", "b", "c", "c"]), ["a", "a", "b", "c", "c"]);
        assert_eq!(seated(&mut chairs, &["a", "c", "c"]), ["a", "c", "c"]);
        assert_eq!(seated(&mut chairs, &["c", "c", "a", "b", "a"]), ["a", "a", "b", "c", "c"]);
        assert_eq!(seated(&mut chairs, &["a", "a", "c", "c", "x"]), ["a", "a", "x", "c", "c"]);
        assert_eq!(seated(&mut chairs, &["a", "a", "c", "c", "x", "b"]), ["a", "a", "x", "c", "c", "b"]);
        assert_eq!(seated(&mut chairs, &["a", "a", "a", "c", "x"]), ["a", "a", "a", "x", "c"]);
    }

    proptest! {
        #[test]
        fn everyone_sits_once_and_whoever_stays_keeps_the_order(
            rounds in proptest::collection::vec(proptest::collection::btree_set(0..8u32, 0..8), 1..12),
        ) {
            let mut chairs = Chairs::default();
            let mut last: Vec<String> = Vec::new();
            for round in rounds {
                let names: Vec<String> = round.iter().map(u32::to_string).collect();
                let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
                let (order, after) = chairs.seat(&nodes);
                chairs = after;
                prop_assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), nodes.len());
                prop_assert_eq!(order.len(), nodes.len());
                let now: Vec<String> = order.iter().map(|&i| nodes[i].to_string()).collect();
                let stay = |a: &[String], b: &[String]| -> Vec<String> {
                    a.iter().filter(|n| b.contains(n)).cloned().collect()
                };
                prop_assert_eq!(stay(&now, &last), stay(&last, &now));
                // Every chair has another node here, and nobody of them is forgotten for nothing.
                prop_assert!(chairs.0.len() <= 8);
                last = now;
            }
        }
    }

    /// Eight hosts; three leave, two of them come back as new processes: the last generation's members.
    #[test]
    fn a_host_that_rejoins_the_job_gets_its_ranks_again() {
        let settings =
            Settings { workers: 4, min_workers: 1, max_workers: 8, join_window: LONG, ..settings() };
        let mut core = Core::new(settings, Found::default());
        let mut now = Now::default();
        let mut give = |core: &mut Core, event: Event| {
            let mut members = None;
            let mut events = vec![event];
            while let Some(event) = events.pop() {
                for action in core.handle(now, event) {
                    match action {
                        Action::Record(m) => events.push(Event::Recorded { generation: m.generation }),
                        Action::Send { directive: Directive::Assigned { members: m, .. }, .. } => {
                            members = Some(m.to_vec())
                        }
                        _ => {}
                    }
                }
            }
            now.0 += Duration::from_secs(1);
            members
        };
        let join = |id: u64, host: &str| {
            let name = format!("{host}-{id}-cpu");
            Event::Hello { worker: WorkerId(id), hello: Hello { name, node: host.into(), ..hello(id) } }
        };
        let leave = |id: u64| Event::Disconnected { worker: WorkerId(id), why: "it was killed".into() };
        for (id, host) in [(10, "h0"), (9, "h1"), (8, "h2")] {
            assert_eq!(give(&mut core, join(id, host)), None);
        }
        let first = give(&mut core, join(7, "h3")).unwrap();
        assert_eq!(first, ["h0-10-cpu", "h1-9-cpu", "h2-8-cpu", "h3-7-cpu"]);
        give(&mut core, leave(9));
        assert_eq!(give(&mut core, Event::Tick).unwrap(), ["h0-10-cpu", "h2-8-cpu", "h3-7-cpu"]);
        // A newcomer waits at the door for the generation after; here one is forced by another loss.
        give(&mut core, join(99, "h1"));
        give(&mut core, leave(8));
        let again = give(&mut core, Event::Tick).unwrap();
        assert_eq!(again, ["h0-10-cpu", "h1-99-cpu", "h3-7-cpu"], "before h3, as at first");
        give(&mut core, join(100, "h2"));
        give(&mut core, leave(10));
        assert_eq!(give(&mut core, Event::Tick).unwrap(), ["h1-99-cpu", "h2-100-cpu", "h3-7-cpu"]);
    }
}
