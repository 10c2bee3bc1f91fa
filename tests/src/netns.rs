//! A small network on this machine, whose hosts can be cut off from each other in the middle of a job.
//!
//! Each host is a network namespace of its own with one interface; a bridge in one more namespace joins them. Nothing
//! of it touches the machine's own network. It takes root, and the programs `ip` and `iptables`.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::File,
    io::Write,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::Path,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// Names of namespaces begin so; the process that made them follows.
const PREFIX: &str = "marey-test";

static MADE: AtomicU32 = AtomicU32::new(0);

/// The network. Dropping it removes it.
pub struct Net {
    name: String,
    hosts: u8,
}

impl Net {
    /// A network of `hosts` hosts, numbered from 0. `None`, said aloud, where this process may not make one.
    pub fn new(hosts: u8) -> Option<Self> {
        if let Some(why) = obstacle() {
            eprintln!("SKIPPED: {why}");
            return None;
        }
        remove_leftovers();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let net = Self { name: format!("{PREFIX}-{}-{number}", std::process::id()), hosts };
        net.build();
        Some(net)
    }

    /// Where the others reach this host.
    pub fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, host + 1)
    }

    /// Runs `f` on this host: sockets that it opens and processes that it starts belong there.
    pub fn on<T: Send>(&self, host: u8, f: impl FnOnce() -> T + Send) -> T {
        let space = File::open(Path::new("/run/netns").join(self.space(host))).expect("the host is there");
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("this is root");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// From now on what `from` sends to `to` is lost without a word; the other direction stays as it is.
    pub fn drop_packets(&self, from: u8, to: u8) {
        let source = self.address(from).to_string();
        self.filter(to, &["-A", "INPUT", "-s", &source, "-j", "DROP"]);
    }

    /// Nothing passes between the two, either way.
    pub fn cut(&self, a: u8, b: u8) {
        self.drop_packets(a, b);
        self.drop_packets(b, a);
    }

    /// Takes the host's cable out, or puts it in again.
    pub fn plug(&self, host: u8, inside: bool) {
        let state = if inside { "up" } else { "down" };
        ip(&format!("-n {} link set p{host} {state}", self.space_of_bridge()));
    }

    /// Everything passes again; cables that are out stay out.
    pub fn heal(&self) {
        (0..self.hosts).for_each(|host| self.filter(host, &["-F", "INPUT"]));
    }

    fn build(&self) {
        let bridge = self.space_of_bridge();
        ip(&format!("netns add {bridge}"));
        ip(&format!("-n {bridge} link add br0 type bridge"));
        ip(&format!("-n {bridge} link set br0 up"));
        for host in 0..self.hosts {
            let (space, address) = (self.space(host), self.address(host));
            ip(&format!("netns add {space}"));
            ip(&format!("-n {space} link add eth0 type veth peer name p{host} netns {bridge}"));
            ip(&format!("-n {bridge} link set p{host} master br0 up"));
            ip(&format!("-n {space} addr add {address}/24 dev eth0"));
            ip(&format!("-n {space} link set lo up"));
            ip(&format!("-n {space} link set eth0 up"));
        }
    }

    fn filter(&self, host: u8, rule: &[&str]) {
        let mut args = vec!["netns", "exec"];
        let space = self.space(host);
        args.extend([space.as_str(), "iptables", "-w"]);
        args.extend(rule);
        done("ip", &args);
    }

    fn space(&self, host: u8) -> String {
        format!("{}-{host}", self.name)
    }

    fn space_of_bridge(&self) -> String {
        format!("{}-bridge", self.name)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let all = (0..self.hosts).map(|host| self.space(host)).chain([self.space_of_bridge()]);
        all.for_each(|space| remove(&space));
    }
}

/// Why this process cannot make networks.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces take root".into());
    }
    let missing = ["ip", "iptables"].into_iter().find(|program| run(program, &["-V"]).is_none());
    missing.map(|program| format!("the program {program} is missing; install iproute2 and iptables"))
}

/// Of runs that were killed.
fn remove_leftovers() {
    let Ok(spaces) = std::fs::read_dir("/run/netns") else { return };
    for name in spaces.flatten().filter_map(|e| e.file_name().into_string().ok()) {
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}

fn remove(space: &str) {
    let removed = run("ip", &["netns", "delete", space]);
    if !removed.is_some_and(|o| o.status.success()) {
        // Nothing else depends on it: a test's next start tries again.
        let _ = writeln!(std::io::stderr(), "the namespace {space} is still there");
    }
}

fn ip(words: &str) {
    done("ip", &words.split(' ').collect::<Vec<_>>());
}

fn done(program: &str, args: &[&str]) {
    let output = run(program, args).unwrap_or_else(|| panic!("{program} cannot be started"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", args.join(" "));
}

fn run(program: &str, args: &[&str]) -> Option<Output> {
    Command::new(program).args(args).stdin(Stdio::null()).output().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    #[test]
    fn hosts_reach_each_other_until_they_are_cut() {
        let Some(net) = Net::new(3) else { return };
        let listener = net.on(0, || TcpListener::bind((net.address(0), 0)).unwrap());
        let to = listener.local_addr().unwrap();
        let connect = |host, within| net.on(host, || TcpStream::connect_timeout(&to, within).is_ok());
        // A link that comes up loses the first packets, which are sent again after a second and more.
        let reached = |host| connect(host, Duration::from_secs(30));
        let cut_off = |host| !connect(host, Duration::from_millis(500));
        assert!(reached(1) && reached(2));
        net.drop_packets(0, 1);
        assert!(cut_off(1), "no answer comes back");
        assert!(reached(2));
        net.heal();
        assert!(reached(1));
        net.plug(2, false);
        assert!(cut_off(2));
        net.plug(2, true);
        assert!(reached(2));
        let name = net.space(0);
        drop(net);
        assert!(!Path::new("/run/netns").join(name).exists());
    }
}
