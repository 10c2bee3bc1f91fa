//! A newcomer's first step, taken before it says that it is here: it costs several of the steps that follow (memory is
//! mapped, kernels are chosen and loaded), and in a group every rank would wait for it.

use super::step::{autocast, fullest_share};
use crate::{Result, batch::Normalise};
use configs::Config;
use models::Model;
use tch::{Device, Kind};

/// Forward and backward pass of grey clips, as many as this rank is likely to show in a step. It draws random numbers,
/// moves the network's running statistics and leaves gradients: throw the network away, and draw the job's own anew.
pub(super) fn rehearse(config: &Config, model: &Model, device: Device) -> Result<()> {
    // Once the job has all the workers that it hopes for.
    let share = fullest_share(config, config.cluster.workers.clamp(1, config.data.lanes));
    let most = config.train.micro_batch.unwrap_or(u32::MAX);
    let clips = Normalise::new(config, device).zeros(share.min(most).into())?;
    let logits = {
        let _autocast = autocast(config.train.precision, device)?;
        model.forward(&clips, true)?
    };
    Ok(collective::backward(&logits.f_sum(Kind::Float)?)?)
}
