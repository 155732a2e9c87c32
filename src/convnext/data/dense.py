"""Color distortion and replacement of damaged samples, for segmentation and detection training."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from convnext.data.images import BadImage
from convnext.data.samples import memory_budget
from convnext.data.sampling import Draw

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


class TrainImages(Dataset[Any], ABC):
    """The augmented images of a dense task, indexed by the draws of a sampler.

    An image is a function of the seed and its draw, so neither the number of worker processes nor
    resuming a run changes it.

    Args:
        transform: Augments an image; its `preprocessing` says how images are read.
        seed: The seed of the run.
        count: The number of images.
    """

    cache: Any = None
    """The decoded images, if they are cached in memory."""

    def __init__(self, transform: Any, *, seed: int, count: int) -> None:
        self.transform, self.seed, self.count = transform, seed, count
        self.mode = transform.preprocessing.mode
        self._substitutes = Substitutes(self._open, self._reason_of, count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: Draw) -> Any:
        """Return the item of a draw (round, index)."""
        number, index = draw
        rng = random.Random(f"{self.seed} {number} {index}")
        sample, shown, bad = self._substitutes(index)
        return self._item(sample, shown, bad, rng)

    def fill_cache(
        self, *, budget: int | None = None, workers: int = 0, console: Console | None = None
    ) -> str:
        """Cache every decoded image in memory if all fit, and return a line about the result.

        The limit is `budget` bytes, by default a fraction of the free memory.
        """
        budget = memory_budget(workers) if budget is None else budget
        result = self._make_cache(budget, console)
        if result is None:
            return (
                f"the training images do not fit into the memory limit of {budget / 1e9:,.2g} GB "
                "and are read again in every epoch"
            )
        return result

    @abstractmethod
    def _make_cache(self, budget: int, console: Console | None) -> str | None:
        """Fill the cache and return a line on the result; None if it exceeds the budget."""

    @abstractmethod
    def _open(self, index: int) -> Any:
        """Return an image before it is augmented; raise BadImage if it cannot be read."""

    def _reason_of(self, index: int, error: BadImage) -> str:
        return error.reason

    @abstractmethod
    def _item(
        self, sample: Any, index: int, bad: tuple[tuple[int, str], ...], rng: random.Random
    ) -> Any:
        """Augment an image, which replaces the unreadable ones in `bad`."""
