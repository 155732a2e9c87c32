"""The pixel values of a data set of 16-bit, float or multi-band images, found once for all images.

16-bit and float images have one range; images of several bands have a range, a mean and a standard
deviation per band.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import (
    PICTURE,
    RAW,
    WIDE_MODES,
    BadImage,
    Header,
    Mode,
    RangedMode,
    spread,
)
from convnext.names import count_noun

# How many headers tell whether there are such images, and how many images are read for the range.
NUM_HEADERS, NUM_IMAGES = 200, 2_000
# Pixels of an image that count, spread evenly.
NUM_PIXELS, NUM_BAND_PIXELS = 4_096, 1_024
PERCENTILES = 0.1, 99.9


class ImageValues(Protocol):
    """A sequence of images of any values."""

    def __len__(self) -> int: ...
    def header(self, index: int) -> Header: ...
    def open(self, index: int, mode: Mode) -> Image.Image: ...
    def source(self, index: int) -> str: ...


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
    sample: NDArray[Any] = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    """The values that were sampled."""
    given: tuple[float, ...] = ()
    """The range that the user gives instead; () for none."""

    @property
    def values(self) -> tuple[float, float]:
        """The setting `input.range`."""
        return (self.given[0], self.given[1]) if self.given else (self.low, self.high)

    def clipped_by(self, ranges: Sequence[float]) -> float:
        """Return the fraction of the sampled pixels outside a range."""
        low, high = ranges[0], ranges[1]
        return float(np.mean((self.sample < low) | (self.sample > high)))

    def __str__(self) -> str:
        kind = "float" if set(self.modes) == {"F"} else "16-bit"
        if "F" in self.modes and len(self.modes) > 1:
            kind = "16-bit and float"
        if self.given:
            return (
                f"{_sampled(self.num_images, kind)}, with values from {_shown(self.smallest)} to "
                f"{_shown(self.largest)}; in all images {_shown(self.given[0])} becomes black and "
                f"{_shown(self.given[1])} white, as given, which clips "
                f"{100 * self.clipped_by(self.given):.2g} % of the pixels; their 0.1 and 99.9 "
                f"percentiles are {_shown(self.low)} and {_shown(self.high)}"
            )
        return (
            f"{_sampled(self.num_images, kind)}, with values from "
            f"{_shown(self.smallest)} to {_shown(self.largest)}; in all images "
            f"{_shown(self.low)} becomes black and {_shown(self.high)} white (their 0.1 and 99.9 "
            f"percentiles), which clips {100 * self.clipped:.2g} % of the pixels; "
            "--input.range LOW,HIGH sets another range"
        )


def pixel_range(images: ImageValues) -> PixelRange | None:
    """Return the range of the 16-bit and float images; None if a sample has none.

    All images have the same range, so that equal values look equal in each of them.
    """
    count = len(images)
    if not any(_mode(images, i) in WIDE_MODES for i in spread(count, NUM_HEADERS)):
        return None
    modes: Counter[str] = Counter()
    parts = []
    for index in spread(count, NUM_IMAGES):
        mode = _mode(images, index)
        if mode not in WIDE_MODES:
            continue
        try:
            values = np.asarray(images.open(index, RAW)).ravel()
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
        sample=every,
    )


def check_range(ranges: Sequence[float]) -> tuple[float, ...]:
    """Return a range of pixel values, or one for each band, as numbers.

    Raises:
        ValueError: If it is not pairs of a low and a higher number.
    """
    found = tuple(float(value) for value in ranges)
    pairs = list(zip(found[0::2], found[1::2], strict=False))
    if len(found) % 2 or not all(low < high for low, high in pairs):
        listed = ",".join(f"{value:g}" for value in found)
        raise ValueError(
            f"--input.range is {listed}, but must be LOW,HIGH with LOW below HIGH, or such a pair "
            "for each band"
        )
    return found


class MeasuredData(Protocol):
    """A data set that keeps what was found for its training images."""

    @property
    def pixel_range(self) -> PixelRange | None: ...
    @property
    def band_sample(self) -> BandSample | None: ...
    @property
    def given_range(self) -> tuple[float, ...]: ...


def pixel_notes(data: MeasuredData) -> list[str]:
    """Return a note for the user on images of more than 8 bits, or of several bands.

    Raises:
        ValueError: If the user gives the ranges of other bands than the images have.
    """
    bands, given = data.band_sample, data.given_range
    if bands is not None:
        if given and len(given) not in (2, 2 * min(bands.counts)):
            raise ValueError(
                f"--input.range has {len(given) // 2} pairs, but the images have "
                f"{min(bands.counts)} bands: give one pair for all, or one for each"
            )
        return [str(replace(bands, given=given) if given else bands)]
    found = data.pixel_range
    if found is None and given:
        return ["all images have 8 bits, so --input.range does not affect them"]
    if found is not None and len(given) > 2:
        raise ValueError("--input.range has several pairs, but the images are gray: give one pair")
    return [] if found is None else [str(found)]


def color_mode(data: MeasuredData) -> Mode:
    """Return a mode to look at images, with their range if they have more than 8 bits."""
    found = data.pixel_range
    return PICTURE if found is None else cast("Mode", RangedMode("RGB", found.values))


@dataclass(frozen=True, kw_only=True)
class BandSample:
    """Values of some pixels of images with several bands."""

    values: NDArray[np.float32]
    """(n, C); C is the smallest number of bands of an image."""
    num_images: int
    counts: Mapping[int, str]
    """An image for each number of bands."""
    is_wide: bool
    """Whether the values have more than 8 bits."""
    given: tuple[float, ...] = ()
    """The range that the user gives, for all bands or for each; () for none."""

    def ranges(self, bands: Sequence[int] = ()) -> tuple[float, ...]:
        """Return low and high of each band, one after the other; () for images of 8 bits."""
        if not self.is_wide:
            return ()
        chosen = self._chosen(bands)
        lows, highs = np.nanpercentile(chosen, PERCENTILES, axis=0).tolist()
        pairs = (_rounded(low, high) for low, high in zip(lows, highs, strict=True))
        return tuple(end for pair in pairs for end in pair)

    def statistics(
        self, bands: Sequence[int] = (), ranges: Sequence[float] = ()
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of each band, for values in [0, 1]."""
        chosen = self._chosen(bands).astype(np.float64)
        low, high = (np.array(ranges[0::2]), np.array(ranges[1::2])) if ranges else (0.0, 255.0)
        scaled = ((chosen - low) / (np.asarray(high) - low)).clip(0, 1)
        means, stds = np.nanmean(scaled, axis=0), np.nanstd(scaled, axis=0)
        return (
            tuple(round(float(mean), 4) for mean in means),
            tuple(max(round(float(std), 4), 1e-3) for std in stds),
        )

    def clipped(self, bands: Sequence[int], ranges: Sequence[float]) -> float:
        """Return the share of the values that ranges clip."""
        chosen = self._chosen(bands)
        outside = (chosen < np.array(ranges[0::2])) | (chosen > np.array(ranges[1::2]))
        return float(outside.mean())

    def check(self, bands: Sequence[int] = ()) -> int:
        """Return the number of channels that some bands make, or all of them.

        Raises:
            ValueError: If an image lacks a band, or images without a choice have different ones.
        """
        listed = " and ".join(f"{count} ({name})" for count, name in sorted(self.counts.items()))
        if bands and max(bands) > min(self.counts):
            raise ValueError(
                f"--input.bands has band {max(bands)}, but the images have {listed} bands"
            )
        if not bands and len(self.counts) > 1:
            raise ValueError(
                f"the images have different numbers of bands: {listed}; choose some of them with "
                "--input.bands, such as --input.bands 1,2,3"
            )
        return len(bands) or min(self.counts)

    def _chosen(self, bands: Sequence[int]) -> NDArray[np.float32]:
        chosen: NDArray[np.float32] = self.values[:, [band - 1 for band in bands]]
        return chosen if bands else self.values

    def __str__(self) -> str:
        kind = "16-bit or float" if self.is_wide else "8-bit"
        counts = " or ".join(str(count) for count in sorted(self.counts))
        lines = _sampled(self.num_images, kind, f" with {counts} bands")
        if not self.is_wide:
            return f"{lines}; --input.bands chooses some of them, such as --input.bands 3,2,1"
        ranges = self.given or self.ranges()
        shown = ", ".join(
            f"{_shown(low)} to {_shown(high)}"
            for low, high in zip(ranges[0::2], ranges[1::2], strict=True)
        )
        clips = f"which clips {100 * self.clipped((), ranges):.2g} % of the values"
        if self.given:
            return f"{lines}; {shown} become black and white, as given, {clips}"
        return (
            f"{lines}; the 0.1 and 99.9 percentiles of their bands, which become black and white, "
            f"are {shown}, {clips}; "
            "--input.range sets others, --input.bands chooses bands"
        )


def band_sample(images: ImageValues) -> BandSample | None:
    """Return a sample of the values of images with several bands; None if there are none.

    Raises:
        BadImage: If such images exist, but none can be read.
    """
    count = len(images)
    if not any(_num_bands(images, i) for i in spread(count, NUM_HEADERS)):
        return None
    counts: dict[int, str] = {}
    parts, is_wide = [], False
    error: BadImage | None = None
    for index in spread(count, NUM_IMAGES):
        try:
            image = images.open(index, images.header(index).whole_mode)
        except BadImage as bad:
            error = bad
            continue
        values = np.asarray(image)
        values = values.reshape(-1, values.shape[2] if values.ndim == 3 else 1)
        counts.setdefault(values.shape[1], images.source(index))
        is_wide = is_wide or values.dtype != np.uint8
        values = values[:: max(1, len(values) // NUM_BAND_PIXELS)].astype(np.float32)
        parts.append(np.where(np.isfinite(values), values, np.nan))
    if not parts:
        assert error is not None
        raise error
    shared = min(counts)
    return BandSample(
        values=np.concatenate([part[:, :shared] for part in parts]),
        num_images=len(parts),
        counts=counts,
        is_wide=is_wide,
    )


def _num_bands(images: ImageValues, index: int) -> int:
    try:
        return images.header(index).num_bands
    except BadImage:
        return 0


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Return a range in which the last digits carry no meaning, and which is not empty."""
    if high <= low:
        return low, low + (abs(low) or 1.0)
    digits = 3 - math.floor(math.log10(high - low))
    first, last = round(low, digits), round(high, digits)
    return (first, last) if first < last else (low, high)


def _mode(images: ImageValues, index: int) -> str:
    try:
        return images.header(index).mode
    except BadImage:
        return ""


def _sampled(count: int, kind: str, more: str = "") -> str:
    images = count_noun(count, f"{kind} training image")
    return f"{images}{more} {'was' if count == 1 else 'were'} sampled"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
