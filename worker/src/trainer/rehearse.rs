//! A newcomer's first step, taken before it says that it is here: it costs several of the steps that follow (memory is
//! mapped, kernels are chosen and loaded), and in a group every rank would wait for it.

use super::step::autocast;
use crate::{Result, batch::Normalise, device::Device};
use configs::Config;
use models::Model;
use tch::Kind;

/// Forward and backward pass of grey clips through a network that is thrown away, as many as this rank is likely to
/// show in a step. The random numbers of the job's own network are drawn anew later.
pub(super) fn rehearse(config: &Config, labels: usize, device: Device) -> Result<()> {
    let device = device.torch();
    let (frames, crop) = (config.data.frames.into(), config.data.augment.crop.into());
    let mut model = Model::new(&config.model, labels as i64, frames, crop, device)?;
    if config.train.channels_last {
        model.to_channels_last()?;
    }
    let clips = Normalise::new(config, device).zeros(share(config))?;
    let logits = {
        let _autocast = autocast(config.train.precision, device)?;
        model.forward(&clips, true)?
    };
    Ok(collective::backward(&logits.f_sum(Kind::Float)?)?)
}

/// Clips of a pass on the rank with most lanes, once the job has all the workers that it hopes for.
fn share(config: &Config) -> i64 {
    let (data, train) = (&config.data, &config.train);
    let lanes = data.lanes.div_ceil(config.cluster.workers.clamp(1, data.lanes));
    let clips = lanes * (train.global_batch / data.lanes) * data.augment.repeats;
    clips.min(train.micro_batch.unwrap_or(u32::MAX)).max(1).into()
}
