//! How a trainer ended, in words that a person can act on.

use std::{os::unix::process::ExitStatusExt, path::Path, process::ExitStatus};

/// Signals by their numbers on Linux.
const NAMES: [(i32, &str); 14] = [
    (1, "SIGHUP"),
    (2, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (11, "SIGSEGV"),
    (13, "SIGPIPE"),
    (15, "SIGTERM"),
    (24, "SIGXCPU"),
    (31, "SIGSYS"),
];

/// `out_of_memory`: while it ran the kernel killed something of its control group for want of memory.
pub(super) fn cause(status: ExitStatus, out_of_memory: bool) -> String {
    let Some(number) = status.signal() else {
        return match status.code() {
            Some(101) => "it panicked (exit status 101); its last lines say where".into(),
            code => format!("exit status {}", code.unwrap_or_default()),
        };
    };
    let name = NAMES.iter().find(|(n, _)| *n == number).map_or("a signal", |(_, name)| name);
    let core = if status.core_dumped() { ", core dumped" } else { "" };
    match (number, out_of_memory) {
        (9, true) => format!("out of memory: the kernel killed it ({name}, signal {number})"),
        _ => format!("killed by {name} (signal {number}){core}"),
    }
}

/// How often the kernel has killed for want of memory: in this process's control group where that is known, else
/// on this machine.
pub(super) fn memory_kills() -> u64 {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|l| l.strip_prefix("0::/"));
    let events = own.map(|path| Path::new("/sys/fs/cgroup").join(path).join("memory.events"));
    let counted = events.and_then(|file| std::fs::read_to_string(file).ok());
    let counted = counted.or_else(|| std::fs::read_to_string("/proc/vmstat").ok()).unwrap_or_default();
    counted.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named() {
        let of = |raw, oom| cause(ExitStatus::from_raw(raw), oom);
        assert_eq!(of(3 << 8, false), "exit status 3");
        assert_eq!(of(9, false), "killed by SIGKILL (signal 9)");
        assert_eq!(of(9, true), "out of memory: the kernel killed it (SIGKILL, signal 9)");
        assert_eq!(of(11 | 0x80, true), "killed by SIGSEGV (signal 11), core dumped");
        assert!(of(101 << 8, false).contains("panicked"));
    }
}
