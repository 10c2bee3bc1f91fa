//! What the end-to-end tests share: the real programs, started as a user would, in temporary folders.
//!
//! `make test` builds the programs first; a test that finds none says so.

pub mod access;
pub mod cluster;
pub mod data;
pub mod job;
pub mod ledger;
pub mod netns;
pub mod proxy;
pub mod small;

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// One of the project's programs, beside the tests' own in the build folder.
pub fn program(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("the test's own path");
    let folder = me.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps");
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins` first", path.display());
    path
}

/// `marey ARGS`, not yet started. Logs are plain; nothing of the caller's AWS settings leaks in.
pub fn marey(args: &[&str]) -> Command {
    let mut command = Command::new(program("marey"));
    command.args(args);
    for (key, _) in std::env::vars().filter(|(k, _)| k.starts_with("AWS_")) {
        command.env_remove(key);
    }
    command
}

/// What a finished command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Said {
    fn from(o: Output) -> Self {
        Self {
            code: o.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&o.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&o.stderr).into_owned(),
        }
    }
}

/// Runs `marey ARGS` to its end.
pub fn run(args: &[&str]) -> Said {
    marey(args).output().expect("marey starts").into()
}

/// Runs `marey ARGS`, which must succeed; returns its standard output.
pub fn ok(args: &[&str]) -> String {
    let said = run(args);
    assert_eq!(said.code, 0, "marey {args:?}\n{}\n{}", said.stdout, said.stderr);
    said.stdout
}

/// Runs `marey ARGS`, which must refuse with exit status 2 and one `error: failed to` line that
/// holds every one of `words`.
pub fn refused(args: &[&str], words: &[&str]) {
    let said = run(args);
    check_refused(args, said, words);
}

/// The same for a command that was prepared by hand.
pub fn check_refused(args: &[&str], said: Said, words: &[&str]) {
    assert_eq!(said.code, 2, "marey {args:?} should be refused\n{}\n{}", said.stdout, said.stderr);
    let line = said.stderr.lines().find(|l| l.starts_with("error: ")).unwrap_or_default();
    for word in words {
        assert!(line.contains(word), "marey {args:?} should say {word:?}:\n{}", said.stderr);
    }
    assert!(!said.stderr.contains("panicked"), "{}", said.stderr);
}
