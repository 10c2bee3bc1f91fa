//! A network with its tensors.

use crate::{
    Error, Result,
    named::{Named, Registry, Role, Scope},
    slowfast::SlowFast,
    swin::Swin,
};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// What every network can do.
pub trait Network: std::fmt::Debug + Send {
    /// Logits (B, classes) of a clip (B, 3, T, H, W), float, RGB, normalised. `train`: batch statistics,
    /// dropout and drop-path from libtorch's global generator.
    fn forward(&self, clip: &Tensor, train: bool) -> Result<Tensor>;

    /// The same, where the reference takes several inputs: SlowFast's slow and fast pathway.
    fn forward_pathways(&self, pathways: &[Tensor], train: bool) -> Result<Tensor> {
        match pathways {
            [clip] => self.forward(clip, train),
            _ => Err(Error::Input {
                why: format!("the network takes one clip, not {} inputs", pathways.len()),
            }),
        }
    }
}

/// A network and its tensors on a device.
#[derive(Debug)]
pub struct Model {
    network: Box<dyn Network>,
    registry: Registry,
    device: Device,
    classes: i64,
}

impl Model {
    /// Builds the network with fresh weights, drawn on the CPU from libtorch's global generator: seed it with
    /// `tch::manual_seed` for the same weights on every machine. `frames` and `crop` (pixels) are what it
    /// will be trained on; impossible ones fail here. Parameters are leaf tensors that require gradients.
    pub fn new(cfg: &configs::Model, classes: i64, frames: i64, crop: i64, device: Device) -> Result<Self> {
        if classes < 1 {
            return Err(Error::Input { why: format!("{classes} classes; a dataset needs labels") });
        }
        if frames < 1 || crop < 1 {
            return Err(Error::Input { why: format!("clips of {frames} frames of {crop} pixels") });
        }
        let registry = Registry::new(device);
        let root = Scope::root(&registry);
        let network: Box<dyn Network> = match cfg {
            configs::Model::Slowfast(cfg) => Box::new(SlowFast::new(&root, cfg, classes, frames)?),
            configs::Model::Resnet3d(_) => return Err(Error::Input { why: String::new() }),
            configs::Model::VideoSwin(cfg) => Box::new(Swin::new(&root, cfg, classes)?),
        };
        Ok(Self { network, registry: registry.into_inner(), device, classes })
    }

    /// Float32 logits (B, classes) of a clip (B, 3, T, H, W).
    pub fn forward(&self, clip: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_pathways(&[clip.shallow_clone()], train)
    }

    /// The same from the inputs that the reference takes.
    pub fn forward_pathways(&self, pathways: &[Tensor], train: bool) -> Result<Tensor> {
        for clip in pathways {
            check(clip)?;
        }
        let logits = self.network.forward_pathways(pathways, train)?;
        logits.f_to_kind(Kind::Float).map_err(|e| Error::layer("logits", &logits, e))
    }

    /// What is trained and saved, in the reference's order; handles on the network's own tensors.
    pub fn tensors(&self) -> Vec<Named> {
        self.registry.tensors.iter().map(Named::shallow_clone).collect()
    }

    /// All that the reference's `load_state_dict(strict=True)` asks for: [`Model::tensors`] and the buffers
    /// that training does not need (`num_batches_tracked`, `relative_position_index`).
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        self.registry.state_dict()
    }

    /// Fills every tensor. Strict: all names and shapes must fit, or nothing is changed and the error lists
    /// the first few. The reference's extra buffers may be there; an index table that differs is refused.
    pub fn load(&mut self, tensors: HashMap<String, Tensor>) -> Result<()> {
        self.registry.load(tensors)
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        let trained = |n: &&Named| matches!(n.role, Role::Weight { .. });
        self.registry.tensors.iter().filter(trained).map(|n| n.tensor.numel()).sum()
    }

    /// Lays the convolution weights out channels-last, in place: faster with clips that are channels-last too.
    pub fn to_channels_last(&mut self) -> Result<()> {
        for named in self.registry.tensors.iter_mut().filter(|n| n.tensor.dim() == 5) {
            let mut relay = || {
                let [o, i, t, h, w] = named.tensor.size5().map(<[i64; 5]>::from)?;
                let strides = [i * t * h * w, 1, h * w * i, w * i, i];
                let options = (named.tensor.kind(), named.tensor.device());
                let mut laid = Tensor::f_empty_strided([o, i, t, h, w], strides, options)?;
                laid.f_copy_(&named.tensor.f_detach()?)?;
                named.tensor.f_set_data(&laid)
            };
            relay().map_err(Error::torch(format!("lay out {} channels-last", named.name)))?;
        }
        Ok(())
    }

    pub fn set_norm_momentum(&self, _: f64) -> Result<()> { Ok(()) }
    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number of logits.
    pub fn classes(&self) -> i64 {
        self.classes
    }
}

fn check(clip: &Tensor) -> Result<()> {
    match clip.size()[..] {
        [b, 3, t, h, w] if b > 0 && t > 0 && h > 0 && w > 0 => Ok(()),
        ref other => Err(Error::Input {
            why: format!("a clip has the shape (batch, 3, frames, height, width), not {other:?}"),
        }),
    }
}
