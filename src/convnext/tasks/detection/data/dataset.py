"""Data sets for the loader's processes: images and objects to pixels and targets.

A training image is a pure function of (seed, round, index), so that neither the number of worker
processes nor resuming changes it. In training, the next image replaces one that cannot be read; in
evaluation it is left out. Both report it with the batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from convnext.data.cache import ImageCache
from convnext.data.dense import TrainImages
from convnext.data.images import BadImage
from convnext.data.objects import DetectionImages
from convnext.data.preprocessing import DensePreprocessing, to_array
from convnext.data.sampling import StepBatches
from convnext.tasks.detection.data.augment import Target, TrainTransform

Bad = tuple[tuple[int, str], ...]
"""Images that could not be read, each with the reason."""


@dataclass(frozen=True)
class Item:
    """One image of a data set."""

    pixels: Tensor
    """uint8 (C, h, w)."""
    index: int
    """Index of the image."""
    size: tuple[int, int]
    """Height and width of the image on disk."""
    bad: Bad
    """Images that could not be read before this one. If `index` is among them, it has no pixels."""
    target: Target | None = None
    """In training: the target; see `convnext.tasks.detection.model.targets`."""


class Batch(NamedTuple):
    """A batch of N images."""

    pixels: tuple[Tensor, ...]
    """uint8 (C, h, w) each."""
    targets: tuple[Target, ...]
    indices: tuple[int, ...]
    bad: Bad


def collate(items: Sequence[Item]) -> Batch:
    """Collect the images of a step in a batch."""
    return Batch(
        pixels=tuple(item.pixels for item in items),
        targets=tuple(item.target or {} for item in items),
        indices=tuple(item.index for item in items),
        bad=tuple(record for item in items for record in item.bad),
    )


def split(batch: Batch, count: int) -> list[Batch]:
    """Split a batch into `count` parts whose sizes differ by at most one image."""
    bounds = [len(batch.indices) * part // count for part in range(count + 1)]
    return [
        Batch(batch.pixels[a:b], batch.targets[a:b], batch.indices[a:b], ())
        for a, b in pairwise(bounds)
    ]


class TrainDataset(TrainImages):
    """Augmented images, by the draws of `GroupedBatches`."""

    cache: ImageCache | None = None

    def __init__(self, images: DetectionImages, transform: TrainTransform, *, seed: int) -> None:
        self.images = images
        super().__init__(transform, seed=seed, count=len(images))

    def _make_cache(self, budget: int, console: Console | None) -> int | None:
        channels = self.transform.preprocessing.in_chans
        shapes = np.array(
            [(channels, record.height, record.width) for record in self.images.records], np.int64
        )
        if int(shapes.prod(1).sum()) > budget:
            return None
        cache = ImageCache(shapes)
        cache.fill(self._read, console=console)
        self.cache = cache
        return int(cache.block.nbytes)

    def _open(self, index: int) -> Tensor:
        if self.cache is None:
            return torch.from_numpy(self._read(index))
        if index in self.cache.bad:
            raise BadImage(self.images.source(index), self.cache.bad[index])
        return torch.from_numpy(self.cache[index])

    def _item(self, sample: Tensor, index: int, bad: Bad, rng: random.Random) -> Item:
        pixels, target = self.transform(sample, self.images.objects(index), rng)
        width, height = self.images.size(index)
        return Item(pixels, index, (height, width), bad, target)

    def _read(self, index: int) -> NDArray[np.uint8]:
        return to_array(self.images.open(index, self.mode))


class EvalDataset(Dataset[Item]):
    """Images preprocessed exactly as in deployment."""

    def __init__(self, images: DetectionImages, preprocessing: DensePreprocessing) -> None:
        self.images, self.preprocessing = images, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """Return an image, or a placeholder if it cannot be read."""
        p = self.preprocessing
        width, height = self.images.size(index)
        try:
            pixels = torch.from_numpy(p.pixels(self.images.open(index, p.mode)))
            return Item(pixels, index, (height, width), ())
        except BadImage as error:
            nothing = torch.zeros((p.in_chans, 1, 1), dtype=torch.uint8)
            return Item(nothing, index, (height, width), ((index, error.reason),))


class GroupedBatches(StepBatches):
    """Batches of landscape or portrait images only.

    An epoch is still a permutation of the images; at most one of its steps is mixed, and the steps
    are in random order. Like `StepBatches` a pure function of the seed and the step.

    Args:
        is_tall: Whether each image is taller than wide.
        batch_size: Number of images per step, over all ranks.
        seed: Seed of the order.
        rank: The slice of the batch to yield.
        num_ranks: Number of slices.
    """

    def __init__(
        self,
        is_tall: Sequence[bool],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        labels = [int(tall) for tall in is_tall]
        super().__init__(labels, batch_size, seed=seed, rank=rank, num_ranks=num_ranks)

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rounds, orders = super()._epoch(epoch)
        order = orders[0]
        groups = [order[self.labels[order] == group] for group in (0, 1)]
        ends = [len(group) - len(group) % self.batch_size for group in groups]
        rest = np.concatenate([group[end:] for group, end in zip(groups, ends, strict=True)])
        last = rest[: len(rest) - len(rest) % self.batch_size]
        whole = [group[:end] for group, end in zip(groups, ends, strict=True)]
        steps = np.concatenate([*whole, last]).reshape(-1, self.batch_size)
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch, 1]))
        return rounds, generator.permutation(steps).ravel()[None]
