"""From an image to the network's input: one object for training, evaluation, prediction, export.

It is stored with a checkpoint. The pixels come from Pillow's antialiased resize and are the same
bits on every machine (`convnext.data.tensors` makes the crops for training). This module uses numpy
and imports no torch; `convnext.data.tensors` computes the same bits for tensors on any device.

Paper, appendix A (and its code): below 384 pixels the short side is resized to
int(image_size / 0.875) and the center is cropped; from 384 up the image is resized to the square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import MAX_PIXELS, BadImage, BandMode, Mode, RangedMode, as_mode
from convnext.names import nearest

Interpolation = Literal["bicubic", "bilinear", "nearest"]
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
MAX_SIDE = math.isqrt(MAX_PIXELS)
"""The maximum side of a square input."""
MIN_STD, MAX_PIXEL = 1e-6, 1e6
"""Bounds of the normalization of pixels from 0 to 1; beyond them, a network overflows in fp32."""
Pixels = NDArray[np.uint8]
Array = NDArray[Any]


_LATER = ("range", "bands")
"""Fields that older versions do not know; written only if they are set."""


class _Settings:
    """What the preprocessing of classifiers and of dense networks has in common.

    Not a dataclass: the order of the fields is that of a checkpoint's card.
    """

    normalizes: ClassVar[bool] = True
    """Whether the network takes normalized values rather than pixel values."""

    interpolation: Interpolation
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: tuple[float, ...]
    bands: tuple[int, ...]

    def _check(self) -> None:
        if self.interpolation not in get_args(Interpolation):
            choices = ", ".join(get_args(Interpolation))
            raise ValueError(f"interpolation is {self.interpolation!r}; choose one of {choices}")
        if not _is_int(self.in_chans) or self.in_chans < 1:
            raise ValueError(
                f"in_chans is {self.in_chans!r}, but images are read as gray-scale (1), RGB (3) or "
                "by their bands"
            )
        bands = self.bands
        if not isinstance(bands, tuple) or not all(_is_int(band) and band > 0 for band in bands):
            raise ValueError(f"bands is {bands!r}, but must be a tuple of numbers from 1")
        if bands and len(bands) != self.in_chans:
            raise ValueError(f"bands has {len(bands)} numbers, but in_chans is {self.in_chans}")
        for name, value in (("mean", self.mean), ("std", self.std)):
            if not isinstance(value, tuple) or not all(map(_is_number, value)):
                raise ValueError(f"{name} is {value!r}, but must be a tuple of numbers")
            if len(value) != self.in_chans:
                raise ValueError(f"{name} has {len(value)} values, but in_chans is {self.in_chans}")
        given = self.range
        if not isinstance(given, tuple) or not all(map(_is_number, given)):
            raise ValueError(f"range is {given!r}, but must be a tuple of two numbers")
        pairs = list(zip(given[::2], given[1::2], strict=False))
        is_full = len(given) in (0, 2, 2 * self.in_chans)
        if not is_full or any(low >= high for low, high in pairs):
            many = self.in_chans > 1
            raise ValueError(
                f"range is {given!r}, but must be a smaller and a larger number"
                f"{f', or {self.in_chans} such pairs' if many else ''}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}, but must be above 0")
        if not MIN_STD <= min(self.std) <= max(self.std) <= MAX_PIXEL:
            raise ValueError(f"std is {self.std!r}, but must lie in [{MIN_STD:g}, {MAX_PIXEL:g}]")
        if max(map(abs, self.mean)) > MAX_PIXEL:
            raise ValueError(f"mean is {self.mean!r}, but must lie within {MAX_PIXEL:g} of 0")

    @property
    def mode(self) -> Mode:
        """The mode in which images are read: "L", "RGB", or by bands."""
        if self.bands or self.in_chans not in (1, 3) or len(self.range) > 2:
            return cast("Mode", BandMode(self.in_chans, self.bands, self.range))
        mode: Mode = "L" if self.in_chans == 1 else "RGB"
        if not self.range:
            return mode
        low, high = self.range
        return cast("Mode", RangedMode(mode, (low, high)))

    def normalize(self, batch: Array) -> NDArray[np.float32]:
        """Return pixels (N, C, H, W), 0 to 255, as fp32 of mean 0 and standard deviation 1."""
        return normalize(batch, self.mean, self.std)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {**asdict(cast(Any, self)), "mean": list(self.mean), "std": list(self.std)}
        later = {name: list(values.pop(name)) for name in _LATER}
        return values | {name: given for name, given in later.items() if given}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from the result of `to_dict`.

        Raises:
            ValueError: If a key is missing or unknown, or a value is wrong.
        """
        known = [f.name for f in fields(cast(Any, cls))]
        for name in values:
            if name not in known:
                raise ValueError(f"preprocessing has no field {name!r}{nearest(name, known)}")
        missing = [name for name in known if name not in values and name not in _LATER]
        if missing:
            raise ValueError(f"preprocessing lacks {', '.join(missing)}")
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class Preprocessing(_Settings):
    """How a classifier's input is made from any image; the fields are those of `InputRecipe`."""

    image_size: int
    crop_pct: float
    interpolation: Interpolation = "bicubic"
    in_chans: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: tuple[float, ...] = ()
    """The values of 16-bit and float images that become black and white, for all channels or one
    pair after the other; () for those of their container. Images of 8 bits are not affected."""
    bands: tuple[int, ...] = ()
    """The bands of the images that become the channels, from 1; () for all."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: Names the field, its value and the allowed values.
        """
        if not _is_int(self.image_size) or self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size!r}, but must be a positive integer")
        if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct!r}, but must be above 0 and at most 1")
        _check_side("image_size", self.image_size)
        if self.crop_pct < self.image_size / MAX_SIDE:
            raise ValueError(
                f"crop_pct is {self.crop_pct!r}, but with an image_size of {self.image_size} must "
                f"be at least {self.image_size / MAX_SIDE:.2g}"
            )
        self._check()

    def pixels(self, image: Image.Image) -> Pixels:
        """Return the network's view of an image of any mode, uint8 (C, H, W).

        Raises:
            BadImage: If the image is so elongated that it would have too many pixels.
        """
        image = as_mode(image, self.mode)
        size, resample = self.image_size, RESAMPLING[self.interpolation]
        if self.crop_pct == 1:
            return to_array(image.resize((size, size), resample))
        short = int(size / self.crop_pct)
        width, height = fit_short_side(image.size, short)
        _check_resized(image, (width, height))
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.resize((width, height), resample)
        return to_array(image.crop((left, top, left + size, top + size)))

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the network's input for one image, fp32 (C, H, W)."""
        found: NDArray[np.float32] = self.normalize(self.pixels(image)[None])[0]
        return found


@dataclass(frozen=True, kw_only=True)
class DensePreprocessing(_Settings):
    """How a dense network's input is made from any image: uncropped, aspect ratio kept."""

    image_size: int
    """The short side in pixels; 0 leaves images as they are."""
    max_size: int = 0
    """The maximum of the long side; 0 for no limit."""
    interpolation: Interpolation = "bilinear"
    in_chans: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: tuple[float, ...] = ()
    """The values of 16-bit and float images that become black and white, for all channels or one
    pair after the other; () for those of their container. Images of 8 bits are not affected."""
    bands: tuple[int, ...] = ()
    """The bands of the images that become the channels, from 1; () for all."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: Names the field, its value and the allowed values.
        """
        for name, value in (("image_size", self.image_size), ("max_size", self.max_size)):
            if not _is_int(value) or value < 0:
                raise ValueError(f"{name} is {value!r}, but must be an integer, 0 for none")
        _check_side("image_size", self.image_size)
        if 0 < self.max_size < self.image_size:
            raise ValueError(
                f"max_size is {self.max_size}, but must be at least image_size, {self.image_size}"
            )
        self._check()

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that an image of this size is resized to."""
        return fit_within(width, height, self.image_size, self.max_size)

    def pixels(self, image: Image.Image) -> Pixels:
        """Return the network's view of an image of any mode, uint8 (C, H, W).

        Raises:
            BadImage: If the image is so elongated that it would have too many pixels.
        """
        image = as_mode(image, self.mode)
        size = self.size_of(*image.size)
        _check_resized(image, size, "; train with --input.max_size to limit the long side")
        if size != image.size:
            image = image.resize(size, RESAMPLING[self.interpolation])
        return to_array(image)


def normalize(batch: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Scale pixels (N, C, H, W) to [0, 1], subtract `mean` and divide by `std`, in fp32."""
    images = batch.astype(np.float32, order="C")
    means, stds = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
    for image in images:  # A single image stays in the cache between the operations.
        image /= np.float32(255)
        image -= means
        image /= stds
    return images


def fit_within(width: int, height: int, short: int, long: int) -> tuple[int, int]:
    """Return (width, height) scaled to a short side, or less if the long side would exceed its max.

    Sides are rounded to the nearest pixel, as in the toolbox of the published segmentors. A `short`
    of 0 keeps the size, a `long` of 0 sets no limit.
    """
    factor = short / min(width, height) if short else 1.0
    if long:
        factor = min(factor, long / max(width, height))
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def fit_short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Return (width, height) scaled to a short side of `short`; the long side is rounded down."""
    width, height = size
    if width <= height:
        return short, max(short, int(short * height / width))
    return max(short, int(short * width / height)), short


def to_array(image: Image.Image) -> Pixels:
    """Return the pixels of an image of 8 bits as contiguous uint8 (C, H, W)."""
    array = np.array(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return np.ascontiguousarray(array)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_side(name: str, side: int) -> None:
    if side > MAX_SIDE:
        raise ValueError(f"{name} is {side:,}, but must be at most {MAX_SIDE:,}")


def _check_resized(image: Image.Image, size: tuple[int, int], advice: str = "") -> None:
    """Refuse to enlarge an image beyond `MAX_PIXELS`, before memory is allocated for it."""
    width, height = size
    if width * height > max(MAX_PIXELS, image.width * image.height):
        raise BadImage(
            "the image",
            f"of {image.width:,} x {image.height:,} pixels would become {width:,} x {height:,}; "
            f"more than {MAX_PIXELS / 1e6:,.4g} million are refused{advice}",
        )
