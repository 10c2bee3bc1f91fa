//! `marey-worker twin`: a job's fresh weights, batches and learning rates in files, so that another
//! implementation can train on exactly the same (see `benches/twin.py`).

use crate::{
    Error, Result,
    checkpoint::{layout::Place, save::safetensors},
    feed::{self, Feed},
    schedule,
    session::Assignment,
    state::State,
};
use configs::Config;
use shards::{format::Dataset, stream::Batch, trainset::TrainSet};
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
    /// Steps to write batches of; absent: all of the job.
    #[arg(long)]
    pub steps: Option<u64>,
    /// The evaluation split too.
    #[arg(long)]
    pub eval: bool,
    /// The folder: weights.safetensors; step-000000.safetensors and so on with frames (u8, B T H W C), labels
    /// (int64) and lr (float64); eval-000000.safetensors and so on with frames and labels.
    #[arg(long)]
    pub out: PathBuf,
}

/// Writes the files.
pub fn command(args: TwinArgs) -> Result<()> {
    let config = Config::read(&args.config, &args.set)?;
    let runtime = Runtime::new().map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    let dataset = Arc::new(runtime.block_on(Dataset::open(&Location::parse(&config.data.url)?))?);
    let set = runtime.block_on(TrainSet::open(&config, &dataset))?;
    let (handle, cache) = (runtime.handle(), None);
    let feed = Feed { config: &config, dataset: &dataset, set: &set, runtime: handle, threads: 1, cache };
    let plan = set.plan.clone();
    let alone = Assignment { generation: 1, rank: 0, world: 1, members: vec![], committed: None };
    let total = feed.total_steps(&plan);
    let steps = args.steps.map_or(total, |steps| steps.min(total));

    let state = State::new(&config, &dataset.manifest.labels, Device::Cpu)?;
    let write = |name: String, tensors: &[(String, Tensor)]| {
        let path = args.out.join(name);
        let io = |source| Error::Io { path: path.display().to_string(), source };
        std::fs::write(&path, safetensors(tensors)?.concat()).map_err(io)
    };
    let io = |source| Error::Io { path: args.out.display().to_string(), source };
    std::fs::create_dir_all(&args.out).map_err(io)?;
    write("weights.safetensors".into(), &state.model.state_dict())?;

    let mut stream = feed.train(&plan, &alone, Place::default(), steps)?;
    let mut step = 0;
    while let Some(batch) = stream.next()? {
        let rate = schedule::lr_of_step(&config, feed::fraction(&plan, batch.epoch, batch.step));
        let mut tensors = tensors_of(&batch)?;
        tensors.push(("lr".into(), Tensor::f_from_slice(&[rate])?));
        write(format!("step-{step:06}.safetensors"), &tensors)?;
        step += 1;
    }
    let mut evals = 0;
    let stream = if args.eval { feed.eval(&alone)? } else { None };
    if let Some(mut stream) = stream {
        while let Some(batch) = stream.next()? {
            write(format!("eval-{evals:06}.safetensors"), &tensors_of(&batch)?)?;
            evals += 1;
        }
    }
    println!("wrote {step} batches and {evals} of the evaluation to {}", args.out.display());
    Ok(())
}

fn tensors_of(batch: &Batch) -> Result<Vec<(String, Tensor)>> {
    let shape = batch.shape.map(|n| n as i64);
    Ok(vec![
        ("frames".into(), Tensor::f_from_data_size(&batch.frames, &shape, Kind::Uint8)?),
        ("labels".into(), Tensor::f_from_slice(&batch.labels)?),
    ])
}
