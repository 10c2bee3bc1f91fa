//! A proxy before an HTTP endpoint, such as an S3 server, that does to requests what networks and
//! servers do on bad days: seeded, changeable while it runs, and it counts what it did.
//!
//! Requests are passed on as they came, Host and signature included, so signed requests stay valid.
//!
//! ```text
//! rules.rs    which request gets which fault: pure
//! connect.rs  one client's connection: faults applied
//! ```

mod connect;
mod rules;

pub use rules::{Fault, Request, Rule};

use rules::Dice;
use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};
use tokio::sync::oneshot;

/// What a proxy has seen and done.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub requests: u64,
    /// By method.
    pub methods: BTreeMap<String, u64>,
    /// By the fault's name.
    pub faults: BTreeMap<&'static str, u64>,
    /// Bytes of the bodies of answers that were passed on.
    pub bytes: u64,
    /// The most requests under way at once.
    pub most_at_once: u64,
    /// Connections that clients opened.
    pub connections: u64,
}

/// A running proxy. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What all connections share.
#[derive(Debug)]
struct State {
    upstream: SocketAddr,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    dice: Dice,
    counts: Counts,
    at_once: u64,
}

impl Proxy {
    /// Listens on a fresh local port before `upstream`, like `http://127.0.0.1:8333`.
    ///
    /// # Errors
    /// An upstream that is no plain-HTTP address, or no port.
    pub fn start(upstream: &str, seed: u64, rules: Vec<Rule>) -> io::Result<Self> {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), upstream, seed, rules)
    }

    /// Likewise at a given address.
    ///
    /// # Errors
    /// As [`Proxy::start`].
    pub fn listen(address: SocketAddr, upstream: &str, seed: u64, rules: Vec<Rule>) -> io::Result<Self> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{upstream:?}: {why}"));
        let host = upstream.strip_prefix("http://").ok_or_else(|| bad("give http://host:port"))?;
        let found = host.trim_end_matches('/').to_socket_addrs()?.next();
        let upstream = found.ok_or_else(|| bad("there is no such host"))?;
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Shared { dice: Dice::new(seed, rules), counts: Counts::default(), at_once: 0 };
        let state = Arc::new(State { upstream, shared: Mutex::new(shared) });
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = state.clone();
        // Its own thread: it answers also while a test's thread computes or blocks.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("fault-proxy".into()).spawn(move || {
            runtime.block_on(async {
                // Registers a socket that is open already.
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    _ = stopped => {}
                    () = connect::serve(listener, serving) => {}
                }
            });
        })?;
        Ok(Self { address, state, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Other rules from now on.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.state.shared().dice.set_rules(rules);
    }

    /// What it has seen and done so far.
    pub fn counts(&self) -> Counts {
        self.state.shared().counts.clone()
    }

    /// The counts so far, which begin anew.
    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.state.shared().counts)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl State {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
