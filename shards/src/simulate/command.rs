//! `marey-shards simulate`: a job's configuration and some numbers of the machines into a report.

use super::{Cluster, Job, Pace, Report, Synthetic, simulate, synthetic};
use crate::format::Dataset;
use crate::{Error, Result};
use configs::{Bytes, Config, Sampling, Seconds};
use std::path::PathBuf;
use std::sync::Arc;
use storage::Location;
use tokio::runtime::Runtime;

/// The arguments.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The job's configuration.
    config: PathBuf,
    /// Override one key of the configuration, like train.global_batch=256; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Workers, like 8 or 1,8,64 [default: cluster.workers]
    #[arg(long, value_delimiter = ',', value_name = "N[,N...]")]
    workers: Vec<u32>,
    /// Workers that share a node, its network and its cache.
    #[arg(long, default_value_t = 1, value_name = "N")]
    workers_per_node: u32,
    /// A node's cache, like "200 GiB" [default: data.cache.limit]
    #[arg(long)]
    cache: Option<Bytes>,
    /// Epochs [default: train.epochs, at most 3]
    #[arg(long)]
    epochs: Option<u64>,
    /// What a node can receive, like 10Gbit (a second).
    #[arg(long, default_value = "10Gbit", value_parser = parse_bandwidth)]
    bandwidth: f64,
    /// From a GET to its first byte.
    #[arg(long, default_value = "20ms")]
    latency: Seconds,
    /// What a worker can compute, clips a second [default: no bound]
    #[arg(long, value_name = "N")]
    clips_per_second: Option<f64>,
    /// Price of 1,000 GETs.
    #[arg(long, default_value_t = 0.0, value_name = "MONEY")]
    price_per_1000_gets: f64,
    /// Price of 10^9 bytes out of the store.
    #[arg(long, default_value_t = 0.0, value_name = "MONEY")]
    price_per_gb: f64,
    /// Make up so many clips instead of opening data.url.
    #[arg(long, value_name = "N")]
    clips: Option<u32>,
    /// Frames of a made-up clip.
    #[arg(long, default_value_t = 300, requires = "clips", value_name = "N")]
    clip_frames: u32,
    /// Frame rate of a made-up clip.
    #[arg(long, default_value_t = 30.0, requires = "clips", value_name = "FPS")]
    clip_fps: f64,
    /// Size of a stored frame of a made-up clip; a JPEG of 340x256 is some 22 KB.
    #[arg(long, default_value = "22 KB", requires = "clips", value_name = "SIZE")]
    frame_bytes: Bytes,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the simulations and returns what is to be printed.
///
/// # Errors
/// A configuration or number that cannot be, or a dataset that cannot be opened.
pub fn command(args: &Args, runtime: &Runtime) -> Result<String> {
    let config = Config::read(&args.config, &args.set).map_err(|e| Error::Usage(e.to_string()))?;
    let job = job(args, &config, runtime)?;
    let cache = args.cache.or(config.data.cache.as_ref().map(|c| c.limit)).map_or(0, |b| b.0);
    let pace = Pace {
        bandwidth: args.bandwidth,
        latency: args.latency.0,
        requests_at_once: config.data.requests.at_once,
        clips_per_second: args.clips_per_second,
        price_per_1000_gets: args.price_per_1000_gets,
        price_per_gb: args.price_per_gb,
    };
    if args.clips_per_second.is_some_and(|c| !(c.is_finite() && c > 0.0)) {
        return Err(Error::Usage("simulate with --clips-per-second: it must be above 0".into()));
    }
    let mut report = Report::new(&job, cache);
    let workers = if args.workers.is_empty() { vec![config.cluster.workers] } else { args.workers.clone() };
    for workers in workers {
        let cluster = Cluster { workers, workers_per_node: args.workers_per_node, cache };
        report.add(&cluster, &simulate(&job, &cluster)?, &pace);
    }
    match args.json {
        true => serde_json::to_string_pretty(&report)
            .map_err(|e| Error::Stopped(format!("print the report: {e}"))),
        false => Ok(report.text().trim_end().into()),
    }
}

fn job(args: &Args, config: &Config, runtime: &Runtime) -> Result<Job> {
    let data = &config.data;
    let dataset = match args.clips {
        None => runtime.block_on(Dataset::open(&Location::parse(&data.url)?))?,
        Some(clips) => {
            let chosen =
                data.sampling != Sampling::Uniform || !data.mixture.is_empty() || data.quarantine.is_some();
            if chosen {
                return Err(Error::Usage(
                    "simulate made-up clips: they have no classes and no names, and are one dataset; leave out --clips, or data.sampling, data.mixture and data.quarantine"
                        .into(),
                ));
            }
            let spec = Synthetic {
                clips,
                frames: args.clip_frames,
                fps: args.clip_fps,
                frame_bytes: args.frame_bytes.0,
                file_bytes: 256 << 20,
            };
            synthetic(&spec, &data.train_split)?
        }
    };
    let epochs = args.epochs.unwrap_or(config.total_epochs().min(3));
    runtime.block_on(Job::open(config, &Arc::new(dataset), epochs))
}

/// "10Gbit": bits a second.
fn parse_bandwidth(text: &str) -> std::result::Result<f64, String> {
    let text = text.trim();
    let (number, factor) = [("Gbit", 1e9), ("Mbit", 1e6), ("kbit", 1e3)]
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
        .ok_or(format!("{text:?} is no bandwidth; write one such as 10Gbit"))?;
    match number.trim().parse::<f64>() {
        Ok(n) if n.is_finite() && n > 0.0 => Ok(n * factor),
        _ => Err(format!("{text:?} is no bandwidth; write one such as 10Gbit")),
    }
}
