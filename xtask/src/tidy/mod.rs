//! Rules of the house that the compiler does not keep, checked by `cargo xtask tidy` and by a test.

mod documents;
mod layers;
mod sources;

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What was found. Findings must be mended; warnings are worth a look.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<String>,
    pub warnings: Vec<String>,
}

/// A text file of the checkout.
pub(crate) struct Source {
    /// Relative to the root, with forward slashes.
    pub path: String,
    pub text: String,
}

/// Checks the checkout at `root`.
pub fn check(root: &Path) -> Result<Report> {
    let files = read_files(root)?;
    let mut report = Report::default();
    sources::check(&files, &mut report);
    documents::check(root, &files, &mut report);
    layers::check(root, &mut report);
    Ok(report)
}

/// Every text file that a person wrote, sorted by path.
fn read_files(root: &Path) -> Result<Vec<Source>> {
    let mut files = vec![];
    walk(root, root, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<Source>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let path: PathBuf = entry?.path();
        let name = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        let skipped = ["target", ".git", "demo/out", "demo/report.html", "Cargo.lock"];
        if skipped.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, files)?;
        } else if let Ok(text) = fs::read_to_string(&path) {
            files.push(Source { path: name, text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_is_tidy() {
        let report = check(&crate::root()).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }
}
