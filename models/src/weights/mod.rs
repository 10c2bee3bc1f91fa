//! Weights of other implementations, and of image models, for a network of ours.
//!
//! [`Source::read`] recognises whose names a set of tensors bears; [`Source::load_into`] gives a [`Model`] all
//! that fits and says what became of every tensor. No I/O: the caller reads the file.

mod describe;
mod inflate;
mod naming;

use crate::{Error, Model, Result};
use inflate::Change;
use naming::{Naming, is_classifier};
use std::collections::{BTreeMap, HashMap};
use tch::Tensor;

/// How many keys of each kind an error lists.
const LISTED: usize = 20;

/// Recognised weights.
#[derive(Debug)]
pub struct Source {
    naming: Naming,
    /// By the name that [`Naming::ours`] gives them.
    tensors: BTreeMap<String, Found>,
    /// Of a network for single images.
    image: bool,
}

/// One tensor of a source.
#[derive(Debug)]
struct Found {
    /// Its name there.
    key: String,
    tensor: Tensor,
}

/// What became of every tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whose weights they are, like `torchvision swin_t (2D), 1000 classes`.
    pub source: String,
    /// How many of the model's tensors were filled, changed ones included.
    pub loaded: usize,
    /// Kernels of images that were repeated over time, under the model's names.
    pub inflated: Vec<String>,
    /// Kernels that got zeros for input channels which the source does not have, under the model's names.
    pub padded: Vec<String>,
    /// Bias tables that were made for another window, under the model's names.
    pub tables: Vec<String>,
    /// The model's tensors that keep their fresh values.
    pub fresh: Vec<String>,
    /// The source's tensors that were left out, under its own names.
    pub unused: Vec<String>,
}

impl Source {
    /// Recognises the names: pytorchvideo's SlowFast and ResNets, torchvision's Video Swin, and the image ResNets
    /// and Swins of torchvision, timm and transformers. Prefixes such as `module.` are stripped.
    ///
    /// # Errors
    /// Where the names are of none of these, or one that the recognised network does not have.
    pub fn read(tensors: HashMap<String, Tensor>) -> Result<Self> {
        let mut keys: BTreeMap<&str, &String> = BTreeMap::new();
        for key in tensors.keys().filter(|key| !naming::is_bookkeeping(key)) {
            if let Some(other) = keys.insert(naming::strip(key), key) {
                return Err(Error::Weights(format!("{other} and {key} have one place")));
            }
        }
        let Some(naming) = Naming::of(|name| keys.contains_key(name)) else {
            return Err(Error::Naming { keys: list(keys.values()) });
        };
        let (mut found, mut thirds, mut unknown) = (BTreeMap::new(), BTreeMap::new(), vec![]);
        for (name, key) in keys {
            let tensor = tensors[key].shallow_clone();
            match naming.ours(name) {
                None => unknown.push(key),
                Some((ours, None)) => {
                    found.insert(ours, Found { key: key.clone(), tensor });
                }
                Some((ours, Some(third))) => {
                    let parts: &mut BTreeMap<usize, Tensor> = thirds.entry(ours).or_default();
                    parts.insert(third, tensor);
                }
            }
        }
        if !unknown.is_empty() {
            let what = format!("of names that {} does not know", naming.package());
            return Err(Error::Weights(format!("{} {what}: {}", unknown.len(), list(unknown))));
        }
        for (ours, parts) in thirds {
            let parts: Vec<Tensor> = parts.into_values().collect();
            if parts.len() != 3 {
                return Err(Error::Weights(format!("{ours} needs queries, keys and values; one is missing")));
            }
            let tensor = Tensor::f_cat(&parts, 0).map_err(Error::torch(format!("join {ours}")))?;
            found.insert(ours.clone(), Found { key: ours, tensor });
        }
        let image = found.get(naming.first_kernel()).is_some_and(|f| f.tensor.dim() == 4);
        Ok(Self { naming, tensors: found, image })
    }

    /// The classifier's classes; `None` for a backbone alone.
    pub fn classes(&self) -> Option<i64> {
        let weight = |(name, _): &(&String, &Found)| is_classifier(name) && name.ends_with(".weight");
        self.tensors.iter().find(weight)?.1.tensor.size().first().copied()
    }

    /// True for a network of single images.
    pub fn is_image(&self) -> bool {
        self.image
    }

    /// Like `pytorchvideo slowfast_r50, 400 classes` or `torchvision swin_t (2D), 1000 classes`.
    pub fn describe(&self) -> String {
        describe::source(self)
    }

    /// Fills `model`, which was built from `cfg`. Kernels of images are inflated (Carreira and Zisserman 2017,
    /// section 2.4), bias tables resized and repeated (mmaction2, `swin.py::inflate_weights`). A classifier of
    /// another size leaves the model's fresh; so do non-local blocks that the source lacks and, where the source
    /// is of images, SlowFast's fast pathway and lateral connections.
    ///
    /// # Errors
    /// Any other difference, with the keys; the model is unchanged then.
    pub fn load_into(&self, model: &mut Model, cfg: &configs::Model) -> Result<Report> {
        let window = match cfg {
            configs::Model::VideoSwin(swin) => Some(swin.window.map(i64::from)),
            _ => None,
        };
        let targets = model.tensors();
        let places = naming::Places::new(targets.iter().map(|t| t.name.as_str()));
        let mut sources: HashMap<String, &Found> =
            self.tensors.iter().map(|(name, found)| (places.of(name), found)).collect();
        let classifier_fits = targets
            .iter()
            .filter(|t| is_classifier(&t.name))
            .all(|t| sources.get(&t.name).is_some_and(|found| found.tensor.size() == t.tensor.size()));

        let mut report = Report { source: self.describe(), ..Report::default() };
        let (mut missing, mut misshapen, mut filled) = (vec![], vec![], HashMap::new());
        for target in &targets {
            let (name, shape) = (&target.name, target.tensor.size());
            let fresh_classifier = is_classifier(name) && !classifier_fits;
            match sources.remove(name) {
                Some(found) if fresh_classifier => report.unused.push(found.key.clone()),
                None if fresh_classifier || self.may_lack(name) => {}
                None => missing.push(name.clone()),
                Some(found) => match inflate::fit(name, &found.tensor, &shape, self.image, window)? {
                    Some((tensor, change)) => {
                        report.count(name, change);
                        filled.insert(name.clone(), tensor);
                    }
                    None => misshapen.push(format!(
                        "{} {:?} instead of {shape:?}",
                        found.key,
                        found.tensor.size()
                    )),
                },
            }
            if !filled.contains_key(name) {
                report.fresh.push(name.clone());
                let own = target.tensor.f_detach().map_err(Error::torch(format!("keep {name}")))?;
                filled.insert(name.clone(), own);
            }
        }
        let mut unexpected: Vec<String> = sources.into_values().map(|found| found.key.clone()).collect();
        unexpected.sort();
        let complaints: Vec<String> =
            [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
                .into_iter()
                .filter(|(_, keys)| !keys.is_empty())
                .map(|(what, keys)| format!("{} {what}: {}", keys.len(), list(&keys)))
                .collect();
        if !complaints.is_empty() {
            return Err(Error::Weights(format!("{}: {}", self.describe(), complaints.join("; "))));
        }
        model.load(filled)?;
        Ok(report)
    }

    /// Whether the model may keep `name` fresh because a source like this one never has it.
    fn may_lack(&self, name: &str) -> bool {
        let of_video = name.contains(".multipathway_blocks.1.") || name.contains(".multipathway_fusion.");
        naming::is_non_local(name) || (self.image && of_video)
    }
}

impl Report {
    fn count(&mut self, name: &str, change: Change) {
        self.loaded += 1;
        match change {
            Change::None => {}
            Change::Inflated => self.inflated.push(name.into()),
            Change::Padded => self.padded.push(name.into()),
            Change::Table => self.tables.push(name.into()),
        }
    }
}

/// The first of `keys`, and how many more there are.
fn list(keys: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let keys: Vec<_> = keys.into_iter().collect();
    let shown: Vec<&str> = keys.iter().take(LISTED).map(AsRef::as_ref).collect();
    let more = keys.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
