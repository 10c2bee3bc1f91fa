"""Weights, inputs, logits and gradients of a reference implementation, for `marey parity` and the parity tests.

    scripts/reference-python scripts/reference.py NAME OUT.safetensors [--frames T] [--size S|HxW] [--crop C]
                                                  [--grad] [--double] [--seed N]
    scripts/reference-python scripts/reference.py --jobs FILE      one such line of arguments a job

The networks are pytorchvideo's and torchvision's. Non-local blocks, which neither has, are the paper's, written
below. OUT holds

    w.*          random weights that are far from degenerate, float32, under the reference's names
    in.0 [in.1]  the inputs, float32: a clip (1, 3, T, H, W), or SlowFast's slow and fast pathway
    out          the logits in evaluation mode; computed and stored in float64 with --double
    g.*          with --grad, gradients of the mean of the squared logits
    train        frames and crop of training (C, by default the shorter side of S): the ResNets' head pools in windows
                 of that size, so that --size 256x320 --crop 224 is a fully convolutional test
"""
import argparse, math, shlex, warnings

warnings.filterwarnings("ignore")
import torch
from pytorchvideo.models import hub
from pytorchvideo.models.resnet import create_resnet
from safetensors.torch import save_file
from torch import nn
from torchvision.models import video

ALPHA = 4


class NonLocal(nn.Module):
    """Wang et al. 2018, section 3: y = x + BN(W sum_j f(x_i, x_j) g(x_j)), keys and values pooled over `pool`."""

    def __init__(self, channels, softmax, pool):
        super().__init__()
        self.softmax, inner = softmax, channels // 2
        self.conv_theta, self.conv_phi, self.conv_g = (nn.Conv3d(channels, inner, 1) for _ in range(3))
        self.conv_out, self.norm = nn.Conv3d(inner, channels, 1), nn.BatchNorm3d(channels)
        self.pool = nn.MaxPool3d(pool)

    def forward(self, x):
        keys = self.pool(x)
        theta, phi, g = (y.flatten(2) for y in (self.conv_theta(x), self.conv_phi(keys), self.conv_g(keys)))
        f = torch.einsum("bci,bcj->bij", theta, phi)
        f = torch.softmax(f / math.sqrt(theta.shape[1]), -1) if self.softmax else f / f.shape[2]
        y = torch.einsum("bij,bcj->bci", f, g)
        return x + self.norm(self.conv_out(y.reshape(y.shape[:2] + x.shape[2:])))


class StageWithNonLocal(nn.Module):
    def __init__(self, stage, after, softmax, pool):
        super().__init__()
        self.res_blocks = stage.res_blocks
        channels = stage.res_blocks[0].branch2.conv_c.out_channels
        self.non_local = nn.ModuleDict({str(i): NonLocal(channels, softmax, pool) for i in after})

    def forward(self, x):
        for i, block in enumerate(self.res_blocks):
            x = block(x)
            if str(i) in self.non_local:
                x = self.non_local[str(i)](x)
        return x


def slowfast_16x8_r101_nl():
    model = hub.slowfast_16x8_r101_50_50()
    slow_and_fast = model.blocks[3].multipathway_blocks
    slow_and_fast[0] = StageWithNonLocal(slow_and_fast[0], [6, 13, 20], softmax=False, pool=(2, 2, 2))
    return model


def five_blocks(model):
    for block, after in ((3, [1, 3]), (4, [1, 3, 5])):
        model.blocks[block] = StageWithNonLocal(model.blocks[block], after, softmax=True, pool=(1, 2, 2))
    return model


# (how to build it, frames by default, frames that the last features keep)
MODELS = {
    "slowfast_r50": (hub.slowfast_r50, 32, None),
    "slowfast_r101": (hub.slowfast_r101, 32, None),
    "slowfast_16x8_r101_50_50": (hub.slowfast_16x8_r101_50_50, 64, None),
    "slowfast_16x8_r101_nl": (slowfast_16x8_r101_nl, 64, None),
    "slow_r50": (hub.slow_r50, 8, lambda t: t),
    "slow_4x16_r50": (lambda: create_resnet(stem_conv_kernel_size=(1, 7, 7)), 4, lambda t: t),
    "i3d_r50": (hub.i3d_r50, 8, lambda t: t // 2),
    "c2d_r50": (hub.c2d_r50, 8, lambda t: t // 2),
    "i3d_nln_r50": (lambda: five_blocks(hub.i3d_r50()), 8, lambda t: t // 2),
    "c2d_nln_r50": (lambda: five_blocks(hub.c2d_r50()), 8, lambda t: t // 2),
    "swin3d_t": (video.swin3d_t, 16, None),
    "swin3d_s": (video.swin3d_s, 16, None),
    "swin3d_b": (video.swin3d_b, 16, None),
}


def build(name, frames, height, width, crop):
    """The network, its head's windows those of a training clip, and its inputs."""
    make, _, kept = MODELS[name]
    model, side = make(), -(-crop // 32)
    windows = [m for m in model.modules() if isinstance(m, nn.AvgPool3d)]
    lengths = [frames]
    if name.startswith("slowfast"):
        lengths = [frames // ALPHA, frames]
        temporal = lengths
    else:
        temporal = [kept(frames)] if kept else []
    assert len(windows) == len(temporal), f"{name}: {windows}"
    for pool, t in zip(windows, temporal):
        pool.kernel_size = (t, side, side)
    return model, [torch.randn(1, 3, t, height, width) for t in lengths]


def fill(model, generator):
    """Weights that let every part of the network count."""
    for name, p in model.named_parameters():
        vector = p.dim() == 1
        p.data = torch.randn(p.shape, generator=generator) * (0.1 if vector else 0.02)
        p.data += float(vector and name.endswith("weight"))
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.data = torch.randn(b.shape, generator=generator) * 0.1
        if name.endswith("running_var"):
            b.data = torch.rand(b.shape, generator=generator) + 0.5


def write(a):
    frames = a.frames or MODELS[a.name][1]
    size = [int(n) for n in a.size.split("x")]
    height, width = size if len(size) == 2 else size * 2
    crop = a.crop or min(height, width)
    torch.manual_seed(a.seed)
    model, inputs = build(a.name, frames, height, width, crop)
    fill(model, torch.Generator().manual_seed(a.seed + 1))
    model.eval()
    # num_batches_tracked and index tables are part of a strict state dict.
    tensors = {"w." + k: v.detach().contiguous().clone() for k, v in model.state_dict().items()}
    tensors |= {f"in.{i}": t.clone() for i, t in enumerate(inputs)}
    tensors["train"] = torch.tensor([frames, crop])
    if a.double:
        model, inputs = model.double(), [t.double() for t in inputs]
    with torch.set_grad_enabled(a.grad):
        # SlowFast's blocks write into the list that they are given.
        out = model(list(inputs)) if len(inputs) > 1 else model(inputs[0])
    tensors["out"] = out.detach().contiguous()
    if a.grad:
        out.pow(2).mean().backward()
        tensors |= {"g." + k: p.grad.contiguous() for k, p in model.named_parameters()}
    save_file(tensors, a.out)
    count = sum(p.numel() for p in model.parameters())
    print(a.name, count, tuple(out.shape), out[0, :3].tolist(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=sorted(MODELS))
    parser.add_argument("out", nargs="?")
    parser.add_argument("--jobs")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--size", default="224")
    parser.add_argument("--crop", type=int)
    parser.add_argument("--grad", action="store_true")
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    if a.jobs:
        with open(a.jobs) as lines:
            for line in lines:
                write(parser.parse_args(shlex.split(line)))
    elif a.name and a.out:
        write(a)
    else:
        parser.error("give a name and a file, or --jobs")


if __name__ == "__main__":
    main()
