"""Trains the reference implementation in plain PyTorch on the very batches of a Marey job and compares the losses.

    marey train JOB.toml --workers 1 --run RUN
    marey-worker twin JOB.toml --out TWIN [--eval]
    scripts/reference-python benches/twin.py TWIN RUN --model slowfast_r50|swin3d_t --optimizer sgd|adamw

`twin` writes the job's fresh weights, its batches (as decoded and cropped by the stream) and its learning rates.
The network, the loss and the optimizer here are pytorchvideo's or torchvision's and torch.optim's own.
Prints both losses of each step; exits with status 1 where one differs by more than --tolerance, relatively.
Where TWIN holds the evaluation split, prints its top-1 beside that of the run's last evaluation.
"""
import argparse, glob, json, sys, warnings

warnings.filterwarnings("ignore")
import torch
from safetensors.torch import load_file


def slowfast_r50(frames, crop, classes, width=64, beta=8):
    from pytorchvideo.models.slowfast import create_slowfast
    return create_slowfast(
        model_num_class=classes, dropout_rate=0.0, slowfast_fusion_conv_kernel_size=(7, 1, 1),
        stem_dim_outs=(width, width // beta), slowfast_channel_reduction_ratio=(beta,),
        head_pool_kernel_sizes=((frames // 4, -(-crop // 32), -(-crop // 32)), (frames, -(-crop // 32), -(-crop // 32))))


def slowfast_small(frames, crop, classes):
    return slowfast_r50(frames, crop, classes, width=16, beta=4)


def swin3d_t(frames, crop, classes):
    from torchvision.models.video.swin_transformer import PatchEmbed3d, SwinTransformer3d
    return SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=[8, 7, 7],
        stochastic_depth_prob=0.0, num_classes=classes, patch_embed=PatchEmbed3d)


MODELS = {"slowfast_r50": slowfast_r50, "slowfast_small": slowfast_small, "swin3d_t": swin3d_t}


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


def run_of(run):
    """The loss of each step, and the top-1 of the last evaluation (or None)."""
    steps, top1 = {}, None
    for path in sorted(glob.glob(f"{run}/metrics/*.jsonl")):
        for line in open(path):
            event = json.loads(line)
            if event["kind"] == "step":
                steps[event["step"]] = event["loss"]
            if event["kind"] == "eval":
                top1 = event["top1"]
    return [steps[s] for s in sorted(steps)], top1


def inputs(name, frames, a):
    clip = (frames.float() / 255 - a.mean) / a.std
    return pathways(name, clip.permute(0, 4, 1, 2, 3).contiguous())


def top1_of(model, files, a):
    model.eval()
    right = shown = 0
    for path in files:
        data = load_file(path)
        with torch.no_grad():
            right += (model(inputs(a.model, data["frames"], a)).argmax(1) == data["labels"]).sum().item()
        shown += len(data["labels"])
    return right / shown


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("twin")
    a.add_argument("run")
    a.add_argument("--model", choices=sorted(MODELS), required=True)
    a.add_argument("--optimizer", choices=["sgd", "adamw"], required=True)
    a.add_argument("--weight-decay", type=float, default=1e-4)
    a.add_argument("--mean", type=float, default=0.45)
    a.add_argument("--std", type=float, default=0.225)
    a.add_argument("--tolerance", type=float, default=1e-4)
    a = a.parse_args()

    ours, top1 = run_of(a.run)
    files = sorted(glob.glob(f"{a.twin}/step-*.safetensors"))
    weights = load_file(f"{a.twin}/weights.safetensors")
    _, frames, crop, _, _ = load_file(files[0])["frames"].shape
    classes = weights["head.bias" if a.model.startswith("swin") else "blocks.6.proj.bias"].shape[0]
    model = MODELS[a.model](frames, crop, classes)
    model.load_state_dict(weights, strict=True)
    model.train()
    optimizer = optimizer_of(a.optimizer, model, a.weight_decay)
    worst = 0.0
    if len(ours) < len(files):
        sys.exit(f"error: {a.run} has {len(ours)} steps, the twin {len(files)}")
    for step, (path, mine) in enumerate(zip(files, ours)):
        data = load_file(path)
        loss = torch.nn.functional.cross_entropy(model(inputs(a.model, data["frames"], a)), data["labels"])
        for group in optimizer.param_groups:
            group["lr"] = data["lr"].item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gap = abs(loss.item() - mine) / abs(loss.item())
        worst = max(worst, gap)
        print(f"step {step + 1:3}  marey {mine:.7f}  torch {loss.item():.7f}  relative {gap:.1e}", flush=True)
    print(f"{a.model} {a.optimizer}: the losses of {len(files)} steps differ by at most {worst:.1e}")
    held_out = sorted(glob.glob(f"{a.twin}/eval-*.safetensors"))
    if held_out:
        print(f"top-1 on the evaluation split: marey {top1:.4f}  torch {top1_of(model, held_out, a):.4f}")
    sys.exit(worst > a.tolerance)


if __name__ == "__main__":
    main()
