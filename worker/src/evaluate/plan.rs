//! What an evaluation measures, written down beside its results so that it can go on after a kill.

use crate::{Error, Result};
use configs::{Ensemble, Test, TestSampling};
use serde::{Deserialize, Serialize};
use shards::format::{ClipIndex, Dataset};
use std::{collections::BTreeSet, ops::Range};
use storage::Location;

/// The plan inside the folder of an evaluation.
const PLAN: &str = "evaluation.json";
const FORMAT: &str = "marey-evaluation";
/// Clips of a piece, at most: what a kill can cost each worker.
const PIECE: usize = 256;
/// Pieces for each worker, at least, where there are clips enough.
const PIECES_EACH: usize = 4;

/// All that the result depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    format: String,
    /// The step's folder.
    pub checkpoint: String,
    pub checkpoint_digest: String,
    pub dataset: String,
    pub dataset_digest: String,
    pub split: String,
    /// Only this many clips, spread evenly over the split.
    pub limit: Option<usize>,
    views: String,
    pub short_side: u32,
    pub crop: u32,
    pub sampling: TestSampling,
    pub ensemble: Ensemble,
    /// Every view's scores are kept too.
    pub view_scores: bool,
    /// Clips to judge.
    pub clips: usize,
    /// Clips of a piece; the last may have fewer.
    pub piece: usize,
}

impl Plan {
    /// A plan for `workers` workers. `clips`: how many the split and `limit` come to.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        checkpoint: (&str, &str),
        dataset: &Dataset,
        split: &str,
        limit: Option<usize>,
        test: &Test,
        view_scores: bool,
        clips: usize,
        workers: usize,
    ) -> Self {
        Self {
            format: FORMAT.into(),
            checkpoint: checkpoint.0.into(),
            checkpoint_digest: checkpoint.1.into(),
            dataset: dataset.location.url().into(),
            dataset_digest: dataset.digest.clone(),
            split: split.into(),
            limit,
            views: test.views.to_string(),
            short_side: test.short_side,
            crop: test.crop,
            sampling: test.sampling,
            ensemble: test.ensemble,
            view_scores,
            clips,
            piece: clips.div_ceil(PIECES_EACH * workers.max(1)).clamp(1, PIECE),
        }
    }

    /// Writes the plan into an empty folder, or takes over the size of the pieces from the one that an earlier
    /// start left.
    ///
    /// # Errors
    /// What was begun there is another evaluation: names each difference.
    pub async fn begin(mut self, out: &Location) -> Result<Self> {
        if let Some(begun) = Self::read_opt(out).await? {
            let differences = self.differences(&begun);
            if !differences.is_empty() {
                return Err(Error::Usage(format!(
                    "go on with the evaluation in {}: {}; give the same arguments as then, or another --out",
                    out.url(),
                    differences.join(", ")
                )));
            }
            self.piece = begun.piece;
            return Ok(self);
        }
        out.put(PLAN, format!("{:#}\n", self.json()).into_bytes()).await?;
        Ok(self)
    }

    /// The plan in the folder of an evaluation.
    pub async fn read(out: &Location) -> Result<Self> {
        let none = || Error::Usage(format!("find {}: no evaluation was begun there", out.url_of(PLAN)));
        Self::read_opt(out).await?.ok_or_else(none)
    }

    async fn read_opt(out: &Location) -> Result<Option<Self>> {
        let Some(bytes) = out.get_opt(PLAN).await? else { return Ok(None) };
        let bad = |why: String| {
            Error::Usage(format!("read {}: {why}; remove it or give another --out", out.url_of(PLAN)))
        };
        let plan: Self = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if plan.format != FORMAT || plan.piece == 0 {
            return Err(bad("it is no plan of an evaluation".into()));
        }
        Ok(Some(plan))
    }

    /// "views was 10x3 and is 4x3", for all that the result depends on. The same bytes under another URL are no
    /// difference.
    fn differences(&self, begun: &Self) -> Vec<String> {
        let (now, then) = (self.json(), begun.json());
        let free = ["format", "checkpoint", "dataset", "piece"];
        let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), String::from);
        now.as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| !free.contains(&key.as_str()) && then[key.as_str()] != **value)
            .map(|(key, value)| format!("{key} was {} and is {}", text(&then[key.as_str()]), text(value)))
            .collect()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The views, as the stream takes them.
    pub fn test(&self) -> Result<Test> {
        let views = self.views.parse().map_err(|why| {
            Error::Usage(format!("understand the views {:?} of {}: {why}", self.views, self.checkpoint))
        })?;
        let Self { short_side, crop, sampling, ensemble, .. } = *self;
        Ok(Test { views, short_side, crop, sampling, ensemble })
    }

    /// The clips to judge, in order.
    pub fn clips_of(&self, dataset: &Dataset) -> Result<Vec<ClipIndex>> {
        Ok(spread(dataset.clips_of(&self.split)?, self.limit))
    }

    /// Places of the clips of a piece.
    pub fn places(&self, piece: usize) -> Range<usize> {
        (piece * self.piece).min(self.clips)..((piece + 1) * self.piece).min(self.clips)
    }

    /// Pieces that are not finished, in order.
    pub async fn todo(&self, out: &Location) -> Result<Vec<usize>> {
        let listed = out.list(super::pieces::FOLDER).await?;
        let done: BTreeSet<usize> = listed.iter().filter_map(|o| super::pieces::number(&o.key)).collect();
        Ok((0..self.pieces()).filter(|p| !done.contains(p)).collect())
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> usize {
        self.clips.div_ceil(self.piece)
    }

    /// Clips of these pieces together.
    pub fn count(&self, pieces: &[usize]) -> usize {
        pieces.iter().map(|&p| self.places(p).len()).sum()
    }
}

/// `limit` clips at even distances.
pub fn spread(clips: Vec<ClipIndex>, limit: Option<usize>) -> Vec<ClipIndex> {
    match limit {
        Some(n) if n < clips.len() => (0..n).map(|i| clips[i * clips.len() / n]).collect(),
        _ => clips,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(clips: usize, piece: usize) -> Plan {
        Plan {
            format: FORMAT.into(),
            checkpoint: "run/checkpoints/step-000000001".into(),
            checkpoint_digest: "c".into(),
            dataset: "data".into(),
            dataset_digest: "d".into(),
            split: "val".into(),
            limit: None,
            views: "10x3".into(),
            short_side: 256,
            crop: 256,
            sampling: TestSampling::PySlowFast,
            ensemble: Ensemble::Mean,
            view_scores: false,
            clips,
            piece,
        }
    }

    #[test]
    fn a_limit_spreads_over_the_split() {
        let clips: Vec<ClipIndex> = (0..10).map(ClipIndex).collect();
        let of = |limit| spread(clips.clone(), limit).iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(of(Some(3)), [0, 3, 6]);
        assert_eq!(of(Some(99)), of(None));
    }

    #[test]
    fn pieces_cover_all_clips() {
        let p = plan(10, 4);
        assert_eq!((0..p.pieces()).map(|i| p.places(i)).collect::<Vec<_>>(), [0..4, 4..8, 8..10]);
        assert_eq!(p.count(&[0, 2]), 6);
    }

    #[tokio::test]
    async fn an_evaluation_goes_on_only_as_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let out = Location::parse(dir.path().to_str().unwrap()).unwrap();
        assert!(Plan::read(&out).await.is_err());
        let begun = plan(10, 4).begin(&out).await.unwrap();
        assert_eq!(Plan::read(&out).await.unwrap(), begun);
        let elsewhere = Plan { dataset: "moved".into(), ..plan(10, 3) };
        assert_eq!(elsewhere.begin(&out).await.unwrap().piece, 4, "the pieces stay as they are");
        let other = Plan { views: "4x3".into(), checkpoint_digest: "e".into(), ..plan(10, 4) };
        let e = other.begin(&out).await.unwrap_err();
        let said = e.to_string();
        assert!(said.contains("views was 10x3 and is 4x3") && said.contains("checkpoint_digest"), "{said}");
        assert_eq!(e.exit_code(), 2);
        assert_eq!(begun.todo(&out).await.unwrap(), [0, 1, 2]);
        out.put("pieces/000001.parquet", Vec::<u8>::new()).await.unwrap();
        assert_eq!(begun.todo(&out).await.unwrap(), [0, 2]);
        out.put(PLAN, b"{}".to_vec()).await.unwrap();
        assert!(plan(10, 4).begin(&out).await.unwrap_err().to_string().contains("evaluation.json"));
    }
}
