#!/usr/bin/env python3
"""Turns PySlowFast, mmaction2 and Caffe2 checkpoints into safetensors that `marey import` reads.

    scripts/reference-python scripts/convert_weights.py IN OUT.safetensors [--bgr]

Any Python with torch, numpy and safetensors will do. The layout is recognised by its names:

  PySlowFast .pyth   SlowFast, Slow, I3D, C2D, with or without non-local blocks
  mmaction2 .pth     Video Swin (and the Swin authors' own files), SlowOnly, SlowFast with `lateral_norm=True`
  Caffe2 .pkl        the same networks as PySlowFast's, as in its model zoo

The result bears pytorchvideo's names (ResNets) or torchvision's (Swin). mmaction2's SlowFast has the fast pathway's
features first in its classifier and pytorchvideo the slow one's: its columns are reordered. What would give
another network is refused: mmaction2's SlowFast without norms in its lateral connections (it has no ReLU there
either), and its I3D (it strides over time in its stem).

The files of PySlowFast's model zoo take RGB. --bgr is for those that take BGR, as Caffe2's with
MODEL.USE_BGR: the channels of the first convolutions are reversed.

Nothing in a file is executed: PyTorch's are read with weights_only, Caffe2's by an unpickler that makes only
numpy arrays.
"""
import argparse
import pickle
import re
import sys

import numpy
import torch
from safetensors.torch import save_file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN")
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument("--bgr", action="store_true", help="the network takes BGR: reverse its first channels")
    args = parser.parse_args()
    try:
        layout, weights = convert(read(args.source))
        if args.bgr:
            reverse_channels(weights)
        weights = {name: t.float().contiguous().clone() for name, t in weights.items()}
        save_file(weights, args.out, {"format": "pt"})
    except (Refused, OSError, pickle.UnpicklingError, EOFError, RuntimeError) as e:
        sys.exit(f"error: failed to convert {args.source}: {e}")
    print(f"{layout}: {len(weights)} tensors in {args.out}")


class Refused(Exception):
    """The file is none that can be converted, and why."""


# Reading


class NumpyOnly(pickle.Unpickler):
    """Makes numpy arrays and plain containers, nothing else."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("collections", "OrderedDict"),
    }

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise Refused(f"it wants to make a {module}.{name}; only numpy arrays are read")
        # numpy 2 moved them.
        if module.startswith("numpy.core") and hasattr(numpy, "_core"):
            module = module.replace("numpy.core", "numpy._core")
        return super().find_class(module, name)


def read(path):
    """The file's state dict: names to tensors."""
    if path.endswith(".pkl"):
        with open(path, "rb") as f:
            blobs = NumpyOnly(f, encoding="latin1").load()
        if not isinstance(blobs, dict):
            raise Refused(f"it holds a {type(blobs).__name__}, not Caffe2's blobs")
        blobs = blobs.get("blobs", blobs)
        arrays = {name: a for name, a in blobs.items() if isinstance(a, numpy.ndarray)}
        return {name: torch.from_numpy(numpy.array(a)) for name, a in arrays.items() if a.dtype.kind == "f"}
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model_state", "state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise Refused(f"it holds a {type(loaded).__name__}, not a state dict")
    return {name: t for name, t in loaded.items() if isinstance(t, torch.Tensor)}


def convert(state):
    """(layout, state dict under our names)."""
    state = {name.removeprefix("module."): t for name, t in state.items()}
    state = {name: t for name, t in state.items() if not name.endswith(BOOKKEEPING)}
    if "s1.pathway0_stem.conv.weight" in state:
        return "PySlowFast", pyslowfast(state)
    if "conv1_w" in state:
        return "Caffe2", pyslowfast(caffe2(state))
    if any(name.startswith(("backbone.layers.", "layers.")) for name in state):
        return "mmaction2 Swin", mmaction2_swin(state)
    if "backbone.slow_path.conv1.conv.weight" in state:
        return "mmaction2 SlowFast", mmaction2_slowfast(state)
    if "backbone.conv1.conv.weight" in state:
        return "mmaction2 SlowOnly", mmaction2_slowonly(state)
    raise Refused(f"its names are of no known layout: {some(state)}")


BOOKKEEPING = ("num_batches_tracked", "relative_position_index", "attn_mask")


def rename(state, rules):
    """Each name by the first rule (pattern, template or function) that matches it whole."""
    renamed, unknown = {}, []
    for name, tensor in state.items():
        for pattern, template in rules:
            if match := re.fullmatch(pattern, name):
                renamed[template(match) if callable(template) else match.expand(template)] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise Refused(f"{len(unknown)} names have no place here: {some(unknown)}")
    return renamed


def some(names):
    names = sorted(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def reverse_channels(weights):
    stems = [name for name in weights if re.fullmatch(r"blocks\.0\.(multipathway_blocks\.\d\.)?conv\.weight", name)]
    for name in stems or ["patch_embed.proj.weight"]:
        weights[name] = weights[name].flip(1)


# PySlowFast: slowfast/models/{video_model_builder,resnet_helper,stem_helper,head_helper,nonlocal_helper}.py


def pyslowfast(state):
    pathways = any(".pathway1_" in name for name in state)
    # C2D and I3D pool over time after res2, which takes a number in pytorchvideo's list of blocks. Slow does not,
    # and it alone has kernels over time in res4 but not in the stem.
    over_time = lambda name: name in state and state[name].shape[2] > 1
    slow = over_time("s4.pathway0_res0.branch2.a.weight") and not over_time("s1.pathway0_stem.conv.weight")
    pooled = 0 if pathways or slow else 1

    def block(stage, pathway):
        number = int(stage) - 1 + (pooled if int(stage) > 2 else 0)
        return f"blocks.{number}." + (f"multipathway_blocks.{pathway}." if pathways else "")

    def kind(word):
        return "conv" if word == "conv" else "norm"

    res = r"s([2-5])\.pathway(\d)_res(\d+)\."
    return rename(state, [
        (r"s1\.pathway(\d)_stem\.(conv|bn)\.(\w+)", lambda m: f"{block(1, m[1])}{kind(m[2])}.{m[3]}"),
        (res + r"branch1\.(\w+)", lambda m: f"{block(m[1], m[2])}res_blocks.{m[3]}.branch1_conv.{m[4]}"),
        (res + r"branch1_bn\.(\w+)", lambda m: f"{block(m[1], m[2])}res_blocks.{m[3]}.branch1_norm.{m[4]}"),
        (res + r"branch2\.([abc])\.(\w+)",
         lambda m: f"{block(m[1], m[2])}res_blocks.{m[3]}.branch2.conv_{m[4]}.{m[5]}"),
        (res + r"branch2\.([abc])_bn\.(\w+)",
         lambda m: f"{block(m[1], m[2])}res_blocks.{m[3]}.branch2.norm_{m[4]}.{m[5]}"),
        (r"s([2-5])\.pathway(\d)_nonlocal(\d+)\.(conv_\w+)\.(\w+)",
         lambda m: f"{block(m[1], m[2])}non_local.{m[3]}.{m[4]}.{m[5]}"),
        (r"s([2-5])\.pathway(\d)_nonlocal(\d+)\.bn\.(\w+)",
         lambda m: f"{block(m[1], m[2])}non_local.{m[3]}.norm.{m[4]}"),
        (r"s([1-4])_fuse\.conv_f2s\.(\w+)",
         lambda m: f"blocks.{int(m[1]) - 1}.multipathway_fusion.conv_fast_to_slow.{m[2]}"),
        (r"s([1-4])_fuse\.bn\.(\w+)", lambda m: f"blocks.{int(m[1]) - 1}.multipathway_fusion.norm.{m[2]}"),
        (r"head\.projection\.(\w+)", lambda m: f"blocks.{6 if pathways else 5 + pooled}.proj.{m[1]}"),
    ])


# Caffe2, as PySlowFast reads it: slowfast/utils/c2_model_loading.py. "t_" marks the fast pathway.


def caffe2(state):
    end = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}

    def named(template):
        return lambda m: template.format(**{**m.groupdict(), "p": 1 if m["fast"] else 0, "end": end[m["end"]]})

    fast, w, bn = r"(?P<fast>t_)?", r"_(?P<end>w|b)", r"_bn_(?P<end>s|b|rm|riv)"
    res = fast + r"res(?P<k>[2-5])_(?P<i>\d+)_"
    non_local = r"(?P<fast>(?!))?nonlocal_conv(?P<k>[2-5])_(?P<i>\d+)"
    training_only = re.compile(r".*_momentum|lr|model_iter")
    state = {name: t for name, t in state.items() if not training_only.fullmatch(name)}
    renamed = rename(state, [
        (fast + "conv1" + w, named("s1.pathway{p}_stem.conv.{end}")),
        (fast + "res_conv1" + bn, named("s1.pathway{p}_stem.bn.{end}")),
        (fast + "pool1_subsample" + w, named("s1_fuse.conv_f2s.{end}")),
        (fast + "pool1_subsample" + bn, named("s1_fuse.bn.{end}")),
        (res + "branch2c_bn_subsample" + w, named("s{k}_fuse.conv_f2s.{end}")),
        (res + "branch2c_bn_subsample" + bn, named("s{k}_fuse.bn.{end}")),
        (res + "branch1" + w, named("s{k}.pathway{p}_res{i}.branch1.{end}")),
        (res + "branch1" + bn, named("s{k}.pathway{p}_res{i}.branch1_bn.{end}")),
        (res + "branch2(?P<x>[abc])" + w, named("s{k}.pathway{p}_res{i}.branch2.{x}.{end}")),
        (res + "branch2(?P<x>[abc])" + bn, named("s{k}.pathway{p}_res{i}.branch2.{x}_bn.{end}")),
        (non_local + "_(?P<x>theta|phi|g|out)" + w, named("s{k}.pathway0_nonlocal{i}.conv_{x}.{end}")),
        (non_local + bn, named("s{k}.pathway0_nonlocal{i}.bn.{end}")),
        ("(?P<fast>(?!))?pred" + w, named("head.projection.{end}")),
    ])
    return {name: five_axes(name, t) for name, t in renamed.items()}


def five_axes(name, tensor):
    """Kernels of one point may come as matrices, the classifier as a kernel."""
    if name == "head.projection.weight":
        return tensor.reshape(tensor.shape[:2])
    kernel = tensor.dim() > 1 and name.endswith(".weight")
    return tensor.reshape(tensor.shape + (1,) * (5 - tensor.dim())) if kernel else tensor


# mmaction2: mmaction/models/backbones/{swin,resnet3d,resnet3d_slowfast}.py and heads/


def mmaction2_swin(state):
    state = {name.removeprefix("backbone."): t for name, t in state.items()}
    mlp = {"1": 0, "2": 3}
    return rename(state, [
        (r"patch_embed\.(proj|norm)\.(\w+)", r"patch_embed.\1.\2"),
        (r"layers\.(\d)\.blocks\.(\d+)\.mlp\.fc([12])\.(\w+)",
         lambda m: f"features.{2 * int(m[1])}.{m[2]}.mlp.{mlp[m[3]]}.{m[4]}"),
        (r"layers\.(\d)\.blocks\.(\d+)\.((?:norm[12]|attn)\..+)",
         lambda m: f"features.{2 * int(m[1])}.{m[2]}.{m[3]}"),
        (r"layers\.(\d)\.downsample\.(.+)", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}"),
        (r"norm3?\.(\w+)", r"norm.\1"),
        (r"cls_head\.fc_cls\.(\w+)", r"head.\1"),
    ])


def mmaction2_layers(prefix, pathway):
    """The rules for a ResNet of ConvModules; `pathway` goes before our names."""
    kind = {"conv": "conv", "bn": "norm"}
    return [
        (prefix + r"conv1\.(conv|bn)\.(\w+)", lambda m: f"blocks.0.{pathway}{kind[m[1]]}.{m[2]}"),
        (prefix + r"layer(\d)\.(\d+)\.conv([123])\.(conv|bn)\.(\w+)",
         lambda m: f"blocks.{m[1]}.{pathway}res_blocks.{m[2]}.branch2.{kind[m[4]]}_{' abc'[int(m[3])]}.{m[5]}"),
        (prefix + r"layer(\d)\.(\d+)\.downsample\.(conv|bn)\.(\w+)",
         lambda m: f"blocks.{m[1]}.{pathway}res_blocks.{m[2]}.branch1_{kind[m[3]]}.{m[4]}"),
    ]


def mmaction2_slowfast(state):
    if "backbone.slow_path.conv1_lateral.bn.weight" not in state:
        raise Refused("its lateral connections have neither norm nor ReLU (lateral_norm=False): "
                      "that is another network than pytorchvideo's")
    lateral = {"conv": "conv_fast_to_slow", "bn": "norm"}
    weights = rename(state, [
        *mmaction2_layers(r"backbone\.slow_path\.", "multipathway_blocks.0."),
        *mmaction2_layers(r"backbone\.fast_path\.", "multipathway_blocks.1."),
        (r"backbone\.slow_path\.conv1_lateral\.(conv|bn)\.(\w+)",
         lambda m: f"blocks.0.multipathway_fusion.{lateral[m[1]]}.{m[2]}"),
        (r"backbone\.slow_path\.layer(\d)_lateral\.(conv|bn)\.(\w+)",
         lambda m: f"blocks.{m[1]}.multipathway_fusion.{lateral[m[2]]}.{m[3]}"),
        (r"cls_head\.fc_cls\.(\w+)", r"blocks.6.proj.\1"),
    ])
    if "blocks.6.proj.weight" in weights:
        fast = weights["blocks.4.multipathway_blocks.1.res_blocks.0.branch2.conv_c.weight"].shape[0]
        columns = weights["blocks.6.proj.weight"]
        weights["blocks.6.proj.weight"] = torch.cat([columns[:, fast:], columns[:, :fast]], 1)
    return weights


def mmaction2_slowonly(state):
    if state["backbone.conv1.conv.weight"].shape[2] > 1:
        raise Refused("its stem reaches over time: mmaction2's I3D strides over time there, "
                      "which is another network than pytorchvideo's")
    return rename(state, [
        *mmaction2_layers(r"backbone\.", ""),
        (r"cls_head\.fc_cls\.(\w+)", r"blocks.5.proj.\1"),
    ])


if __name__ == "__main__":
    main()
