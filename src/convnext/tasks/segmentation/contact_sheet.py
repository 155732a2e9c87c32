"""A picture of a segmentation data set: images under the colours of their masks, and a legend."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convnext.images import BadImage
from convnext.tasks.segmentation.colors import class_colors
from convnext.tasks.segmentation.data import SegmentationData
from convnext.tasks.segmentation.render import overlay
from convnext.tasks.segmentation.samples import Pairs

MARGIN, GAP, LINE = 16, 6, 22
PAPER, INK, PALE = (255, 255, 255), (20, 20, 20), (120, 120, 120)
MAX_LEGEND = 60


def contact_sheet(
    data: SegmentationData, *, columns: int = 4, per_part: int = 8, width: int = 220
) -> Image.Image:
    """Return a sheet with up to `per_part` images of each split, `width` pixels wide each.

    Pixels without a label stay as they are. A pair that cannot be used leaves its place crossed
    out.
    """
    font = ImageFont.load_default(15)
    tiles = {
        title: [_tile(pairs, i, len(data.classes), width) for i in pairs.some(per_part)]
        for title, pairs in (("training", data.train), ("validation", data.val))
        if len(pairs)
    }
    across = 2 * MARGIN + columns * (width + GAP) - GAP
    names = data.classes[:MAX_LEGEND]
    cell = across // 5
    legend_rows = -(-len(names) // 5)
    rows = {
        title: [of[i : i + columns] for i in range(0, len(of), columns)]
        for title, of in tiles.items()
    }
    height = 2 * MARGIN + LINE * (legend_rows + 1)
    height += sum(
        LINE + GAP + sum(max(tile.height for tile in row) + GAP for row in of)
        for of in rows.values()
    )
    sheet = Image.new("RGB", (across, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for title, of in rows.items():
        count = len(data.train if title == "training" else data.val)
        draw.text((MARGIN, top), f"{title}, {len(tiles[title])} of {count:,}", INK, font)
        top += LINE
        for row in of:
            for column, tile in enumerate(row):
                sheet.paste(tile, (MARGIN + column * (width + GAP), top))
            top += max(tile.height for tile in row) + GAP
        top += GAP
    colors = class_colors(len(data.classes))
    for number, name in enumerate(names):
        left, line = MARGIN + number % 5 * cell, top + number // 5 * LINE
        draw.rectangle((left, line + 3, left + 13, line + 16), tuple(colors[number].tolist()))
        while draw.textlength(name, font) > cell - 30 and len(name) > 1:
            name = name[:-1]
        draw.text((left + 20, line), name, INK, font)
    if len(data.classes) > len(names):
        more = f"and {len(data.classes) - len(names):,} more classes"
        draw.text((MARGIN, top + legend_rows * LINE), more, PALE, font)
    return sheet


def _tile(pairs: Pairs, index: int, num_classes: int, width: int) -> Image.Image:
    try:
        image = pairs.open(index, "RGB")
        mask = pairs.mask(index, image.size)
    except BadImage:
        tile = Image.new("RGB", (width, width * 3 // 4), (238, 238, 238))
        draw = ImageDraw.Draw(tile)
        draw.line((8, 8, width - 8, tile.height - 8), (200, 60, 60), 3)
        draw.line((8, tile.height - 8, width - 8, 8), (200, 60, 60), 3)
        return tile
    # No taller than wide, so that a panorama on its side does not fill the sheet.
    scale = min(width / image.width, width / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    labels = Image.fromarray(np.asarray(mask, np.int32)).resize(size, Image.Resampling.NEAREST)
    return overlay(image.resize(size), np.asarray(labels), num_classes)
