//! What a network is called, by the names and shapes of its tensors.

use super::{Source, naming::Naming};

/// Like `pytorchvideo slowfast_r50, 400 classes` or `torchvision swin_t (2D), 1000 classes`.
pub(super) fn source(source: &Source) -> String {
    let network = match source.naming {
        Naming::Pytorchvideo => video_resnet(source),
        Naming::ResNet | Naming::TransformersResNet => format!("resnet{}", depth(source, "res")),
        _ if source.image => format!("swin{}", swin_size(source)),
        _ => format!("swin3d{}", swin_size(source)),
    };
    let image = if source.image { " (2D)" } else { "" };
    let classes = source.classes().map_or("no classifier".into(), |n| format!("{n} classes"));
    format!("{} {network}{image}, {classes}", source.naming.package())
}

fn video_resnet(source: &Source) -> String {
    let kernel = |name: &str| source.tensors.get(name).and_then(|f| f.tensor.size().get(2).copied());
    if kernel("blocks.0.multipathway_blocks.0.conv.weight").is_some() {
        return format!("slowfast_r{}", depth(source, ".multipathway_blocks.0.res_blocks."));
    }
    // Where kernels reach over time.
    let in_stem = kernel("blocks.0.conv.weight") > Some(1);
    let anywhere = source.tensors.keys().any(|name| kernel(name) > Some(1));
    let family = match (in_stem, anywhere) {
        (true, _) => "i3d",
        (false, true) => "slow",
        (false, false) => "c2d",
    };
    format!("{family}_r{}", depth(source, ".res_blocks."))
}

/// 50, 101, ..., or the blocks of each stage. `before`: what stands before a block's number; for image ResNets
/// the stage's number does.
fn depth(source: &Source, before: &str) -> String {
    let mut stages: Vec<(&str, usize)> = vec![];
    let first_convolutions = source.tensors.keys().filter(|name| name.ends_with(".branch2.conv_a.weight"));
    for name in first_convolutions.filter(|name| name.contains(before)) {
        let block = name.trim_end_matches(".branch2.conv_a.weight");
        let stage = block.rsplit_once('.').map_or("", |(stage, _)| stage);
        match stages.iter_mut().find(|(seen, _)| *seen == stage) {
            Some((_, blocks)) => *blocks += 1,
            None => stages.push((stage, 1)),
        }
    }
    let blocks: Vec<usize> = stages.into_iter().map(|(_, blocks)| blocks).collect();
    let bottleneck = source.tensors.keys().any(|name| name.ends_with(".branch2.conv_c.weight"));
    match (bottleneck, &blocks[..]) {
        (false, [2, 2, 2, 2]) => "18".into(),
        (false, [3, 4, 6, 3]) => "34".into(),
        (true, [3, 4, 6, 3]) => "50".into(),
        (true, [3, 4, 23, 3]) => "101".into(),
        (true, [3, 8, 36, 3]) => "152".into(),
        _ => format!(" of {blocks:?} blocks"),
    }
}

/// `_t`, `_s`, `_b`, `_l`, or the blocks of each stage.
fn swin_size(source: &Source) -> String {
    let kernel = source.tensors.get(source.naming.first_kernel());
    let width = kernel.and_then(|f| f.tensor.size().first().copied()).unwrap_or(0);
    let mut depths = vec![];
    for stage in 0.. {
        let block = |b: usize| format!("features.{}.{b}.attn.qkv.weight", 2 * stage);
        match (0..).take_while(|&b| source.tensors.contains_key(&block(b))).count() {
            0 => break,
            blocks => depths.push(blocks),
        }
    }
    match (width, &depths[..]) {
        (96, [2, 2, 6, 2]) => "_t".into(),
        (96, [2, 2, 18, 2]) => "_s".into(),
        (128, [2, 2, 18, 2]) => "_b".into(),
        (192, [2, 2, 18, 2]) => "_l".into(),
        _ => format!(" of {depths:?} blocks, width {width}"),
    }
}
