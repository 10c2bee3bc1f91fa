//! `marey-shards dataset`: split, merge, stats, relabel.

use crate::{bar, runtime, say};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use shards::{
    Error,
    format::Manifest,
    inspect::size,
    tools::{By, Fraction, Relabel, SplitBy, merge, relabel, split, stats},
};
use std::{path::PathBuf, process::ExitCode};
use storage::Location;

#[derive(Subcommand)]
pub enum Dataset {
    /// Write a dataset whose clips are dealt to splits anew
    Split(Split),
    /// Write one dataset of several
    Merge(Merge),
    /// Count a dataset's clips by split and label, and find duplicates
    Stats(Stats),
    /// Write a dataset with other labels, or other names for them
    Relabel(RelabelArgs),
}

#[derive(Args)]
#[command(group = ArgGroup::new("how").required(true).args(["fractions", "list"]))]
pub struct Split {
    /// The dataset.
    url: String,
    /// Where the new dataset goes; data files are copied inside the store where both share one.
    #[arg(long)]
    out: String,
    /// Deal by seeded chance, such as train=0.8,val=0.1,test=0.1.
    #[arg(long, value_delimiter = ',', value_parser = parse_fraction)]
    fractions: Vec<Fraction>,
    /// Another number, another draw.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What stays together.
    #[arg(long, value_enum, default_value_t = ByName::Source)]
    by: ByName,
    /// Divide each label alike.
    #[arg(long, conflicts_with = "list")]
    stratify: bool,
    /// CSV with the columns clip_id and split; clips that it does not name keep theirs.
    #[arg(long)]
    list: Option<PathBuf>,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

#[derive(Args)]
pub struct Merge {
    /// The datasets, two or more; the first keeps its label ids.
    #[arg(required = true, num_args = 2..)]
    urls: Vec<String>,
    /// Where the new dataset goes; data files are copied inside the store where both share one.
    #[arg(long)]
    out: String,
    /// Begin each clip's id with its dataset's name: for datasets that share ids.
    #[arg(long)]
    prefix_ids: bool,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

#[derive(Args)]
pub struct Stats {
    /// The dataset.
    url: String,
    /// As JSON, whole.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(group = ArgGroup::new("what").required(true).args(["clips", "names"]))]
pub struct RelabelArgs {
    /// The dataset.
    url: String,
    /// Where the new dataset goes; data files are copied inside the store where both share one.
    #[arg(long)]
    out: String,
    /// CSV with the columns clip_id and label (several separated by ;, none: unlabelled); other clips keep theirs.
    #[arg(long)]
    clips: Option<PathBuf>,
    /// CSV with the columns old and new: names of labels. Two labels of one new name become one.
    #[arg(long)]
    names: Option<PathBuf>,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ByName {
    /// All clips of one video, or other source.
    Source,
    /// Each clip for itself.
    Clip,
}

pub fn run(command: Dataset) -> Result<ExitCode, Error> {
    match command {
        Dataset::Split(args) => {
            let how = match args.list {
                Some(list) => SplitBy::List(list),
                None => SplitBy::Fractions {
                    fractions: args.fractions,
                    seed: args.seed,
                    by: match args.by {
                        ByName::Source => By::Source,
                        ByName::Clip => By::Clip,
                    },
                    stratify: args.stratify,
                },
            };
            let (from, out) = (Location::parse(&args.url)?, Location::parse(&args.out)?);
            let copied = &mut copied(args.no_progress);
            report(&out, &runtime()?.block_on(split(&from, &out, &how, copied))?)
        }
        Dataset::Merge(args) => {
            let from = args.urls.iter().map(|u| Location::parse(u)).collect::<Result<Vec<_>, _>>()?;
            let out = Location::parse(&args.out)?;
            let copied = &mut copied(args.no_progress);
            report(&out, &runtime()?.block_on(merge(&from, &out, args.prefix_ids, copied))?)
        }
        Dataset::Relabel(args) => {
            let (from, out) = (Location::parse(&args.url)?, Location::parse(&args.out)?);
            let what = match args.clips {
                Some(clips) => Relabel::Clips(clips),
                None => Relabel::Names(args.names.unwrap_or_default()),
            };
            let copied = &mut copied(args.no_progress);
            report(&out, &runtime()?.block_on(relabel(&from, &out, &what, copied))?)
        }
        Dataset::Stats(args) => {
            let stats = runtime()?.block_on(stats(&Location::parse(&args.url)?))?;
            let json =
                || serde_json::to_string_pretty(&stats).map_err(|e| Error::Stopped(format!("print: {e}")));
            say(if args.json { json()? } else { stats.text() }.trim_end())
        }
    }
}

/// Shows the bytes that were copied.
fn copied(quiet: bool) -> impl FnMut(u64) {
    let bar = bar(quiet, "{spinner} {bytes} copied, {bytes_per_sec}");
    move |bytes| bar.inc(bytes)
}

fn report(out: &Location, manifest: &Manifest) -> Result<ExitCode, Error> {
    let splits: Vec<String> = manifest.splits.iter().map(|(name, n)| format!("{name} {n}")).collect();
    let (t, labels) = (manifest.totals, manifest.labels.len());
    let what = format!("{} clips ({}), {labels} labels, {}", t.clips, splits.join(", "), size(t.bytes));
    say(&format!("{}: {what}", out.url()))
}

fn parse_fraction(text: &str) -> Result<Fraction, String> {
    let (name, share) = text.split_once('=').ok_or(format!("{text:?} is not NAME=SHARE, such as val=0.1"))?;
    let share = share.trim().parse().map_err(|_| format!("{share:?} in {text:?} is no number"))?;
    Ok(Fraction { name: name.trim().into(), share })
}
