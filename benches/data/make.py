"""Clips for the comparison, cut out of real footage: H.264 videos and their labels.

    make.py OUT FOOTAGE...

OUT/raw/videos   CLIPS videos of 16 frames, 112x112
OUT/jpeg/videos  JPEG_CLIPS videos of 32 frames, 340x256
Windows are drawn with a fixed seed, so every run makes the same clips; a folder that is complete is left alone.
"""
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

CLIPS, JPEG_CLIPS = 640, 96


def footage(paths):
    """Every video as an array (T, H, W, 3)."""
    for path in paths:
        with av.open(path) as video:
            yield np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def write(path, frames):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(25), options={"crf": "18", "preset": "veryfast", "g": "16"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for picture in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


def make(folder, sources, count, t, height, width, seed):
    done = folder / "complete"
    if done.exists():
        return
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = ["path,label"]
    for i in range(count):
        source = sources[i % len(sources)]
        frames, high, wide = source.shape[:3]
        # A window of the clip's shape, anywhere, between its own size and the whole height.
        scale = random.uniform(1, max(1, min(high / height, wide / width)))
        h, w = min(high, int(height * scale)), min(wide, int(width * scale))
        start, top, left = random.integers(0, (frames - t + 1, high - h + 1, wide - w + 1))
        window = source[start : start + t, top : top + h, left : left + w]
        shown = np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.BILINEAR)) for f in window])
        write(folder / "videos" / f"{i:04}.mp4", shown)
        rows.append(f"{i:04}.mp4,class{i % 10}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    done.touch()


def main():
    out, paths = Path(sys.argv[1]), sys.argv[2:]
    sources = list(footage(paths))
    make(out / "raw", sources, CLIPS, 16, 112, 112, seed=1)
    make(out / "jpeg", sources, JPEG_CLIPS, 32, 256, 340, seed=2)


if __name__ == "__main__":
    main()
