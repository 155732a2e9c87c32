"""Pictures and statistics of labels: index masks, overlays, comparisons, areas of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convnext.data.drawing import class_colors, panel_size

Labels = NDArray[Any]
"""Class indices (H, W) of any integer type."""

# Unlabeled pixels are this gray; wrong pixels are this orange over a gray picture.
IGNORED, WRONG = (128, 128, 128), (232, 113, 10)
GAP, LINE = 6, 20
# Width of a panel in pixels that has room for its title.
MIN_PANEL = 64
MAX_PALETTE = 256


@dataclass(frozen=True, kw_only=True)
class ClassArea:
    """The area of an image that one class covers."""

    name: str
    pixels: int
    percent: float


def mask_image(labels: Labels, num_classes: int) -> Image.Image:
    """Return an image whose values are the class indices.

    With up to 256 classes it has a palette with their colors. With more it is 16-bit gray, which
    looks almost black in a viewer.
    """
    if num_classes > MAX_PALETTE:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    colors = np.full((MAX_PALETTE, 3), IGNORED, np.uint8)
    colors[:num_classes] = class_colors(num_classes)
    image.putpalette(colors.tobytes())  # Sets the mode to "P".
    return image


def color_image(labels: Labels, num_classes: int) -> Image.Image:
    """Return labels in the colors of their classes; values without a class are gray."""
    colors = np.concatenate([class_colors(num_classes), np.array([IGNORED], np.uint8)])
    inside = (labels >= 0) & (labels < num_classes)
    return Image.fromarray(colors[np.where(inside, labels, np.int32(num_classes))])


def overlay(
    image: Image.Image, labels: Labels, num_classes: int, *, alpha: float = 0.55
) -> Image.Image:
    """Return an image blended with the colors of its labels, of opacity `alpha` in [0, 1].

    Pixels without a class are unchanged.

    Raises:
        ValueError: If the sizes differ.
    """
    if image.size != labels.shape[::-1]:
        raise ValueError(
            f"the image has {image.width} x {image.height} pixels, its labels "
            f"{labels.shape[1]} x {labels.shape[0]}; resize one to the other"
        )
    image = image.convert("RGB")
    blended = Image.blend(image, color_image(labels, num_classes), alpha)
    inside = (labels >= 0) & (labels < num_classes)
    if not inside.all():
        blended.paste(image, mask=Image.fromarray(~inside))
    return blended


def error_image(
    image: Image.Image, labels: Labels, mask: Labels, ignore_index: int = 255
) -> Image.Image:
    """Return an image in pale gray, with wrong pixels orange and unlabeled ones gray."""
    pale = np.asarray(image.convert("L"), np.uint16) // 3 + 170
    pixels = np.repeat(pale[..., None], 3, axis=2).astype(np.uint8)
    ignored = mask == ignore_index
    pixels[(labels != mask) & ~ignored] = WRONG
    pixels[ignored] = IGNORED
    return Image.fromarray(pixels)


def compare(
    image: Image.Image,
    mask: Labels,
    labels: Labels,
    num_classes: int,
    *,
    ignore_index: int = 255,
    width: int = 320,
) -> Image.Image:
    """Return image, truth, prediction and errors side by side, each at most `width` pixels wide.

    The image may have another size than the mask (H, W) and the labels (H, W).
    """
    least = min(width, MIN_PANEL)
    width, height = panel_size((mask.shape[1], mask.shape[0]), width)
    image = image.convert("RGB").resize((width, height))
    mask, labels = (_nearest(side, (width, height)) for side in (mask, labels))
    panels = {
        "image": image,
        "truth": overlay(image, np.where(mask == ignore_index, -1, mask), num_classes),
        "prediction": overlay(image, labels, num_classes),
        "errors": error_image(image, labels, mask, ignore_index),
    }
    width = max(width, least)
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + LINE), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, (name, panel) in enumerate(panels.items()):
        left = column * (width + GAP)
        draw.text((left, 1), name, (90, 98, 110), font)
        sheet.paste(panel, (left, LINE))
    return sheet


def class_areas(labels: Labels, classes: Sequence[str]) -> tuple[ClassArea, ...]:
    """Return the area of every class that occurs in labels (H, W), largest first.

    Percentages are relative to all pixels with a class.
    """
    inside = labels[(labels >= 0) & (labels < len(classes))]
    counts = np.bincount(inside, minlength=len(classes))
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    return tuple(
        ClassArea(
            name=classes[c], pixels=int(counts[c]), percent=float(100 * counts[c] / len(inside))
        )
        for c in order
    )


def _nearest(labels: Labels, size: tuple[int, int]) -> Labels:
    """Resize labels to another (width, height) by nearest neighbors."""
    rows, columns = (
        (np.arange(to) * side // to) for to, side in zip(size[::-1], labels.shape, strict=True)
    )
    chosen: Labels = labels[rows[:, None], columns].astype(np.int32)
    return chosen
