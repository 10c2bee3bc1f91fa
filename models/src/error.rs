//! What can go wrong in a network: its configuration, an input's shape, or weights that do not fit.

use tch::{TchError, Tensor};

/// A model error. Each message completes "failed to ...".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration describes no network. Fix the key.
    #[error("build the network: model.{key}: {why}")]
    Config { key: &'static str, why: String },
    /// No preset of that name.
    #[error("find the model {name:?}; the presets are {known}")]
    Preset { name: String, known: String },
    /// The input does not suit the network.
    #[error("run the network: {why}")]
    Input { why: String },
    /// A layer refused its input, nearly always because of the shape.
    #[error("run layer {layer} on an input of shape {shape:?}: {why}")]
    Layer { layer: String, shape: Vec<i64>, why: String },
    /// The weights belong to another network.
    #[error("load the weights: {0}; check that they belong to this model and number of classes")]
    Weights(String),
    /// The weights' names are of no package that is known here.
    #[error(
        "recognise the weights: their names ({keys}) are not those of pytorchvideo's SlowFast and ResNets, torchvision's Video Swin, or the ResNets and Swins of torchvision, timm and transformers; scripts/convert_weights.py reads other formats"
    )]
    Naming { keys: String },
    /// A reference file for the parity check lacks something.
    #[error("compare with the reference: {0}")]
    Reference(String),
    /// What the caller lent the network ([`crate::Exchange`], [`crate::Recompute`]) failed. `peer`: through no
    /// fault of this rank.
    #[error("{why}")]
    Lent { why: String, peer: bool },
    /// libtorch refused something else.
    #[error("{doing}: {why}")]
    Torch { doing: String, why: String },
}

/// Model result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// True where the user must change a file or an argument: exit status 2.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Error::Torch { .. } | Error::Layer { .. } | Error::Lent { .. })
    }

    pub(crate) fn config(key: &'static str, why: impl Into<String>) -> Self {
        Error::Config { key, why: why.into() }
    }

    pub(crate) fn layer(layer: &str, input: &Tensor, e: TchError) -> Self {
        Error::Layer { layer: layer.into(), shape: input.size(), why: first_line(&e) }
    }

    pub(crate) fn torch(doing: impl Into<String>) -> impl FnOnce(TchError) -> Self {
        let doing = doing.into();
        move |e| Error::Torch { doing, why: first_line(&e) }
    }
}

/// libtorch appends a C++ backtrace to its messages; the first line says it all.
fn first_line(e: &TchError) -> String {
    let text = e.to_string();
    let text = text.strip_prefix("Internal torch error: ").unwrap_or(&text);
    text.lines().next().unwrap_or_default().to_string()
}
