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
pub(super) fn cause(status: ExitStatus, pid: u32, out_of_memory: bool) -> String {
    let Some(number) = status.signal() else {
        return match status.code() {
            Some(101) => "it panicked (exit status 101); its last lines say where".into(),
            code => format!("exit status {}", code.unwrap_or_default()),
        };
    };
    let name = NAMES.iter().find(|(n, _)| *n == number).map_or("a signal", |(_, name)| name);
    let core = match status.core_dumped() {
        true => {
            let read =
                |name: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
            let by_pid = read("core_uses_pid").trim() != "0";
            format!(", core dumped{}", core_place(read("core_pattern").trim(), by_pid, pid, number))
        }
        false => String::new(),
    };
    match (number, out_of_memory) {
        (9, true) => format!("out of memory: the kernel killed it ({name}, signal {number})"),
        _ => format!("killed by {name} (signal {number}){core}"),
    }
}

/// Where the kernel puts a core file, as `core_pattern` says (core(5)); `*` stands for what only the kernel knows.
fn core_place(pattern: &str, by_pid: bool, pid: u32, signal: i32) -> String {
    if let Some(program) = pattern.strip_prefix('|') {
        return format!(" (handed to {})", program.split(' ').next().unwrap_or_default());
    }
    let (mut path, mut named) = (String::new(), false);
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match (letter, if letter == '%' { letters.next() } else { None }) {
            ('%', Some('%')) => path.push('%'),
            ('%', Some('p' | 'P')) => {
                path += &pid.to_string();
                named = true;
            }
            ('%', Some('s')) => path += &signal.to_string(),
            ('%', Some('h')) => path += &rustix::system::uname().nodename().to_string_lossy(),
            ('%', Some(_)) => path.push('*'),
            ('%', None) => {}
            (letter, _) => path.push(letter),
        }
    }
    if path.is_empty() {
        return String::new();
    }
    if by_pid && !named {
        path += &format!(".{pid}");
    }
    let folder = std::env::current_dir().unwrap_or_default();
    format!(" to {}", folder.join(path).display())
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
        let of = |raw, oom| cause(ExitStatus::from_raw(raw), 77, oom);
        assert_eq!(of(3 << 8, false), "exit status 3");
        assert_eq!(of(9, false), "killed by SIGKILL (signal 9)");
        assert_eq!(of(9, true), "out of memory: the kernel killed it (SIGKILL, signal 9)");
        assert!(of(11 | 0x80, true).starts_with("killed by SIGSEGV (signal 11), core dumped"));
        assert!(of(101 << 8, false).contains("panicked"));
    }

    #[test]
    fn core_files_are_where_the_pattern_says() {
        let of = |pattern: &str, by_pid| core_place(pattern, by_pid, 77, 11);
        assert_eq!(of("/cores/%e.%p.%s.%t%%", true), " to /cores/*.77.11.*%");
        assert_eq!(of("/cores/core", true), " to /cores/core.77");
        let here = std::env::current_dir().unwrap();
        assert_eq!(of("core", false), format!(" to {}", here.join("core").display()));
        assert_eq!(
            of("|/usr/lib/systemd/systemd-coredump %P", true),
            " (handed to /usr/lib/systemd/systemd-coredump)"
        );
        assert_eq!(of("", false), "");
    }
}
