"""A picture of some images of each split of a data set, and a legend of its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, LINE = 16, 6, 22
PAPER, INK, PALE = (255, 255, 255), (20, 20, 20), (120, 120, 120)
MAX_LEGEND = 60
LEGEND_COLUMNS = 5


def sheet(
    sections: Mapping[str, Sequence[Image.Image]],
    names: Sequence[str],
    colors: NDArray[np.uint8],  # -> len(names) 3
    *,
    columns: int,
    width: int,
) -> Image.Image:
    """Return rows of images under their titles, and the names of the classes in their colours.

    Args:
        sections: Images of at most `width` pixels across, by title.
        names: Of the classes, of which the first are shown.
        colors: Of the classes.
        columns: Images in a row.
        width: Pixels for an image.
    """
    font = ImageFont.load_default(15)
    across = 2 * MARGIN + columns * (width + GAP) - GAP
    shown = names[:MAX_LEGEND]
    cell = across // LEGEND_COLUMNS
    legend_rows = -(-len(shown) // LEGEND_COLUMNS)
    rows = {
        title: [of[i : i + columns] for i in range(0, len(of), columns)]
        for title, of in sections.items()
    }
    height = 2 * MARGIN + LINE * (legend_rows + (len(names) > len(shown)))
    height += sum(
        LINE + GAP + sum(max(tile.height for tile in row) + GAP for row in of)
        for of in rows.values()
    )
    page = Image.new("RGB", (across, height), PAPER)
    draw = ImageDraw.Draw(page)
    top = MARGIN
    for title, of in rows.items():
        draw.text((MARGIN, top), title, INK, font)
        top += LINE
        for row in of:
            for column, tile in enumerate(row):
                page.paste(tile, (MARGIN + column * (width + GAP), top))
            top += max(tile.height for tile in row) + GAP
        top += GAP
    for number, name in enumerate(shown):
        left = MARGIN + number % LEGEND_COLUMNS * cell
        line = top + number // LEGEND_COLUMNS * LINE
        draw.rectangle((left, line + 3, left + 13, line + 16), tuple(colors[number].tolist()))
        while draw.textlength(name, font) > cell - 30 and len(name) > 1:
            name = name[:-1]
        draw.text((left + 20, line), name, INK, font)
    if len(names) > len(shown):
        more = f"and {len(names) - len(shown):,} more classes"
        draw.text((MARGIN, top + legend_rows * LINE), more, PALE, font)
    return page


def crossed_out(width: int) -> Image.Image:
    """Return what stands in for an image that cannot be used."""
    tile = Image.new("RGB", (width, width * 3 // 4), (238, 238, 238))
    draw = ImageDraw.Draw(tile)
    draw.line((8, 8, width - 8, tile.height - 8), (200, 60, 60), 3)
    draw.line((8, tile.height - 8, width - 8, 8), (200, 60, 60), 3)
    return tile


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the (width, height) at which an image just fits into a square of `side` pixels."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
