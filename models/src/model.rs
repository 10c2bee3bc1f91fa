//! A network with its tensors.

use crate::{
    Error, NormMode, Result,
    named::{Named, Registry, Role, Scope},
    pass::Pass,
    resnet3d::ResNet3d,
    slowfast::SlowFast,
    swin::Swin,
};
use std::{cell::RefCell, collections::HashMap};
use tch::{Device, Kind, Tensor};

/// What every network can do.
pub(crate) trait Network: std::fmt::Debug + Send {
    /// Logits (B, places, classes) of a clip (B, 3, T, H, W), RGB, normalised, or of several inputs where the
    /// reference takes them (SlowFast's slow and fast pathway). Places are those of a fully convolutional head.
    fn forward(&self, inputs: &[Tensor], pass: &Pass) -> Result<Tensor>;

    /// Multiply-adds on one clip of size (T, H, W).
    fn cost(&self, size: [i64; 3]) -> u64;
}

/// A network and its tensors on a device.
#[derive(Debug)]
pub struct Model {
    network: Box<dyn Network>,
    registry: Registry,
    device: Device,
    classes: i64,
    pass: Pass,
}

impl Model {
    /// Builds the network with fresh weights, drawn on the CPU from libtorch's global generator: seed it with
    /// `tch::manual_seed` for the same weights on every machine. `frames` and `crop` (pixels) are what it
    /// will be trained on; impossible ones fail here. Parameters are leaf tensors that require gradients.
    pub fn new(cfg: &configs::Model, classes: i64, frames: i64, crop: i64, device: Device) -> Result<Self> {
        Self::build(cfg, classes, [frames, crop], Registry::new(device))
    }

    /// The network without memory for its weights: for [`Model::parameters`], [`Model::tensors`]'s names and
    /// shapes, and [`Model::gflops`].
    pub fn outline(cfg: &configs::Model, classes: i64, frames: i64, crop: i64) -> Result<Self> {
        Self::build(cfg, classes, [frames, crop], Registry::outline())
    }

    fn build(
        cfg: &configs::Model,
        classes: i64,
        size: [i64; 2],
        registry: RefCell<Registry>,
    ) -> Result<Self> {
        let [frames, crop] = size;
        if classes < 1 {
            return Err(Error::Input { why: format!("{classes} classes; a dataset needs labels") });
        }
        if frames < 1 || crop < 1 {
            return Err(Error::Input { why: format!("clips of {frames} frames of {crop} pixels") });
        }
        let root = Scope::root(&registry);
        let device = root.device();
        let network: Box<dyn Network> = match cfg {
            configs::Model::Slowfast(cfg) => Box::new(SlowFast::new(&root, cfg, classes, size)?),
            configs::Model::Resnet3d(cfg) => Box::new(ResNet3d::new(&root, cfg, classes, size)?),
            configs::Model::VideoSwin(cfg) => Box::new(Swin::new(&root, cfg, classes)?),
        };
        Ok(Self { network, registry: registry.into_inner(), device, classes, pass: Pass::default() })
    }

    /// Logits (B, classes) of a clip (B, 3, T, H, W): the mean over places where the clip is larger than the
    /// training size. Float32; float64 after [`Model::to_double`]. `train`: batch statistics, dropout and
    /// drop-path from libtorch's global generator.
    pub fn forward(&self, clip: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_pathways(&[clip.shallow_clone()], train)
    }

    /// The same from the inputs that the reference takes.
    pub fn forward_pathways(&self, pathways: &[Tensor], train: bool) -> Result<Tensor> {
        let logits = self.places(pathways, train)?;
        logits
            .f_mean_dim([1i64].as_slice(), false, None::<Kind>)
            .map_err(|e| Error::layer("logits", &logits, e))
    }

    /// Probabilities (B, classes) of a clip (B, 3, T, H, W) in evaluation mode: softmax at each place, then the
    /// mean over places (PySlowFast's `ResNetBasicHead` when testing). Float32; float64 after [`Model::to_double`].
    pub fn probabilities(&self, clip: &Tensor) -> Result<Tensor> {
        let logits = self.places(&[clip.shallow_clone()], false)?;
        logits
            .f_softmax(-1, None::<Kind>)
            .and_then(|p| p.f_mean_dim([1i64].as_slice(), false, None::<Kind>))
            .map_err(|e| Error::layer("probabilities", &logits, e))
    }

    /// Logits (B, places, classes) in the kind that the caller sees.
    fn places(&self, inputs: &[Tensor], train: bool) -> Result<Tensor> {
        for clip in inputs {
            check(clip)?;
        }
        let pass = Pass { train, ..self.pass.clone() };
        let logits = self.network.forward(inputs, &pass)?;
        // Whatever autocast made of them.
        let kind = if self.is_double() { Kind::Double } else { Kind::Float };
        logits.f_to_kind(kind).map_err(|e| Error::layer("logits", &logits, e))
    }

    /// Where batch norms take their statistics from while training; at first [`NormMode::Local`].
    pub fn set_norm_mode(&mut self, mode: NormMode) {
        self.pass.norm = mode;
    }

    /// Weight of a batch's values in the running statistics of batch norms; at first 0.1. With 1, 1/2, 1/3, ...
    /// over some batches they become the plain mean (precise batch norm).
    pub fn set_norm_momentum(&mut self, momentum: f64) {
        self.pass.momentum = momentum;
    }

    /// A rank without clips still takes part in every exchange of [`NormMode::Sync`]: it trains on any clip, say
    /// of zeros, which then counts nowhere, neither in the exchanged sums nor in running statistics of its own.
    /// Its loss must be multiplied by zero.
    pub fn set_absent(&mut self, absent: bool) {
        self.pass.absent = absent;
    }

    /// Multiply-adds, in 1e9, of a forward pass on one clip: convolutions, linear layers and the products of
    /// attention, as papers and fvcore count; neither norms nor pooling. Computed from the layers' shapes.
    pub fn gflops(&self, frames: i64, height: i64, width: i64) -> f64 {
        self.network.cost([frames, height, width]) as f64 / 1e9
    }

    /// Converts weights and statistics to float64, in place. Clips must be float64 then, too.
    pub fn to_double(&mut self) -> Result<()> {
        for named in &mut self.registry.tensors {
            let mut convert = || named.tensor.f_set_data(&named.tensor.f_detach()?.f_to_kind(Kind::Double)?);
            convert().map_err(Error::torch(format!("convert {} to float64", named.name)))?;
        }
        Ok(())
    }

    fn is_double(&self) -> bool {
        self.registry.tensors.first().is_some_and(|n| n.tensor.kind() == Kind::Double)
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
