//! `marey train --dry-run`: what a job would be, without starting it: the network's size, the epoch's plan, the
//! learning rate over time, memory, and bytes to read.

mod activations;
mod table;

use crate::{Error, Result, feed, schedule};
use configs::{Config, Optimizer, Precision, Sgd};
use models::{Model, Role};
use serde::Serialize;
use shards::{
    format::{Clip, Dataset, RUN_FRAMES},
    plan::{Plan, PlanSpec},
    stream::ClipSpec,
    trainset::TrainSet,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use storage::Location;

/// How long a dataset on a store may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The bucket of a recipe that nobody filled in.
const PLACEHOLDER: &str = "://BUCKET/";

/// `marey-worker dry-run`
#[derive(Clone, Debug, clap::Args)]
pub struct DryRunArgs {
    /// The job's configuration.
    #[arg(long)]
    pub config: PathBuf,
    /// Override one key, e.g. --set train.epochs=10.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Plan for this many training clips instead of opening the dataset.
    #[arg(long, value_name = "N")]
    pub clips: Option<u64>,
    /// Plan for this many classes instead of opening the dataset.
    #[arg(long, value_name = "N")]
    pub classes: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What a job would be.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// Where clips and classes come from, in words.
    pub dataset: String,
    /// Of an epoch.
    pub clips: u64,
    /// What is special about them: clips left out, shares of a mixture.
    pub notes: Vec<String>,
    pub classes: u64,
    /// Trained values.
    pub parameters: u64,
    /// Multiply-adds of the forward pass of one training clip, in thousands of millions.
    pub gflops: f64,
    pub frames: u32,
    pub crop: u32,
    pub workers: u32,
    pub lanes: u32,
    /// Lanes of each worker.
    pub lanes_per_worker: Vec<u32>,
    pub global_batch: u32,
    /// Clips of the largest share of a step, and the passes it is taken in.
    pub clips_per_worker: u64,
    pub passes: u64,
    /// `train.checkpoint_activations`
    pub recompute: bool,
    pub epochs: u64,
    /// Of the first epoch.
    pub steps_per_epoch: u64,
    /// Clips of the first epoch's last step.
    pub last_batch: u64,
    /// Of multigrid training; empty in a plain job.
    pub stages: Vec<StagePlan>,
    pub total_steps: u64,
    /// What the file's rates were multiplied with: `global_batch / reference_batch`.
    pub rate_scale: f64,
    pub rates: Vec<Rate>,
    pub memory: Memory,
    /// Bytes of the dataset that an epoch fetches, where the dataset is open.
    pub epoch_bytes: Option<u64>,
}

/// Epochs in a row whose steps go through the same shapes.
#[derive(Clone, Debug, Serialize)]
pub struct StagePlan {
    pub from: u64,
    /// The first epoch after it.
    pub end: u64,
    pub frames: u32,
    /// Of the steps, in turn.
    pub crops: Vec<u32>,
    /// Clips of the steps, in turn.
    pub batches: Vec<u32>,
    pub steps_per_epoch: u64,
}

/// The learning rate at a place.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    pub at: &'static str,
    pub epoch: f64,
    pub lr: f64,
}

/// Bytes on the device of the worker with the largest share.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Exact.
    pub weights: u64,
    /// Exact.
    pub gradients: u64,
    /// Exact.
    pub optimizer: u64,
    /// Exact.
    pub ema: u64,
    /// An estimate of what one pass keeps for its backward pass; too much where blocks are computed again
    /// (`train.checkpoint_activations`).
    pub activations: u64,
    pub total: u64,
    /// Ceiling of the prefetched batches in the host's memory, beside the above on a CPU.
    pub prefetch: u64,
}

/// Looks, and prints.
pub fn command(args: &DryRunArgs) -> Result<()> {
    let config = Config::read(&args.config, &args.overrides)?;
    let run = DryRun::new(&config, args.clips, args.classes)?;
    if args.json {
        let json = serde_json::to_value(&run).unwrap_or_default();
        println!("{json:#}");
    } else {
        print!("{}", table::text(&run, &args.config.display().to_string()));
    }
    Ok(())
}

impl DryRun {
    /// Plans the job of `config`. `clips` and `classes` stand in for the dataset.
    pub fn new(config: &Config, clips: Option<u64>, classes: Option<u32>) -> Result<Self> {
        let size = Size::find(config, clips, classes)?;
        let (data, train) = (&config.data, &config.train);
        let plan = match &size.set {
            Some(set) => set.plan.clone(),
            None => Arc::new(Plan::new(PlanSpec {
                seed: config.seed,
                clips: data.epoch_clips.unwrap_or(size.clips),
                lanes: data.lanes,
                global_batch: train.global_batch,
                drop_last: data.drop_last,
                stages: feed::stages(config),
                ..PlanSpec::default()
            })?),
        };
        let workers = config.cluster.workers;
        let lanes: Vec<u32> = (0..workers)
            .map(|rank| Ok(plan.lanes_of_rank(rank, workers)?.len() as u32))
            .collect::<Result<_>>()?;
        let most = lanes.iter().max().copied().unwrap_or(0);
        let share = u64::from(most) * u64::from(train.global_batch / data.lanes);
        let pass = train.micro_batch.map_or(share, |n| share.min(n.into()));
        let network = outline(config, size.classes)?;
        let epochs = config.total_epochs();
        let all = plan.first_step(epochs);
        let total = train.max_steps.map_or(all, |max| max.min(all));
        let (last_epoch, last_step) = plan.place(total);
        let (rates, scale) = rates(config, feed::fraction(&plan, last_epoch, last_step));
        let per_epoch = plan.steps_per_epoch(0);
        Ok(Self {
            dataset: size.source,
            clips: plan.spec().epoch_clips(),
            notes: size.set.map_or(vec![], |set| set.notes),
            classes: size.classes,
            parameters: network.trained,
            gflops: network.gflops,
            frames: data.frames,
            crop: data.augment.crop,
            workers,
            lanes: data.lanes,
            lanes_per_worker: lanes,
            global_batch: train.global_batch,
            clips_per_worker: share,
            passes: share.div_ceil(pass.max(1)),
            recompute: train.checkpoint_activations,
            epochs,
            steps_per_epoch: per_epoch,
            last_batch: plan.global_clips(0, per_epoch - 1),
            stages: stages(config, &plan),
            total_steps: total,
            rate_scale: scale,
            rates,
            memory: memory(config, &network, pass),
            epoch_bytes: size.epoch_bytes,
        })
    }
}

/// The stages of multigrid training that have epochs.
fn stages(config: &Config, plan: &Plan) -> Vec<StagePlan> {
    let (mut all, mut from) = (vec![], 0);
    let stages = if config.train.multigrid.is_some() { config.stages() } else { vec![] };
    for stage in stages.iter().filter(|s| s.end > 0) {
        let begun = from;
        from = from.max(stage.end);
        if begun < stage.end {
            all.push(StagePlan {
                from: begun,
                end: stage.end,
                frames: stage.base().frames,
                crops: stage.cycle.iter().map(|s| s.crop).collect(),
                batches: stage.cycle.iter().map(|s| s.batch * config.train.global_batch).collect(),
                steps_per_epoch: plan.steps_per_epoch(begun),
            });
        }
    }
    all
}

/// What is known of the dataset.
struct Size {
    source: String,
    clips: u64,
    classes: u64,
    epoch_bytes: Option<u64>,
    /// Where the dataset is open.
    set: Option<TrainSet>,
}

impl Size {
    fn find(config: &Config, clips: Option<u64>, classes: Option<u32>) -> Result<Self> {
        let url = &config.data.url;
        let absent = if clips.is_some() {
            "not opened".to_string()
        } else if url.contains(PLACEHOLDER) {
            format!("{url} is a placeholder")
        } else {
            match open(url)? {
                Ok(dataset) => return Self::of(config, dataset),
                Err(why) => why,
            }
        };
        let nominal = config.data.nominal;
        let number = classes.or(nominal.map(|n| n.classes));
        let (Some(clips), Some(classes)) = (clips.or(nominal.map(|n| n.clips)), number) else {
            return Err(Error::Usage(format!(
                "plan the job: {absent}, and the configuration has no data.nominal; give --clips and --classes"
            )));
        };
        let source = format!("{absent}: planned for {clips} clips of {classes} classes");
        Ok(Self { source, clips, classes: classes.into(), epoch_bytes: None, set: None })
    }

    fn of(config: &Config, dataset: Dataset) -> Result<Self> {
        let dataset = Arc::new(dataset);
        let set = runtime()?.block_on(TrainSet::open(config, &dataset))?;
        let spec = feed::clip_spec(config);
        let bytes: u64 = set.clips.iter().map(|c| window_bytes(&spec, set.sources.clip(*c))).sum();
        let clips = set.clips.len() as u64;
        let epoch = u128::from(bytes) * u128::from(set.plan.spec().epoch_clips()) / u128::from(clips);
        Ok(Self {
            source: format!("{}, split {}", dataset.location.url(), config.data.train_split),
            clips,
            classes: dataset.manifest.labels.len() as u64,
            epoch_bytes: Some(epoch as u64),
            set: Some(set),
        })
    }
}

/// The dataset, or in words why there is none to open. One that is there but damaged is an error.
fn open(url: &str) -> Result<std::result::Result<Dataset, String>> {
    let location = Location::parse(url)?;
    let remote = url.contains("://") && !url.starts_with("file://");
    let opened =
        runtime()?.block_on(async { tokio::time::timeout(PATIENCE, Dataset::open(&location)).await });
    match opened {
        Ok(Ok(dataset)) => Ok(Ok(dataset)),
        Ok(Err(shards::Error::NotADataset { url })) => Ok(Err(format!("there is no dataset at {url}"))),
        Ok(Err(e)) if remote && !matches!(e, shards::Error::Damaged { .. }) => {
            Ok(Err(format!("failed to {e}")))
        }
        Ok(Err(e)) => Err(e.into()),
        Err(_) => Ok(Err(format!("{url} did not answer within {} s", PATIENCE.as_secs()))),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Runtime::new().map_err(|source| Error::Io { path: "the async runtime".into(), source })
}

/// Bytes of the runs that a window in the middle of the clip touches.
fn window_bytes(spec: &ClipSpec, clip: Clip) -> u64 {
    let frames = spec.frame_indices(clip, 0.5);
    let runs = frames.first().zip(frames.last()).map(|(a, b)| (a / RUN_FRAMES, b / RUN_FRAMES));
    let bytes = runs.map(|(first, last)| clip.run_bytes(first..last + 1));
    bytes.map_or(0, |range| range.end - range.start)
}

/// Sizes of the network.
struct Network {
    /// Multiply-adds of one training clip, in thousands of millions.
    gflops: f64,
    /// Values that are trained.
    trained: u64,
    /// Values in all, running statistics included.
    all: u64,
}

/// Builds the network without its weights.
fn outline(config: &Config, classes: u64) -> Result<Network> {
    let (frames, crop) = (config.data.frames, config.data.augment.crop);
    let (frames, crop) = (i64::from(frames), i64::from(crop));
    let model = Model::outline(&config.model, classes as i64, frames, crop)?;
    let mut sizes = Network { gflops: model.gflops(frames, crop, crop), trained: 0, all: 0 };
    for named in model.tensors() {
        let n = named.tensor.numel() as u64;
        sizes.all += n;
        sizes.trained += if matches!(named.role, Role::Buffer) { 0 } else { n };
    }
    Ok(sizes)
}

fn memory(config: &Config, network: &Network, pass: u64) -> Memory {
    let (data, train) = (&config.data, &config.train);
    let kept = match &config.optimizer {
        Optimizer::Sgd(Sgd { momentum, .. }) => u64::from(*momentum > 0.0),
        Optimizer::Adamw(_) => 2,
    };
    let half = train.precision != Precision::Fp32;
    // A step of smaller clips has more of them.
    let shapes = config.stages().into_iter().flat_map(|s| s.cycle);
    let of_shape = |s: configs::StepShape| {
        u64::from(s.batch) * activations::bytes(&config.model, s.frames, s.crop, half)
    };
    let clip = shapes.map(of_shape).max().unwrap_or(0);
    let (weights, gradients) = (4 * network.all, 4 * network.trained);
    let optimizer = kept * gradients;
    let ema = if train.ema.is_some() { weights } else { 0 };
    let activations = clip * pass * u64::from(data.augment.repeats);
    let total = weights + gradients + optimizer + ema + activations;
    Memory { weights, gradients, optimizer, ema, activations, total, prefetch: data.prefetch.0 }
}

/// The learning rate at the places that tell its curve, and what the file's rates are scaled by. `ends`: the
/// epoch after which the job ends.
fn rates(config: &Config, ends: f64) -> (Vec<Rate>, f64) {
    let mut places = vec![("start", 0.0), ("end of warm-up", config.schedule.warmup_epochs)];
    places.extend([("middle", ends / 2.0), ("end", ends)]);
    places.retain(|(at, epoch)| *at != "end of warm-up" || *epoch > 0.0);
    let rate = |(at, epoch)| Rate { at, epoch, lr: schedule::lr_of_step(config, epoch) };
    (places.into_iter().map(rate).collect(), schedule::batch_scale(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn recipe(name: &str) -> Config {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs"));
        Config::read(&folder.join(name), &[]).unwrap()
    }

    /// Without a dataset: the recipe's own size.
    fn dry(name: &str) -> Result<DryRun> {
        let config = recipe(name);
        DryRun::new(&config, config.data.nominal.map(|n| n.clips), None)
    }

    #[test]
    fn every_recipe_can_be_planned() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");
        let mut refused = vec![];
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.ends_with(".toml") || name == "Cargo.toml" {
                continue;
            }
            match dry(&name) {
                Err(e) => refused.push(format!("{name}: {e}")),
                Ok(run) => {
                    let steps: u64 = match run.stages.is_empty() {
                        true => run.epochs * run.steps_per_epoch,
                        false => run.stages.iter().map(|s| (s.end - s.from) * s.steps_per_epoch).sum(),
                    };
                    assert_eq!(run.total_steps, steps, "{name}");
                    let most = run.stages.first().and_then(|s| s.batches.iter().max());
                    let most = most.copied().unwrap_or(run.global_batch);
                    assert!((1..=most.into()).contains(&run.last_batch), "{name}");
                    assert_eq!(run.rate_scale, 1.0, "{name}: as published");
                    assert!(run.memory.total < 80 << 30, "{name}: {:?}", run.memory);
                    assert!(table::text(&run, &name).contains("learning rate"), "{name}");
                }
            }
        }
        assert!(refused.is_empty(), "{}", refused.join("\n"));
    }

    #[test]
    fn slowfast_on_kinetics_is_what_the_paper_says() {
        let run = dry("slowfast_8x8_r50_k400.toml").unwrap();
        assert_eq!(run.parameters, 34_566_488);
        assert_eq!((run.steps_per_epoch, run.last_batch, run.total_steps), (3757, 52, 196 * 3757));
        assert_eq!((run.lanes_per_worker, run.clips_per_worker), (vec![8; 8], 8));
        let lr = |at: &str| run.rates.iter().find(|r| r.at == at).unwrap().lr;
        assert_eq!((lr("start"), lr("end")), (0.01, 0.0));
        // 0.1 x half a cosine at epoch 34 of 196.
        assert!((lr("end of warm-up") - 0.0927571).abs() < 1e-6 && (lr("middle") - 0.05).abs() < 1e-12);
        let m = &run.memory;
        assert_eq!((m.gradients, m.optimizer, m.ema), (4 * 34_566_488, 4 * 34_566_488, 0));
        assert!(m.weights > m.gradients, "running statistics");
    }

    /// Steps counted by PySlowFast's sampler: of 240,436 clips, batches of 1024, 512, 512 (8 frames), ... , 256, 128,
    /// 64 (32 frames), the last one short.
    #[test]
    fn multigrid_takes_a_third_of_the_steps() {
        let run = dry("slowfast_8x8_r50_multigrid_k400.toml").unwrap();
        assert_eq!((run.epochs, run.stages.len()), (358, 13));
        let steps: Vec<u64> = run.stages.iter().take(4).map(|s| s.steps_per_epoch).collect();
        assert_eq!(steps, [352, 705, 805, 1610]);
        assert_eq!(
            (run.stages[0].crops.clone(), run.stages[3].batches.clone()),
            (vec![112, 158, 158], vec![256, 128, 64])
        );
        let plain = 239 * 3757;
        assert!(3 * run.total_steps < plain && run.total_steps > plain / 4, "{}", run.total_steps);
        let table = table::text(&run, "x");
        assert!(table.contains("epochs 0 to 73") && table.contains("1024, 512, 512 clips"), "{table}");
    }

    #[test]
    fn rates_grow_with_the_batch_and_passes_shrink_memory() {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/swin3d_t_k400.toml"));
        let with = |more: &[&str]| {
            let set: Vec<String> = more.iter().map(|s| s.to_string()).collect();
            DryRun::new(&Config::parse("swin", text.as_ref().unwrap(), &set).unwrap(), Some(1000), Some(7))
                .unwrap()
        };
        let one = with(&[]);
        assert_eq!((one.classes, one.clips, one.steps_per_epoch, one.last_batch), (7, 1000, 16, 40));
        let many = with(&["train.global_batch=1024", "train.micro_batch=4", "train.ema={ decay = 0.9999 }"]);
        assert_eq!(many.rate_scale, 16.0);
        assert!(one.rates.iter().zip(&many.rates).all(|(a, b)| (16.0 * a.lr - b.lr).abs() < 1e-12));
        assert_eq!((many.clips_per_worker, many.passes), (128, 32));
        assert_eq!(
            (many.memory.optimizer, many.memory.ema),
            (2 * many.memory.gradients, many.memory.weights)
        );
        assert_eq!(many.memory.activations * 2, one.memory.activations);
        let absent = Config::parse("swin", text.as_ref().unwrap(), &["data.url=/no/such".into()]).unwrap();
        let run = DryRun::new(&absent, None, None).unwrap();
        assert!(run.dataset.contains("no dataset at /no/such") && run.clips == 240436, "{}", run.dataset);
    }
}
