//! What a checkpoint holds and a generation shares: weights, averages, optimizer state, position.

use crate::{
    Error, Result,
    checkpoint::{
        layout::{NO_DATASET, Part, Place},
        load::Loaded,
        save::Entry,
    },
    ema::Ema,
    optim::Optimizer,
    scaler::LossScaler,
};
use collective::{Group, as_stored, foreach_copy, with_bytes};
use configs::{Checkpoint, Config, Precision};
use crc_fast::CrcAlgorithm;
use models::{Model, Named, Role};
use sha2::{Digest, Sha256};
use shards::{format::Dataset, plan::Plan};
use tch::{Device, Tensor};

impl Place {
    /// One step further in an epoch of so many.
    pub fn advance(&mut self, steps_per_epoch: u64) {
        self.step += 1;
        self.step_in_epoch += 1;
        if self.step_in_epoch == steps_per_epoch {
            self.epoch += 1;
            self.step_in_epoch = 0;
        }
    }

    /// Whether a checkpoint is due here.
    pub fn is_due(&self, config: &Checkpoint) -> bool {
        match config.every_steps {
            Some(n) => self.step.is_multiple_of(n),
            None => self.step_in_epoch == 0,
        }
    }
}

/// All that changes from step to step, of one rank; equal on all but for the running statistics.
pub struct State {
    pub model: Model,
    pub optimizer: Optimizer,
    pub ema: Option<Ema>,
    /// With precision fp16.
    pub scaler: Option<LossScaler>,
}

impl State {
    /// Fresh weights from the job's seed.
    pub fn new(config: &Config, labels: &[String], device: Device) -> Result<Self> {
        if config.train.precision == Precision::Fp16 && !device.is_cuda() {
            return Err(Error::Usage(
                "train with precision = \"fp16\" on a CPU: use \"bf16\" there, which needs no loss scaler"
                    .into(),
            ));
        }
        let narrow = config.stages().iter().flat_map(|s| &s.cycle).any(|s| s.crop <= 16);
        let strided = !matches!(config.model, configs::Model::VideoSwin(_));
        if config.train.precision == Precision::Bf16 && !device.is_cuda() && narrow && strided {
            return Err(Error::Usage(
                "train on clips of 16 pixels or fewer with precision = \"bf16\" on a CPU: libtorch leaves weight gradients of strided convolutions undefined where the features are one pixel wide; use \"fp32\" or larger clips"
                    .into(),
            ));
        }
        tch::manual_seed(config.seed as i64);
        let (frames, crop) = (config.data.frames as i64, config.data.augment.crop as i64);
        let mut model = Model::new(&config.model, labels.len() as i64, frames, crop, device)?;
        if config.train.channels_last {
            model.to_channels_last()?;
        }
        let optimizer = Optimizer::new(&config.optimizer, &model.tensors())?;
        let ema = config.train.ema.map(|ema| Ema::new(ema, &model)).transpose()?;
        let scaler = (config.train.precision == Precision::Fp16).then(LossScaler::default);
        Ok(Self { model, optimizer, ema, scaler })
    }

    /// Takes over a checkpoint, if it is one of this model, these labels, this dataset and this order of clips.
    pub fn load(&mut self, config: &Config, dataset: &Dataset, plan: &Plan, loaded: Loaded) -> Result<Place> {
        let labels = &dataset.manifest.labels;
        if loaded.header.dataset_digest == NO_DATASET {
            return Err(Error::Usage(format!(
                "resume from {}: it holds imported weights; name them in train.init, and choose another run",
                loaded.url
            )));
        }
        loaded.check_model(&config.model, labels.len())?;
        loaded.check_labels(labels)?;
        if loaded.header.dataset_digest != dataset.digest {
            return Err(Error::Usage(format!(
                "resume from {}: it was trained on dataset {}, and {} is dataset {}; start a new run",
                loaded.url, loaded.header.dataset_digest, config.data.url, dataset.digest
            )));
        }
        loaded.header.check_plan(&loaded.url, &plan.spec().identity())?;
        let (header, mut parts) = loaded.into_parts();
        self.model.load(parts.model)?;
        if let Some(scaler) = &mut self.scaler {
            scaler.take(&mut parts.optimizer)?;
        }
        self.optimizer.load(parts.optimizer)?;
        match &self.ema {
            // A run whose average was turned on later.
            Some(ema) if parts.ema.is_empty() => ema.restart()?,
            Some(ema) => ema.load(parts.ema)?,
            None => {}
        }
        Ok(header.place())
    }

    /// What a checkpoint holds of it.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Entry::of_model(&self.model);
        let scaler = self.scaler.iter().flat_map(LossScaler::state);
        entries.extend(Entry::of_part(Part::Optimizer, self.optimizer.state().into_iter().chain(scaler)));
        entries.extend(Entry::of_part(Part::Ema, self.ema.iter().flat_map(Ema::state)));
        entries
    }

    /// Steps along the gradients at learning rate `lr`.
    pub fn update(&mut self, lr: f64) -> Result<()> {
        self.optimizer.step(lr)?;
        self.ema.as_ref().map_or(Ok(()), Ema::update)
    }

    /// The gradients that there are.
    pub fn gradients(&self) -> Result<Vec<Tensor>> {
        let all = self.parameters().iter().map(Tensor::f_grad).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(all.into_iter().filter(Tensor::defined).collect())
    }

    /// The leaves that gradients belong to, in a fixed order.
    pub fn parameters(&self) -> Vec<Tensor> {
        self.of(|n| matches!(n.role, Role::Weight { .. }))
    }

    /// The running statistics.
    pub fn buffers(&self) -> Vec<Tensor> {
        self.of(|n| matches!(n.role, Role::Buffer))
    }

    /// Every rank takes rank `source`'s weights, statistics, averages and optimizer state, as they lie in memory there,
    /// which is part of the [`State::digest`]. `aside`: this rank's own state stays as it is until all of the other is
    /// here, for which there must be room.
    pub fn broadcast(&mut self, group: &Group, source: usize, aside: bool) -> Result<()> {
        let mut optimizer = self.optimizer.state();
        optimizer.extend(self.scaler.iter().flat_map(LossScaler::state));
        let mut all: Vec<Tensor> = self.of(|_| true).iter().map(|t| t.detach()).collect();
        all.extend(optimizer.iter().map(|(_, t)| t.shallow_clone()));
        all.extend(self.ema.iter().flat_map(Ema::state).map(|(_, t)| t));
        let all = all.iter().map(|t| Ok(as_stored(t)?.0)).collect::<Result<Vec<_>>>()?;
        if aside {
            let room = all.iter().map(|t| t.f_zeros_like()).collect::<std::result::Result<Vec<_>, _>>()?;
            group.broadcast_all(&room, source)?;
            foreach_copy(&all, &room)?;
        } else {
            group.broadcast_all(&all, source)?;
        }
        let mut optimizer = optimizer.into_iter().collect();
        if let Some(scaler) = &mut self.scaler {
            scaler.take(&mut optimizer)?;
        }
        self.optimizer.load(optimizer)
    }

    /// A fingerprint of what all ranks share after a step, and of how it lies in memory: weights, optimizer state,
    /// averages, loss scaler. The running statistics are left out: each rank has its own, and rank 0's are the ones that
    /// count.
    pub fn digest(&self) -> Result<u64> {
        let optimizer =
            self.optimizer.state().into_iter().chain(self.scaler.iter().flat_map(LossScaler::state));
        let named = optimizer.chain(self.ema.iter().flat_map(Ema::state)).map(|(_, t)| t);
        let mut sums = Sha256::new();
        for tensor in self.parameters().into_iter().chain(named) {
            let (stored, order) = as_stored(&tensor.f_detach()?)?;
            let stored = stored.f_contiguous()?.f_to_device(Device::Cpu)?;
            let sum = with_bytes(&stored, |bytes| crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes))?;
            order.iter().for_each(|dimension| sums.update(dimension.to_le_bytes()));
            sums.update(sum.to_le_bytes());
        }
        let all: [u8; 32] = sums.finalize().into();
        Ok(all[..8].iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn of(&self, wanted: impl Fn(&Named) -> bool) -> Vec<Tensor> {
        self.model.tensors().into_iter().filter(|n| wanted(n)).map(|n| n.tensor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_rolls_over_at_the_end_of_an_epoch() {
        let mut p = Place::default();
        for _ in 0..7 {
            p.advance(3);
        }
        assert_eq!(p, Place { epoch: 2, step_in_epoch: 1, step: 7 });
        let every = |n| Checkpoint { every_steps: n, ..Default::default() };
        assert!(p.is_due(&every(Some(7))) && !p.is_due(&every(Some(2))) && !p.is_due(&every(None)));
    }
    fn fresh(model: &str, more: &[&str]) -> Result<State> {
        let text = format!(
            r#"
[data]
url = "/data"
lanes = 2
frames = 8
augment = {{ crop = 16, scale = {{ kind = "short_side", min = 32, max = 40 }} }}
eval = {{ short_side = 32, crop = 32 }}
[model]
{model}
[train]
epochs = 1
global_batch = 2
precision = "bf16"
[optimizer]
kind = "sgd"
lr = 0.01
"#
        );
        let more: Vec<String> = more.iter().map(|s| s.to_string()).collect();
        let config = Config::parse("the test's", &text, &more).unwrap();
        State::new(&config, &["a".into(), "b".into()], Device::Cpu)
    }

    #[test]
    fn a_digest_tells_values_and_memory_formats_apart() {
        let model = "arch = \"resnet3d\"\nkind = \"slow\"\ndepth = 18\nwidth = 8";
        let (fp32, ema) = ("train.precision=fp32", "train.ema={ decay = 0.9 }");
        let of = |more: &[&str]| fresh(model, &[&[fp32, ema], more].concat()).unwrap();
        let (plain, turned) = (of(&["train.channels_last=false"]), of(&["train.channels_last=true"]));
        assert_eq!(plain.digest().unwrap(), of(&["train.channels_last=false"]).digest().unwrap());
        assert_ne!(plain.digest().unwrap(), turned.digest().unwrap(), "the same values in another order");
        for tensor in [turned.parameters(), turned.ema.iter().flat_map(Ema::state).map(|(_, t)| t).collect()]
        {
            let before = turned.digest().unwrap();
            let _no_grad = tch::no_grad_guard();
            let mut last = tensor.last().unwrap().view([-1]).get(0);
            let _ = last.f_add_scalar_(1e-3).unwrap();
            assert_ne!(turned.digest().unwrap(), before);
        }
    }

    /// There libtorch leaves weight gradients undefined.
    #[test]
    fn bf16_on_a_cpu_is_refused_for_clips_that_strides_shrink_to_one_pixel() {
        let resnet = "arch = \"resnet3d\"\nkind = \"c2d\"\ndepth = 18\nwidth = 8";
        let swin =
            "arch = \"video_swin\"\nembed_dim = 16\ndepths = [1, 1]\nheads = [1, 2]\nwindow = [4, 4, 4]";
        let e = fresh(resnet, &[]).err().unwrap();
        assert_eq!(e.exit_code(), 2);
        let said = e.to_string();
        assert!(said.contains("16 pixels or fewer") && said.contains("\"fp32\" or larger clips"), "{said}");
        assert!(fresh(resnet, &["data.augment.crop=17"]).is_ok());
        assert!(fresh(resnet, &["train.precision=fp32"]).is_ok());
        assert!(fresh(swin, &[]).is_ok(), "it has no strided convolutions");
        // Small clips in a part of the job are enough.
        assert!(fresh(resnet, &["data.augment.crop=32", "train.multigrid={ long_cycle = false }"]).is_err());
    }
}
