//! `marey export`: a checkpoint's weights as one safetensors file that its reference implementation loads.

use super::runtime;
use crate::{
    Error, Result,
    checkpoint::{load, save},
};
use models::Model;
use std::{fs::File, io::Write, path::PathBuf};
use storage::Location;
use tch::Kind;

/// `marey export`
#[derive(Clone, Debug, clap::Args)]
pub struct ExportArgs {
    /// A run (its newest whole checkpoint is taken) or one checkpoints/step-N folder. Averaged weights are
    /// preferred.
    #[arg(long)]
    pub checkpoint: String,
    /// The safetensors file to write: the reference's `state_dict`, floats as float32.
    #[arg(long)]
    pub out: PathBuf,
}

/// Writes the file; one that was there is replaced once the new one is whole.
pub fn command(args: ExportArgs) -> Result<()> {
    let location = Location::parse(&args.checkpoint)?;
    let loaded = runtime()?.block_on(load::open(&location, |text| tracing::warn!("{text}")))?;
    let (config, url) = (loaded.config()?, loaded.url.clone());
    let (header, parts) = loaded.into_parts();
    let (frames, crop) = (i64::from(config.data.frames), i64::from(config.data.augment.crop));
    let mut model = Model::new(&config.model, header.classes as i64, frames, crop, tch::Device::Cpu)?;
    model.load(parts.model)?;

    let mut tensors = model.state_dict();
    for (_, tensor) in tensors.iter_mut().filter(|(_, t)| t.is_floating_point()) {
        *tensor = tensor.f_to_kind(Kind::Float)?;
    }
    let chunks = save::safetensors(&tensors)?;
    let partial = args.out.with_extension("partial");
    let write = || {
        let mut file = File::create(&partial)?;
        chunks.iter().try_for_each(|chunk| file.write_all(chunk))?;
        file.sync_all()?;
        std::fs::rename(&partial, &args.out)
    };
    write().map_err(|source| Error::Io { path: args.out.display().to_string(), source })?;
    println!("{} tensors of {url} for {} classes in {}", tensors.len(), header.classes, args.out.display());
    Ok(())
}
