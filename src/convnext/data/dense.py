"""Color distortion and replacement of damaged samples, for segmentation and detection training."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from convnext.data.images import BadImage

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32, (0.5, 1.5), (0.5, 1.5), 18 / 360


def distort(image: Tensor, rng: random.Random) -> Tensor:
    """Distort brightness, contrast, saturation and hue of an image (C, H, W) of uint8.

    Each is distorted with probability one half. Contrast comes before or after saturation and hue,
    as in the detectors of 2016.
    """
    if rng.random() < 0.5:
        delta = rng.randint(-BRIGHTNESS, BRIGHTNESS)
        image = (image.to(torch.int16) + delta).clamp(0, 255).to(torch.uint8)
    contrast_first, changes_contrast = rng.random() < 0.5, rng.random() < 0.5
    contrast = rng.uniform(*CONTRAST)
    if contrast_first and changes_contrast:
        image = scale_values(image, contrast)
    if image.shape[0] == 3 and rng.random() < 0.5:
        image = tv.adjust_saturation(image, rng.uniform(*SATURATION))
    if image.shape[0] == 3 and rng.random() < 0.5:
        image = tv.adjust_hue(image, rng.uniform(-HUE, HUE))
    if not contrast_first and changes_contrast:
        image = scale_values(image, contrast)
    return image


def scale_values(image: Tensor, factor: float) -> Tensor:
    """Multiply the values of an image (C, H, W) of uint8."""
    return (image.float() * factor).clamp(0, 255).to(torch.uint8)


T = TypeVar("T")


class Substitutes(Generic[T]):
    """Opens samples by their number and replaces damaged ones, which are not tried again.

    Args:
        open_sample: Returns a sample, or raises BadImage.
        reason_of: Returns the message for a sample and its error.
        count: The number of samples.
    """

    def __init__(
        self,
        open_sample: Callable[[int], T],
        reason_of: Callable[[int, BadImage], str],
        count: int,
    ) -> None:
        self._open, self._reason_of, self._count = open_sample, reason_of, count
        self._known: dict[int, str] = {}

    def __call__(self, index: int) -> tuple[T, int, tuple[tuple[int, str], ...]]:
        """Return a sample, its number, and the unreadable ones before it, each with the reason.

        Raises:
            ValueError: If no sample can be read.
        """
        bad: list[tuple[int, str]] = []
        for shown in ((index + k) % self._count for k in range(self._count)):
            if shown not in self._known:
                try:
                    return self._open(shown), shown, tuple(bad)
                except BadImage as error:
                    self._known[shown] = self._reason_of(shown, error)
            bad.append((shown, self._known[shown]))
        raise ValueError(f"none of the training images can be used, such as {bad[-1][1]}")
