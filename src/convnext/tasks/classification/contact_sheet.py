"""A picture of a data set: a row of small images for every class."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from convnext.data.images import BadImage
from convnext.data.samples import Samples
from convnext.tasks.classification.data import ClassificationData, open_dataset

MARGIN, GAP, LINE = 16, 6, 22
PAPER, INK, PALE = (255, 255, 255), (20, 20, 20), (120, 120, 120)
MAX_ROWS = 50


def contact_sheet(
    path: str | ClassificationData, *, per_class: int = 8, size: int = 96
) -> Image.Image:
    """Return an image with up to `per_class` training images of every class, `size` pixels each.

    Of very many classes, some spread evenly over all are shown. An image that cannot be read
    leaves its place crossed out.

    Raises:
        ValueError: As `open_dataset`.
    """
    data = open_dataset(path, strict=False) if isinstance(path, str) else path
    step = -(-len(data.classes) // MAX_ROWS)
    rows = range(0, len(data.classes), step)
    members: dict[int, list[int]] = {label: [] for label in rows}
    for index, label in enumerate(data.train.labels):
        if label in members:
            members[label].append(index)
    width = 2 * MARGIN + per_class * (size + GAP) - GAP
    height = 2 * MARGIN + len(rows) * (LINE + size + 2 * GAP) - 2 * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    top = MARGIN
    for label, indices in members.items():
        name, count = data.classes[label], f"{len(indices):,} training images"
        room = width - 2 * MARGIN - draw.textlength(count, font) - 12
        draw.text((MARGIN, top), _shorten(name, room, draw, font), INK, font)
        draw.text((width - MARGIN, top), count, PALE, font, anchor="ra")
        shown = min(per_class, len(indices))
        for column in range(shown):
            index = indices[column * len(indices) // shown]
            left = MARGIN + column * (size + GAP)
            sheet.paste(_thumbnail(data.train, index, size), (left, top + LINE))
        top += LINE + size + 2 * GAP
    return sheet


def _thumbnail(samples: Samples, index: int, size: int) -> Image.Image:
    """Return a square with the whole image in it."""
    tile = Image.new("RGB", (size, size), (238, 238, 238))
    try:
        image = samples.open(index, "RGB", at_least=2 * size)
    except BadImage:
        draw = ImageDraw.Draw(tile)
        draw.line((8, 8, size - 8, size - 8), (200, 60, 60), 3)
        draw.line((8, size - 8, size - 8, 8), (200, 60, 60), 3)
        return tile
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Pixels that are few enough to be seen stay pixels.
    resample = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    tile.paste(image.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
    return tile


def _shorten(
    text: str,
    room: float,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> str:
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(f"{text}...", font) > room:
        text = text[:-1]
    return f"{text}..."
