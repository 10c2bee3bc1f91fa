//! `marey-worker twin`: a job's fresh weights, first batches and learning rates in one file, so that another
//! implementation can train on exactly the same (see `benches/twin.py`).

use crate::{
    Error, Result,
    checkpoint::{layout::Place, save::safetensors},
    feed::Feed,
    schedule,
    session::Assignment,
    state::State,
};
use configs::Config;
use shards::format::Dataset;
use std::{path::PathBuf, sync::Arc};
use storage::Location;
use tch::{Device, Kind, Tensor};
use tokio::runtime::Runtime;

/// `marey-worker twin`
#[derive(Clone, Debug, clap::Args)]
pub struct TwinArgs {
    /// The job's configuration.
    pub config: PathBuf,
    /// Replaces a value of the configuration, like train.epochs=10.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Steps to write batches of.
    #[arg(long, default_value_t = 50)]
    pub steps: u64,
    /// The safetensors file: w.* (weights), frames.N (u8, B T H W C), labels.N (int64), lr (float64, one a step).
    #[arg(long)]
    pub out: PathBuf,
}

/// Writes the file.
pub fn command(args: TwinArgs) -> Result<()> {
    let config = Config::read(&args.config, &args.set)?;
    let runtime = Runtime::new().map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    let dataset = Arc::new(runtime.block_on(Dataset::open(&Location::parse(&config.data.url)?))?);
    let feed = Feed { config: &config, dataset: &dataset, runtime: runtime.handle(), threads: 1, cache: None };
    let plan = feed.plan()?;
    let alone = Assignment { generation: 1, rank: 0, world: 1, members: vec![] };
    let mut stream = feed.train(&plan, &alone, Place::default(), args.steps.min(feed.total_steps(&plan)))?;

    let state = State::new(&config, &dataset.manifest.labels, Device::Cpu)?;
    let mut tensors: Vec<(String, Tensor)> =
        state.model.state_dict().into_iter().map(|(name, t)| (format!("w.{name}"), t)).collect();
    let mut rates = vec![];
    while let Some(batch) = stream.next()? {
        let step = rates.len();
        let shape = batch.shape.map(|n| n as i64);
        tensors
            .push((format!("frames.{step}"), Tensor::f_from_data_size(&batch.frames, &shape, Kind::Uint8)?));
        tensors.push((format!("labels.{step}"), Tensor::f_from_slice(&batch.labels)?));
        rates.push(schedule::lr_of_step(&config, step as f64 / plan.steps_per_epoch() as f64));
    }
    tensors.push(("lr".into(), Tensor::f_from_slice(&rates)?));
    let io = |source| Error::Io { path: args.out.display().to_string(), source };
    std::fs::write(&args.out, safetensors(&tensors)?.concat()).map_err(io)?;
    println!(
        "wrote {} batches and {} weights to {}",
        rates.len(),
        state.parameters().len(),
        args.out.display()
    );
    Ok(())
}
