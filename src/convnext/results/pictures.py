"""Pictures of results: boxes, masks, overlays, legends and bars, with readable text at any size.

Text and lines grow with the image; an image that is too small for text is enlarged by a whole
factor first. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from convnext.data.run_lengths import Window
from convnext.results.fonts import fitted, text_size, text_width, write

# An image whose longer side is shorter than this is enlarged before anything is written on it.
SMALL_SIDE = 480
# Maximum width of a panel below an image, in text sizes: longer bars are hard to read.
PANEL_WIDTH = 60
PAPER, INK, PALE, TRACK, ACCENT = "#ffffff", "#1d2430", "#667080", "#e2e6eb", "#1f66b5"

# Opacity of the color of an object in its mask, and in a frame around the mask, which could hide a
# small mask otherwise.
TINT, FAINT = 0.4, 0.45
# With more objects than this, names would hide the image.
MAX_NAMES = 60
# A caption is left out if more important ones would hide more than this share of it.
MAX_HIDDEN = 0.1
# If all objects are of one class, this many have a color of their own.
NUM_COLORS = 24
MAX_LEGEND = 24


def blend(below: NDArray[np.uint8], above: NDArray[np.uint8], alpha: float) -> NDArray[np.uint8]:
    """Blend colors over others, with the opacity `alpha` in [0, 1]."""
    mixed = below + np.float32(alpha) * (above.astype(np.float32) - below)
    return mixed.round().astype(np.uint8)


# --- Images ---


def enlarged(image: Image.Image) -> tuple[Image.Image, int]:
    """Return an RGB image that is large enough for text, and the factor it was enlarged by."""
    size = enlarged_size(image.size)
    image = image.convert("RGB")
    factor = size[0] // image.width
    return (image if factor == 1 else image.resize(size, Image.Resampling.BICUBIC)), factor


def enlarged_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) of an image of `size` once it is large enough for text."""
    factor = max(1, -(-SMALL_SIDE // max(size)))
    return size[0] * factor, size[1] * factor


def stacked(image: Image.Image, panel: Image.Image) -> Image.Image:
    """Return an image with a panel below it, both centered on a white page."""
    width = max(image.width, panel.width)
    page = Image.new("RGB", (width, image.height + panel.height), PAPER)
    page.paste(image, ((width - image.width) // 2, 0))
    page.paste(panel, ((width - panel.width) // 2, image.height))
    return page


def panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the width of a panel below an image of `size` (W, H), and its text size."""
    text = text_size(size)
    return max(min(size[0], PANEL_WIDTH * text), SMALL_SIDE), text


def bar_panel(
    width: int, text: int, bars: Sequence[tuple[str, float]], *, full: float = 1.0
) -> Image.Image:
    """Return a panel with a line for each name and share: the name, a bar and a percentage.

    Args:
        width: The width of the panel in pixels.
        text: The text size in pixels.
        bars: Names and shares; the first one is emphasized.
        full: The share that fills a whole bar.
    """
    line, pad = round(1.7 * text), text
    panel = Image.new("RGB", (width, line * len(bars) + 2 * pad), PAPER)
    pen = ImageDraw.Draw(panel)
    right = text_width("100.0%", text, bold=True) + text // 2
    room = 0.5 * (width - 2 * pad)
    names = [fitted(name, room, text, bold=i == 0) for i, (name, _) in enumerate(bars)]
    left = max((text_width(name, text, bold=i == 0) for i, name in enumerate(names)), default=0)
    start, end = pad + left + text // 2, width - pad - right
    for i, (name, (_, share)) in enumerate(zip(names, bars, strict=True)):
        middle, bold = pad + line * i + line / 2, i == 0
        write(pen, (pad, middle), name, text, fill=INK, bold=bold)
        top, bottom = middle - 0.36 * text, middle + 0.36 * text
        pen.rectangle((start, top, end, bottom), fill=TRACK)
        length = (end - start) * min(share / full, 1.0)
        if length >= 1:
            pen.rectangle((start, top, start + length, bottom), fill=ACCENT if bold else PALE)
        write(pen, (width - pad, middle), percent(share), text, fill=INK, anchor="rm", bold=bold)
    return panel


def percent(share: float) -> str:
    """Return a share in [0, 1] as a percentage; only 0 is shown as 0."""
    return "<0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%"


def legend_panel(
    width: int, text: int, entries: Sequence[tuple[str, NDArray[np.uint8]]], note: str = ""
) -> Image.Image:
    """Return colored squares with names, in as many columns as fit, and a pale note at the end."""
    line, pad, square = round(1.6 * text), text, round(0.9 * text)
    indent = square + text // 2
    room = width - 2 * pad
    widest = max((text_width(name, text) for name, _ in entries), default=0)
    cell = min(indent + widest + text, room)
    columns = max(1, room // cell)
    cells = len(entries) + bool(note)
    panel = Image.new("RGB", (width, line * -(-cells // columns) + 2 * pad), PAPER)
    pen = ImageDraw.Draw(panel)
    for i in range(cells):
        x, middle = pad + i % columns * cell, pad + line * (i // columns) + line / 2
        if i == len(entries):
            write(pen, (x, middle), fitted(note, cell, text), text, fill=PALE)
            continue
        name, color = entries[i]
        top = middle - square / 2
        pen.rectangle((x, top, x + square, top + square), _fill(color), outline=PALE)
        name = fitted(name, cell - indent, text)
        write(pen, (x + indent, middle), name, text, fill=INK)
    return panel


# --- Objects ---


class MaskPart(NamedTuple):
    """The part of a mask that is not empty."""

    inside: NDArray[np.bool_]
    """(h, w)"""
    window: Window
    """Its position in the image."""


def draw_objects(
    image: Image.Image,
    *,
    boxes: NDArray[np.float32],  # M 4
    colors: NDArray[np.uint8],  # M 3
    captions: Sequence[str],
    masks: Iterable[MaskPart] | None = None,
) -> Image.Image:
    """Return an RGB image with masks as tinted areas, boxes as frames, and captions in chips.

    Args:
        image: Enlarged if it is small.
        boxes: x1 y1 x2 y2 in pixels of the original image.
        colors: One per object.
        captions: One per object, the most important first. With more than `MAX_NAMES` objects, none
            is written. Captions that more important ones would hide are left out.
        masks: One per object, in pixels of the original image.
    """
    picture, factor = enlarged(image)
    text = text_size(picture.size)
    width = max(1, round(text / 7))
    pixels = np.array(picture)
    scaled = boxes.astype(np.float64) * factor
    # Draw the largest first, so that none hides a smaller one.
    order = np.argsort(-(scaled[:, 2:] - scaled[:, :2]).prod(1), kind="stable").tolist()
    if masks is not None:
        parts = list(masks)
        for i in order:
            _tint(pixels, parts[i], factor, colors[i], width)
    for i in order:
        _frame(pixels, scaled[i], colors[i], width, 1.0 if masks is None else FAINT)
    picture = Image.fromarray(pixels)
    if len(boxes) <= MAX_NAMES:
        _write_captions(picture, scaled, colors, captions, text)
    return picture


def write_chip(image: Image.Image, caption: str) -> None:
    """Write a caption into the upper left corner of an image."""
    text = text_size(image.size)
    _chip(ImageDraw.Draw(image), (0, 0), caption, text, np.array((29, 36, 48), np.uint8))


def _tint(
    pixels: NDArray[np.uint8], part: MaskPart, factor: int, color: NDArray[np.uint8], width: int
) -> None:
    """Blend a color into the pixels of a mask, and paint those at its edge."""
    inside, (x1, y1, x2, y2) = part
    if factor > 1:
        inside = inside.repeat(factor, 0).repeat(factor, 1)
    window = pixels[y1 * factor : y2 * factor, x1 * factor : x2 * factor]
    # A lookup table, because a mask may be as large as the image.
    tinted = blend(np.arange(256, dtype=np.uint8)[:, None], color[None], TINT)
    for channel in range(3):
        plane = window[..., channel]
        plane[inside] = tinted[plane[inside], channel]
    window[inside & ~_eroded(inside, width)] = color


def _eroded(inside: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels that are at least `width` pixels away from the edge of a mask."""
    core = inside
    for axis in (0, 1):
        # Doubling up to a window of 2 width + 1 pixels takes only log(width) steps.
        padding = [(0, 0), (0, 0)]
        padding[axis] = (width, width)
        core = np.moveaxis(np.pad(core, padding), axis, 0)
        reach, length = 1, 2 * width + 1
        while reach < length:
            step = min(reach, length - reach)
            core = core[:-step] & core[step:]
            reach += step
        core = np.moveaxis(core, 0, axis)
    return core


def _frame(
    pixels: NDArray[np.uint8],
    box: NDArray[np.float64],
    color: NDArray[np.uint8],
    width: int,
    alpha: float,
) -> None:
    """Draw a rectangle inside the edges of a box."""
    height, across = pixels.shape[:2]
    x1, x2 = (int(v) for v in box[[0, 2]].round().clip(0, across))
    y1, y2 = (int(v) for v in box[[1, 3]].round().clip(0, height))
    x1, y1 = min(x1, across - 1), min(y1, height - 1)
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    left, right = min(x1 + width, x2), max(x2 - width, x1 + width)
    top, bottom = min(y1 + width, y2), max(y2 - width, y1 + width)
    for rows, columns in (
        (slice(y1, top), slice(x1, x2)),
        (slice(bottom, y2), slice(x1, x2)),
        (slice(top, bottom), slice(x1, left)),
        (slice(top, bottom), slice(right, x2)),
    ):
        pixels[rows, columns] = blend(pixels[rows, columns], color, alpha)


def _write_captions(
    picture: Image.Image,
    boxes: NDArray[np.float64],
    colors: NDArray[np.uint8],
    captions: Sequence[str],
    text: int,
) -> None:
    """Write a chip at each box, at the position where it covers the existing chips the least."""
    taken = np.zeros((0, 4))
    chips = []
    for box, color, caption in zip(boxes, colors, captions, strict=True):
        wide, high = _chip_size(caption, text)
        x = min(max(int(box[0]), 0), max(picture.width - wide, 0))
        # Above the box, inside it, below it, inside at the bottom.
        best: tuple[float, int] | None = None
        for top in (box[1] - high, box[1], box[3], box[3] - high):
            if not 0 <= top <= picture.height - high:
                continue
            y = int(top)
            sides = np.minimum(taken[:, 2:], (x + wide, y + high)) - np.maximum(
                taken[:, :2], (x, y)
            )
            hidden = float(sides.clip(0).prod(1).sum())
            if best is None or hidden < best[0]:
                best = hidden, y
        hidden, y = best or (0.0, 0)
        if hidden > MAX_HIDDEN * wide * high:
            continue
        taken = np.concatenate((taken, [(x, y, x + wide, y + high)]))
        chips.append(((x, y), caption, color))
    pen = ImageDraw.Draw(picture)
    for xy, caption, color in reversed(chips):  # The most important one on top.
        _chip(pen, xy, caption, text, color)


def _chip_size(caption: str, text: int) -> tuple[int, int]:
    return text_width(caption, text) + 2 * max(3, text // 4), round(1.4 * text)


def _chip(
    pen: ImageDraw.ImageDraw,
    xy: tuple[int, int],
    caption: str,
    text: int,
    color: NDArray[np.uint8],
) -> None:
    (x, y), (wide, high) = xy, _chip_size(caption, text)
    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=_fill(color))
    is_light = float(color @ np.array((0.3, 0.59, 0.11))) > 140
    ink = "black" if is_light else "white"
    write(pen, (x + max(3, text // 4), y + high / 2), caption, text, fill=ink)


def _fill(color: NDArray[np.uint8]) -> tuple[int, int, int]:
    red, green, blue = color.tolist()
    return red, green, blue


# --- Labels ---


def overlay(
    image: Image.Image,
    mask: NDArray[np.integer],  # H W
    colors: NDArray[np.uint8],  # K 3
    *,
    alpha: float = 0.55,
) -> Image.Image:
    """Return an RGB image with the colors of its labels on top, with opacity `alpha` in [0, 1].

    Pixels whose value is not a class do not change.

    Raises:
        ValueError: If the sizes differ.
    """
    if image.size != mask.shape[::-1]:
        raise ValueError(
            f"the image has {image.width} x {image.height} pixels, its labels "
            f"{mask.shape[1]} x {mask.shape[0]}; resize one to the other"
        )
    image = image.convert("RGB")
    inside = (mask >= 0) & (mask < len(colors))
    colored = Image.fromarray(colors[np.where(inside, mask, 0)])
    blended = Image.blend(image, colored, alpha)
    if not inside.all():
        blended.paste(image, mask=Image.fromarray(~inside))
    return blended


def index_image(mask: NDArray[np.integer], colors: NDArray[np.uint8]) -> Image.Image:
    """Return an image whose values are the class indices.

    For up to 256 classes it has a palette with the class colors; beyond that it is 16-bit gray.
    """
    if len(colors) > 256:
        return Image.fromarray(mask.astype(np.uint16))
    image = Image.fromarray(mask.astype(np.uint8))
    palette = np.full((256, 3), 128, np.uint8)
    palette[: len(colors)] = colors
    image.putpalette(palette.tobytes())  # This makes the mode "P".
    return image
