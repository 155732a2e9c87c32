"""A picture of a segmentation data set: images under the colours of their masks, and a legend."""

from __future__ import annotations

import numpy as np
from PIL import Image

from convnext.data.drawing import class_colors, crossed_out, fitted, sheet
from convnext.data.images import BadImage
from convnext.tasks.segmentation.data import SegmentationData
from convnext.tasks.segmentation.render import overlay
from convnext.tasks.segmentation.samples import Pairs


def contact_sheet(
    data: SegmentationData, *, columns: int = 4, per_part: int = 8, width: int = 220
) -> Image.Image:
    """Return a sheet with up to `per_part` images of each split, `width` pixels wide each.

    Pixels without a label stay as they are. A pair that cannot be used leaves its place crossed
    out.
    """
    sections = {}
    for title, pairs in (("training", data.train), ("validation", data.val)):
        if len(pairs):
            shown = pairs.some(per_part)
            tiles = [_tile(pairs, i, len(data.classes), width) for i in shown]
            sections[f"{title}, {len(shown)} of {len(pairs):,}"] = tiles
    colors = class_colors(len(data.classes))
    return sheet(sections, data.classes, colors, columns=columns, width=width)


def _tile(pairs: Pairs, index: int, num_classes: int, width: int) -> Image.Image:
    try:
        image = pairs.open(index, "RGB")
        mask = pairs.mask(index, image.size)
    except BadImage:
        return crossed_out(width)
    # No taller than wide, so that a panorama on its side does not fill the sheet.
    size = fitted(image.size, width)
    labels = Image.fromarray(np.asarray(mask, np.int32)).resize(size, Image.Resampling.NEAREST)
    return overlay(image.resize(size), np.asarray(labels), num_classes)
