//! How far each tensor lies from the classifier, read off the reference's names.

use crate::Named;

/// A tensor's place in the depth of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// 0: the classifier, and a norm right before it; 1: the block before; and so on down to the stem.
    pub below_classifier: usize,
    /// Part of the classifier.
    pub classifier: bool,
}

/// The layer of each of a network's tensors. A layer is a residual stage of a ResNet (`blocks.N`), a
/// transformer block of a Video Swin (`features.S.B`, to which the merging before it belongs), or the
/// patch embedding: the layers of layer-wise decay (Bao et al. 2022, appendix).
pub fn layers(tensors: &[Named]) -> Vec<Layer> {
    let keys: Vec<String> = tensors.iter().map(|t| key(&t.name)).collect();
    let head = keys.last().cloned().unwrap_or_default();
    let mut order: Vec<&String> = vec![];
    for key in keys.iter().filter(|k| **k != head && !is_norm(k)) {
        if !order.contains(&key) {
            order.push(key);
        }
    }
    let layer = |key: &String| Layer {
        below_classifier: order.iter().position(|k| *k == key).map_or(0, |i| order.len() - i),
        classifier: *key == head,
    };
    keys.iter().map(layer).collect()
}

/// The norm between the last block and the classifier.
fn is_norm(key: &str) -> bool {
    key == "norm"
}

fn key(name: &str) -> String {
    let mut parts = name.split('.');
    match (parts.next().unwrap_or_default(), parts.next(), parts.next()) {
        ("blocks", Some(n), _) => format!("blocks.{n}"),
        ("features", Some(stage), block) => match stage.parse::<usize>() {
            // Odd ones merge patches for the stage that follows.
            Ok(n) if n % 2 == 1 => format!("features.{}.0", n + 1),
            _ => format!("features.{stage}.{}", block.unwrap_or_default()),
        },
        (first, ..) => first.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;
    use tch::Tensor;

    fn depths(names: &[&str]) -> Vec<(usize, bool)> {
        let named = |n: &&str| Named {
            name: n.to_string(),
            tensor: Tensor::new(),
            role: Role::Weight { decay: true },
        };
        let tensors: Vec<Named> = names.iter().map(named).collect();
        layers(&tensors).iter().map(|l| (l.below_classifier, l.classifier)).collect()
    }

    #[test]
    fn stages_and_blocks_are_layers() {
        let resnet = [
            "blocks.0.conv.weight",
            "blocks.1.res_blocks.0.branch2.conv_a.weight",
            "blocks.1.res_blocks.1.branch2.conv_a.weight",
            "blocks.6.proj.weight",
            "blocks.6.proj.bias",
        ];
        assert_eq!(depths(&resnet), [(2, false), (1, false), (1, false), (0, true), (0, true)]);
        let swin = [
            "patch_embed.proj.weight",
            "features.0.0.norm1.weight",
            "features.0.1.norm1.weight",
            "features.1.reduction.weight",
            "features.2.0.attn.qkv.weight",
            "norm.weight",
            "head.weight",
        ];
        let want = [(4, false), (3, false), (2, false), (1, false), (1, false), (0, false), (0, true)];
        assert_eq!(depths(&swin), want);
    }
}
