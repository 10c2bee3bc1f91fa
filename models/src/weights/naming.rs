//! Whose names are these, and which of ours do they stand for?
//!
//! Image ResNets get names of their own here (`stem.conv.weight`, `res2.0.branch2.conv_a.weight`,
//! `head.proj.weight`), for which [`Places`] knows the place in a given network; Swins get torchvision's names
//! for Video Swin at once.

use std::collections::BTreeSet;

/// A package's way of naming a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// pytorchvideo's SlowFast and ResNets, which are our names.
    Pytorchvideo,
    /// torchvision's Video Swin, which are our names.
    VideoSwin,
    /// torchvision's image ResNets; timm took them over.
    ResNet,
    /// transformers' ResNets.
    TransformersResNet,
    /// torchvision's image Swins.
    TorchvisionSwin,
    /// The Swin authors' names, in use for images and videos; a stage ends with its patch merging.
    OriginalSwin,
    /// timm's: a stage begins with the patch merging before it.
    TimmSwin,
    /// transformers', as its files and as its modules call them.
    TransformersSwin,
}

/// Our name and, where queries, keys and values are apart, which third of the tensor it is.
pub(super) type Ours = (String, Option<usize>);

impl Naming {
    /// Recognises a package by names that it alone has. `has`: whether a name (stripped) is there.
    pub(super) fn of(has: impl Fn(&str) -> bool) -> Option<Self> {
        const SIGNS: [(&str, Naming); 11] = [
            ("blocks.0.multipathway_blocks.0.conv.weight", Naming::Pytorchvideo),
            ("blocks.0.conv.weight", Naming::Pytorchvideo),
            ("features.0.0.attn.qkv.weight", Naming::VideoSwin),
            ("features.1.0.attn.qkv.weight", Naming::TorchvisionSwin),
            ("layers.0.downsample.reduction.weight", Naming::OriginalSwin),
            ("layers.1.downsample.reduction.weight", Naming::TimmSwin),
            ("layers.0.blocks.0.attn.qkv.weight", Naming::OriginalSwin),
            ("encoder.layers.0.blocks.0.attention.self.query.weight", Naming::TransformersSwin),
            ("encoder.layers.0.blocks.0.attention.q_proj.weight", Naming::TransformersSwin),
            ("embedder.embedder.convolution.weight", Naming::TransformersResNet),
            ("layer1.0.conv1.weight", Naming::ResNet),
        ];
        SIGNS.into_iter().find(|(sign, _)| has(sign)).map(|(_, naming)| naming)
    }

    /// For people.
    pub(super) fn package(self) -> &'static str {
        match self {
            Naming::Pytorchvideo => "pytorchvideo",
            Naming::VideoSwin | Naming::TorchvisionSwin => "torchvision",
            Naming::ResNet => "torchvision/timm",
            Naming::OriginalSwin => "Swin Transformer",
            Naming::TimmSwin => "timm",
            Naming::TransformersResNet | Naming::TransformersSwin => "transformers",
        }
    }

    /// Our name of the kernel that sees the pixels: four axes for images, five for videos.
    pub(super) fn first_kernel(self) -> &'static str {
        match self {
            Naming::Pytorchvideo => "blocks.0.conv.weight",
            Naming::ResNet | Naming::TransformersResNet => "stem.conv.weight",
            _ => "patch_embed.proj.weight",
        }
    }

    /// What `name` (stripped) is called here; `None` where the package has no such name.
    pub(super) fn ours(self, name: &str) -> Option<Ours> {
        let parts: Vec<&str> = name.split('.').collect();
        match self {
            Naming::Pytorchvideo | Naming::VideoSwin => Some((name.into(), None)),
            Naming::ResNet => resnet(&parts).map(whole),
            Naming::TransformersResNet => transformers_resnet(&parts).map(whole),
            Naming::TorchvisionSwin => torchvision_swin(&parts).map(whole),
            Naming::OriginalSwin => original_swin(&parts, 1).map(whole),
            Naming::TimmSwin => original_swin(&parts, -1).map(whole),
            Naming::TransformersSwin => transformers_swin(&parts),
        }
    }
}

/// `key` without the prefixes under which trainers wrap a network.
pub(super) fn strip(key: &str) -> &str {
    const PREFIXES: [&str; 6] = ["module.", "model.", "backbone.", "state_dict.", "swin.", "resnet."];
    match PREFIXES.iter().find_map(|prefix| key.strip_prefix(prefix)) {
        Some(rest) => strip(rest),
        None => key,
    }
}

/// Tensors that follow from the network's shape or that only PyTorch's bookkeeping needs.
pub(super) fn is_bookkeeping(key: &str) -> bool {
    ["num_batches_tracked", "relative_position_index", "attn_mask"].iter().any(|end| key.ends_with(end))
}

/// Whether this is our name of a classifier's weight or bias.
pub(super) fn is_classifier(name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    matches!(parts[..], ["head", _] | ["head", "proj", _] | ["blocks", _, "proj", _])
}

/// Whether this is our name of a part of a non-local block.
pub(super) fn is_non_local(name: &str) -> bool {
    name.contains(".non_local.")
}

/// Where an image ResNet's layers lie in a network under pytorchvideo's names: their blocks' numbers depend on
/// whether there is a pooling between the stages, and SlowFast takes them into its slow pathway.
pub(super) struct Places {
    pathway: &'static str,
    /// Block numbers of res2, res3, ...
    stages: Vec<u32>,
    head: Option<u32>,
}

impl Places {
    /// From the names of all tensors of the network.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let (mut pathway, mut stages, mut head) = ("", BTreeSet::new(), None);
        for name in names {
            let Some((block, rest)) = name.strip_prefix("blocks.").and_then(|n| n.split_once('.')) else {
                continue;
            };
            let Ok(block) = block.parse::<u32>() else { continue };
            if rest.starts_with("multipathway_blocks.0.") {
                pathway = "multipathway_blocks.0.";
            }
            if rest.contains("res_blocks.") {
                stages.insert(block);
            }
            if rest.starts_with("proj.") {
                head = Some(block);
            }
        }
        Self { pathway, stages: stages.into_iter().collect(), head }
    }

    /// The network's name for one of [`Naming::ours`].
    pub(super) fn of(&self, name: &str) -> String {
        let place = || {
            let (part, rest) = name.split_once('.')?;
            if let ("head", Some(head), Some(_)) = (part, self.head, rest.strip_prefix("proj.")) {
                return Some(format!("blocks.{head}.{rest}"));
            }
            if part == "stem" {
                return Some(format!("blocks.0.{}{rest}", self.pathway));
            }
            let stage: usize = part.strip_prefix("res")?.parse().ok()?;
            let block = self.stages.get(stage.checked_sub(2)?)?;
            Some(format!("blocks.{block}.{}res_blocks.{rest}", self.pathway))
        };
        place().unwrap_or_else(|| name.into())
    }
}

fn whole(name: String) -> Ours {
    (name, None)
}

/// `conv_a` for the first of a residual block's layers, and so on.
fn letter(layer: usize) -> Option<char> {
    ['a', 'b', 'c'].get(layer).copied()
}

fn resnet(parts: &[&str]) -> Option<String> {
    let numbered = |part: &str, prefix: &str| part.strip_prefix(prefix)?.parse::<usize>().ok();
    Some(match *parts {
        ["conv1", x] => format!("stem.conv.{x}"),
        ["bn1", x] => format!("stem.norm.{x}"),
        ["fc", x] => format!("head.proj.{x}"),
        [stage, block, "downsample", "0", x] => {
            format!("res{}.{block}.branch1_conv.{x}", numbered(stage, "layer")? + 1)
        }
        [stage, block, "downsample", "1", x] => {
            format!("res{}.{block}.branch1_norm.{x}", numbered(stage, "layer")? + 1)
        }
        [stage, block, layer, x] => {
            let stage = numbered(stage, "layer")? + 1;
            let (kind, number) = match numbered(layer, "conv") {
                Some(number) => ("conv", number),
                None => ("norm", numbered(layer, "bn")?),
            };
            format!("res{stage}.{block}.branch2.{kind}_{}.{x}", letter(number.checked_sub(1)?)?)
        }
        _ => return None,
    })
}

fn transformers_resnet(parts: &[&str]) -> Option<String> {
    let kind = |module: &str| match module {
        "convolution" => Some("conv"),
        "normalization" => Some("norm"),
        _ => None,
    };
    Some(match *parts {
        ["embedder", "embedder", module, x] => format!("stem.{}.{x}", kind(module)?),
        ["classifier", "1", x] => format!("head.proj.{x}"),
        ["encoder", "stages", stage, "layers", block, ref rest @ ..] => {
            let stage = stage.parse::<usize>().ok()? + 2;
            match *rest {
                ["shortcut", module, x] => format!("res{stage}.{block}.branch1_{}.{x}", kind(module)?),
                ["layer", layer, module, x] => {
                    let letter = letter(layer.parse().ok()?)?;
                    format!("res{stage}.{block}.branch2.{}_{letter}.{x}", kind(module)?)
                }
                _ => return None,
            }
        }
        _ => return None,
    })
}

/// The patch embedding is `features.0` there and all else one further.
fn torchvision_swin(parts: &[&str]) -> Option<String> {
    Some(match *parts {
        ["features", "0", "0", x] => format!("patch_embed.proj.{x}"),
        ["features", "0", "2", x] => format!("patch_embed.norm.{x}"),
        ["features", n, ref rest @ ..] => {
            format!("features.{}.{}", n.parse::<usize>().ok()?.checked_sub(1)?, rest.join("."))
        }
        ["norm" | "head", _] => parts.join("."),
        _ => return None,
    })
}

/// `merging`: where `layers.i.downsample` lies from stage i's own place.
fn original_swin(parts: &[&str], merging: isize) -> Option<String> {
    let place = |stage: &str| Some(2 * stage.parse::<usize>().ok()?);
    Some(match *parts {
        ["patch_embed", "proj" | "norm", _] => parts.join("."),
        ["layers", stage, "blocks", block, "mlp", layer, x] => {
            format!("features.{}.{block}.mlp.{}.{x}", place(stage)?, mlp(layer)?)
        }
        ["layers", stage, "blocks", block, ref rest @ ..] => {
            format!("features.{}.{block}.{}", place(stage)?, rest.join("."))
        }
        ["layers", stage, "downsample", module, x] => {
            format!("features.{}.{module}.{x}", place(stage)?.checked_add_signed(merging)?)
        }
        // mmaction2 names the norm after its stage.
        ["norm" | "norm3", x] => format!("norm.{x}"),
        ["head", x] | ["head", "fc", x] | ["cls_head", "fc_cls", x] => format!("head.{x}"),
        _ => return None,
    })
}

/// The place of the MLP's layer: dropout and activation lie between.
fn mlp(layer: &str) -> Option<usize> {
    match layer {
        "fc1" => Some(0),
        "fc2" => Some(3),
        _ => None,
    }
}

fn transformers_swin(parts: &[&str]) -> Option<Ours> {
    let plain = match *parts {
        ["embeddings", "patch_embeddings", "projection", x] => format!("patch_embed.proj.{x}"),
        ["embeddings", "norm", x] => format!("patch_embed.norm.{x}"),
        ["layernorm", x] => format!("norm.{x}"),
        ["classifier", x] => format!("head.{x}"),
        ["encoder", "layers", stage, "downsample", module, x] => {
            format!("features.{}.{module}.{x}", 2 * stage.parse::<usize>().ok()? + 1)
        }
        ["encoder", "layers", stage, "blocks", block, ref rest @ ..] => {
            let (inside, third) = transformers_block(rest)?;
            return Some((format!("features.{}.{block}.{inside}", 2 * stage.parse::<usize>().ok()?), third));
        }
        _ => return None,
    };
    Some((plain, None))
}

fn transformers_block(parts: &[&str]) -> Option<Ours> {
    const THIRDS: [&str; 3] = ["query", "key", "value"];
    const PROJECTIONS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
    Some(match *parts {
        ["layernorm_before", x] => whole(format!("norm1.{x}")),
        ["layernorm_after", x] => whole(format!("norm2.{x}")),
        ["attention", "self" | "relative_position_bias", table @ "relative_position_bias_table"] => {
            whole(format!("attn.{table}"))
        }
        ["attention", "self", which, x] => {
            (format!("attn.qkv.{x}"), Some(THIRDS.iter().position(|w| *w == which)?))
        }
        ["attention", "output", "dense", x] | ["attention", "o_proj", x] => whole(format!("attn.proj.{x}")),
        ["attention", which, x] => {
            (format!("attn.qkv.{x}"), Some(PROJECTIONS.iter().position(|w| *w == which)?))
        }
        ["intermediate", "dense", x] => whole(format!("mlp.0.{x}")),
        ["output", "dense", x] => whole(format!("mlp.3.{x}")),
        ["mlp", layer, x] => whole(format!("mlp.{}.{x}", mlp(layer)?)),
        _ => return None,
    })
}
