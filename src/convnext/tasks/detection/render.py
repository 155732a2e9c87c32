"""Pictures of detections: masks, boxes, names and scores, next to the truth if it is known.

Masks are tinted areas with an outline, boxes are frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convnext.data.drawing import class_colors, panel_size
from convnext.data.formats.records import Objects
from convnext.data.masks import Mask, Window, cut, place
from convnext.results.pictures import blend

if TYPE_CHECKING:
    from convnext.tasks.detection.inference import Detections

# Number of distinct colors of objects.
NUM_COLORS = 24
# More names than this hide the image.
MAX_NAMES = 60
GAP = 6


def draw_detections(
    image: Image.Image, found: Detections, classes: Sequence[str], *, names: bool = True
) -> Image.Image:
    """Return an RGB image with its detections.

    Args:
        image: The image at any size.
        found: Detections in pixels of the image at `found.size`.
        classes: Class names, in the order of the labels.
        names: Write class name and score at the boxes, unless there are too many.
    """
    colors = class_colors(len(classes))[found.labels]
    if len(classes) == 1:
        colors = class_colors(NUM_COLORS)[np.arange(len(found)) % NUM_COLORS]
    height, width = found.size
    # One color per object.
    objects = replace(as_objects(found), labels=np.arange(len(found)))
    drawn = draw_objects(image, objects, colors, source=(width, height))
    if names and len(found) <= MAX_NAMES:
        scale = np.array([image.width / width, image.height / height] * 2)
        _write_names(drawn, found, found.boxes * scale, classes, colors)
    return drawn


def compare(
    image: Image.Image,
    objects: Objects,
    found: Detections,
    classes: Sequence[str],
    width: int = 480,
) -> Image.Image:
    """Return truth and detections side by side, each at most `width` pixels wide."""
    width, height = panel_size(image.size, width)
    small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    size = (found.size[1], found.size[0])
    truth = draw_objects(small, objects, class_colors(len(classes)), source=size)
    guess = draw_objects(small, as_objects(found), class_colors(len(classes)), source=size)
    both = Image.new("RGB", (2 * width + GAP, height), "white")
    both.paste(truth, (0, 0))
    both.paste(guess, (width + GAP, 0))
    return both


def as_objects(found: Detections) -> Objects:
    """Return detections as the objects of an image."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    return Objects(
        ids=tuple(range(len(found))),
        boxes=found.boxes,
        labels=found.labels,
        areas=sides.prod(1),
        crowd=np.zeros(len(found), np.bool_),
        masks=found.masks,
    )


def _write_names(
    image: Image.Image,
    found: Detections,
    boxes: NDArray[np.float64],
    classes: Sequence[str],
    colors: NDArray[np.uint8],
) -> None:
    """Write a label above each box, or inside if there is no room, highest scores on top."""
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10.0, min(image.size) / 42))
    for i in reversed(range(len(found))):
        text = f"{classes[found.labels[i]]} {found.scores[i]:.2f}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        wide, high = int(right - left) + 6, int(bottom - top) + 4
        x = min(max(int(boxes[i, 0]), 0), max(image.width - wide, 0))
        y = int(boxes[i, 1]) - high
        y = min(max(y if y >= 0 else int(boxes[i, 1]), 0), max(image.height - high, 0))
        color = tuple(int(v) for v in colors[i])
        pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=color)
        is_light = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 140
        pen.text(
            (x + 3 - left, y + 2 - top), text, font=font, fill="black" if is_light else "white"
        )


# Opacity of masks, and of frames around masks.
TINT = 0.4
FAINT = 0.45


def draw_objects(
    image: Image.Image,
    objects: Objects,
    colors: NDArray[np.uint8],  # K 3
    *,
    source: tuple[int, int],
) -> Image.Image:
    """Return an RGB image with objects drawn in the colors of their classes.

    Large objects are drawn first so that they do not hide smaller ones. Crowd regions have no
    outline and no box.

    Args:
        image: The image at any size.
        objects: Objects in pixels of the annotated image.
        colors: Colors of the classes.
        source: (width, height) of the annotated image.
    """
    scale = np.array([image.width / source[0], image.height / source[1]] * 2)
    boxes = objects.boxes * scale
    pixels = np.array(image.convert("RGB"))
    order = np.argsort(-objects.areas, kind="stable").tolist()
    for i in order:
        mask = objects.masks[i]
        if mask is not None:
            at_size = place(
                mask,
                source=(source[1], source[0]),
                size=(image.height, image.width),
                scale=(1 / scale[0], 1 / scale[1]),
                start=(0.0, 0.0),
            )
            window = _around(boxes[i], image.size)
            _tint(pixels, at_size, window, colors[objects.labels[i]], not objects.crowd[i])
    # Opaque frames would hide small masks.
    for has_mask, strength in ((True, FAINT), (False, 1.0)):
        picture = Image.fromarray(pixels)
        pen = ImageDraw.Draw(picture)
        for i in order:
            if (objects.masks[i] is not None) == has_mask and not objects.crowd[i]:
                x1, y1, x2, y2 = boxes[i].round().astype(int).tolist()
                corners = (x1, y1, max(x2 - 1, x1), max(y2 - 1, y1))
                pen.rectangle(corners, outline=tuple(colors[objects.labels[i]].tolist()))
        framed = np.asarray(picture)
        drawn = (framed != pixels).any(-1)
        pixels[drawn] = blend(pixels[drawn], framed[drawn], strength)
    return Image.fromarray(pixels)


def _around(box: NDArray[np.float64], size: tuple[int, int]) -> Window:
    """Return the window of a box with a margin of two pixels, clipped to the image."""
    x1, y1 = (max(int(v) - 2, 0) for v in box[:2])
    x2, y2 = (min(int(v) + 3, side) for v, side in zip(box[2:], size, strict=True))
    return x1, y1, max(x2, x1), max(y2, y1)


def _tint(
    pixels: NDArray[np.uint8], mask: Mask, window: Window, color: NDArray[np.uint8], outline: bool
) -> None:
    """Blend a color into the pixels of a mask, and paint its outline."""
    x1, y1, x2, y2 = window
    inside = cut(mask, window).astype(bool)
    part = pixels[y1:y2, x1:x2]
    # A lookup table is fast, since a mask may be as large as a large image.
    tinted = blend(np.arange(256, dtype=np.uint8)[:, None], color[None], TINT)
    for channel in range(3):
        plane = part[..., channel]
        plane[inside] = tinted[plane[inside], channel]
    if outline:
        padded = np.pad(inside, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        part[inside & ~core] = color
