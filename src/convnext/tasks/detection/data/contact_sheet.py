"""A picture of a detection data set: images with their boxes and masks, and a legend."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.drawing import class_colors, crossed_out, fitted, sheet
from convnext.data.images import BadImage
from convnext.tasks.detection.data.open import DetectionData
from convnext.tasks.detection.data.samples import DetectionImages
from convnext.tasks.detection.data.scan import parts
from convnext.tasks.detection.draw import draw_objects

TITLES = {"train": "training", "val": "validation"}


def contact_sheet(
    data: DetectionData, *, columns: int = 4, per_part: int = 8, width: int = 300
) -> Image.Image:
    """Return a sheet with up to `per_part` images of each split, `width` pixels wide each.

    An image that cannot be used leaves its place crossed out. The legend has the classes that are
    drawn, the most frequent first.
    """
    colors = class_colors(len(data.classes))
    drawn: Counter[int] = Counter()
    sections = {}
    for part, images in parts(data):
        if len(images):
            shown = images.some(per_part)
            title = f"{TITLES[part]}, {len(shown)} of {len(images):,}"
            sections[title] = [_tile(images, i, colors, width) for i in shown]
            for i in shown:
                drawn.update(images.objects(i).labels.tolist())
    labels = [label for label, _ in drawn.most_common()]
    names = [data.classes[label] for label in labels]
    return sheet(sections, names, colors[labels], columns=columns, width=width)


def _tile(
    images: DetectionImages, index: int, colors: NDArray[np.uint8], width: int
) -> Image.Image:
    try:
        image = images.open(index, "RGB")
    except BadImage:
        return crossed_out(width)
    size = fitted(image.size, width)
    # Pixels that are few enough to be seen stay pixels.
    few = size[0] > 2 * image.width
    resample = Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
    return draw_objects(
        image.resize(size, resample), images.objects(index), colors, source=image.size
    )
