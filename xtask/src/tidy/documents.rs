//! Rules for documents: the paths they name exist, and every recipe is named somewhere.

use super::{Report, Source};
use std::path::Path;

pub fn check(root: &Path, files: &[Source], report: &mut Report) {
    for file in files.iter().filter(|f| f.path.ends_with(".md")) {
        for (number, target) in links(&file.text) {
            let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
            if !root.join(folder).join(target).exists() {
                report.findings.push(format!("{}:{number}: the link {target} leads nowhere", file.path));
            }
        }
        if file.path == "ARCHITECTURE.md" {
            for (number, path) in named_paths(&file.text) {
                if !root.join(path).exists() {
                    report.findings.push(format!("{}:{number}: {path} does not exist", file.path));
                }
            }
        }
    }
    if !root.join("ARCHITECTURE.md").exists() {
        report.findings.push("ARCHITECTURE.md is missing".into());
    }
    for recipe in files.iter().filter(|f| f.path.starts_with("configs/") && f.path.ends_with(".toml")) {
        let name = recipe.path.trim_start_matches("configs/");
        let used = files.iter().any(|f| f.path != recipe.path && f.text.contains(name));
        if name != "Cargo.toml" && !used {
            report.findings.push(format!("{}: named nowhere; document or test it", recipe.path));
        }
    }
}

/// Relative targets of Markdown links, with their line numbers.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = vec![];
    for (i, line) in text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                found.push((i + 1, target));
            }
        }
    }
    found
}

/// Backquoted words with a slash that are not URLs, commands or patterns.
fn named_paths(text: &str) -> Vec<(usize, &str)> {
    let mut found = vec![];
    for (i, line) in text.lines().enumerate() {
        for word in line.split('`').skip(1).step_by(2) {
            let pattern = word.contains("://") || word.contains(['<', '*', '{', '$', ' ', '=', '%', '~']);
            if word.contains('/') && !pattern {
                found.push((i + 1, word));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_patterns() {
        let text = "See `shards/src` and `data/<n>.parquet`,\n`s3://b/k`, `make test`, `cli/`.";
        assert_eq!(named_paths(text), [(1, "shards/src"), (2, "cli/")]);
        assert_eq!(links("[a](docs/a.md#top) [b](https://example.org/x)"), [(1, "docs/a.md")]);
    }

    #[test]
    fn dead_links_missing_paths_and_orphan_recipes_are_found() {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let files = [
            file("ARCHITECTURE.md", "`gone/away`"),
            file("docs/a.md", "[b](b.md)"),
            file("configs/lonely.toml", ""),
        ];
        std::fs::write(root.path().join("ARCHITECTURE.md"), "").unwrap();
        let mut report = Report::default();
        check(root.path(), &files, &mut report);
        assert_eq!(report.findings.len(), 3, "{:?}", report.findings);
    }
}
