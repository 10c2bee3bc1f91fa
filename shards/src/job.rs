//! From a job's configuration to what decides which frames are read. The trainer and the simulator both use it.

use crate::Result;
use crate::augment::{Augment, ColorJitter, Erasing, RandAugment};
use crate::format::{ClipIndex, Dataset, Manifest};
use crate::plan::{Groups, Order, PlanSpec, Shape, Stage};
use crate::sampling::{ClipSpec, Scale, View};
use crate::stream::StreamOptions;
use configs::{Config, Shuffle};
use storage::RequestPolicy;
use tokio::runtime::Handle;

/// The order of the training clips `clips`, each shown once an epoch.
pub fn plan_spec(config: &Config, dataset: &Dataset, clips: &[ClipIndex]) -> PlanSpec {
    let (data, seed) = (&config.data, config.seed);
    PlanSpec {
        order: match data.shuffle {
            Shuffle::Uniform => Order::Uniform,
            Shuffle::Grouped => {
                Order::Grouped(Groups::new(dataset, clips, data.shuffle_window.0, data.lanes, seed))
            }
        },
        dataset_digest: dataset.digest.clone(),
        seed,
        clips: clips.len() as u64,
        lanes: data.lanes,
        global_batch: config.train.global_batch,
        drop_last: data.drop_last,
        stages: stages(config),
        ..PlanSpec::default()
    }
}

/// The shapes of multigrid training; none in a plain job.
pub fn stages(config: &Config) -> Vec<Stage> {
    if config.train.multigrid.is_none() {
        return vec![];
    }
    let shape = |s: &configs::StepShape| Shape { batch: s.batch, frames: s.frames, side: s.crop };
    let stage = |s: &configs::Stage| Stage { end: s.end, cycle: s.cycle.iter().map(shape).collect() };
    config.stages().iter().map(stage).collect()
}

/// The temporal window of the job's clips.
pub fn clip_spec(config: &Config) -> ClipSpec {
    let data = &config.data;
    ClipSpec {
        frames: data.frames,
        sampling_rate: data.sampling_rate,
        fps: data.fps,
        single_frame: config.train.single_frame,
    }
}

/// What changes the pixels of the training view.
///
/// # Errors
/// An unknown name among the labels that are never mirrored.
pub fn augment(config: &Config, manifest: &Manifest) -> Result<Augment> {
    let (data, a) = (&config.data, &config.data.augment);
    Ok(Augment {
        no_flip: manifest.label_ids("data.augment.no_flip", &a.no_flip)?,
        color_jitter: a.color_jitter.map(|j| ColorJitter {
            brightness: j.brightness,
            contrast: j.contrast,
            saturation: j.saturation,
        }),
        rand_augment: a.rand_augment.map(|r| RandAugment {
            magnitude: r.magnitude,
            magnitude_std: r.magnitude_std,
            num_ops: r.num_ops,
            prob: r.prob,
        }),
        erasing: a.random_erasing.map(|e| Erasing {
            prob: e.prob,
            area: e.area,
            aspect: e.aspect,
            mean: data.mean,
            std: data.std,
        }),
    })
}

/// The training view, its pixels changed by `augment`, which has no say in what is read.
pub fn train_view(config: &Config, augment: Augment) -> View {
    let a = &config.data.augment;
    let scale = match a.scale {
        configs::Scale::ShortSide { min, max } => Scale::ShortSide { min, max },
        configs::Scale::Resized { area, aspect } => Scale::Resized { area, aspect },
    };
    View::Train { crop: a.crop, scale, flip: a.flip, seed: config.seed, repeats: a.repeats, augment }
}

/// How the job's streams work, with `threads` decode threads (0: one a core) and no cache.
pub fn stream_options(config: &Config, runtime: Handle, threads: usize) -> StreamOptions {
    let data = &config.data;
    StreamOptions {
        requests: request_policy(&data.requests),
        on_damage: data.on_damage,
        ..StreamOptions::new(runtime, threads, data.prefetch.0)
    }
}

/// How the job asks the dataset's store.
pub fn request_policy(requests: &configs::Requests) -> RequestPolicy {
    RequestPolicy {
        at_once: requests.at_once,
        connect: requests.connect.duration(),
        first_byte: requests.first_byte.duration(),
        whole: requests.whole.duration(),
        retries: requests.retries,
        backoff: requests.backoff.map(configs::Seconds::duration),
        hedge_after: requests.hedge_after,
        hedge_share: requests.hedge_share,
    }
}
