//! From a job's configuration to what a stream is asked for.

use crate::Result;
use crate::augment::{Augment, ColorJitter, Erasing, RandAugment};
use crate::format::Manifest;
use crate::sampling::{ClipSpec, Scale, TestSampling, View};
use configs::Config;

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

/// The job's training view.
///
/// # Errors
/// An unknown name among the labels that are never mirrored.
pub fn train_view(config: &Config, manifest: &Manifest) -> Result<View> {
    let (data, a) = (&config.data, &config.data.augment);
    let augment = Augment {
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
    };
    let scale = match a.scale {
        configs::Scale::ShortSide { min, max } => Scale::ShortSide { min, max },
        configs::Scale::Resized { area, aspect } => Scale::Resized { area, aspect },
    };
    let (crop, flip, repeats) = (a.crop, a.flip, a.repeats);
    Ok(View::Train { crop, scale, flip, seed: config.seed, repeats, augment })
}

/// Where the windows of an evaluation lie.
pub fn test_sampling(sampling: configs::TestSampling) -> TestSampling {
    match sampling {
        configs::TestSampling::PySlowFast => TestSampling::PySlowFast,
        configs::TestSampling::MmAction2 => TestSampling::MmAction2,
    }
}
