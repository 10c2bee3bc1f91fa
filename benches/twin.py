"""Trains the reference implementation in plain PyTorch on the very batches of a Marey job and compares the losses.

    marey train JOB.toml --workers 1 --run RUN --set ...
    marey-worker twin JOB.toml --set ... --out twin.safetensors
    scripts/reference-python benches/twin.py twin.safetensors RUN --model slowfast_r50|swin3d_t --optimizer sgd|adamw

`twin` writes the job's fresh weights, its first batches (as decoded and cropped by the stream) and its learning
rates. The network, the loss and the optimizer here are pytorchvideo's or torchvision's and torch.optim's own.
Prints both losses of each step; exits with status 1 where one differs by more than --tolerance, relatively.
"""
import argparse, glob, json, sys, warnings

warnings.filterwarnings("ignore")
import torch
from safetensors.torch import load_file


def slowfast_r50(frames, crop, classes):
    from pytorchvideo.models.slowfast import create_slowfast
    return create_slowfast(
        model_num_class=classes, dropout_rate=0.0, slowfast_fusion_conv_kernel_size=(7, 1, 1),
        head_pool_kernel_sizes=((frames // 4, crop // 32, crop // 32), (frames, crop // 32, crop // 32)))


def swin3d_t(frames, crop, classes):
    from torchvision.models.video.swin_transformer import PatchEmbed3d, SwinTransformer3d
    return SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=[8, 7, 7],
        stochastic_depth_prob=0.0, num_classes=classes, patch_embed=PatchEmbed3d)


def pathways(name, clip):
    if name.startswith("swin"):
        return clip
    slow = torch.linspace(0, clip.shape[2] - 1, clip.shape[2] // 4).long()
    return [clip.index_select(2, slow), clip]


def optimizer_of(kind, model, weight_decay):
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and not n.endswith("bias_table")]
    rest = [p for n, p in model.named_parameters() if p.dim() <= 1 or n.endswith("bias_table")]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=1.0)


def losses_of(run):
    steps = {}
    for path in sorted(glob.glob(f"{run}/metrics/*.jsonl")):
        for line in open(path):
            event = json.loads(line)
            if event["kind"] == "step":
                steps[event["step"]] = event["loss"]
    return [steps[s] for s in sorted(steps)]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("twin")
    a.add_argument("run")
    a.add_argument("--model", choices=["slowfast_r50", "swin3d_t"], required=True)
    a.add_argument("--optimizer", choices=["sgd", "adamw"], required=True)
    a.add_argument("--weight-decay", type=float, default=1e-4)
    a.add_argument("--mean", type=float, default=0.45)
    a.add_argument("--std", type=float, default=0.225)
    a.add_argument("--tolerance", type=float, default=1e-4)
    a = a.parse_args()

    data = load_file(a.twin)
    ours, rates = losses_of(a.run), data["lr"].tolist()
    weights = {k[2:]: v for k, v in data.items() if k.startswith("w.")}
    _, frames, crop, _, _ = data["frames.0"].shape
    classes = weights["head.bias" if a.model.startswith("swin") else "blocks.6.proj.bias"].shape[0]
    model = {"slowfast_r50": slowfast_r50, "swin3d_t": swin3d_t}[a.model](frames, crop, classes)
    model.load_state_dict(weights, strict=True)
    model.train()
    optimizer = optimizer_of(a.optimizer, model, a.weight_decay)
    worst = 0.0
    if len(ours) < len(rates):
        sys.exit(f"error: {a.run} has {len(ours)} steps, the twin {len(rates)}")
    for step, (lr, mine) in enumerate(zip(rates, ours)):
        clip = (data[f"frames.{step}"].float() / 255 - a.mean) / a.std
        logits = model(pathways(a.model, clip.permute(0, 4, 1, 2, 3).contiguous()))
        loss = torch.nn.functional.cross_entropy(logits, data[f"labels.{step}"])
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gap = abs(loss.item() - mine) / abs(loss.item())
        worst = max(worst, gap)
        print(f"step {step + 1:3}  marey {mine:.7f}  torch {loss.item():.7f}  relative {gap:.1e}", flush=True)
    print(f"{a.model} {a.optimizer}: the losses of {len(rates)} steps differ by at most {worst:.1e}")
    sys.exit(worst > a.tolerance)


if __name__ == "__main__":
    main()
