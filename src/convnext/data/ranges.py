"""The range of pixel values of 16-bit and float images: one for all images of a data set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from convnext.data.images import WIDE_MODES, BadImage, Header, Mode, RangedMode

# How many headers tell whether there are such images, and how many images are read for the range.
NUM_HEADERS, NUM_IMAGES = 200, 2_000
# Pixels of an image that count, spread evenly.
NUM_PIXELS = 4_096
PERCENTILES = 0.1, 99.9


class _Images(Protocol):
    """A sequence of images."""

    def __len__(self) -> int: ...
    def header(self, index: int) -> Header: ...
    def open(self, index: int, mode: Mode) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True)
class PixelRange:
    """The values of the 16-bit and float images of a sample."""

    low: float
    """The 0.1 percentile, which becomes black."""
    high: float
    """The 99.9 percentile, which becomes white."""
    smallest: float
    largest: float
    clipped: float
    """Fraction of the pixels outside `low` and `high`."""
    num_images: int
    modes: Sequence[str]
    """Pillow's modes: "I;16", "F" ..."""

    @property
    def values(self) -> tuple[float, float]:
        """The setting `input.range`."""
        return self.low, self.high

    def __str__(self) -> str:
        kind = "float" if set(self.modes) == {"F"} else "16-bit"
        if "F" in self.modes and len(self.modes) > 1:
            kind = "16-bit and float"
        return (
            f"{self.num_images:,} {kind} training images were sampled, with values from "
            f"{_shown(self.smallest)} to {_shown(self.largest)}; in all images "
            f"{_shown(self.low)} becomes black and {_shown(self.high)} white (their 0.1 and 99.9 "
            f"percentiles), which clips {100 * self.clipped:.2g} % of the pixels; --input.range "
            "LOW,HIGH sets another range"
        )


def pixel_range(images: _Images) -> PixelRange | None:
    """Return the range of the 16-bit and float images; None if a sample has none.

    All images have the same range, so that equal values look equal in each of them.
    """
    count = len(images)
    if not any(_mode(images, i) in WIDE_MODES for i in _spread(count, NUM_HEADERS)):
        return None
    modes: Counter[str] = Counter()
    parts = []
    for index in _spread(count, NUM_IMAGES):
        mode = _mode(images, index)
        if mode not in WIDE_MODES:
            continue
        try:
            values = np.asarray(images.open(index, cast("Mode", "F"))).ravel()
        except BadImage:
            continue
        values = values[np.isfinite(values)]
        modes[mode] += 1
        parts.append(values[:: max(1, len(values) // NUM_PIXELS)])
    every: np.ndarray[Any, Any] = np.concatenate(parts) if parts else np.zeros(0)
    if not len(every):
        return None
    low, high = (float(value) for value in np.percentile(every, PERCENTILES))
    low, high = _rounded(low, high)
    return PixelRange(
        low=low,
        high=high,
        smallest=float(every.min()),
        largest=float(every.max()),
        clipped=float(np.mean((every < low) | (every > high))),
        num_images=sum(modes.values()),
        modes=sorted(modes),
    )


def color_mode(images: _Images) -> Mode:
    """Return "RGB", with the range of the images if they have more than 8 bits."""
    found = pixel_range(images)
    return "RGB" if found is None else cast("Mode", RangedMode("RGB", found.values))


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Return a range in which the last digits carry no meaning, and which is not empty."""
    if high <= low:
        return low, low + (abs(low) or 1.0)
    digits = 3 - math.floor(math.log10(high - low))
    first, last = round(low, digits), round(high, digits)
    return (first, last) if first < last else (low, high)


def _spread(n: int, count: int) -> list[int]:
    count = min(n, count)
    return [i * n // count for i in range(count)]


def _mode(images: _Images, index: int) -> str:
    try:
        return images.header(index).mode
    except BadImage:
        return ""


def _shown(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
