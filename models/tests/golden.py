"""Writes tests/golden/*.json: what the reference implementations compute, for tests/golden.rs to compare with.

    pip install torch==2.13.0 torchvision==0.28.0 numpy fvcore iopath yacs av parameterized
    pip install --no-deps pytorchvideo==0.1.5
    python models/tests/golden.py

Weights and inputs come from a formula of the tensor's name and the element's index, the same in the Rust test, so
that no weights need to be stored: u(name, i) is the top 24 bits of splitmix64, seeded with FNV-1a of the name.
Each file holds the evaluation-mode logits and, for each parameter's gradient of the mean of the squared logits,
its sum, L2 norm, largest absolute value, and four elements (first, at 1/3, at 2/3, last).
"""
import json, pathlib, warnings

warnings.filterwarnings("ignore")
import numpy as np
import torch

GOLDEN = pathlib.Path(__file__).parent / "golden"


def uniform(name, shape):
    """float64 in [0, 1), of 24 bits."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    n = int(np.prod(shape, dtype=np.int64))
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) / 2**24).reshape(shape)


def value(name, shape):
    """The tensor of that name; its kind is told by the name and the number of axes."""
    u = uniform(name, shape)
    if name.endswith("running_var"):
        v = u + 0.5
    elif name.startswith("in."):
        v = (2 * u - 1) * 1.75
    elif name.endswith("bias_table"):  # large, so that attention is far from even
        v = (2 * u - 1) * 1.5
    elif len(shape) == 2:
        v = (2 * u - 1) * (3 / shape[1]) ** 0.5
    elif len(shape) > 2:
        v = (2 * u - 1) * 0.035
    else:
        v = (2 * u - 1) * 0.175 + (1.0 if name.endswith("weight") else 0.0)
    return torch.from_numpy(v.astype(np.float32))


def short(x):
    """Eight digits: more than float32 knows."""
    return float(f"{x.item():.8g}")


def slowfast_r50(frames, size):
    from pytorchvideo.models import hub
    pool = ((frames // 4, size // 32, size // 32), (frames, size // 32, size // 32))
    return hub.slowfast_r50(pretrained=False, head_pool_kernel_sizes=pool), [frames // 4, frames]


def swin3d_t(frames, size):
    from torchvision.models import video
    return video.swin3d_t(weights=None), [frames]


def write(build, frames, size, grad):
    model, lengths = build(frames, size)
    model.eval()
    skip = ("num_batches_tracked", "relative_position_index")
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if not name.endswith(skip):
                t.copy_(value(name, tuple(t.shape)))
    inputs = [value(f"in.{i}", (1, 3, t, size, size)) for i, t in enumerate(lengths)]
    logits = model(inputs if len(inputs) > 1 else inputs[0])
    gradients = {}
    if grad:
        logits.pow(2).mean().backward()
        for name, p in model.named_parameters():
            g = p.grad.double().flatten()
            n = g.numel()
            gradients[name] = {
                "sum": short(g.sum()), "norm": short(g.norm()), "max": short(g.abs().max()),
                "elements": [short(g[i]) for i in (0, n // 3, 2 * n // 3, n - 1)],
            }
    golden = {
        "model": build.__name__, "frames": frames, "size": size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "logits": [short(x) for x in logits.flatten()], "gradients": gradients,
    }
    path = GOLDEN / f"{build.__name__}_{frames}x{size}.json"
    path.write_text(json.dumps(golden).replace('}, "', '},\n "') + "\n")
    print(path.name, golden["logits"][:3])


if __name__ == "__main__":
    write(slowfast_r50, 32, 64, grad=True)
    write(slowfast_r50, 32, 224, grad=False)  # the published clip, with the reference's own pooling kernels
    write(swin3d_t, 16, 112, grad=True)
    write(swin3d_t, 11, 90, grad=True)  # padded patches, windows and mergings; windows clamped in time
