"""Pictures of detections: masks, boxes, names and scores, next to the truth if it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convnext.data.drawing import class_colors
from convnext.data.formats.records import Objects
from convnext.tasks.detection.draw import draw_objects
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
    """Return truth and detections side by side, each `width` pixels wide."""
    height = max(1, round(image.height * width / image.width))
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
