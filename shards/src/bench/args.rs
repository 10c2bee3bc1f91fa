//! The command line of the measurement.

use super::{Report, Shown, Spec, bench, split, whole};
use crate::augment::Augment;
use crate::format::Dataset;
use crate::job;
use crate::sampling::{ClipSpec, Scale, View};
use crate::trainset::TrainSet;
use crate::{Error, Result};
use configs::Config;
use serde::de::IntoDeserializer;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use storage::{Location, RequestPolicy};
use tokio::runtime::Runtime;

/// How long codec and store are tried.
const TRIAL: Duration = Duration::from_secs(3);

/// What to measure: a job's training stream, or one described here.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The dataset [default: the configuration's]
    #[arg(required_unless_present = "config")]
    url: Option<String>,
    /// Feed this job: its clips in their order, window, augmentation, global batch, requests and cache.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Change one key of the configuration.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// Hand out every stored frame as it is: no window, no crop, no augmentation.
    #[arg(long, conflicts_with_all = ["config", "frames", "rate", "crop"])]
    whole: bool,
    /// Frames of a clip.
    #[arg(long, default_value_t = 16, conflicts_with = "config")]
    frames: u32,
    /// Stored frames from one shown frame to the next.
    #[arg(long, default_value_t = 1, conflicts_with = "config")]
    rate: u32,
    /// Side of the square crop; the short side is resized to 8/7 to 10/7 of it first, and half of the clips
    /// are mirrored.
    #[arg(long, default_value_t = 112, conflicts_with = "config")]
    crop: u32,
    /// Clips of a batch.
    #[arg(long, default_value_t = 16, conflicts_with = "config")]
    batch: u32,
    /// Read neighbours of a file in one request, and shuffle them inside a window of so many bytes
    /// ("256 MiB"). [default: as the configuration says, or each clip by itself]
    #[arg(long, value_name = "WINDOW", value_parser = parse_bytes)]
    grouped: Option<u64>,
    /// Which clips [default: the configuration's, or train]
    #[arg(long)]
    split: Option<String>,
    #[arg(long, default_value_t = 0, conflicts_with = "config")]
    seed: u64,
    /// Decode threads [default: the configuration's, or one a core]
    #[arg(long)]
    threads: Option<usize>,
    /// Ceiling on what is prefetched, such as "256 MiB" [default: the configuration's, or 256 MiB]
    #[arg(long, value_parser = parse_bytes)]
    prefetch: Option<u64>,
    /// Requests under way at once [default: the configuration's, or 64]
    #[arg(long)]
    requests: Option<usize>,
    /// Ask the store for everything, though the configuration has a cache.
    #[arg(long, requires = "config")]
    no_cache: bool,
    /// How long.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Begin before this step, as a job that is resumed there.
    #[arg(long, value_name = "STEP", default_value_t = 0, hide_default_value = true)]
    from_step: u64,
    /// Stop after this many passes over the clips even if it is earlier.
    #[arg(long, default_value_t = 1_000_000, hide_default_value = true)]
    epochs: u64,
    /// Measure also what the codec and the store could give at most.
    #[arg(long)]
    ceiling: bool,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// Measures.
    ///
    /// # Errors
    /// As [`bench`]; a configuration that cannot be.
    pub fn run(&self, runtime: &Runtime) -> Result<Report> {
        let config = self.config.as_ref().map(|path| self.read(path)).transpose()?;
        let spec = self.spec(config.as_ref())?;
        let url = self.url.as_deref().or(config.as_ref().map(|c| &*c.data.url)).unwrap_or_default();
        bench(runtime, &Location::parse(url)?, &spec, |dataset| match &config {
            Some(config) => job(config, dataset, runtime),
            None => self.alone(dataset),
        })
    }

    /// The configuration with what the command line says of its dataset.
    fn read(&self, path: &Path) -> Result<Config> {
        let url = self.url.iter().map(|url| format!("data.url={url}"));
        let split = self.split.iter().map(|split| format!("data.train_split={split}"));
        let window = self.grouped.iter().map(|bytes| format!("data.shuffle_window={bytes} B"));
        let grouped = self.grouped.iter().map(|_| "data.shuffle=grouped".into());
        let more = url.chain(split).chain(grouped).chain(window);
        let set: Vec<String> = self.set.iter().cloned().chain(more).collect();
        let config = Config::read(path, &set).map_err(|e| Error::Usage(e.to_string()))?;
        if self.split.is_some() && !config.data.mixture.is_empty() {
            return Err(Error::Usage("measure --split of a mixture: its parts name their own splits".into()));
        }
        Ok(config)
    }

    /// What the command line says goes before the configuration.
    fn spec(&self, config: Option<&Config>) -> Result<Spec> {
        let limit = Duration::try_from_secs_f64(self.seconds)
            .map_err(|e| Error::Usage(format!("measure for {} seconds: {e}", self.seconds)))?;
        let data = config.map(|c| &c.data);
        let mut requests =
            data.map_or_else(RequestPolicy::default, |data| job::request_policy(&data.requests));
        requests.at_once = self.requests.unwrap_or(requests.at_once);
        let cache = data.and_then(|data| data.cache.as_ref()).filter(|_| !self.no_cache);
        Ok(Spec {
            threads: self.threads.or(data.map(|data| data.threads)).unwrap_or(0),
            prefetch_bytes: self.prefetch.or(data.map(|data| data.prefetch.0)).unwrap_or(256 << 20),
            requests,
            cache: cache.map(|cache| (PathBuf::from(&cache.folder), cache.limit.0)),
            limit,
            from_step: self.from_step,
            epochs: self.epochs,
            ceiling: self.ceiling.then_some(TRIAL),
        })
    }

    /// The dataset without a job.
    fn alone(&self, dataset: &Arc<Dataset>) -> Result<Shown> {
        let name = self.split.as_deref().unwrap_or("train");
        let set = split(dataset, name, self.seed, self.batch, self.grouped)?;
        if self.whole { whole(dataset, set) } else { Ok(self.window(set)) }
    }

    fn window(&self, set: TrainSet) -> Shown {
        let crop = self.crop;
        let clip = ClipSpec { frames: self.frames, sampling_rate: self.rate, fps: None, single_frame: false };
        // 256 to 320 for a crop of 224: SlowFast's.
        let scale = Scale::ShortSide { min: crop.saturating_mul(8) / 7, max: crop.saturating_mul(10) / 7 };
        let augment = Augment::NONE;
        let view = View::Train { crop, scale, flip: 0.5, seed: self.seed, repeats: 1, augment };
        Shown { set, clip, view }
    }
}

/// What rank 0 of 1 is shown in a job.
fn job(config: &Config, dataset: &Arc<Dataset>, runtime: &Runtime) -> Result<Shown> {
    let set = runtime.block_on(TrainSet::open(config, dataset))?;
    let view = job::train_view(config, job::augment(config, &dataset.manifest)?);
    Ok(Shown { set, clip: job::clip_spec(config), view })
}

fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let bytes: std::result::Result<configs::Bytes, serde::de::value::Error> =
        serde::Deserialize::deserialize(text.into_deserializer());
    bytes.map(|b| b.0).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Codec;
    use crate::testing::write_dataset;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    const CONFIG: &str = r#"
[data]
url = "/data"
lanes = 2
frames = 8
requests = { at_once = 200, retries = 3, hedge_share = 0.0 }
cache = { folder = "/scratch/cache", limit = "2 GiB" }
augment = { crop = 16, scale = { kind = "short_side", min = 16, max = 22 } }
eval = { short_side = 16, crop = 16 }
[model]
arch = "resnet3d"
kind = "c2d"
[train]
epochs = 1
global_batch = 8
[optimizer]
kind = "sgd"
lr = 0.01
"#;

    #[test]
    fn a_job_is_measured_as_it_asks_and_the_command_line_wins() {
        let config = Config::parse("the test's", CONFIG, &[]).unwrap();
        let spec = |words: &[&str]| {
            let line = Line::try_parse_from([&["bench", "--config", "job.toml"], words].concat()).unwrap();
            line.args.spec(Some(&config)).unwrap()
        };
        let own = spec(&[]);
        assert_eq!((own.requests.at_once, own.requests.retries, own.requests.hedge_share), (200, 3, 0.0));
        assert_eq!(own.cache, Some(("/scratch/cache".into(), 2 << 30)));
        let other = spec(&["--requests", "16", "--no-cache"]);
        assert_eq!((other.requests.at_once, other.requests.retries, other.cache), (16, 3, None));
    }
    #[test]
    fn what_a_job_leaves_out_and_draws_is_what_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let location = write_dataset(folder.path(), Codec::Raw, &[(20, 24, 20); 30]);
        let (config, list) = (folder.path().join("job.toml"), folder.path().join("left-out.txt"));
        std::fs::write(&config, CONFIG).unwrap();
        // The training clips without a label, and one more.
        std::fs::write(&list, "clip-000\nclip-006\nclip-013\nclip-020\nclip-027\n").unwrap();
        let quarantine = format!("data.quarantine={}", list.display());
        let mut words = vec!["bench", location.url(), "--config", config.to_str().unwrap(), "--no-cache"];
        words.extend(["--epochs", "2", "--seconds", "600", "--threads", "1"]);
        words.extend(["--set", "data.sampling=class_balanced", "--set", "data.epoch_clips=20"]);
        let runtime = Runtime::new().unwrap();
        let run = |words: &[&str]| Line::try_parse_from(words).unwrap().args.run(&runtime);
        assert!(run(&words).unwrap_err().to_string().contains("has no label"));
        let report = run(&[&words[..], &["--set", &quarantine]].concat()).unwrap();
        assert_eq!((report.clips, report.split_clips, report.shape), (40, 19, [8, 8, 16, 16, 3]));
        assert_eq!(report.notes.len(), 2, "{:?}", report.notes);
    }
}
