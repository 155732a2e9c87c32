"""Drawing of objects: masks as tinted areas with an outline, boxes as frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from convnext.data.formats.records import Objects
from convnext.data.masks import Mask, Window, cut, place

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


def blend(below: NDArray[np.uint8], above: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
    """Return the colors `below` blended with `above` at an opacity of `strength`."""
    mixed = below + np.float32(strength) * (above.astype(np.float32) - below)
    return mixed.round().astype(np.uint8)


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
