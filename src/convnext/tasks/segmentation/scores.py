"""Scores of every pixel, in bands of rows: whole images or sliding windows, at one or more scales.

An image is evaluated in views (a scale, flipped or not). The logits of overlapping windows are
averaged, and logits are resized to the requested size; there the probabilities of several views are
averaged. Rows are computed from top to bottom, so that a caller that reduces the scores never holds
those of all pixels at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.hardware.devices import autocast
from convnext.weights.checkpoint import setting_of

# Max number of scores in a band of output rows: 64 MB in fp32.
BAND_FLOATS = 2**24
# Rows of a window that are averaged at a time, which avoids a second copy of all rows.
BLOCK_ROWS = 32

Size = tuple[int, int]
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """Inference settings: the arguments of `segment` and `segment_labels`."""

    window: int | None = None
    """Side of the sliding window in pixels; None for whole images."""
    stride: int | None = None
    """Pixels between windows; None for two thirds of the window, as published."""
    scales: tuple[float, ...] = (1.0,)
    """Scales relative to the given image."""
    flip: bool = False
    """Whether every scale is also evaluated on the flipped image."""
    window_batch: int = 8
    """Windows per batch of the network."""
    on_cpu: bool = False
    """Whether scores are gathered in CPU memory instead of the device's."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If a field is invalid; the message names it, its value and the allowed ones.
        """
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}, but must be at least 1 pixel, or None")
        if self.stride is not None and self.window is None:
            raise ValueError(f"stride is {self.stride} without a window; give a window too")
        stride = 1 if self.stride is None else self.stride
        if self.window is not None and not 1 <= stride <= self.window:
            raise ValueError(
                f"stride is {self.stride}, but must be between 1 and the window's {self.window}; "
                "otherwise pixels are left out"
            )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales are {self.scales}, but must be one or more, all above 0")
        if self.window_batch < 1:
            raise ValueError(f"window_batch is {self.window_batch}, but must be at least 1")

    @property
    def views(self) -> tuple[tuple[float, bool], ...]:
        """The scale of every view, and whether it is flipped."""
        return tuple(itertools.product(self.scales, (False, True) if self.flip else (False,)))


def score_bands(
    model: nn.Module,
    images: Tensor,
    settings: InferenceSettings,
    *,
    size: Size,
    device: torch.device,
    precision: str,
) -> Iterator[tuple[int, Tensor]]:
    """Yield bands of scores (N, K, rows, width) from top to bottom, each with its first row."""

    def forward(crops: Tensor) -> Tensor:
        crops = crops.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            logits: Tensor = model(crops)
        return logits.float().cpu() if settings.on_cpu else logits.float()

    def bands(num_classes: int) -> Iterator[tuple[int, int]]:
        rows = max(1, BAND_FLOATS // (len(images) * num_classes * size[1]))
        return ((top, min(top + rows, size[0])) for top in range(0, size[0], rows))

    views = (
        View(forward, images, settings, scale, flipped=flipped) for scale, flipped in settings.views
    )
    first, count = next(views), len(settings.views)
    if count == 1:
        for top, bottom in bands(first.num_classes):
            yield top, first.band(top, bottom, size)
        return
    # Keep either the whole output and one view at a time, or a part of every view.
    if math.prod(size) < sum(
        held_positions(images, settings, scale) for scale, _ in settings.views
    ):
        total = first.band(0, size[0], size).softmax(1)
        for view in views:
            for top, bottom in bands(first.num_classes):
                total[:, :, top:bottom] += view.band(top, bottom, size).softmax(1)
        yield 0, total / count
        return
    side_by_side = [first, *views]
    for top, bottom in bands(first.num_classes):
        shares = [view.band(top, bottom, size).softmax(1) for view in side_by_side]
        yield top, torch.stack(shares).mean(0)


def held_positions(images: Tensor, settings: InferenceSettings, scale: float) -> int:
    """Return the approximate number of logit positions in a view of images (N, C, H, W)."""
    height, width = (round(side * scale) for side in images.shape[-2:])
    if settings.window is not None:
        height = min(height, settings.window + 2 * BLOCK_ROWS)
    return height * width


class View:
    """The logits of images at one scale, flipped or not, as rows that are requested in order."""

    def __init__(
        self,
        forward: Forward,
        images: Tensor,
        settings: InferenceSettings,
        scale: float,
        *,
        flipped: bool,
    ) -> None:
        self.flipped = flipped
        if scale != 1:
            to = tuple(max(1, round(side * scale)) for side in images.shape[-2:])
            images = F.interpolate(images, to, mode="bilinear", antialias=True)
        images = images.flip(-1) if flipped else images
        self.size = (images.shape[-2], images.shape[-1])
        if settings.window is None:
            self._blocks = iter([forward(images)])
        else:
            stride = settings.stride or default_stride(settings.window)
            at_once = max(1, settings.window_batch // len(images))
            self._blocks = slide(forward, images, settings.window, stride, at_once)
        self._held = next(self._blocks)  # (N, K, rows, w)
        self._top = 0
        self.num_classes = self._held.shape[1]

    def band(self, top: int, bottom: int, size: Size) -> Tensor:
        """Return rows `top` to `bottom` of the logits resized to `size`, flipped back."""
        same = size == self.size
        found = self._rows(top, bottom) if same else self._resized(top, bottom, size)
        return found.flip(-1) if self.flipped else found

    def _resized(self, top: int, bottom: int, size: Size) -> Tensor:
        # Bilinear resizing without aligned corners is separable: the vertical direction is computed
        # here, because only some rows are available, and the horizontal one by torch.
        centers = (torch.arange(top, bottom, dtype=torch.float32) + 0.5) * (self.size[0] / size[0])
        centers = (centers - 0.5).clamp(min=0)
        above = centers.floor().long().clamp(max=self.size[0] - 1)
        below = (above + 1).clamp(max=self.size[0] - 1)
        first, last = int(above[0]), int(below[-1])
        rows = self._rows(first, last + 1)
        share = (centers - above).to(rows.device)[:, None]
        above, below = ((i - first).to(rows.device) for i in (above, below))
        found = torch.lerp(rows[:, :, above], rows[:, :, below], share)
        if size[1] == self.size[1]:
            return found
        return F.interpolate(found, (bottom - top, size[1]), mode="bilinear", align_corners=False)

    def _rows(self, top: int, bottom: int) -> Tensor:
        """Return rows of the logits (N, K, bottom - top, w), and drop those above `top`."""
        while self._top + self._held.shape[2] < bottom:
            passed = min(max(0, top - self._top), self._held.shape[2])
            self._top += passed
            self._held = torch.cat([self._held[:, :, passed:], next(self._blocks)], 2)
        return self._held[:, :, top - self._top : bottom - self._top]


def slide(
    forward: Forward, images: Tensor, window: int, stride: int, at_once: int
) -> Iterator[Tensor]:
    """Yield averaged logits of windows over images (N, C, H, W), as rows (N, K, rows, W) in order.

    A window that would cross the border is shifted inside; one larger than the image covers it.
    """
    height, width = images.shape[-2:]
    tall, wide = min(window, height), min(window, width)
    tops, lefts = window_starts(height, tall, stride), window_starts(width, wide, stride)
    covers_y, covers_x = count_covers(height, tall, tops), count_covers(width, wide, lefts)
    sums = None  # (N, K, tall, W): the rows under the current row of windows
    for top, following in itertools.zip_longest(tops, tops[1:], fillvalue=height):
        for start in range(0, len(lefts), at_once):
            some = lefts[start : start + at_once]
            crops = [images[:, :, top : top + tall, left : left + wide] for left in some]
            parts = forward(torch.cat(crops)).chunk(len(some))
            if sums is None:
                sums = parts[0].new_zeros((*parts[0].shape[:3], width))
                covers_y, covers_x = covers_y.to(sums), covers_x.to(sums)
            for left, part in zip(some, parts, strict=True):
                sums[..., left : left + wide] += part
        assert sums is not None
        done = following - top
        for row in range(0, done, BLOCK_ROWS):
            stop = min(row + BLOCK_ROWS, done)
            yield sums[:, :, row:stop] / (covers_y[top + row : top + stop, None] * covers_x)
        # Move up the rows that the next windows add to, in pieces that do not overlap.
        for row in range(done, tall, done):
            stop = min(row + done, tall)
            sums[:, :, row - done : stop - done] = sums[:, :, row:stop]
        sums[:, :, tall - done :] = 0


def default_stride(window: int) -> int:
    """Return two thirds of a window, as published.

    >>> default_stride(512), default_stride(640)
    (341, 426)
    """
    return max(1, window * 2 // 3)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the start of each window along an axis; the last one ends with the axis.

    >>> window_starts(160, 96, 64)
    [0, 64]
    >>> window_starts(130, 96, 64)
    [0, 34]
    """
    count = math.ceil(max(length - window, 0) / stride) + 1
    return [max(min(i * stride, length - window), 0) for i in range(count)]


def count_covers(length: int, window: int, starts: Iterable[int]) -> Tensor:
    """Return the number of windows over each position of an axis, (length,)."""
    counts = torch.zeros(length)
    for start in starts:
        counts[start : start + window] += 1
    return counts


# Scales of multi-scale testing (paper, Table 7).
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def inference_of(recipe: Mapping[str, Any]) -> InferenceSettings:
    """Return the inference settings of training, from the recipe on the model card.

    Raises:
        ValueError: If the card has an invalid window.
    """
    if setting_of(recipe, "segment.mode", str) != "slide":
        return InferenceSettings()
    window, stride = (setting_of(recipe, f"segment.{name}", int) for name in ("window", "stride"))
    if window is None:
        raise ValueError("the model card has a sliding window without a size; pass --window")
    return InferenceSettings(window=window, stride=stride)


def choose_inference(
    recipe: Mapping[str, Any],
    *,
    window: int | None = None,
    stride: int | None = None,
    whole: bool = False,
    multi_scale: bool = False,
    flip: bool = False,
) -> InferenceSettings:
    """Return the settings of training with the changes that a user requests.

    Raises:
        ValueError: If a value is invalid, or two contradict each other.
    """
    settings = inference_of(recipe)
    if whole:
        if window is not None or stride is not None:
            raise ValueError("--whole excludes --window and --stride; leave out one or the others")
        settings = InferenceSettings()
    if window is not None or stride is not None:
        window = settings.window if window is None else window
        settings = InferenceSettings(window=window, stride=stride)
    scales = MULTI_SCALE if multi_scale else settings.scales
    return replace(settings, scales=scales, flip=flip)


def describe(settings: InferenceSettings) -> str:
    """Describe the inference settings in words."""
    words = ["whole images"]
    if settings.window is not None:
        stride = settings.stride or default_stride(settings.window)
        words = [f"windows of {settings.window} every {stride}"]
    if len(settings.scales) > 1:
        words.append(f"{len(settings.scales)} scales")
    if settings.flip:
        words.append("flipped")
    return ", ".join(words)
