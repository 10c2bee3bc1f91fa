//! Finds the other programs of Marey, and becomes one of them.

use crate::{Error, Result};
use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A program and the package that builds it.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub name: &'static str,
    pub package: &'static str,
}

pub const SHARDS: Program = Program { name: "marey-shards", package: "shards" };
pub const COORDINATOR: Program = Program { name: "marey-coordinator", package: "coordinator" };
pub const WORKER: Program = Program { name: "marey-worker", package: "worker" };

/// Where `program` is: beside this one, else on PATH.
pub fn find(program: Program) -> Result<PathBuf> {
    let this =
        std::env::current_exe().map_err(|source| Error::Io { path: "the running program".into(), source })?;
    let beside = this.parent().unwrap_or(Path::new("/"));
    find_in(program, beside, &std::env::var_os("PATH").unwrap_or_default())
}

/// Replaces this process by `program`; returns only if that fails.
pub fn become_sibling(program: Program, subcommand: Option<&str>, args: &[OsString]) -> Result<u8> {
    let path = find(program)?;
    let source = Command::new(&path).args(subcommand).args(args).exec();
    Err(Error::Start { program: path, source })
}

fn find_in(program: Program, beside: &Path, path: &OsString) -> Result<PathBuf> {
    std::iter::once(beside.to_path_buf())
        .chain(std::env::split_paths(path))
        .map(|folder| folder.join(program.name))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| Error::Missing {
            program: program.name,
            package: program.package,
            beside: beside.into(),
        })
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn beside_comes_before_path_and_a_missing_one_is_named() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = b.path().as_os_str().to_owned();
        let e = find_in(WORKER, a.path(), &path).unwrap_err().to_string();
        assert!(e.contains("marey-worker") && e.contains("cargo build --release -p worker"), "{e}");

        let put = |dir: &Path, mode| {
            let file = dir.join("marey-worker");
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            file
        };
        let on_path = put(b.path(), 0o755);
        put(a.path(), 0o644);
        assert_eq!(find_in(WORKER, a.path(), &path).unwrap(), on_path, "not executable, not it");
        let beside = put(a.path(), 0o755);
        assert_eq!(find_in(WORKER, a.path(), &path).unwrap(), beside);
    }
}
