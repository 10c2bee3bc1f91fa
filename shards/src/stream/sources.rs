//! The datasets that a training stream draws from, as one: clips numbered through, labels in one space.

use crate::format::{Clip, ClipIndex, Dataset};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A dataset of a stream, and what its labels are there.
#[derive(Clone, Debug)]
pub struct Source {
    pub dataset: Arc<Dataset>,
    /// The stream's label id of each of the dataset's; `None`: they are the same.
    pub labels: Option<Vec<i32>>,
}

/// Several datasets as one. The clips of the second are numbered after those of the first, and so on.
#[derive(Clone, Debug)]
pub struct Sources(Vec<Source>);

impl Source {
    /// A dataset whose labels are the stream's.
    pub fn whole(dataset: Arc<Dataset>) -> Self {
        Self { dataset, labels: None }
    }

    /// A dataset whose labels are found by name among `names`, after `rename`: a name of the dataset and the
    /// name that it has here.
    ///
    /// # Errors
    /// Names that `names` lacks, or that are renamed but not there: lists them.
    pub fn named(dataset: Arc<Dataset>, names: &[String], rename: &BTreeMap<String, String>) -> Result<Self> {
        let url = dataset.location.url();
        let theirs = &dataset.manifest.labels;
        if let Some(name) = rename.keys().find(|name| !theirs.contains(name)) {
            return Err(Error::Usage(format!("rename the label {name:?} of {url}: it has no such label")));
        }
        let ids: BTreeMap<&str, i32> = names.iter().map(String::as_str).zip(0..).collect();
        let id = |name: &String| ids.get(rename.get(name).unwrap_or(name).as_str()).copied();
        let missing: Vec<&String> = theirs.iter().filter(|name| id(name).is_none()).collect();
        if !missing.is_empty() {
            let shown: Vec<&&String> = missing.iter().take(5).collect();
            return Err(Error::Usage(format!(
                "mix {url} in: {} of its labels are none of the job's, like {shown:?}; give them the job's names in `rename`",
                missing.len()
            )));
        }
        let labels: Vec<i32> = theirs.iter().filter_map(id).collect();
        let same = labels.iter().copied().eq(0..names.len() as i32);
        Ok(Self { dataset, labels: (!same).then_some(labels) })
    }
}

impl From<Arc<Dataset>> for Sources {
    fn from(dataset: Arc<Dataset>) -> Self {
        Self(vec![Source::whole(dataset)])
    }
}

impl Sources {
    /// Datasets with labels in one space.
    ///
    /// # Errors
    /// No dataset, or more than 2^32 clips in all.
    pub fn new(sources: Vec<Source>) -> Result<Self> {
        let clips: u64 = sources.iter().map(|s| s.dataset.clips.len() as u64).sum();
        if sources.is_empty() || clips > u64::from(u32::MAX) {
            let n = sources.len();
            return Err(Error::Usage(format!(
                "stream the {clips} clips of {n} datasets: not between 1 and 2^32"
            )));
        }
        Ok(Self(sources))
    }

    /// What identifies them: one dataset's digest, or the digest of all digests.
    pub fn digest(&self) -> String {
        match &self.0[..] {
            [one] => one.dataset.digest.clone(),
            all => {
                let digests: Vec<&str> = all.iter().map(|s| s.dataset.digest.as_str()).collect();
                storage::sha256_hex(digests.join(" ").as_bytes())
            }
        }
    }

    /// The datasets, in order.
    pub fn datasets(&self) -> impl Iterator<Item = &Arc<Dataset>> {
        self.0.iter().map(|s| &s.dataset)
    }

    /// One of the datasets.
    pub fn dataset(&self, source: usize) -> &Arc<Dataset> {
        &self.0[source].dataset
    }

    /// The clips of a split of one of the datasets, as they are numbered here.
    ///
    /// # Errors
    /// As [`Dataset::clips_of`].
    pub fn clips_of(&self, source: usize, split: &str) -> Result<Vec<ClipIndex>> {
        let clips = self.0[source].dataset.clips_of(split)?;
        Ok(clips.into_iter().map(|clip| self.number(source, clip)).collect())
    }

    /// Clips of all.
    pub fn len(&self) -> usize {
        self.0.iter().map(|s| s.dataset.clips.len()).sum()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The number that a clip of dataset `source` has here.
    pub fn number(&self, source: usize, clip: ClipIndex) -> ClipIndex {
        let before: usize = self.0[..source].iter().map(|s| s.dataset.clips.len()).sum();
        ClipIndex(before as u32 + clip.0)
    }

    /// The dataset that a clip lies in, and its number there. It is a clip of one of them.
    pub fn place(&self, clip: ClipIndex) -> (usize, ClipIndex) {
        let mut rest = clip.0;
        for (i, source) in self.0.iter().enumerate() {
            let clips = source.dataset.clips.len() as u32;
            if rest < clips {
                return (i, ClipIndex(rest));
            }
            rest -= clips;
        }
        // The stream has checked its clips.
        unreachable!("clip {} of {}", clip.0, self.len())
    }

    /// A clip as its dataset knows it.
    pub fn clip(&self, clip: ClipIndex) -> Clip<'_> {
        let (source, clip) = self.place(clip);
        self.0[source].dataset.clip(clip)
    }

    /// The label ids that a clip is trained on here.
    pub fn label_ids(&self, clip: ClipIndex) -> Vec<i32> {
        let (source, local) = self.place(clip);
        let source = &self.0[source];
        let ids = source.dataset.clip(local).label_ids();
        match &source.labels {
            None => ids,
            Some(here) => ids.into_iter().map(|id| here[id as usize]).collect(),
        }
    }
}
