"""The same clips in every peer's own format, written from Marey's dataset, which is plain Parquet.

    formats.py OUT/raw | OUT/jpeg

A stored clip is its frames back to back: raw RGB, or JPEGs behind a table of their sizes (uint32 little-endian).
"""
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARD_BYTES = 64 << 20


def clips(folder):
    """(clip_id, label, blob) of every clip, in the order of the files."""
    for path in sorted((folder / "marey/data").glob("*/*.parquet")):
        columns = ["clip_id", "label", "num_frames", "width", "height", "frames"]
        for batch in pq.ParquetFile(path).iter_batches(batch_size=8, columns=columns):
            for row in batch.to_pylist():
                frames, raw = row["frames"], row["num_frames"] * row["width"] * row["height"] * 3
                yield row["clip_id"], row["label"], frames if len(frames) == raw else with_sizes(frames, row["num_frames"])


def with_sizes(jpegs, count):
    """Puts the table of sizes before JPEGs that lie back to back."""
    # Nothing else in these files is followed by the start of an image: no thumbnails.
    starts = [i for i in find_all(jpegs, b"\xff\xd8\xff")]
    assert len(starts) == count, f"{len(starts)} JPEGs, not {count}"
    sizes = np.diff([*starts, len(jpegs)]).astype("<u4")
    return sizes.tobytes() + jpegs


def find_all(data, what):
    at = data.find(what)
    while at >= 0:
        yield at
        at = data.find(what, at + 1)


def mosaic(out, rows):
    from streaming import MDSWriter

    columns = {"frames": "bytes", "label": "int"}
    with MDSWriter(out=str(out), columns=columns, hashes=["xxh64"], size_limit=SHARD_BYTES) as writer:
        for _, label, blob in rows:
            writer.write({"frames": blob, "label": label})


def litdata(out, rows):
    from litdata.streaming.writer import BinaryWriter

    out.mkdir()
    writer = BinaryWriter(str(out), chunk_bytes=SHARD_BYTES)
    for i, (_, label, blob) in enumerate(rows):
        writer.add_item(i, {"frames": blob, "label": label})
    writer.done()
    writer.merge()


def parquet(out, rows):
    """What litData's ParquetLoader reads: 16 clips a row group, as many files as shards elsewhere."""
    from litdata.streaming.writer import index_parquet_dataset

    out.mkdir()
    rows = list(rows)
    a_file = max(16, SHARD_BYTES // len(rows[0][2]) // 16 * 16)
    for n, start in enumerate(range(0, len(rows), a_file)):
        part = rows[start : start + a_file]
        table = pa.table({"label": [r[1] for r in part], "frames": pa.array([r[2] for r in part], pa.binary())})
        pq.write_table(table, out / f"{n:04}.parquet", row_group_size=16, compression="none", use_dictionary=False)
    index_parquet_dataset(str(out), num_workers=1)


def webdataset(out, rows):
    from webdataset import ShardWriter

    out.mkdir()
    with ShardWriter(str(out / "%04d.tar"), maxsize=SHARD_BYTES, verbose=0) as writer:
        for key, label, blob in rows:
            writer.write({"__key__": key.replace(".", "_").replace("/", "_"), "frames": blob, "cls": label})


def lance(out, rows):
    import lancedb

    schema = pa.schema([("label", pa.int32()), ("frames", pa.large_binary())])

    def batches():
        for _, label, blob in rows:
            yield pa.record_batch([pa.array([label], pa.int32()), pa.array([blob], pa.large_binary())], schema=schema)

    lancedb.connect(str(out)).create_table("clips", data=pa.RecordBatchReader.from_batches(schema, batches()))


def grain(out, rows):
    from array_record.python.array_record_module import ArrayRecordWriter

    out.mkdir()
    writer = ArrayRecordWriter(str(out / "clips.array_record"), "group_size:1,uncompressed")
    for _, _, blob in rows:
        writer.write(blob)
    writer.close()


FORMATS = {f.__name__: f for f in (mosaic, litdata, parquet, webdataset, lance, grain)}


def main():
    folder = Path(sys.argv[1])
    for name, write in FORMATS.items():
        final, partial = folder / name, folder / f"{name}.partial"
        if final.exists():
            continue
        shutil.rmtree(partial, ignore_errors=True)
        write(partial, clips(folder))
        partial.rename(final)
        print(f"{final}: written", flush=True)


if __name__ == "__main__":
    main()
