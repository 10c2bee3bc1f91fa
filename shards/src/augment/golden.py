"""Writes golden.png: a small picture, then what Pillow makes of it by each operation of RandAugment and
colour jitter, in the order of `tests.rs`.

    scripts/reference-python shards/src/augment/golden.py shards/src/augment/golden.png

Pillow 13.0, timm 1.0; every operation is timm's own function.
"""

import sys

import numpy as np
from PIL import Image
from timm.data import auto_augment as timm

SIDE = 24
BILINEAR = dict(resample=Image.BILINEAR, fillcolor=(128, 128, 128))


def picture():
    """Slopes, a disc, an edge and some grain; neither black nor white, and the channels differ."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    image = np.stack([40 + 150 * x, 30 + 120 * y, 190 - 100 * x * y], -1)
    image[(x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.08] = (215, 120, 60)
    image[y < 0.2 - 0.3 * x] += 35
    image += np.random.default_rng(3).normal(0, 6, image.shape)
    return Image.fromarray(np.clip(image, 18, 236).astype(np.uint8))


def main(out):
    image = picture()
    tiles = [image, timm.auto_contrast(image), timm.equalize(image), timm.invert(image)]
    tiles += [timm.rotate(image, v, **BILINEAR) for v in (-30, 7, 21)]
    tiles += [timm.posterize(image, v) for v in (1, 2, 4)]
    tiles += [timm.solarize(image, v) for v in (0, 77, 256)]
    tiles += [timm.solarize_add(image, v) for v in (0, 77, 110)]
    for blend in (timm.color, timm.contrast, timm.brightness, timm.sharpness):
        tiles += [blend(image, v) for v in (0.1, 0.37, 1.63, 1.9)]
    tiles += [timm.shear_x(image, v, **BILINEAR) for v in (-0.3, 0.21)]
    tiles += [timm.shear_y(image, v, **BILINEAR) for v in (-0.3, 0.21)]
    tiles += [timm.translate_x_rel(image, v, **BILINEAR) for v in (-0.45, 0.315)]
    tiles += [timm.translate_y_rel(image, v, **BILINEAR) for v in (-0.45, 0.315)]
    # What saturates, and pictures of one colour: Pillow leaves them as they are.
    dark = image.point(lambda v: v // 40)
    flat = Image.new("RGB", image.size, (90, 10, 200))
    tiles += [dark, timm.auto_contrast(dark), timm.equalize(dark), flat, timm.auto_contrast(flat), timm.equalize(flat)]
    Image.fromarray(np.concatenate([np.asarray(t) for t in tiles])).save(out, optimize=True)


main(sys.argv[1])
