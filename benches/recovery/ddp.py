"""DistributedDataParallel on one machine, as torchrun's own users write it: what benches/recovery compares Marey with.

    scripts/reference-python -m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 100 \
        benches/recovery/ddp.py FOLDER --steps 1000 --every 20

pytorchvideo's SlowFast R50 (width 16), AdamW, Gloo. Clips are held in memory, so that no loader has to start again.
Rank 0 writes a checkpoint at the end of each epoch and every --every steps, whole or not at all (write, rename); every
start goes on from the newest one, at its step in the middle of the epoch. Prints one JSON line an event.
"""
import argparse, json, os, sys, time, warnings

warnings.filterwarnings("ignore")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler
from twin import inputs, slowfast_small

CLIPS, FRAMES, CROP, CLASSES, BATCH = 512, 8, 48, 12, 8


def say(event, **more):
    line = json.dumps({"event": event, "rank": int(os.environ["RANK"]), "pid": os.getpid(), **more})
    # One write: the ranks share the pipe.
    os.write(1, (line + "\n").encode())


class Arguments:
    model, mean, std = "slowfast_small", 0.45, 0.225


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("folder")
    a.add_argument("--steps", type=int, required=True)
    a.add_argument("--every", type=int, default=20)
    a = a.parse_args()
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    clips = torch.randint(0, 256, (CLIPS, FRAMES, CROP, CROP, 3), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (CLIPS,))
    model = slowfast_small(FRAMES, CROP, CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    done, path = 0, os.path.join(a.folder, "checkpoint.pt")
    if os.path.exists(path):
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
    model = DistributedDataParallel(model)
    sampler = DistributedSampler(range(CLIPS), num_replicas=world, rank=rank, shuffle=True, seed=1)
    share, per_epoch = BATCH // world, CLIPS // BATCH
    say("begin", step=done)
    while done < a.steps:
        epoch, at = divmod(done, per_epoch)
        sampler.set_epoch(epoch)
        mine = list(sampler)
        for i in range(at, per_epoch):
            batch = mine[i * share:(i + 1) * share]
            loss = torch.nn.functional.cross_entropy(model(inputs(Arguments.model, clips[batch], Arguments)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if rank == 0:
                say("step", step=done, loss=loss.item())
                if done % a.every == 0 or done % per_epoch == 0:
                    state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                    torch.save(state, path + ".part")
                    os.replace(path + ".part", path)
            if done == a.steps:
                break
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
