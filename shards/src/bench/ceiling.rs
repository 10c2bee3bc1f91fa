//! What codec and store could give at most: the same clips only decoded, and only fetched.

use super::{Ceiling, now};
use crate::format::{Clip, ClipIndex, Codec, Dataset, RUN_FRAMES, run_frames, split_run};
use crate::plan::Sample;
use crate::reader::{Reader, Runs, runs_of, spans};
use crate::stream::{StreamOptions, TrainPass};
use crate::{Error, Result};
use bytes::Bytes;
use futures::StreamExt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use turbojpeg::{Decompressor, Image, PixelFormat};

/// Stored bytes that are held for decoding.
const HELD: u64 = 128 << 20;

/// One window: a clip and its stored frames.
type Window = (ClipIndex, Vec<u32>);

/// Measures both on the first epoch's windows, in order; `reached` is left at 0.
pub(super) fn measure(
    runtime: &Runtime,
    dataset: &Arc<Dataset>,
    pass: &TrainPass,
    options: &StreamOptions,
    trial: Duration,
) -> Result<Ceiling> {
    let windows = windows(dataset, pass);
    let get_clips_per_second = runtime.block_on(gets(dataset, &windows, options.requests.at_once, trial))?;
    let decode_clips_per_second = match dataset.manifest.codec {
        Codec::Raw => None,
        Codec::Jpeg => Some(decodes(runtime, dataset, &windows, options, trial)?),
    };
    Ok(Ceiling { decode_clips_per_second, get_clips_per_second, reached: 0.0 })
}

fn windows(dataset: &Dataset, pass: &TrainPass) -> Vec<Window> {
    let steps = 0..pass.plan.steps_per_epoch(0);
    let samples = steps.flat_map(|step| pass.plan.global_batch(0, step));
    let window = |s: Sample| {
        let clip = pass.clips[s.clip as usize];
        (clip, pass.view.draw(&pass.clip, dataset.clip(clip), 0, s.position, 0).frames)
    };
    samples.map(window).collect()
}

/// Clips a second by bare ranged GETs, `at_once` of them under way.
async fn gets(dataset: &Arc<Dataset>, windows: &[Window], at_once: usize, trial: Duration) -> Result<f64> {
    let begun = now();
    let mut fetched = 0;
    let ranges = windows.iter().cycle().flat_map(|(clip, frames)| {
        let clip = dataset.clip(*clip);
        let spans = spans(runs_of(frames));
        let last = spans.len();
        spans.into_iter().enumerate().map(move |(i, span)| (clip, clip.run_bytes(span), i + 1 == last))
    });
    let get = |(clip, range, ends): (Clip<'_>, Range<u64>, bool)| {
        let range = clip.offset + range.start..clip.offset + range.end;
        let (dataset, key) = (dataset.clone(), dataset.file_key(clip).to_owned());
        // A task each, as a client in a hurry would.
        let task = tokio::spawn(async move { dataset.location.get_range(&key, range).await });
        async move { (task.await, ends) }
    };
    let mut answers = futures::stream::iter(ranges.map(get)).buffer_unordered(at_once);
    while let Some((answer, ends)) = answers.next().await {
        answer.map_err(|e| Error::Stopped(format!("measure bare requests: {e}")))??;
        fetched += u64::from(ends);
        if begun.elapsed() >= trial {
            break;
        }
    }
    Ok(fetched as f64 / begun.elapsed().as_secs_f64())
}

/// Clips a second where every thread only decodes the windows' frames, whole, from memory.
fn decodes(
    runtime: &Runtime,
    dataset: &Arc<Dataset>,
    windows: &[Window],
    options: &StreamOptions,
    trial: Duration,
) -> Result<f64> {
    let reader = Reader::new(dataset.clone(), options.requests)?;
    let mut held = Vec::new();
    for (clip, frames) in windows {
        let runs = runtime.block_on(reader.fetch(*clip, frames))?;
        held.push(jpegs(dataset, *clip, frames, &runs).map_err(stopped)?);
        if reader.stats().bytes > HELD {
            break;
        }
    }
    let begun = now();
    let counts: Vec<Result<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..options.threads).map(|_| scope.spawn(|| decode_for(&held, begun, trial))).collect();
        let ended = || stopped("a thread ended early".into());
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(ended()))).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    Ok(counts.into_iter().sum::<Result<u64>>()? as f64 / seconds)
}

/// One window's frames as they are stored.
struct Held {
    width: usize,
    height: usize,
    jpegs: Vec<Bytes>,
}

fn jpegs(
    dataset: &Dataset,
    clip: ClipIndex,
    frames: &[u32],
    runs: &Runs,
) -> std::result::Result<Held, String> {
    let clip = dataset.clip(clip);
    let jpeg = |&frame: &u32| {
        let run = frame / RUN_FRAMES;
        let bytes = runs.get(run).ok_or("a run is missing")?;
        let count = run_frames(clip.num_frames, run);
        let places = split_run(Codec::Jpeg, bytes, count, clip.width, clip.height)?;
        Ok(bytes.slice(places[(frame % RUN_FRAMES) as usize].clone()))
    };
    let jpegs = frames.iter().map(jpeg).collect::<std::result::Result<_, String>>()?;
    Ok(Held { width: clip.width as usize, height: clip.height as usize, jpegs })
}

fn decode_for(held: &[Held], begun: Instant, trial: Duration) -> Result<u64> {
    let mut decoder = Decompressor::new().map_err(|e| stopped(e.to_string()))?;
    let (mut pixels, mut count) = (Vec::new(), 0);
    for &Held { width, height, ref jpegs } in held.iter().cycle() {
        if begun.elapsed() >= trial {
            break;
        }
        pixels.resize(width * height * 3, 0);
        for jpeg in jpegs {
            let image =
                Image { pixels: &mut pixels[..], width, pitch: width * 3, height, format: PixelFormat::RGB };
            decoder.decompress(jpeg, image).map_err(|e| stopped(e.to_string()))?;
        }
        count += 1;
    }
    Ok(count)
}

fn stopped(why: String) -> Error {
    Error::Stopped(format!("measure bare decoding: {why}"))
}
