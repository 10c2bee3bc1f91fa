//! `marey-shards ingest`.

use crate::{parse_size, runtime, say};
use clap::{ArgGroup, Args, ValueEnum};
use shards::{
    Error,
    format::{Codec, Manifest},
    ingest::{
        Found, Layout, Options, Part, PartDone, Sources, Summary, TableSources, finish, ingest, ingest_part,
    },
    inspect::size,
};
use std::{path::PathBuf, process::ExitCode};
use storage::Location;
use tokio::runtime::Runtime;

/// What --finish takes from the parts.
const OTHERS: [&str; 16] = [
    "out",
    "labels",
    "layout",
    "fold",
    "untrimmed",
    "part",
    "short_side",
    "fps",
    "source_fps",
    "clip_seconds",
    "codec",
    "quality",
    "jobs",
    "file_size",
    "split",
    "allow_unlabelled",
];

/// Make a clip dataset of videos, of folders of images, or of a table of images. Each input is decoded once;
/// what cannot be read goes into the dataset's ledger and the rest goes on. Killed, it goes on where it was
/// when the same command is given again.
#[derive(Args)]
#[command(group = ArgGroup::new("input").required(true).args(["videos", "from_frames", "from_parquet", "finish"]))]
#[command(after_help = "\
Examples:
  marey ingest videos/ --labels labels.csv --out s3://bucket/data
  marey ingest k400/ --labels k400/annotations/ --out s3://bucket/k400 --fps 15
  marey ingest --from-frames ucf-frames/ --source-fps 25 --labels ucfTrainTestlist/ --out s3://bucket/ucf
  marey ingest --from-parquet s3://bucket/table --frames-column images --label-column label --source-fps 25 --out s3://bucket/data

On three machines that see the same videos, each its part, then once:
  marey ingest videos/ --labels labels.csv --out s3://bucket/data --part 1/3    (2/3, 3/3)
  marey ingest --finish s3://bucket/data")]
pub struct Ingest {
    /// A folder of videos, searched whole, or one video.
    videos: Option<PathBuf>,
    /// Not videos but a folder of folders of images (JPEG, PNG), one folder a clip.
    #[arg(long, value_name = "FOLDER", requires = "source_fps", help_heading = "Images")]
    from_frames: Option<PathBuf>,
    /// Not videos but tables: a .parquet file, or a folder or prefix of them, with a column of lists of encoded images.
    #[arg(
        long,
        value_name = "URL",
        requires = "frames_column",
        conflicts_with = "labels",
        help_heading = "Parquet tables"
    )]
    from_parquet: Option<String>,
    /// Make the parts that were ingested to URL with --part one dataset.
    #[arg(long, value_name = "URL", conflicts_with_all = OTHERS, help_heading = "Many machines")]
    finish: Option<String>,
    /// CSV with a header: path, label (several separated by ;), and optionally split, start_s, end_s. Or the published
    /// annotations of Kinetics, Something-Something v2, UCF101, HMDB51 or Charades: a file, or the folder of all their files.
    #[arg(long)]
    labels: Option<PathBuf>,
    /// The form of the annotations [default: found out]
    #[arg(long, value_enum, help_heading = "Published annotations", requires = "labels")]
    layout: Option<LayoutName>,
    /// The official split of UCF101 and HMDB51: 1, 2 or 3.
    #[arg(long, default_value_t = 1, help_heading = "Published annotations")]
    fold: u8,
    /// Kinetics: files named by their id alone are whole videos; cut them by the list's times.
    #[arg(long, help_heading = "Published annotations", requires = "labels")]
    untrimmed: bool,
    /// Where the dataset goes: s3://bucket/prefix, file:///path or a path.
    #[arg(long, required_unless_present = "finish")]
    out: Option<String>,
    /// Ingest only part I of N, I from 1 to N: for N machines at once. --finish makes the parts a dataset.
    #[arg(long, value_name = "I/N", help_heading = "Many machines")]
    part: Option<Part>,
    /// Short side of the stored frames in pixels; smaller videos stay as they are.
    #[arg(long, default_value_t = 256)]
    short_side: u32,
    /// Resample to this many frames a second [default: keep every frame]
    #[arg(long)]
    fps: Option<f64>,
    /// Frames a second at which images were taken (--from-frames, --from-parquet).
    #[arg(long, help_heading = "Images")]
    source_fps: Option<f64>,
    /// Cut each video into clips of this many seconds [default: one clip a video]
    #[arg(long, conflicts_with = "from_parquet")]
    clip_seconds: Option<f64>,
    /// How frames are stored.
    #[arg(long, value_enum, default_value_t = CodecName::Jpeg)]
    codec: CodecName,
    /// JPEG quality, 1 to 100. Images that are taken over byte for byte keep theirs.
    #[arg(long, default_value_t = 90)]
    quality: u8,
    /// Decoding threads [default: one a core]
    #[arg(long)]
    jobs: Option<usize>,
    /// Largest size of a data file, such as "256 MiB".
    #[arg(long, default_value = "256 MiB", value_parser = parse_size)]
    file_size: u64,
    /// The split of videos for which the labels name none.
    #[arg(long, default_value = "train")]
    split: String,
    /// Accept videos that the labels do not name.
    #[arg(long)]
    allow_unlabelled: bool,
    /// The column of lists of images, binary or structs with the field "bytes".
    #[arg(long, value_name = "NAME", requires = "from_parquet", help_heading = "Parquet tables")]
    frames_column: Option<String>,
    /// The column of labels, names or ids, one or a list [default: unlabelled]
    #[arg(long, value_name = "NAME", requires = "from_parquet", help_heading = "Parquet tables")]
    label_column: Option<String>,
    /// The column of clip ids [default: the file's name and the row]
    #[arg(long, value_name = "NAME", requires = "from_parquet", help_heading = "Parquet tables")]
    id_column: Option<String>,
    /// The column of splits [default: by the file's name, else --split]
    #[arg(long, value_name = "NAME", requires = "from_parquet", help_heading = "Parquet tables")]
    split_column: Option<String>,
    /// The column of frame rates; --source-fps holds for rows without.
    #[arg(long, value_name = "NAME", requires = "from_parquet", help_heading = "Parquet tables")]
    fps_column: Option<String>,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum CodecName {
    Jpeg,
    Raw,
}

#[derive(Clone, Copy, ValueEnum)]
enum LayoutName {
    Csv,
    Kinetics,
    Ssv2,
    Ucf101,
    Hmdb51,
    Charades,
}

pub fn run(args: Ingest) -> Result<ExitCode, Error> {
    let runtime = runtime()?;
    if let Some(url) = &args.finish {
        let out = Location::parse(url)?;
        return report(&out, &runtime.block_on(finish(&out))?);
    }
    let out = Location::parse(args.out.as_deref().unwrap_or_default())?;
    let options = Options {
        short_side: args.short_side,
        fps: args.fps,
        clip_seconds: args.clip_seconds,
        codec: match args.codec {
            CodecName::Jpeg => Codec::Jpeg,
            CodecName::Raw => Codec::Raw,
        },
        quality: args.quality,
        file_size: args.file_size,
    };
    // Before a folder of a million files is searched.
    options.check()?;
    let jobs = match args.jobs {
        Some(0) => return Err(Error::Usage("use --jobs 0: it must be 1 or more".into())),
        Some(n) => n,
        None => std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let (part, quiet) = (args.part, args.no_progress);
    let found = find(args, &runtime)?;
    let Some(part) = part else {
        return report(&out, &ingest(&runtime, &found, &options, &out, jobs, quiet)?);
    };
    match ingest_part(&runtime, &found, &options, part, &out, jobs, quiet)? {
        PartDone::Finished(manifest) => {
            say(&format!("{} is complete already: {}", out.url(), words(&manifest)))
        }
        PartDone::Done { inputs, resumed } => {
            if resumed > 0 {
                say(&format!("went on after {resumed} inputs that were done before"))?;
            }
            say(&format!(
                "{}: part {part} is through ({inputs} of {} inputs)",
                out.url(),
                found.inputs.len()
            ))?;
            say(&format!("when all parts are: marey ingest --finish {}", out.url()))
        }
    }
}

fn find(args: Ingest, runtime: &Runtime) -> Result<Found, Error> {
    if let Some(url) = args.from_parquet {
        let table = TableSources {
            url,
            frames: args.frames_column.unwrap_or_default(),
            label: args.label_column,
            id: args.id_column,
            split: args.split_column,
            fps: args.fps_column,
            source_fps: args.source_fps,
            default_split: args.split,
        };
        return table.find(runtime.handle());
    }
    if args.from_frames.is_none() && args.source_fps.is_some() {
        let why = "it is for images (--from-frames, --from-parquet); videos know their rate";
        return Err(Error::Usage(format!("use --source-fps: {why}")));
    }
    let sources = Sources {
        images_fps: args.source_fps,
        videos: args.from_frames.or(args.videos).unwrap_or_default(),
        labels: args.labels,
        layout: args.layout.map(|name| match name {
            LayoutName::Csv => Layout::Csv,
            LayoutName::Kinetics => Layout::Kinetics,
            LayoutName::Ssv2 => Layout::SomethingV2,
            LayoutName::Ucf101 => Layout::Ucf101,
            LayoutName::Hmdb51 => Layout::Hmdb51,
            LayoutName::Charades => Layout::Charades,
        }),
        fold: args.fold,
        untrimmed: args.untrimmed,
        allow_unlabelled: args.allow_unlabelled,
        split: args.split,
    };
    sources.find()
}

fn report(out: &Location, summary: &Summary) -> Result<ExitCode, Error> {
    let Summary { manifest, already, resumed, repaired } = summary;
    let what = words(manifest);
    if *already {
        return say(&format!("{} is complete already: {what}", out.url()));
    }
    if *resumed > 0 {
        say(&format!("went on after {resumed} inputs that were done before"))?;
    }
    let skipped = manifest.totals.skipped;
    say(&format!("{}: {what}; {skipped} inputs skipped, {repaired} repaired", out.url()))?;
    match skipped + repaired {
        0 => Ok(ExitCode::SUCCESS),
        _ => say(&format!("see why with: marey inspect {}", out.url())),
    }
}

fn words(manifest: &Manifest) -> String {
    let t = manifest.totals;
    let files = manifest.files.len();
    format!("{} clips, {} frames, {} in {files} files", t.clips, t.frames, size(t.bytes))
}
