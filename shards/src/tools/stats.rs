//! `marey dataset stats`: a dataset counted, by split and by label.

use crate::{
    Result,
    format::{ClipIndex, Dataset},
    inspect::{Count, counted, size},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write,
};
use storage::Location;

/// Rows of a table that are printed; JSON has all.
const ROWS: usize = 40;
/// Percentiles that are given.
const PERCENTILES: [usize; 7] = [0, 5, 25, 50, 75, 95, 100];
/// Duplicates that are named.
const EXAMPLES: usize = 10;

/// The counts of some clips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Amount {
    pub clips: u64,
    pub frames: u64,
    pub hours: f64,
    /// Of the frames as stored.
    pub bytes: u64,
}

/// One label: all clips that have it, and of each split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelStats {
    pub name: String,
    #[serde(flatten)]
    pub all: Amount,
    pub splits: BTreeMap<String, u64>,
}

/// A value at the percentiles 0, 5, 25, 50, 75, 95 and 100.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spread(pub BTreeMap<usize, f64>);

/// Clips that hold the same frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Clips beyond the first of each kind.
    pub clips: u64,
    /// Kinds that stand in several splits: an evaluation would see what was trained on.
    pub across_splits: u64,
    /// A few kinds, by their clips' ids.
    pub examples: Vec<Vec<String>>,
}

/// A dataset counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    pub url: String,
    pub digest: String,
    pub all: Amount,
    pub splits: BTreeMap<String, Amount>,
    /// By label id. Clips of several labels count for each.
    pub labels: Vec<LabelStats>,
    pub unlabelled: u64,
    pub multi_label: u64,
    /// Sources, and those with clips in several splits.
    pub sources: u64,
    pub sources_across_splits: u64,
    /// Width x height, and frames a second; most frequent first.
    pub resolutions: Vec<Count>,
    pub frame_rates: Vec<Count>,
    pub clip_frames: Spread,
    pub clip_seconds: Spread,
    pub duplicates: Duplicates,
}

/// Counts the dataset at `location`; reads its index only.
///
/// # Errors
/// No dataset there, a damaged one, or the store's own.
pub async fn stats(location: &Location) -> Result<Stats> {
    let dataset = Dataset::open(location).await?;
    let manifest = &dataset.manifest;
    let clips = || (0..manifest.totals.clips as u32).map(|i| dataset.clip(ClipIndex(i)));
    let mut all = Amount::default();
    let mut splits: BTreeMap<String, Amount> = BTreeMap::new();
    let none =
        |name: &String| LabelStats { name: name.clone(), all: Amount::default(), splits: BTreeMap::new() };
    let mut labels: Vec<LabelStats> = manifest.labels.iter().map(none).collect();
    let mut sources: HashMap<&str, HashSet<&str>> = HashMap::new();
    // The CRCs of all runs tell contents apart.
    let mut contents: HashMap<(u64, &[u32]), Vec<ClipIndex>> = HashMap::new();
    for (i, clip) in (0..).zip(clips()) {
        let amount = Amount {
            clips: 1,
            frames: clip.num_frames.into(),
            hours: f64::from(clip.num_frames) / clip.fps / 3600.0,
            bytes: clip.bytes,
        };
        all.add(amount);
        splits.entry(clip.split.to_string()).or_default().add(amount);
        for label in clip.labels.iter() {
            if let Some(stats) = usize::try_from(*label).ok().and_then(|l| labels.get_mut(l)) {
                stats.all.add(amount);
                *stats.splits.entry(clip.split.to_string()).or_default() += 1;
            }
        }
        sources.entry(clip.source).or_default().insert(clip.split);
        contents.entry((clip.bytes, clip.run_crcs)).or_default().push(ClipIndex(i));
    }
    let mut duplicates = Duplicates::default();
    let mut kinds: Vec<&Vec<ClipIndex>> = contents.values().filter(|kind| kind.len() > 1).collect();
    kinds.sort_unstable();
    for kind in kinds {
        duplicates.clips += kind.len() as u64 - 1;
        let splits: HashSet<&str> = kind.iter().map(|i| dataset.clip(*i).split).collect();
        duplicates.across_splits += u64::from(splits.len() > 1);
        if duplicates.examples.len() < EXAMPLES {
            duplicates.examples.push(kind.iter().map(|i| dataset.clip(*i).clip_id.to_string()).collect());
        }
    }
    Ok(Stats {
        url: location.url().into(),
        digest: dataset.digest.clone(),
        all,
        splits,
        labels,
        unlabelled: clips().filter(|c| c.label.is_none()).count() as u64,
        multi_label: clips().filter(|c| c.labels.len() > 1).count() as u64,
        sources: sources.len() as u64,
        sources_across_splits: sources.values().filter(|s| s.len() > 1).count() as u64,
        resolutions: counted(clips().map(|c| format!("{}x{}", c.width, c.height))),
        frame_rates: counted(clips().map(|c| format!("{:.3}", c.fps))),
        clip_frames: Spread::of(clips().map(|c| f64::from(c.num_frames)).collect()),
        clip_seconds: Spread::of(clips().map(|c| f64::from(c.num_frames) / c.fps).collect()),
        duplicates,
    })
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.clips += other.clips;
        self.frames += other.frames;
        self.hours += other.hours;
        self.bytes += other.bytes;
    }
}

impl Spread {
    /// Of each percentile the nearest value (nearest-rank).
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |p: usize| (values.len() * p).div_ceil(100).saturating_sub(1);
        Self(PERCENTILES.iter().filter_map(|&p| Some((p, *values.get(at(p))?))).collect())
    }

    fn text(&self, digits: usize) -> String {
        let value = |(p, v): (&usize, &f64)| format!("p{p} {v:.digits$}");
        self.0.iter().map(value).collect::<Vec<_>>().join("  ")
    }
}

impl Stats {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut t = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(t, "{}\n  digest   {}", self.url, self.digest);
        let _ = writeln!(t, "  frames   {}", self.clip_frames.text(0));
        let _ = writeln!(t, "  seconds  {}", self.clip_seconds.text(2));
        let across = self.sources_across_splits;
        let _ = writeln!(t, "  sources  {}, of which {across} have clips in several splits", self.sources);
        let _ = writeln!(t, "  labels   {} clips have none, {} several", self.unlabelled, self.multi_label);
        let d = &self.duplicates;
        let _ = writeln!(
            t,
            "  the same frames again: {} clips; {} kinds stand in several splits",
            d.clips, d.across_splits
        );
        for kind in &d.examples {
            let _ = writeln!(t, "    {}", kind.join(" = "));
        }
        let splits = self.splits.iter().map(|(name, a)| (name.as_str(), *a)).chain([("all", self.all)]);
        table(&mut t, "split", splits.map(|(n, a)| (n.to_string(), a, String::new())));
        let by_split =
            |l: &LabelStats| l.splits.iter().map(|(s, n)| format!("{s} {n}")).collect::<Vec<_>>().join(", ");
        table(&mut t, "label", self.labels.iter().map(|l| (l.name.clone(), l.all, by_split(l))));
        for (what, counts) in [("sizes", &self.resolutions), ("frame rates", &self.frame_rates)] {
            let _ = writeln!(t, "\n{what}");
            counts.iter().take(ROWS).for_each(|c| {
                let _ = writeln!(t, "  {:>12} {:>9}", c.name, c.clips);
            });
        }
        t
    }
}

fn table(t: &mut String, title: &str, rows: impl Iterator<Item = (String, Amount, String)>) {
    let rows: Vec<_> = rows.collect();
    let width = rows.iter().take(ROWS).map(|r| r.0.chars().count()).max().unwrap_or(0).clamp(5, 40);
    let _ =
        writeln!(t, "\n{title:<width$}    {:>9} {:>11} {:>9} {:>11}", "clips", "frames", "hours", "stored");
    for (name, a, more) in rows.iter().take(ROWS) {
        let stored = size(a.bytes);
        let line = format!(
            "  {name:<width$}  {:>9} {:>11} {:>9.2} {stored:>11}  {more}",
            a.clips, a.frames, a.hours
        );
        let _ = writeln!(t, "{}", line.trim_end());
    }
    if rows.len() > ROWS {
        let _ = writeln!(t, "  and {} more (--json has all)", rows.len() - ROWS);
    }
}
