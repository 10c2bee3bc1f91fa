//! Small labelled datasets from real video, made with the project's own programs.

use crate::ok;
use std::path::{Path, PathBuf};

/// Writes the motion videos below `dir`; returns their folder, which holds `labels.csv` too.
pub fn motion_videos(dir: &Path, train: usize, val: usize) -> PathBuf {
    let videos = dir.join("videos");
    let spec = xtask::motion::Spec { train, val, size: 48, frames: 12, seed: 1 };
    xtask::motion::write_set(&videos, &spec).expect("the sample videos are set up: run `make setup`");
    videos
}

/// Ingests the motion videos into a local dataset; returns its path.
pub fn motion_dataset(dir: &Path, train: usize, val: usize) -> String {
    let videos = motion_videos(dir, train, val);
    let out = dir.join("dataset").display().to_string();
    let labels = videos.join("labels.csv").display().to_string();
    ok(&["ingest", &videos.display().to_string(), "--labels", &labels, "--out", &out, "--no-progress"]);
    out
}
