"""A data set for segmentation that is learned in seconds: colored squares on a dark background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = ((30, 30, 30), (220, 40, 40), (40, 60, 220))


def draw_pair(seed: int, size: tuple[int, int] = (48, 40)) -> tuple[Image.Image, Image.Image]:
    """Return an image of (width, height) and its mask: 0 ground, 1 red, 2 blue, 255 at the top."""
    rng = np.random.default_rng(seed)
    width, height = size
    mask = np.zeros((height, width), dtype=np.uint8)
    for label in (1, 2):
        top, left = rng.integers(4, height - 16), rng.integers(0, width - 16)
        mask[top : top + 14, left : left + 14] = label
    pixels = np.array(COLORS, dtype=np.int16)[mask] + rng.integers(-15, 16, (height, width, 3))
    mask[:2] = 255
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.fromarray(mask)


def write_shapes(root: Path, num_train: int = 16, num_val: int = 6) -> Path:
    """Write the data set in the layout of ADE20K with index masks; return its folder."""
    seed = 0
    for split, count in (("train", num_train), ("val", num_val)):
        images, masks = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(count):
            image, mask = draw_pair(seed)
            image.save(images / f"{i:03d}.png")
            mask.save(masks / f"{i:03d}.png")
            seed += 1
    (root / "classes.txt").write_text("ground\nred\nblue\n")
    return root
