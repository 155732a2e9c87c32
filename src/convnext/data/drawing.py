"""Colors of classes, sheets of example images, and pictures as files and inside a page.

Nothing here imports torch.
"""

from __future__ import annotations

import base64
import colorsys
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convnext.atomic import atomic_write
from convnext.names import portable_name

# Far apart in hue or lightness, so that a dozen classes can be told apart.
FIRST = (
    (230, 25, 75),
    (60, 180, 75),
    (30, 90, 230),
    (255, 225, 25),
    (145, 30, 180),
    (70, 240, 240),
    (245, 130, 48),
    (240, 50, 230),
    (128, 128, 0),
    (0, 128, 128),
    (250, 190, 212),
    (128, 0, 0),
)
GOLDEN = 0.618033988749895


def class_colors(n: int) -> NDArray[np.uint8]:
    """Return n colors (n, 3); the color of a class does not depend on n."""
    more = [
        [
            round(255 * v)
            for v in colorsys.hsv_to_rgb(
                i * GOLDEN % 1, (0.55, 0.8, 1)[i % 3], (1, 0.8, 0.6)[i % 2]
            )
        ]
        for i in range(max(0, n - len(FIRST)))
    ]
    return np.array([*FIRST, *more][:n], np.uint8).reshape(n, 3)


MARGIN, GAP, LINE = 16, 6, 22
PAPER, INK, PALE = (255, 255, 255), (20, 20, 20), (120, 120, 120)
MAX_LEGEND = 60
# Height of a panel of a report in pixels; a JPEG is at most 65,500 pixels high.
MAX_PANEL = 2048
LEGEND_COLUMNS = 5


def sheet(
    sections: Mapping[str, Sequence[Image.Image]],
    names: Sequence[str],
    colors: NDArray[np.uint8],  # -> len(names) 3
    *,
    columns: int,
    width: int,
) -> Image.Image:
    """Return rows of images under their titles, and the names of the classes in their colors.

    Args:
        sections: Images that are at most `width` pixels wide, by title.
        names: The names of the classes; only the first are shown.
        colors: The colors of the classes.
        columns: Images per row.
        width: Pixels per image.
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
        name = " ".join(name.split())  # It may have a line break.
        while draw.textlength(name, font) > cell - 30 and len(name) > 1:
            name = name[:-1]
        draw.text((left + 20, line), name, INK, font)
    if len(names) > len(shown):
        more = f"and {len(names) - len(shown):,} more classes"
        draw.text((MARGIN, top + legend_rows * LINE), more, PALE, font)
    return page


PAD, SMALL_LINE = 8, 17
FRAME = (243, 243, 243)


@dataclass(frozen=True)
class Shown:
    """An image of a pair, with what to write below it."""

    image: Image.Image
    split: str
    path: str


def with_pairs(page: Image.Image, title: str, pairs: Sequence[tuple[Shown, Shown]]) -> Image.Image:
    """Return a sheet with pairs of images above it, two pairs in a row, each in a frame.

    Args:
        page: The sheet.
        title: The title of the pairs.
        pairs: Images, which are shrunk or enlarged to fit.
    """
    font = ImageFont.load_default(13)
    frame = (page.width - 2 * MARGIN - 2 * GAP) // 2
    side = (frame - 3 * PAD) // 2
    rows = [
        [[_enlarged(shown.image, side) for shown in pair] for pair in pairs[i : i + 2]]
        for i in range(0, len(pairs), 2)
    ]
    heights = [max(tile.height for pair in row for tile in pair) for row in rows]
    text = 3 * SMALL_LINE + PAD // 2
    above = MARGIN + LINE + sum(height + 2 * PAD + text + 2 * GAP for height in heights)
    whole = Image.new("RGB", (page.width, above + page.height), PAPER)
    whole.paste(page, (0, above))
    draw = ImageDraw.Draw(whole)
    draw.text((MARGIN, MARGIN), title, INK, ImageFont.load_default(15))
    top = MARGIN + LINE + GAP
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, tiles in enumerate(row):
            left = MARGIN + column * (frame + 2 * GAP)
            bottom = top + height + 2 * PAD + text
            draw.rectangle((left, top, left + frame - 1, bottom - 1), FRAME)
            for place, (shown, tile) in enumerate(
                zip(pairs[2 * number + column], tiles, strict=True)
            ):
                x = left + PAD + place * (side + PAD)
                whole.paste(tile, (x + (side - tile.width) // 2, top + PAD + height - tile.height))
                folder, _, name = shown.path.rpartition("/")
                lines = ((shown.split, INK), (f"{folder}/" * bool(folder), PALE), (name, PALE))
                for n, (line, color) in enumerate(lines):
                    place_of = (x, top + height + 3 * PAD // 2 + n * SMALL_LINE)
                    draw.text(place_of, _end_of(line, side, draw, font), color, font)
        top += height + 2 * PAD + text + 2 * GAP
    return whole


def _enlarged(image: Image.Image, side: int) -> Image.Image:
    """Return an image that fits into a square; small ones keep their pixels visible."""
    size = fitted(image.size, side)
    few = size[0] > 2 * image.width
    return image.resize(size, Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS)


def _end_of(
    text: str,
    room: float,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> str:
    """Return a text, or its end if it is too long for the room."""
    text = " ".join(text.split())  # A name may have a line break.
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(f"...{text}", font) > room:
        text = text[1:]
    return f"...{text}"


def crossed_out(width: int) -> Image.Image:
    """Return a placeholder for an image that cannot be used."""
    tile = Image.new("RGB", (width, width * 3 // 4), (238, 238, 238))
    draw = ImageDraw.Draw(tile)
    draw.line((8, 8, width - 8, tile.height - 8), (200, 60, 60), 3)
    draw.line((8, tile.height - 8, width - 8, 8), (200, 60, 60), 3)
    return tile


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the (width, height) at which an image fits exactly into a square of `side` pixels."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def panel_size(size: tuple[int, int], width: int) -> tuple[int, int]:
    """Return the (width, height) of an image in a panel: `width`, or less if it is very high."""
    scale = min(width / size[0], MAX_PANEL / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image atomically, in the format of its extension."""
    form = Image.registered_extensions()[path.suffix.lower()]
    with atomic_write(path) as temporary:
        image.save(temporary, form, **options)


def data_uri(image: Image.Image, quality: int = 85) -> str:
    """Return an image as a data URI with a JPEG, for a page without other files."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# Bytes of a name: file systems allow 255, minus "_overlay.png" and a temporary suffix.
MAX_NAME = 200


def output_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for the results of every file: its own without the extension, if unique.

    Files of the same name are told apart by the folders that they do not all share and by their
    extension. Duplicates, and names that differ only in case, get a number. Names that are too
    long are cut, and characters that Windows refuses are replaced.
    """
    stems = Counter(path.stem.casefold() for path in paths)
    folders = [Path(os.path.abspath(path)).parts[1:-1] for path in paths]
    # strict=False: the shared part is no longer than the shortest path.
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    num_shared = len(list(shared))
    names: list[str] = []
    taken: set[str] = set()
    for path, folder in zip(paths, folders, strict=True):
        name = path.stem
        if stems[name.casefold()] > 1:
            name = "_".join([*folder[num_shared:], path.name])
        name = (
            os.fsdecode(os.fsencode(name)[:MAX_NAME]) if len(os.fsencode(name)) > MAX_NAME else name
        )
        name = portable_name(name)
        # For some file systems "A" and "a" are the same name.
        number, tried = 2, name
        while tried.casefold() in taken:
            number, tried = number + 1, f"{name}_{number}"
        taken.add(tried.casefold())
        names.append(tried)
    return names


def protect(files: Sequence[Path], results: Sequence[Path]) -> None:
    """Refuse to overwrite input files.

    Raises:
        ValueError: If a result is one of the files; names it.
    """
    given = {file.resolve() for file in files}
    for result in results:
        if result.resolve() in given:
            raise ValueError(f"{result} is one of the images; choose another folder with --output")
