"""Reads one dataset with one loader and prints one line of JSON: what it took.

    peers.py PEER FOLDER [--s3 URL] [--workers N] [--batch N] [--epochs N] [--cold] [--check]

Every loader hands out shuffled batches as one contiguous uint8 array (B, T, H, W, 3). The first epoch warms up and is
not counted, but with --cold, where one epoch is read from a dataset that is opened inside the measurement.
--check compares each raw clip's CRC32 with what was written.
"""
import argparse
import itertools
import json
import os
import resource
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("peer")
parser.add_argument("folder", type=Path)
parser.add_argument("--s3", help="read from here; endpoint and keys as AWS's variables say")
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--cold", action="store_true")
parser.add_argument("--check", action="store_true")
parser.add_argument("--variant", default="", help="a setting of the peer's own, see its function")
args = parser.parse_args()
JPEG = args.folder.name.startswith("jpeg")
T, H, W = (32, 256, 340) if JPEG else (16, 112, 112)
# AWS_* as set by the caller; Mosaic has a variable of its own.
ENDPOINT = os.environ.get("AWS_ENDPOINT_URL", "")
os.environ["S3_ENDPOINT_URL"] = ENDPOINT
if args.s3 and args.peer in ("litdata", "parquet"):
    # litData's second client refuses plain HTTP otherwise, and has no setting for it.
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
scratch = tempfile.TemporaryDirectory(prefix="marey-bench-")


def clip(blob, out=None):
    """The clip (T, H, W, 3) of a stored blob."""
    if not JPEG:
        return np.frombuffer(blob, np.uint8).reshape(T, H, W, 3)
    import simplejpeg

    out = np.empty((T, H, W, 3), np.uint8) if out is None else out
    at, bytes_of = 4 * T, memoryview(blob).cast("B")
    for frame, size in enumerate(np.frombuffer(blob, "<u4", T)):
        simplejpeg.decode_jpeg(bytes_of[at : at + size], "RGB", buffer=out[frame])
        at += int(size)
    return out


def stack(blobs):
    """One contiguous batch, decoded straight into it."""
    batch = np.empty((len(blobs), T, H, W, 3), np.uint8)
    for i, blob in enumerate(blobs):
        if JPEG:
            clip(blob, batch[i])
        else:
            batch[i] = clip(blob)
    return batch


def collate(samples):
    import torch

    return torch.from_numpy(stack([s["frames"] for s in samples]))


def mosaic():
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    place = {"remote": f"{args.s3}/mosaic", "local": f"{scratch.name}/mosaic"} if args.s3 else {"local": str(args.folder / "mosaic")}
    hashes = {"validate_hash": "xxh64"} if args.variant == "validate" else {}
    dataset = StreamingDataset(**place, shuffle=True, batch_size=args.batch, **hashes)
    loader = DataLoader(dataset, args.batch, num_workers=args.workers, collate_fn=collate, persistent_workers=args.workers > 0)
    return lambda epoch: loader


def litdata(item_loader=None, name="litdata"):
    from litdata import StreamingDataLoader, StreamingDataset

    options = {}
    if args.s3:
        keys = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        options["storage_options"] = {"endpoint_url": ENDPOINT, "region_name": "us-east-1", **{k: os.environ[v] for k, v in keys.items()}}
    source = f"{args.s3}/{name}" if args.s3 else str(args.folder / name)
    dataset = StreamingDataset(source, cache_dir=f"{scratch.name}/litdata", item_loader=item_loader, shuffle=True, drop_last=False, **options)
    loader = StreamingDataLoader(
        dataset, batch_size=args.batch, num_workers=args.workers, collate_fn=collate, persistent_workers=args.workers > 0,
        # Polars does not survive a fork.
        multiprocessing_context="spawn" if item_loader and args.workers else None,
    )
    return lambda epoch: loader


def parquet():
    from litdata.streaming.item_loader import ParquetLoader

    # variant "memory": whole files by Polars instead of row groups by pyarrow.
    return litdata(ParquetLoader(low_memory=args.variant != "memory", columns=["label", "frames"]), "parquet")


def webdataset():
    import webdataset as wds

    if args.s3:
        urls = [f"pipe:curl -s -f '{url}'" for url in presigned("webdataset")]
    else:
        urls = [str(p) for p in sorted((args.folder / "webdataset").glob("*.tar"))]

    def epoch(n):
        data = wds.WebDataset(urls, shardshuffle=len(urls), seed=n, empty_check=False)
        # A buffer of 256 clips is as near to a true shuffle as memory allows it.
        data = data.shuffle(256, initial=256).batched(args.batch, collation_fn=collate, partial=True)
        return wds.WebLoader(data, batch_size=None, num_workers=args.workers) if args.workers else data

    return epoch


def lance_rows(batch):
    """A RecordBatch as clips, without a copy for raw ones; runs in Lance's own threads."""
    return [{"clip": clip(value.as_buffer())} for value in batch.column("frames")]


def lance_batch(samples):
    import torch

    return torch.from_numpy(np.stack([s["clip"] for s in samples]))


def lance():
    import lancedb
    from lancedb.streaming import StreamingDataset
    from torch.utils.data import DataLoader

    options = {}
    if args.s3:
        options["storage_options"] = {
            "endpoint": ENDPOINT, "allow_http": "true", "region": "us-east-1", "virtual_hosted_style_request": "false",
            "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        }
    table = lancedb.connect(f"{args.s3}/lance" if args.s3 else str(args.folder / "lance"), **options).open_table("clips")

    def loader(epoch):
        data = StreamingDataset(
            table, num_splits=1, shuffle=True, shuffle_seed=1, epoch=epoch, columns=["frames"],
            transform=lance_rows, read_batch_size=args.batch,
        )
        return DataLoader(data, args.batch, collate_fn=lance_batch)

    return loader


def grain():
    import grain
    from grain.sources import ArrayRecordDataSource

    source = ArrayRecordDataSource([str(args.folder / "grain/clips.array_record")])
    data = grain.MapDataset.source(source).seed(1).shuffle().repeat(args.epochs).map(clip).batch(args.batch)
    data = data.to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=64))
    if args.workers:
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=args.workers))
    # One iterator over all epochs: its processes are started once.
    batches = iter(data)
    return lambda epoch: itertools.islice(batches, len(source) // args.batch)


class Videos:
    def __init__(self, names, client):
        self.names, self.client = names, client

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        from torchcodec.decoders import VideoDecoder

        name = str(self.names[i])
        if args.s3:
            bucket, key = name.removeprefix("s3://").split("/", 1)
            name = self.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        decoder = VideoDecoder(name, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
        return decoder[:T]


def torchcodec():
    """The original MP4s. Their frames are H.264's, the others' are what ingest decoded from them."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    files = sorted((args.folder / "videos").glob("*.mp4"))
    names = [f"{args.s3}/videos/{f.name}" for f in files] if args.s3 else files
    loader = DataLoader(Videos(names, client), args.batch, shuffle=True, num_workers=args.workers, persistent_workers=args.workers > 0)
    return lambda epoch: loader


_client = []


def client():
    import boto3

    # One a process: workers must not share their parent's.
    if not _client or _client[0] != os.getpid():
        _client[:] = [os.getpid(), boto3.client("s3", endpoint_url=ENDPOINT)]
    return _client[1]


def presigned(name):
    bucket, prefix = args.s3.removeprefix("s3://").split("/", 1)
    keys = [o["Key"] for o in client().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/{name}/")["Contents"]]
    sign = lambda key: client().generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, 3600)
    return [sign(key) for key in keys]


PEERS = {f.__name__: f for f in (mosaic, litdata, parquet, webdataset, lance, grain, torchcodec)}


def expected():
    from formats import clips

    return {zlib.crc32(blob) for _, _, blob in clips(args.folder.parent / "raw")}


def cpu_seconds():
    """CPU time of this process, its threads and its workers so far."""
    import psutil

    workers = [p.cpu_times() for p in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(w.user + w.system for w in workers)


def main():
    known = expected() if args.check else set()
    # Imports are nobody's speed.
    import torch.utils.data  # noqa: F401
    for module in {"mosaic": "streaming", "lance": "lancedb.streaming", "parquet": "litdata"}.get(args.peer, args.peer), "boto3":
        __import__(module)
    seen = wrong = 0
    distinct = set()
    begun, cpu = time.perf_counter(), cpu_seconds()
    epochs = PEERS[args.peer]()
    first = None
    for epoch in range(1 if args.cold else args.epochs):
        if epoch == 1:
            seen, begun, cpu = 0, time.perf_counter(), cpu_seconds()
        for batch in epochs(epoch):
            first = first or time.perf_counter() - begun
            assert tuple(batch.shape[1:]) == (T, H, W, 3) and str(batch.dtype).endswith("uint8"), (batch.shape, batch.dtype)
            seen += len(batch)
            if args.check:
                crcs = [zlib.crc32(np.ascontiguousarray(c)) for c in np.asarray(batch)]
                wrong += sum(crc not in known for crc in crcs)
                distinct.update(crcs)
    seconds = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_SELF)
    report = {
        "peer": args.peer, "workers": args.workers, "clips": seen, "seconds": seconds, "rate": seen / seconds,
        "first_batch": first, "cpu_seconds_per_clip": (cpu_seconds() - cpu) / max(seen, 1), "peak_mib": used.ru_maxrss / 1024,
    }
    if args.check:
        report |= {"wrong": wrong, "distinct": len(distinct), "of": len(known)}
    print(json.dumps(report))
    sys.stdout.flush()
    # Some loaders' threads would keep the process.
    scratch.cleanup()
    os._exit(0)


if __name__ == "__main__":
    main()
