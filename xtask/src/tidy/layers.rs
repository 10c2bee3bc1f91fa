//! Who may depend on what, read from `cargo tree`; a `cargo tree` that fails is a finding too.

use super::Report;
use anyhow::{Context, Result, bail};
use std::{path::Path, process::Command};

/// A crate, its cargo options and what must not be reachable from it.
struct Layer {
    name: &'static str,
    options: &'static [&'static str],
    without: &'static [&'static str],
}

const TORCH: &[&str] = &["tch", "torch-sys", "collective", "models"];
const TORCH_AND_TONIC: &[&str] = &["tch", "torch-sys", "tonic", "collective", "models"];

const LAYERS: &[Layer] = &[
    Layer { name: "storage", options: &[], without: TORCH_AND_TONIC },
    Layer { name: "configs", options: &[], without: &["tch", "torch-sys", "tonic", "tokio", "object_store"] },
    Layer { name: "proto", options: &[], without: TORCH },
    Layer { name: "shards", options: &[], without: TORCH_AND_TONIC },
    // The training side reads clips without linking FFmpeg.
    Layer { name: "shards", options: &["--no-default-features"], without: &["ffmpeg-next", "tch", "tonic"] },
    Layer { name: "models", options: &[], without: &["tonic", "tokio", "object_store", "storage"] },
    Layer { name: "collective", options: &[], without: &["tonic", "tokio", "object_store", "storage"] },
    Layer {
        name: "coordinator",
        options: &[],
        without: &["tch", "torch-sys", "collective", "models", "shards", "arrow", "parquet", "ffmpeg-next"],
    },
    Layer {
        name: "cli",
        options: &[],
        without: &["tch", "torch-sys", "collective", "models", "shards", "arrow", "parquet", "ffmpeg-next"],
    },
    Layer { name: "worker", options: &[], without: &["ffmpeg-next", "coordinator"] },
];

pub fn check(root: &Path, report: &mut Report) {
    for layer in LAYERS {
        match reachable(root, layer) {
            Ok(crates) => report.findings.extend(breaches(layer, &crates)),
            Err(e) => report.findings.push(format!("{}: layering is unknown: failed to {e:#}", layer.name)),
        }
    }
}

fn breaches(layer: &Layer, crates: &[String]) -> Vec<String> {
    let reached = layer.without.iter().filter(|w| crates.iter().any(|c| c == *w));
    reached
        .map(|w| {
            let options = layer.options.join(" ");
            format!("{0}: must not reach {w}; see `cargo tree -p {0} {options} -e normal -i {w}`", layer.name)
        })
        .collect()
}

/// Names of all crates that a crate's normal dependencies reach, itself first.
fn reachable(root: &Path, layer: &Layer) -> Result<Vec<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let out = Command::new(cargo)
        .current_dir(root)
        // Each crate is judged with its own features, however this build unifies them.
        .env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION")
        .env_remove("CARGO_UNSTABLE_FEATURE_UNIFICATION")
        .args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none"])
        .args(["--format", "{p}", "-p", layer.name])
        .args(layer.options)
        .output()
        .context("run cargo tree")?;
    if !out.status.success() {
        bail!("run cargo tree: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let text = String::from_utf8(out.stdout).context("read cargo tree")?;
    let names: Vec<String> = text.lines().filter_map(|l| l.split(' ').next().map(Into::into)).collect();
    if names.first().is_none_or(|n| n != layer.name) {
        bail!("read cargo tree: it does not begin with {}", layer.name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breach_is_named() {
        let layer = Layer { name: "xtask", options: &[], without: &["ffmpeg-next", "tch"] };
        let crates = reachable(&crate::root(), &layer).unwrap();
        assert_eq!(breaches(&layer, &crates).len(), 1);
    }

    #[test]
    fn a_failing_cargo_tree_is_an_error() {
        let layer = Layer { name: "no-such-crate", options: &[], without: &[] };
        assert!(reachable(&crate::root(), &layer).is_err());
    }
}
