//! Tensors under the names that the reference implementations give them.
//!
//! Layers make their tensors through a [`Scope`], which knows the dotted path and collects them in order;
//! the layer keeps a shallow clone, so a tensor filled or re-laid here changes in the layer too.

use crate::{Error, Result};
use std::{cell::RefCell, collections::HashMap};
use tch::{Device, Kind, Tensor, no_grad};

/// A tensor of the model and how training treats it.
#[derive(Debug)]
pub struct Named {
    /// The reference's name, like `blocks.0.multipathway_blocks.0.conv.weight`.
    pub name: String,
    /// Shares its storage and gradient with the network.
    pub tensor: Tensor,
    pub role: Role,
}

/// How training treats a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Trained. `decay` is false for norms, biases and relative-position bias tables.
    Weight { decay: bool },
    /// Kept up by the forward pass: a batch norm's running statistics.
    Buffer,
}

impl Named {
    /// Another handle on the same tensor.
    pub fn shallow_clone(&self) -> Self {
        Self { name: self.name.clone(), tensor: self.tensor.shallow_clone(), role: self.role }
    }
}

/// All tensors of a network, in the reference's order.
#[derive(Debug)]
pub(crate) struct Registry {
    device: Device,
    /// Tensors have their shapes but no memory of their own.
    outline: bool,
    pub(crate) tensors: Vec<Named>,
    /// What the reference's state dict holds besides, but training neither changes nor needs.
    constants: Vec<Constant>,
}

#[derive(Debug)]
struct Constant {
    name: String,
    tensor: Tensor,
    /// Refuse weights that bring another value.
    fixed: bool,
}

/// How a tensor starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Init {
    Constant(f64),
    Normal {
        std: f64,
    },
    /// Uniform in -bound..bound.
    Uniform {
        bound: f64,
    },
}

impl Registry {
    pub(crate) fn new(device: Device) -> RefCell<Self> {
        RefCell::new(Self { device, outline: false, tensors: vec![], constants: vec![] })
    }

    /// One whose tensors cost nothing: every element is the same zero.
    pub(crate) fn outline() -> RefCell<Self> {
        let registry = Self::new(Device::Cpu);
        registry.borrow_mut().outline = true;
        registry
    }

    /// Everything that the reference's `state_dict()` holds.
    pub(crate) fn state_dict(&self) -> Vec<(String, Tensor)> {
        let saved = self.tensors.iter().map(|n| (n.name.clone(), n.tensor.detach()));
        let constants = self.constants.iter().map(|c| (c.name.clone(), c.tensor.shallow_clone()));
        saved.chain(constants).collect()
    }

    /// Fills every tensor from `source`, or changes none and says what does not fit.
    pub(crate) fn load(&mut self, mut source: HashMap<String, Tensor>) -> Result<()> {
        let (mut missing, mut wrong) = (vec![], vec![]);
        let mut pairs = vec![];
        for named in &mut self.tensors {
            match source.remove(&named.name) {
                None => missing.push(named.name.clone()),
                Some(t) if t.size() != named.tensor.size() => {
                    wrong.push(format!("{} {:?} instead of {:?}", named.name, t.size(), named.tensor.size()));
                }
                Some(t) => pairs.push((named, t)),
            }
        }
        for c in &self.constants {
            let Some(t) = source.remove(&c.name) else { continue };
            let same = || t.f_to_kind(Kind::Int64).and_then(|t| t.f_to_device(c.tensor.device()));
            if c.fixed && !same().is_ok_and(|t| t.f_equal(&c.tensor).unwrap_or(false)) {
                wrong.push(format!("{} differs from this model's", c.name));
            }
        }
        let mut unexpected: Vec<String> = source.into_keys().collect();
        unexpected.sort();
        let complaints: Vec<String> = [("missing", &missing), ("unexpected", &unexpected), ("wrong", &wrong)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| some_of(what, names))
            .collect();
        if !complaints.is_empty() {
            return Err(Error::Weights(complaints.join("; ")));
        }
        no_grad(|| {
            pairs.into_iter().try_for_each(|(named, from)| {
                named.tensor.f_copy_(&from).map_err(Error::torch(format!("copy {}", named.name)))
            })
        })
    }
}

/// `3 missing: a, b, c` or `40 unexpected: a, b, c, ...`.
fn some_of(what: &str, names: &[String]) -> String {
    let more = if names.len() > 3 { ", ..." } else { "" };
    format!("{} {what}: {}{more}", names.len(), names[..names.len().min(3)].join(", "))
}

/// A place in the tree of modules.
pub(crate) struct Scope<'a> {
    registry: &'a RefCell<Registry>,
    path: String,
}

impl<'a> Scope<'a> {
    pub(crate) fn root(registry: &'a RefCell<Registry>) -> Self {
        Self { registry, path: String::new() }
    }

    /// The submodule `name`, which may be dotted.
    pub(crate) fn sub(&self, name: impl std::fmt::Display) -> Scope<'a> {
        Scope { registry: self.registry, path: self.join(name) }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// A trained tensor.
    pub(crate) fn weight(&self, name: &str, shape: &[i64], init: Init, decay: bool) -> Result<Tensor> {
        let tensor = self.make(shape, init)?;
        let tensor = tensor.f_set_requires_grad(true).map_err(Error::torch("require gradients"))?;
        self.push(name, &tensor, Role::Weight { decay });
        Ok(tensor)
    }

    /// A tensor that the forward pass keeps up.
    pub(crate) fn buffer(&self, name: &str, shape: &[i64], value: f64) -> Result<Tensor> {
        let tensor = self.make(shape, Init::Constant(value))?;
        self.push(name, &tensor, Role::Buffer);
        Ok(tensor)
    }

    /// A tensor that only the reference's state dict knows. With `fixed`, loading refuses another value.
    pub(crate) fn constant(&self, name: &str, tensor: &Tensor, fixed: bool) {
        let constant = Constant { name: self.join(name), tensor: tensor.shallow_clone(), fixed };
        self.registry.borrow_mut().constants.push(constant);
    }

    pub(crate) fn device(&self) -> Device {
        self.registry.borrow().device
    }

    /// Drawn on the CPU whatever the device, so that a seed gives the same weights everywhere.
    fn make(&self, shape: &[i64], init: Init) -> Result<Tensor> {
        let fill = || {
            if self.registry.borrow().outline {
                return Tensor::f_zeros([1i64], (Kind::Float, Device::Cpu))?.f_expand(shape, false);
            }
            let mut t = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
            let t = match init {
                Init::Constant(v) => t.f_fill_(v),
                Init::Normal { std } => t.f_normal_(0.0, std),
                Init::Uniform { bound } => t.f_uniform_(-bound, bound),
            }?;
            t.f_to_device(self.device())
        };
        fill().map_err(Error::torch(format!("allocate {} of shape {shape:?}", self.path)))
    }

    fn push(&self, name: &str, tensor: &Tensor, role: Role) {
        let named = Named { name: self.join(name), tensor: tensor.shallow_clone(), role };
        self.registry.borrow_mut().tensors.push(named);
    }

    fn join(&self, name: impl std::fmt::Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}
