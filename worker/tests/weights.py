"""Writes what worker/tests/weights.rs reads, with the real packages.

    weights.py images DIR    image models of torchvision, timm and transformers, each with a picture and its logits
    weights.py videos DIR    video models of pytorchvideo and torchvision, each with a clip and its logits
    weights.py check DIR     loads DIR/NAME.exported.safetensors strictly, writes its logits of NAME.io's clip
    weights.py foreign DIR   PySlowFast's, mmaction2's and Caffe2's layouts of known weights, and what
                             scripts/convert_weights.py makes of them
"""
import os
import pickle
import re
import runpy
import sys
import warnings

warnings.filterwarnings("ignore")
import torch

# The slowest part of building a model whose weights are replaced anyhow.
torch.nn.init.trunc_normal_ = lambda tensor, *_, **__: tensor
from safetensors.torch import load_file, save_file


def seeded(model, seed):
    """Weights of which none could be lost or swapped unnoticed."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        scale = 1.0 if name.endswith("bias_table") else 0.03 if p.dim() > 1 else 0.1
        p.data = torch.randn(p.shape, generator=g) * scale + float(p.dim() == 1 and name.endswith("weight"))
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.data = torch.randn(b.shape, generator=g) * 0.1
        if name.endswith("running_var"):
            b.data = torch.rand(b.shape, generator=g) + 0.5
    return model.eval()


def plain(state):
    return {name: t.detach().contiguous().clone() for name, t in state.items()}


def logits(model, x):
    with torch.no_grad():
        y = model(x)
    return (y.logits if hasattr(y, "logits") else y).contiguous()


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9))


def images(folder):
    import timm
    import torchvision.models as tv
    from transformers import ResNetConfig, ResNetForImageClassification, SwinConfig, SwinForImageClassification

    small = dict(embed_dim=24, num_heads=[1, 2, 4, 8])
    narrow = ResNetConfig(embedding_size=16, hidden_sizes=[64, 128, 256, 512], num_labels=10)
    models = {
        "torchvision_resnet50": (tv.resnet50(num_classes=10), 64),
        "timm_resnet18": (timm.create_model("resnet18", num_classes=10), 64),
        "transformers_resnet50": (ResNetForImageClassification(narrow), 64),
        "torchvision_swin_t": (tv.swin_t(num_classes=10), 224),
        "timm_swin": (timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, **small), 224),
        "transformers_swin": (SwinForImageClassification(SwinConfig(num_labels=10, **small)), 224),
    }
    for seed, (name, (model, size)) in enumerate(models.items()):
        picture = noise(1, 3, size, size)
        save_file({"x": picture, "logits": logits(seeded(model, seed), picture)}, f"{folder}/{name}.io")
        save_file(plain(model.state_dict()), f"{folder}/{name}.safetensors")
    # transformers gives its files other names than its modules.
    model.save_pretrained(f"{folder}/pretrained")


def video(name):
    """(model, clip as (1, 3, T, H, W), logits of it)"""
    if name == "swin3d_t":
        from torchvision.models import video

        return video.swin3d_t(weights=None), noise(1, 3, 8, 64, 64), logits
    from pytorchvideo.models import hub

    model = hub.slowfast_r50(pretrained=False)
    # Its windows are those of 224 pixels; these are the whole of 64.
    for pool, frames in zip(model.blocks[5].pool, (8, 32)):
        pool.kernel_size = (frames, 2, 2)
    slow = torch.linspace(0, 31, 8).long()
    return model, noise(1, 3, 32, 64, 64), lambda model, x: logits(model, [x[:, :, slow], x])


VIDEOS = ("slowfast_r50", "swin3d_t")


def videos(folder):
    for name in VIDEOS:
        model, clip, run = video(name)
        seeded(model, 3)
        save_file({"module." + k: v for k, v in plain(model.state_dict()).items()}, f"{folder}/{name}.safetensors")
        save_file({"x": clip, "logits": run(model, clip)}, f"{folder}/{name}.io")


def check(folder):
    for name in VIDEOS:
        model, clip, run = video(name)
        model.load_state_dict(load_file(f"{folder}/{name}.exported.safetensors"), strict=True)
        save_file({"logits": run(model.eval(), clip)}, f"{folder}/{name}.checked")


def renamed(state, rules):
    """Each name by the first rule whose pattern it begins with."""
    out = {}
    for name, tensor in state.items():
        theirs = next(re.sub("^" + pattern, template, name) for pattern, template in rules if re.match(pattern, name))
        out[theirs] = tensor
    return out


def pyslowfast_names(state, pathway=r"multipathway_blocks\.(\d)\.", shift=lambda block: 1, head=6):
    """`shift`: from pytorchvideo's number of a block to PySlowFast's of a stage."""
    at = lambda template: lambda m: f"s{int(m[1]) + shift(int(m[1]))}" + m.expand(template)
    block = r"blocks\.(\d)\." + pathway
    res = block + r"res_blocks\.(\d+)\."
    return renamed(state, [
        (block + r"conv\.", at(r".pathway\2_stem.conv.")),
        (block + r"norm\.", at(r".pathway\2_stem.bn.")),
        (res + r"branch1_conv\.", at(r".pathway\2_res\3.branch1.")),
        (res + r"branch1_norm\.", at(r".pathway\2_res\3.branch1_bn.")),
        (res + r"branch2\.conv_(.)\.", at(r".pathway\2_res\3.branch2.\4.")),
        (res + r"branch2\.norm_(.)\.", at(r".pathway\2_res\3.branch2.\4_bn.")),
        (r"blocks\.(\d)\.multipathway_fusion\.conv_fast_to_slow\.", at("_fuse.conv_f2s.")),
        (r"blocks\.(\d)\.multipathway_fusion\.norm\.", at("_fuse.bn.")),
        (rf"blocks\.{head}\.proj\.", "head.projection."),
    ])


def caffe2_names(state):
    """From PySlowFast's names for a ResNet-50."""
    last = {"1": "pool1", "2": "res2_2_branch2c_bn", "3": "res3_3_branch2c_bn", "4": "res4_5_branch2c_bn"}
    fuse = lambda kind: lambda m: f"t_{last[m[1]]}_subsample_{kind}"
    fast = lambda template: lambda m: ("t_" if m[2] == "1" else "") + m.expand(template)
    at = r"s(\d)\.pathway(\d)_"
    out = renamed(state, [
        (at + r"stem\.conv\.", fast("conv1_")),
        (at + r"stem\.bn\.", fast("res_conv1_bn_")),
        (r"s(\d)_fuse\.conv_f2s\.", fuse("")),
        (r"s(\d)_fuse\.bn\.", fuse("bn_")),
        (at + r"res(\d+)\.branch1\.", fast(r"res\1_\3_branch1_")),
        (at + r"res(\d+)\.branch1_bn\.", fast(r"res\1_\3_branch1_bn_")),
        (at + r"res(\d+)\.branch2\.(.)\.", fast(r"res\1_\3_branch2\4_")),
        (at + r"res(\d+)\.branch2\.(.)_bn\.", fast(r"res\1_\3_branch2\4_bn_")),
        (r"head\.projection\.", "pred_"),
    ])
    ends = [("bn_weight$", "bn_s"), ("weight$", "w"), ("bias$", "b"), ("running_mean$", "rm"), ("running_var$", "riv")]
    for pattern, end in ends:
        out = {re.sub(pattern, end, name): t for name, t in out.items()}
    return out


def mmaction2_slowfast_names(state):
    path = lambda m: "backbone." + ("slow", "fast")[int(m[2])] + "_path."
    layer = lambda m: f"{path(m)}layer{m[1]}.{m[3]}."
    number = lambda m: "_abc".index(m[4])
    lateral = lambda m: "backbone.slow_path." + ("conv1" if m[1] == "0" else f"layer{m[1]}") + "_lateral."
    block = r"blocks\.(\d)\.multipathway_blocks\.(\d)\."
    res = block + r"res_blocks\.(\d+)\."
    out = renamed(state, [
        (block + r"conv\.", lambda m: f"{path(m)}conv1.conv."),
        (block + r"norm\.", lambda m: f"{path(m)}conv1.bn."),
        (res + r"branch1_conv\.", lambda m: f"{layer(m)}downsample.conv."),
        (res + r"branch1_norm\.", lambda m: f"{layer(m)}downsample.bn."),
        (res + r"branch2\.conv_(.)\.", lambda m: f"{layer(m)}conv{number(m)}.conv."),
        (res + r"branch2\.norm_(.)\.", lambda m: f"{layer(m)}conv{number(m)}.bn."),
        (r"blocks\.(\d)\.multipathway_fusion\.conv_fast_to_slow\.", lambda m: f"{lateral(m)}conv."),
        (r"blocks\.(\d)\.multipathway_fusion\.norm\.", lambda m: f"{lateral(m)}bn."),
        (r"blocks\.6\.proj\.", "cls_head.fc_cls."),
    ])
    # Its head puts the fast pathway's features, a ninth of all, first.
    columns = out["cls_head.fc_cls.weight"]
    fast = columns.shape[1] // 9
    out["cls_head.fc_cls.weight"] = torch.cat([columns[:, -fast:], columns[:, :-fast]], 1)
    return out


def mmaction2_swin_names(state):
    stage = lambda m: f"backbone.layers.{int(m[1]) // 2}."
    return renamed(state, [
        (r"patch_embed", "backbone.patch_embed"),
        (r"features\.(\d)\.(\d+)\.mlp\.0", lambda m: f"{stage(m)}blocks.{m[2]}.mlp.fc1"),
        (r"features\.(\d)\.(\d+)\.mlp\.3", lambda m: f"{stage(m)}blocks.{m[2]}.mlp.fc2"),
        (r"features\.([0246])\.(\d+)", lambda m: f"{stage(m)}blocks.{m[2]}"),
        (r"features\.([135])", lambda m: f"{stage(m)}downsample"),
        (r"norm", "backbone.norm3"),
        (r"head", "cls_head.fc_cls"),
    ])


def foreign(folder):
    from pytorchvideo.models.hub import i3d_r50
    from pytorchvideo.models.slowfast import create_slowfast
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    def reference(name, model):
        state = plain(seeded(model, 5).state_dict())
        ends = ("num_batches_tracked", "relative_position_index")
        state = {k: v for k, v in state.items() if not k.endswith(ends)}
        save_file(state, f"{folder}/{name}.reference.safetensors")
        return state

    slowfast = reference("slowfast", create_slowfast(stem_dim_outs=(16, 2), model_num_class=10))
    i3d = reference("i3d", i3d_r50(stem_dim_out=16, model_num_class=10))
    swin = reference("swin", SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=24, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8], window_size=[8, 7, 7],
        num_classes=10))

    pyslowfast = pyslowfast_names(slowfast)
    # I3D's pooling after res2 is a block in pytorchvideo. Its one pathway has no number there: (\d?) is empty.
    single = pyslowfast_names(i3d, r"(\d?)", lambda block: 1 if block < 2 else 0)
    single = {k.replace("pathway_", "pathway0_"): v for k, v in single.items()}
    mmaction2 = mmaction2_slowfast_names(slowfast)
    blobs = {name: t.numpy() for name, t in caffe2_names(pyslowfast).items()}
    for stem in ("conv1_w", "t_conv1_w"):
        blobs[stem] = blobs[stem][:, ::-1].copy()
    blobs |= {"conv1_w_momentum": blobs["conv1_w"], "lr": blobs["pred_b"][:1], "model_iter": 5}

    torch.save({"epoch": 1, "model_state": pyslowfast, "cfg": "..."}, f"{folder}/slowfast.pyth")
    torch.save({"model_state": single}, f"{folder}/i3d.pyth")
    torch.save({"meta": {"epoch": 1}, "state_dict": mmaction2}, f"{folder}/slowfast.pth")
    torch.save({"meta": {}, "state_dict": mmaction2_swin_names(swin)}, f"{folder}/swin.pth")
    with open(f"{folder}/slowfast.pkl", "wb") as f:
        pickle.dump({"blobs": blobs}, f, protocol=2)
    # To be refused: laterals without norms, and a pickle that runs a program.
    bare = {name: t for name, t in mmaction2.items() if "_lateral.bn" not in name}
    torch.save({"state_dict": bare}, f"{folder}/bare.pth")
    with open(f"{folder}/evil.pkl", "wb") as f:
        f.write(b"cos\nsystem\n(S'touch %s/executed'\ntR." % folder.encode())

    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts/convert_weights.py")
    for source in ("slowfast.pyth", "i3d.pyth", "slowfast.pth", "swin.pth", "slowfast.pkl", "bare.pth", "evil.pkl"):
        flags = ["--bgr"] if source.endswith(".pkl") else []
        sys.argv = [script, f"{folder}/{source}", f"{folder}/{source}.safetensors", *flags]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as refused:
            print(refused)


if __name__ == "__main__":
    torch.set_num_threads(2)
    {"images": images, "videos": videos, "check": check, "foreign": foreign}[sys.argv[1]](sys.argv[2])
