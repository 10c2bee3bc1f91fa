//! Coordinator and workers on a network of their own that is cut here and there: from the coordinator but not from
//! peers, from peers but not from the coordinator, in one direction only, all of it; and healed again.
//!
//! On a busy machine a worker may also be missed without a cut, so that there can be more generations than cuts: what
//! counts is the ledger. Where nothing may happen, the time-outs are longer than any test.

use rustix::process::Signal;
use serde_json::Value;
use tests::{
    cluster::{COORDINATOR, Cluster},
    job::Job,
    netns::Net,
    small::SWIN,
};

/// A job of two workers on hosts of their own; it runs until it is told to stop.
struct Running {
    cluster: Cluster,
    coordinator: Job,
    workers: Vec<Job>,
    /// The hosts of ranks 0 and 1, as they were at first.
    hosts: [u8; 2],
}

impl Running {
    /// After some steps. `None`: there can be no network here.
    fn start(overrides: &[&str]) -> Option<Self> {
        let net = Net::new(3)?;
        let common = [
            "train.epochs=2000",
            "train.max_steps=16000",
            // Over hundreds of steps rounding grows, the faster the larger the rate.
            "optimizer.lr=1e-5",
            "cluster.workers=2",
            // A trainer may be given up again before its first step.
            "cluster.restarts=1000",
        ];
        let cluster = Cluster::new(SWIN, &[&common, overrides].concat()).on_network(net);
        let (mut coordinator, address) = cluster.coordinator("cut", 0, &[]);
        let workers = [1, 2].map(|host| cluster.worker(host, &address));
        let members = coordinator.wait_line(&["generation 1: 2 worker"]);
        let first = members.split("worker(s): ").nth(1).and_then(|names| names.split(", ").next());
        let first = first.expect("a name").to_string();
        let is_first = |worker: &Job| {
            let trainer = worker.find_process(&["marey-worker trainer"]).expect("a trainer");
            first.contains(&format!("-{trainer}-"))
        };
        let hosts = if is_first(&workers[0]) { [1, 2] } else { [2, 1] };
        coordinator.wait_line(&["step 11 of"]);
        Some(Self { cluster, coordinator, workers: workers.into(), hosts })
    }

    fn net(&self) -> &Net {
        self.cluster.net()
    }

    /// The job goes on without the one that was cut off, and once all is healed with both again.
    fn goes_on_with_one_then_both(&mut self) {
        self.coordinator.wait_line(&["lost worker"]);
        self.coordinator.wait_line(&[": 1 worker"]);
        self.coordinator.wait_step();
        self.net().heal();
        self.hosts.iter().for_each(|host| self.net().plug(*host, true));
        self.coordinator.wait_line(&[": 2 worker"]);
        self.coordinator.wait_step();
    }

    /// The collective fails at both ends, and they try again until the network is whole.
    fn breaks_off_and_goes_on(&mut self) {
        self.coordinator.wait_any(&[&["generation ", " is over"], &["lost worker"]]);
        self.net().heal();
        self.coordinator.wait_line(&[": 2 worker"]);
        self.coordinator.wait_step();
    }

    /// Told to stop. The ledger must be that of an undisturbed run, to the last bit where the number of workers was
    /// always two. Returns the world sizes and what was told of incidents.
    fn stop(self) -> (Vec<usize>, Vec<Value>) {
        self.coordinator.signal(Signal::TERM);
        self.coordinator.finish();
        let said: Vec<String> = self.workers.into_iter().map(Job::finish).collect();
        let ledger = self.cluster.ledger("cut", &said);
        match ledger.worlds().iter().all(|world| *world == 2) {
            true => ledger.equals(&self.cluster.straight(2, ledger.steps())),
            false => ledger.follows(&self.cluster.straight(1, ledger.steps())),
        }
        (ledger.worlds().to_vec(), ledger.incidents())
    }
}

/// Both ways; what it says is lost; what it is told is lost; its cable is out.
#[test]
fn a_worker_is_cut_from_the_coordinator_in_every_way() {
    let Some(mut job) = Running::start(&["cluster.collective_timeout=30s"]) else { return };
    let [first, second] = job.hosts;
    job.net().cut(second, COORDINATOR);
    job.goes_on_with_one_then_both();
    job.net().drop_packets(second, COORDINATOR);
    job.goes_on_with_one_then_both();
    job.net().drop_packets(COORDINATOR, second);
    job.goes_on_with_one_then_both();
    job.net().plug(second, false);
    job.goes_on_with_one_then_both();
    // The one that reports what was done.
    job.net().drop_packets(first, COORDINATOR);
    job.goes_on_with_one_then_both();
    let (worlds, _) = job.stop();
    assert!(worlds.starts_with(&[2, 1]) && worlds.ends_with(&[1, 2]), "{worlds:?}");
    assert!(worlds.iter().filter(|w| **w == 1).count() >= 5, "{worlds:?}");
}

/// Both ways, and in one direction.
#[test]
fn peers_are_cut_from_each_other_but_not_from_the_coordinator() {
    let Some(mut job) = Running::start(&["cluster.min_workers=2", "cluster.collective_timeout=5s"]) else {
        return;
    };
    let [first, second] = job.hosts;
    job.net().cut(first, second);
    job.breaks_off_and_goes_on();
    job.net().drop_packets(first, second);
    job.breaks_off_and_goes_on();
    let (worlds, incidents) = job.stop();
    assert!(worlds.len() >= 3 && worlds.iter().all(|w| *w == 2), "{worlds:?}");
    let collectives: Vec<&str> = incidents.iter().filter_map(|i| i["collective"].as_str()).collect();
    assert!(collectives.iter().any(|c| c.contains(", number ")), "{incidents:?}");
}

/// Everybody is cut from the coordinator for less than its patience: training goes on meanwhile.
#[test]
fn a_short_cut_from_the_coordinator_costs_nothing() {
    let patient =
        ["cluster.beat_timeout=300s", "cluster.collective_timeout=300s", "cluster.step_timeout=600s"];
    let Some(mut job) = Running::start(&patient) else { return };
    job.hosts.iter().for_each(|host| job.net().cut(*host, COORDINATOR));
    job.workers[0].wait_line(&["the connection to the coordinator", "broke"]);
    job.workers[0].wait_line(&["step "]);
    job.net().heal();
    job.workers.iter_mut().for_each(|worker| drop(worker.wait_line(&["the coordinator is at", "again"])));
    job.coordinator.wait_step();
    assert_eq!(job.stop().0, [2]);
}
