"""Images as tensors: normalization, and crops of image files for training.

Tensors are normalized with the same bits as `convnext.data.preprocessing` in numpy, on the device
of the batch and in its memory format.

Only the part of an image that a crop needs is decoded, and torch resizes it. Evaluation and
prediction follow the published preprocessing bit for bit. Crops for training differ in two ways.
They are rounded to whole pixels if that moves them by less than 1 percent of their side. Torch's
antialiased resize replaces Pillow's: the same algorithm with coarser weights, so that more than 9
of 10 values are equal and the mean difference is below a tenth of a level of 255. A core loads 318
images/s; 205 with `augment.exact`, which turns both off (LOG.md, 2026-11-29).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor
from torch.nn import functional as F

from convnext.data.bands import band_image
from convnext.data.images import (
    MAX_PIXELS,
    BandMode,
    File,
    Mode,
    as_mode,
    opened,
    orientation,
    upright,
)
from convnext.data.preprocessing import RESAMPLING, Interpolation, Pixels, to_array


class Normalizing(Protocol):
    """The part of a preprocessing that describes the values of the input."""

    @property
    def normalizes(self) -> bool: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class Preprocesses(Normalizing, Protocol):
    """A preprocessing that makes a network's input from an image."""

    def pixels(self, image: Image.Image) -> Pixels: ...


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an "RGB" or "L" image as contiguous uint8 (C, H, W)."""
    return torch.from_numpy(to_array(image))


def to_batch(preprocessing: Preprocesses, image: Image.Image) -> Tensor:
    """Return an image of any mode as a network's input, fp32 (1, C, H, W)."""
    return normalize_batch(preprocessing, torch.from_numpy(preprocessing.pixels(image))[None])


def normalize_batch(preprocessing: Normalizing, batch: Tensor) -> Tensor:
    """Return pixels (N, C, H, W), 0 to 255, as a network's input in fp32.

    It has mean 0 and standard deviation 1, unless the network normalizes itself.
    """
    if not preprocessing.normalizes:
        return batch.float()
    return normalize(batch, preprocessing.mean, preprocessing.std)


def normalize(batch: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Scale uint8 pixels (N, C, H, W) to [0, 1], subtract `mean` and divide by `std`, in fp32.

    The memory format is kept.
    """
    means, stds = (torch.tensor(values, device=batch.device) for values in (mean, std))
    images = torch.empty_like(batch, dtype=torch.float32)
    source, target = batch, images
    if batch.is_contiguous():
        means, stds = means.view(-1, 1, 1), stds.view(-1, 1, 1)
    else:
        source, target = batch.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)  # N H W C
        if source.is_contiguous():  # Loops over rows are faster than loops over three channels.
            means, stds = means.repeat(batch.shape[3]), stds.repeat(batch.shape[3])
            source, target = source.flatten(2), target.flatten(2)  # N H WC
    # On a CPU one image at a time, which stays in the cache between the operations.
    size = 1 if batch.device.type == "cpu" else max(1, len(batch))
    for pixels, part in zip(torch.split(source, size), torch.split(target, size), strict=True):
        part.copy_(pixels).div_(255).sub_(means).div_(stds)
    return images  # N C H W


Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels, perhaps fractional."""
Draw = Callable[[int, int], Box]
"""Maps the width and height of an image to a crop of it."""

# From this side on, rounding its edges moves a crop by less than a hundredth of it.
MIN_WHOLE = 64
# libjpeg decodes at these fractions by inverting fewer coefficients.
_REDUCTIONS = (8, 4, 2)


def decode_crop(
    file: File,
    *,
    mode: Mode,
    draw: Draw,
    size: int,
    max_pixels: int = MAX_PIXELS,
    source: str | None = None,
) -> tuple[Tensor, Box]:
    """Read the part of an image file that a crop needs.

    Args:
        file: A path, the bytes, or a binary file at its beginning.
        mode: The mode of the result.
        draw: Called once, with the declared width and height of the upright image.
        size: A JPEG is decoded at a half, a quarter or an eighth of its size, as long as both sides
            of the crop keep this many pixels.
        max_pixels: See `convnext.data.images.decode`.
        source: See `convnext.data.images.decode`.

    Returns:
        The pixels, uint8 (C, H, W) with the channels last in memory, and the crop in their
        coordinates.

    Raises:
        BadImage: If the file is missing, empty, truncated, damaged, too large or not an image.
    """
    with opened(file, max_pixels=max_pixels, source=source) as image:
        if image.format != "JPEG" or orientation(image) != 1:
            image.load()
            whole = as_mode(upright(image), mode)
            return to_pixels(whole), draw(*whole.size)
        width, height = image.size
        box = draw(width, height)
        factor = reduction(box, size)
        if factor > 1:
            image.draft(None, (width // factor, height // factor))
        elif not isinstance(mode, BandMode) and image.mode in (mode, "L"):
            content = _decoded(image, mode)
            if content is not None:
                return content, box
        image.load()
        x, y = image.width / width, image.height / height
        left, top, right, bottom = box
        return to_pixels(as_mode(image, mode)), (left * x, top * y, right * x, bottom * y)


def reduction(box: Box, size: int) -> int:
    """Return the factor, 8, 4, 2 or 1, by which an image may shrink for a crop of `size` pixels."""
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    return next((factor for factor in _REDUCTIONS if side >= size * factor), 1)


def resize_crop(pixels: Tensor, box: Box, size: int, interpolation: Interpolation) -> Image.Image:
    """Return a crop of pixels, uint8 (C, H, W), resized to a square image of side `size`."""
    left, top, right, bottom = (round(edge) for edge in box)
    if interpolation == "nearest" or min(right - left, bottom - top) < MIN_WHOLE:
        resample = RESAMPLING[interpolation]
        return image_of(pixels).resize((size, size), resample, box=box)
    crop = pixels[None, :, top:bottom, left:right]  # 1 C h w
    # Torch's faster kernel needs a contiguous tensor in this format.
    crop = crop.contiguous(memory_format=torch.channels_last)
    resized = F.interpolate(crop, (size, size), mode=interpolation, antialias=True)
    return image_of(resized[0])


def to_pixels(image: Image.Image) -> Tensor:
    """Return an image of 8 bits as uint8 (C, H, W) with the channels last in memory."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _decoded(image: Image.Image, mode: Mode) -> Tensor | None:
    """Decode an opened JPEG with torchvision; return None if it fails, so that Pillow reports why.

    Both use libjpeg-turbo, so the pixels are the same, but Pillow stores four bytes per pixel and
    copies them twice more on the way to a tensor.
    """
    decoder = _decoder()
    if decoder is None:
        return None
    assert isinstance(image, ImageFile)
    assert image.fp is not None
    image.fp.seek(0)
    content = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
    try:
        pixels: Tensor = decoder(content, 1 if mode == "L" else 3, False)  # False: no rotation.
    except RuntimeError:
        return None
    return pixels


@cache
def _decoder() -> Callable[..., Tensor] | None:
    """Return torchvision's JPEG decoder, or None if torchvision was built without one.

    This is the operator itself, because its wrapper warns of its removal. Pillow gives the same
    pixels and is a third slower.
    """
    with suppress(ImportError):
        importlib.import_module("torchvision.io.image")  # Registers the operator.
    return getattr(torch.ops.image, "decode_jpeg", None)


def image_of(pixels: Tensor) -> Image.Image:
    """Return pixels, uint8 (C, H, W), as an image."""
    return band_image(pixels.permute(1, 2, 0).contiguous().numpy())
