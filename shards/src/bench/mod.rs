//! How fast the production stream feeds a trainer from here: `marey data bench`.
//!
//! ```text
//! args.rs      the command line
//! ceiling.rs   what codec and store could give at most, without a stream
//! process.rs   what the kernel knows of this process
//! ```

mod args;
mod ceiling;
mod process;

pub use args::Args;

use crate::cache::{self, Cache};
use crate::format::{Codec, Dataset};
use crate::plan::{Groups, Order, Plan, PlanSpec};
use crate::sampling::{ClipSpec, View};
use crate::stream::{Sources, Stream, StreamOptions, TrainPass};
use crate::trainset::TrainSet;
use crate::{Error, Result};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storage::{Location, RequestPolicy};
use tokio::runtime::Runtime;

/// The clips, their order, and what each is shown as.
#[derive(Clone, Debug)]
pub struct Shown {
    pub set: TrainSet,
    pub clip: ClipSpec,
    pub view: View,
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Spec {
    /// 0: one a core.
    pub threads: usize,
    pub prefetch_bytes: u64,
    /// How the store is asked.
    pub requests: RequestPolicy,
    /// The folder and the limit of the node's cache.
    pub cache: Option<(PathBuf, u64)>,
    /// The stream is stopped after the batch that comes this late.
    pub limit: Duration,
    /// It begins before this step of a run, as one that is resumed there.
    pub from_step: u64,
    /// It ends after this many passes over the split.
    pub epochs: u64,
    /// Measure also what codec and store could give at most, each for this long.
    pub ceiling: Option<Duration>,
}

/// What came out. Rates count from the start of the stream, its first batch included.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub url: String,
    /// Of the first dataset, where a mixture has several.
    pub codec: Codec,
    /// What a person should know of the job's clips.
    pub notes: Vec<String>,
    /// Clips of the split, or of all splits of a mixture.
    pub split_clips: u64,
    /// [B, T, H, W, 3] of the first batch.
    pub shape: [usize; 5],
    pub threads: usize,
    pub clips: u64,
    pub batches: u64,
    pub seconds: f64,
    pub clips_per_second: f64,
    pub frames_per_second: f64,
    /// Pixels handed out, MB (10^6 bytes) a second.
    pub pixels_mb_per_second: f64,
    /// Stored bytes read, MB a second.
    pub read_mb_per_second: f64,
    pub requests: u64,
    pub requests_per_second: f64,
    /// Runs that were asked for twice because the first answer was wrong.
    pub refetches: u64,
    /// Requests sent again because they failed, refused by a busy store, beyond a deadline, and second copies of slow ones.
    pub retries: u64,
    pub throttled: u64,
    pub timeouts: u64,
    pub hedges: u64,
    /// CPU time of the whole process, all threads, from the start of the stream.
    pub cpu_seconds: f64,
    pub cpu_seconds_per_clip: f64,
    /// To open manifest and index.
    pub open_seconds: f64,
    /// From the start of the stream.
    pub first_batch_seconds: f64,
    /// Bytes read over bytes of the runs that were needed; with a cache, less than 1.
    pub read_amplification: f64,
    /// What the node's cache did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<cache::Stats>,
    /// The process's own peak, bytes.
    pub peak_memory: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Ceiling>,
}

/// What codec and store give without a stream.
#[derive(Clone, Debug, Serialize)]
pub struct Ceiling {
    /// The same clips' frames decoded whole by every thread, over and over, from memory. Absent for raw clips.
    pub decode_clips_per_second: Option<f64>,
    /// The same runs by ranged GETs, as many at once, thrown away.
    pub get_clips_per_second: f64,
    /// The stream's rate over the lower of both.
    pub reached: f64,
}

/// Runs the stream and measures it. `shown` is asked what to show once the dataset is open.
///
/// # Errors
/// The dataset's or the stream's own; numbers that cannot be.
pub fn bench(
    runtime: &Runtime,
    location: &Location,
    spec: &Spec,
    shown: impl FnOnce(&Arc<Dataset>) -> Result<Shown>,
) -> Result<Report> {
    let begun = now();
    let dataset = Arc::new(runtime.block_on(Dataset::open(location))?);
    let Shown { set, clip, view } = shown(&dataset)?;
    let open_seconds = begun.elapsed().as_secs_f64();
    if spec.ceiling.is_some() && set.sources.datasets().count() > 1 {
        return Err(Error::Usage(
            "measure the ceiling of a mixture: name one of its datasets instead".into(),
        ));
    }
    let threads = match spec.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let mut options = StreamOptions::new(runtime.handle().clone(), threads, spec.prefetch_bytes);
    options.requests = spec.requests;
    if let Some((folder, limit)) = &spec.cache {
        options.cache = Some(Arc::new(Cache::open(folder, *limit, &set.sources.digest())?));
    }
    let pass = TrainPass {
        clips: set.clips,
        rank: 0,
        world: 1,
        start: set.plan.place(spec.from_step),
        end: spec.from_step.saturating_add(set.plan.first_step(spec.epochs)),
        plan: set.plan,
        clip,
        view,
    };
    let mut report = Report {
        url: location.url().into(),
        codec: dataset.manifest.codec,
        split_clips: pass.clips.len() as u64,
        threads,
        open_seconds,
        notes: set.notes,
        ..run(&set.sources, pass.clone(), &options, spec.limit)?
    };
    report.peak_memory = process::peak_memory();
    if let Some(trial) = spec.ceiling {
        let mut ceiling = ceiling::measure(runtime, &dataset, &pass, &options, trial)?;
        let lower =
            ceiling.decode_clips_per_second.unwrap_or(f64::INFINITY).min(ceiling.get_clips_per_second);
        ceiling.reached = report.clips_per_second / lower;
        report.ceiling = Some(ceiling);
    }
    Ok(report)
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let [b, t, h, w, _] = self.shape;
        let mut text = format!(
            "{url}: batches of {b} clips, {t}x{h}x{w}, {codec:?}, {threads} decode threads\n\
             {notes}{clips} clips in {seconds:.2} s\n\
             {rate:>10.1} clips/s     {frames:.0} frames/s, {pixels:.0} MB/s of pixels\n\
             {read:>10.1} MB/s read   {gets:.0} requests/s, amplification {amplification:.3}\n\
             {cached}{unusual}\
             {cpu:>10.3} ms of CPU a clip\n\
             {first:>10.3} s to the first batch, and {open:.3} s to open the dataset\n\
             {memory:>10.0} MiB of memory at most",
            url = self.url,
            codec = self.codec,
            threads = self.threads,
            notes = self.notes.iter().map(|note| format!("{note}\n")).collect::<String>(),
            clips = self.clips,
            seconds = self.seconds,
            rate = self.clips_per_second,
            frames = self.frames_per_second,
            pixels = self.pixels_mb_per_second,
            read = self.read_mb_per_second,
            gets = self.requests_per_second,
            amplification = self.read_amplification,
            cached = self.cache.map_or(String::new(), |stats| format!("{:11}cache: {stats}\n", "")),
            unusual = self.unusual(),
            cpu = self.cpu_seconds_per_clip * 1e3,
            first = self.first_batch_seconds,
            open = self.open_seconds,
            memory = self.peak_memory as f64 / f64::from(1 << 20),
        );
        if let Some(c) = &self.ceiling {
            if let Some(decode) = c.decode_clips_per_second {
                text += &format!("\n{decode:>10.1} clips/s if they were only decoded");
            }
            text += &format!(
                "\n{:>10.1} clips/s if they were only fetched; the stream reached {:.2} of the lower",
                c.get_clips_per_second, c.reached
            );
        }
        text
    }
}

impl Report {
    /// A line of what should not happen, if it did.
    fn unusual(&self) -> String {
        let counts = [
            (self.retries, "requests sent again"),
            (self.throttled, "refused by a busy store"),
            (self.timeouts, "too late"),
            (self.hedges, "second copies of slow ones"),
            (self.refetches, "runs fetched again after a wrong answer"),
        ];
        let seen = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
        match seen.collect::<Vec<String>>() {
            seen if seen.is_empty() => String::new(),
            seen => format!("{:11}{}\n", "", seen.join(", ")),
        }
    }
}

fn run(sources: &Sources, pass: TrainPass, options: &StreamOptions, limit: Duration) -> Result<Report> {
    let (begun, cpu) = (now(), process::cpu_seconds());
    let mut stream = Stream::train_of(sources.clone(), pass, options)?;
    let (mut clips, mut batches, mut pixels, mut shape, mut first) = (0u64, 0u64, 0u64, [0; 5], 0.0);
    while let Some(batch) = stream.next()? {
        if batches == 0 {
            (shape, first) = (batch.shape, begun.elapsed().as_secs_f64());
        }
        batches += 1;
        clips += batch.shape[0] as u64;
        pixels += batch.frames.len() as u64;
        stream.recycle(batch);
        if begun.elapsed() >= limit {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_seconds = process::cpu_seconds() - cpu;
    let stats = stream.stats();
    Ok(Report {
        url: String::new(),
        codec: sources.dataset(0).manifest.codec,
        notes: Vec::new(),
        split_clips: 0,
        shape,
        threads: 0,
        clips,
        batches,
        seconds,
        clips_per_second: clips as f64 / seconds,
        frames_per_second: clips as f64 * shape[1] as f64 / seconds,
        pixels_mb_per_second: pixels as f64 / 1e6 / seconds,
        read_mb_per_second: stats.bytes as f64 / 1e6 / seconds,
        requests: stats.requests,
        requests_per_second: stats.requests as f64 / seconds,
        refetches: stats.refetches,
        retries: stats.retries,
        throttled: stats.throttled,
        timeouts: stats.timeouts,
        hedges: stats.hedges,
        cpu_seconds,
        cpu_seconds_per_clip: cpu_seconds / clips.max(1) as f64,
        open_seconds: 0.0,
        first_batch_seconds: first,
        read_amplification: stats.amplification(),
        cache: stream.cache_stats(),
        peak_memory: 0,
        ceiling: None,
    })
}

/// A dataset's split by itself, every clip once an epoch. `window`: bytes that grouped shuffling mixes; absent: uniform.
fn split(
    dataset: &Arc<Dataset>,
    name: &str,
    seed: u64,
    global_batch: u32,
    window: Option<u64>,
) -> Result<TrainSet> {
    let (clips, lanes) = (dataset.clips_of(name)?, 1);
    let grouped = |window| Order::Grouped(Groups::new(dataset, &clips, window, lanes, seed));
    let plan = Plan::new(PlanSpec {
        order: window.map_or(Order::Uniform, grouped),
        dataset_digest: dataset.digest.clone(),
        seed,
        clips: clips.len() as u64,
        lanes,
        global_batch,
        ..PlanSpec::default()
    })?;
    Ok(TrainSet { sources: dataset.clone().into(), clips, plan: Arc::new(plan), notes: vec![] })
}

/// Every frame of clips that are all like the first.
fn whole(dataset: &Dataset, set: TrainSet) -> Result<Shown> {
    let like = dataset.clip(set.clips[0]);
    let mut clips = set.clips.iter().map(|&c| dataset.clip(c));
    if let Some(other) = clips.find(|c| c.num_frames != like.num_frames) {
        return Err(Error::Usage(format!(
            "show whole clips: {:?} has {} frames and {:?} {}; choose --frames and --crop",
            like.clip_id, like.num_frames, other.clip_id, other.num_frames
        )));
    }
    let clip = ClipSpec { frames: like.num_frames, sampling_rate: 1, fps: None, single_frame: false };
    let view = View::Whole { width: like.width, height: like.height };
    Ok(Shown { set, clip, view })
}

/// A measurement reads the clock; nothing else depends on it.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::write_dataset;

    fn spec() -> Spec {
        Spec {
            threads: 2,
            prefetch_bytes: 1 << 20,
            requests: RequestPolicy { at_once: 8, ..RequestPolicy::default() },
            cache: None,
            limit: Duration::from_secs(60),
            from_step: 0,
            epochs: 3,
            ceiling: Some(Duration::from_millis(100)),
        }
    }

    fn measured(clips: &[(u32, u32, u32)], codec: Codec) -> Result<Report> {
        let folder = tempfile::tempdir().unwrap();
        let location = write_dataset(folder.path(), codec, clips);
        bench(&Runtime::new().unwrap(), &location, &spec(), |d| whole(d, split(d, "train", 1, 4, None)?))
    }

    #[test]
    fn a_second_measurement_finds_its_clips_in_the_cache() {
        let [folder, cache] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let location = write_dataset(folder.path(), Codec::Raw, &[(20, 24, 16); 10]);
        let spec = Spec { cache: Some((cache.path().into(), 64 << 20)), epochs: 1, ceiling: None, ..spec() };
        let runtime = Runtime::new().unwrap();
        let measured = |()| bench(&runtime, &location, &spec, |d| whole(d, split(d, "train", 1, 4, None)?));
        let [first, second] = [(); 2].map(measured).map(Result::unwrap);
        assert_eq!((first.requests, first.cache.unwrap().misses), (8, 16));
        assert_eq!((second.requests, second.cache.unwrap().hits), (0, 16));
        assert!(second.text().contains("100.0 % of 16 runs found"), "{}", second.text());
    }

    #[test]
    fn whole_clips_are_counted_and_nothing_is_read_twice() {
        for codec in [Codec::Raw, Codec::Jpeg] {
            let report = measured(&[(20, 24, 16); 10], codec).unwrap();
            assert_eq!((report.clips, report.batches, report.split_clips), (24, 6, 8));
            assert_eq!(report.shape, [4, 20, 16, 24, 3]);
            assert_eq!(report.requests, 24, "neighbouring runs come in one request");
            assert_eq!(report.read_amplification, 1.0);
            let ceiling = report.ceiling.unwrap();
            assert_eq!(ceiling.decode_clips_per_second.is_some(), codec == Codec::Jpeg);
            assert!(ceiling.get_clips_per_second > 0.0 && report.peak_memory > 1 << 20);
        }
    }

    #[test]
    fn a_resumed_stream_reads_nothing_of_what_was_consumed() {
        let folder = tempfile::tempdir().unwrap();
        let location = write_dataset(folder.path(), Codec::Raw, &[(20, 24, 16); 10]);
        // The last of the second epoch's two steps, and one epoch more.
        let spec = Spec { from_step: 3, epochs: 1, ceiling: None, ..spec() };
        let report =
            bench(&Runtime::new().unwrap(), &location, &spec, |d| whole(d, split(d, "train", 1, 4, None)?));
        let report = report.unwrap();
        assert_eq!((report.clips, report.batches, report.requests), (8, 2, 8));
    }

    #[test]
    fn clips_of_several_sizes_cannot_be_shown_whole() {
        let refused = |clips: &[(u32, u32, u32)]| {
            let e = measured(clips, Codec::Raw).unwrap_err();
            assert!(e.is_usage(), "{e}");
            e.to_string()
        };
        assert!(refused(&[(20, 24, 16), (21, 24, 16)]).contains("\"clip-001\" 21"));
        assert!(refused(&[(20, 24, 16), (20, 16, 24)]).contains("\"clip-001\" is 16x24"));
    }
}
