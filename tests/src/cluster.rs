//! A job as a coordinator and workers of its own, each of which a test can disturb: on this machine, or on the hosts
//! of a network that can be cut; its run in a folder, or on an S3 server behind the fault proxy.

use crate::{
    access::Credentials,
    job::{self, Job},
    ledger::Ledger,
    netns::Net,
    proxy::{Proxy, Rule},
    small::Fixture,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use storage::Location;
use xtask::s3::Server;

/// The host of the coordinator, where there is a network; workers sit on 1, 2 and so on.
pub const COORDINATOR: u8 = 0;

/// What a job is started with, again and again.
pub struct Cluster {
    fixture: Fixture,
    config: PathBuf,
    overrides: Vec<String>,
    net: Option<Net>,
    store: Option<Store>,
    credentials: Option<Credentials>,
}

/// An S3 server, and what stands before it.
struct Store {
    proxy: Proxy,
    server: Server,
}

impl Cluster {
    /// A job that writes one checkpoint, at its end, unless the overrides say otherwise.
    pub fn new(recipe: &str, overrides: &[&str]) -> Self {
        let fixture = Fixture::new();
        let config = fixture.config("job.toml", recipe);
        let common = [
            fixture.data(),
            "checkpoint.every_steps=100000",
            "cluster.beat_timeout=3s",
            "cluster.join_window=0.1s",
            "cluster.gather=60s",
        ];
        let overrides = common.iter().chain(overrides).map(|s| s.to_string()).collect();
        Self { fixture, config, overrides, net: None, store: None, credentials: None }
    }

    /// The same on a network.
    pub fn on_network(self, net: Net) -> Self {
        Self { net: Some(net), ..self }
    }

    /// The same with its runs on S3.
    pub fn on_s3(self) -> Self {
        let server = Server::start(&self.fixture.run("s3"), "marey").expect("an S3 server");
        let proxy = Proxy::start(&server.endpoint(), 1, vec![]).expect("a proxy");
        Self { store: Some(Store { proxy, server }), ..self }
    }

    /// The same with a token and certificates, which every program must show.
    pub fn guarded(self) -> Self {
        let credentials = Credentials::write(&self.fixture.run("credentials"));
        Self { credentials: Some(credentials), ..self }
    }

    /// The network.
    pub fn net(&self) -> &Net {
        self.net.as_ref().expect("a job on a network")
    }

    /// The same, on S3, with its dataset there too.
    pub fn with_data_on_s3(mut self) -> Self {
        let url = "s3://marey/clips";
        let from = self.fixture.data().trim_start_matches("data.url=");
        let from = Location::parse(from).expect("a location");
        let to = Location::parse_with(url, &self.store().server.env()).expect("a location");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            for object in from.list("").await.expect("the dataset's files") {
                to.copy_from(&object.key, &from, &object.key).await.expect("copied");
            }
        });
        self.overrides.push(format!("data.url={url}"));
        self
    }

    /// What befalls requests to the store from now on, as the proxy's rules in words.
    pub fn store_faults(&self, rules: &[(&str, Option<u64>)]) {
        let rule =
            |(text, limit): &(&str, Option<u64>)| Rule { limit: *limit, ..text.parse().expect("a rule") };
        self.store().proxy.set_rules(rules.iter().map(rule).collect());
    }

    /// How often each fault befell a request since this was asked last.
    pub fn faults(&self) -> std::collections::BTreeMap<&'static str, u64> {
        self.store().proxy.take_counts().faults
    }

    /// Starts a coordinator of the run and waits for its address. Port 0 is any.
    pub fn coordinator(&self, run: &str, port: u16, overrides: &[&str]) -> (Job, String) {
        let command = self.coordinator_command(run, port, overrides);
        let mut job = self.start(COORDINATOR, command);
        let address = job.listening();
        (job, address)
    }

    /// The command that starts it.
    pub fn coordinator_command(&self, run: &str, port: u16, overrides: &[&str]) -> Command {
        let all: Vec<&str> =
            self.overrides.iter().map(String::as_str).chain(overrides.iter().copied()).collect();
        let host = self.net.as_ref().map_or("127.0.0.1".into(), |net| net.address(COORDINATOR).to_string());
        let mut command = job::coordinator(&self.config, &self.run_url(run), &format!("{host}:{port}"), &all);
        if self.net.is_some() {
            command.arg("--insecure");
        }
        if let Some(credentials) = &self.credentials {
            command.envs(credentials.env("coordinator"));
        }
        command
    }

    /// Starts a worker with one trainer on a host.
    pub fn worker(&self, host: u8, address: &str) -> Job {
        let mut command = job::worker(address);
        if let Some(credentials) = &self.credentials {
            command.envs(credentials.env("worker"));
        }
        self.start(host, command)
    }

    /// Starts a prepared command on a host, which matters only where there is a network.
    pub fn start(&self, host: u8, mut command: Command) -> Job {
        if let Some(store) = &self.store {
            command.envs(store.server.env()).env("AWS_ENDPOINT_URL", store.proxy.endpoint());
        }
        match &self.net {
            Some(net) => net.on(host, || Job::start(command)),
            None => Job::start(command),
        }
    }

    /// What a run of `workers` is that nothing disturbs, on this machine and in a folder.
    #[track_caller]
    pub fn straight(&self, workers: usize, steps: u64) -> Ledger {
        let run = self.fixture.run("straight");
        let more = [
            format!("cluster.workers={workers}"),
            format!("cluster.min_workers={workers}"),
            format!("train.max_steps={steps}"),
            // However busy the machine is.
            "cluster.beat_timeout=300s".into(),
            "cluster.collective_timeout=300s".into(),
        ];
        let all: Vec<&str> = self.overrides.iter().chain(&more).map(String::as_str).collect();
        let (coordinator, address) = Job::coordinator(&self.config, &run, "127.0.0.1:0", &all);
        let workers: Vec<Job> = (0..workers).map(|_| Job::worker(&address)).collect();
        coordinator.finish();
        let said: Vec<String> = workers.into_iter().map(Job::finish).collect();
        Ledger::read(&run, &said, true)
    }

    /// What has become of a run; `said` is all that its workers said, dead ones too.
    #[track_caller]
    pub fn ledger(&self, run: &str, said: &[String]) -> Ledger {
        Ledger::read(&self.folder(run), said, true)
    }

    /// Likewise of one whose coordinator and workers died together: the last reports may be missing.
    #[track_caller]
    pub fn ledger_with_gaps(&self, run: &str, said: &[String]) -> Ledger {
        Ledger::read(&self.folder(run), said, false)
    }

    /// The run as it is now, in a folder.
    pub fn folder(&self, run: &str) -> PathBuf {
        let folder = self.fixture.run(run);
        if let Some(store) = &self.store {
            // Straight from the server, past the proxy.
            let from = Location::parse_with(&self.run_url(run), &store.server.env()).expect("a location");
            let to = Location::parse(text(&folder)).expect("a location");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                for object in from.list("").await.expect("the run's objects") {
                    // What is collected meanwhile is of no interest.
                    if let Ok(bytes) = from.get(&object.key).await {
                        to.put(&object.key, bytes).await.expect("copied");
                    }
                }
            });
        }
        folder
    }

    fn run_url(&self, run: &str) -> String {
        match &self.store {
            Some(_) => format!("s3://marey/runs/{run}"),
            None => text(&self.fixture.run(run)).into(),
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("a job on S3")
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
