//! All finished pieces as numbers: for people and as JSON.

use super::{Split, labels, pieces, plan::Plan};
use crate::{
    Error, Result,
    checkpoint::layout::Header,
    metrics::{Tally, ranked},
    report,
};
use configs::Test;
use serde_json::{Value, json};
use storage::Location;

/// Damaged clips that are named in the tables; JSON names them all.
const NAMED: usize = 20;

/// What an evaluation came to.
pub struct Summary {
    pub tally: Tally,
    /// Clips that are left out of it because they are damaged, by their ids, and what reading them failed to do.
    pub missing: Vec<(String, String)>,
    predictions: Vec<Value>,
}

impl Summary {
    /// Counts every clip of every piece.
    pub async fn read(plan: &Plan, out: &Location, split: &Split, header: &Header) -> Result<Self> {
        let predictions = Vec::with_capacity(plan.clips);
        let mut all = Self { tally: split.tally(), missing: vec![], predictions };
        for piece in 0..plan.pieces() {
            let rows = pieces::read(out, piece).await?;
            let places = plan.places(piece);
            let same = rows.len() == places.len()
                && places.clone().zip(&rows).all(|(place, row)| split.clip(place).clip_id == row.clip_id);
            if !same {
                return Err(Error::Evaluation(format!(
                    "read piece {piece} in {}: its clips are not those of the split; remove the folder",
                    out.url()
                )));
            }
            for (place, row) in places.zip(rows) {
                match row.scores {
                    Ok(scores) => {
                        all.tally.count(place, &scores, &labels(split.clip(place)))?;
                        all.predictions.push(prediction(split, place, &header.labels, &scores));
                    }
                    Err(why) => all.missing.push((row.clip_id, why)),
                }
            }
        }
        Ok(all)
    }

    /// Tables.
    pub fn text(&self, plan: &Plan, test: &Test, header: &Header) -> String {
        let left_out: String = self.left_out().into_iter().map(|line| line + "\n").collect();
        format!(
            "{} of split {}, {} of them labelled, {} views of {} pixels each; step {} of {}\n{left_out}\n{}",
            report::clips(plan.clips - self.missing.len()),
            plan.split,
            self.tally.clips(),
            test.views,
            test.crop,
            header.step,
            plan.checkpoint,
            report::tally(&self.tally, &header.labels)
        )
    }

    /// How many clips are left out, and what is wrong with the first of them; nothing where all are whole.
    pub fn left_out(&self) -> Vec<String> {
        let count = self.missing.len();
        if count == 0 {
            return vec![];
        }
        let mut lines =
            vec![format!("left out, because their stored bytes are damaged: {}", report::clips(count))];
        lines.extend(self.missing.iter().take(NAMED).map(|(_, why)| format!("  failed to {why}")));
        if count > NAMED {
            lines.push(format!("  and {} more, which --json names", count - NAMED));
        }
        lines
    }

    /// Everything, with a prediction for every clip that is not left out.
    pub fn json(&self, plan: &Plan, test: &Test, split: &Split, header: &Header) -> Value {
        let tally = &self.tally;
        let counts = tally.per_class();
        let precisions = tally.ranking().map(|r| r.per_class());
        let per_class = |(c, name): (usize, &String)| match &precisions {
            Some(p) => json!({ "label": name, "average_precision": p[c] }),
            None => {
                let n = counts[c];
                json!({ "label": name, "clips": n.clips, "correct": n.correct, "accuracy": n.accuracy() })
            }
        };
        let row = |t| (0..tally.classes()).map(|p| tally.confusion(t, p)).collect::<Vec<u64>>();
        let confusion: Vec<_> = (0..counts.len()).map(row).collect();
        json!({
            "checkpoint": plan.checkpoint,
            "checkpoint_digest": plan.checkpoint_digest,
            "step": header.step,
            "epoch": header.epoch,
            "config_digest": header.config_digest,
            "trained_on_dataset_digest": header.dataset_digest,
            "dataset": split.dataset.location.url(),
            "dataset_digest": split.dataset.digest,
            "split": plan.split,
            "views": { "clips": test.views.clips, "crops": test.views.crops },
            "short_side": test.short_side,
            "crop": test.crop,
            "sampling": test.sampling,
            "ensemble": test.ensemble,
            "clips": tally.clips(),
            "top1": tally.top1(),
            "top5": tally.top5(),
            "mean_class_accuracy": tally.mean_class_accuracy(),
            "mean_average_precision": tally.ranking().and_then(|r| r.mean()),
            "loss": tally.loss(),
            "labels": header.labels,
            "per_class": header.labels.iter().enumerate().map(per_class).collect::<Vec<_>>(),
            "confusion": confusion,
            "missing": self.missing.iter().map(|(id, why)| json!({ "clip_id": id, "why": why })).collect::<Vec<_>>(),
            "predictions": self.predictions,
        })
    }
}

fn prediction(split: &Split, place: usize, names: &[String], scores: &[f64]) -> Value {
    let meta = split.clip(place);
    let truth = labels(meta);
    let best = ranked(scores, 5);
    json!({
        "clip_id": meta.clip_id,
        "source": meta.source,
        "start_s": meta.start_s,
        "label": truth.first().and_then(|&l| names.get(l)),
        "label_id": truth.first(),
        "labels": truth,
        "correct": (!truth.is_empty()).then(|| best.first().is_some_and(|b| truth.contains(b))),
        "top": report::top(&best, names, scores),
    })
}
