"""Data sets for the loader's processes: samples to the pixels of a batch.

A training image is a pure function of (seed, round, index), so that neither the number of worker
processes nor resuming changes it. In training, the next image replaces one that cannot be read (the
next of its class in folders, the next one stored in shards); in evaluation it is left out. Both
report it with the batch.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, Never

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from convnext.data.bands import band_image
from convnext.data.images import BadImage
from convnext.data.preprocessing import Preprocessing, fit_short_side
from convnext.data.samples import ImageCache, Pixels, Samples, Targets, memory_budget
from convnext.data.sampling import Draw
from convnext.data.shards.samples import BadShard, CutShard, ShardSamples
from convnext.data.tensors import Box, to_pixels
from convnext.tasks.classification.augment import ImageAugment
from convnext.tasks.classification.recipe import ClassificationAugment

_TOO_LARGE = "do not fit into the memory limit of {:,.2g} GB and are read again in every epoch"

_REMOTE = "are remote: their shards are cached on disk, not in memory"
# Max number of replacements for an unreadable image of a shard. An unavailable shard counts as
# several, since each attempt takes long.
MAX_SUBSTITUTES, BAD_SHARD = 64, 8


class Item(NamedTuple):
    """One image of a data set."""

    pixels: Tensor
    """uint8 (C, H, W)."""
    label: int | Targets
    """Label of the image shown, or its row of targets."""
    position: int
    """Index of the sample."""
    bad: tuple[tuple[int, str], ...]
    """Samples that could not be read before this one, each with the reason. If `position` is among
    them, there is no image."""


class Batch(NamedTuple):
    """A batch of N images."""

    pixels: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor
    """(N,), or targets (N, K) in fp32."""
    indices: Tensor
    """(N,)"""
    bad: tuple[tuple[int, str], ...]


def collate(items: Sequence[Item]) -> Batch:
    """Stack items into a batch, without those that have no image; N may become 0.

    The pixels are channels_last, like decoded images; networks run faster with that.
    """
    bad = tuple(record for item in items for record in item.bad)
    kept = [k for k, item in enumerate(items) if all(i != item.position for i, _ in item.bad)]
    pixels = torch.stack([item.pixels.permute(1, 2, 0) for item in items]).permute(0, 3, 1, 2)
    return Batch(
        pixels=pixels if len(kept) == len(items) else pixels[kept],
        labels=_stacked([items[k].label for k in kept]),
        indices=torch.tensor([items[k].position for k in kept], dtype=torch.int64),
        bad=bad,
    )


def _stacked(labels: Sequence[int | Targets]) -> Tensor:
    if labels and not isinstance(labels[0], int | np.integer):
        return torch.from_numpy(np.stack(labels).astype(np.float32))
    return torch.tensor(labels, dtype=torch.int64)


class TrainDataset(Dataset[Item]):
    """Augmented training images, indexed by the draws of `StepBatches`."""

    def __init__(
        self,
        samples: Samples,
        *,
        augment: ClassificationAugment[Never],
        preprocessing: Preprocessing,
        seed: int,
    ) -> None:
        self.samples = samples
        self.preprocessing = preprocessing
        self.recipe = augment
        self.augment = ImageAugment(augment, preprocessing)
        self.mode = preprocessing.mode
        self.seed = seed
        self.cache: ImageCache | None = None
        self._known_bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def at_size(self, image_size: int) -> TrainDataset:
        """Return the same images, including the cache, cropped to another size."""
        other = copy.copy(self)
        other.augment = ImageAugment(
            self.recipe, replace(self.preprocessing, image_size=image_size)
        )
        return other

    def fill_cache(
        self, *, budget: int | None = None, workers: int = 0, console: Console | None = None
    ) -> str:
        """Cache every image in memory if all fit, no larger than crops need.

        Args:
            budget: Max bytes; by default a fraction of the free memory.
            workers: Number of processes that will read the cache.
            console: Console of the progress bar.

        Returns:
            One line for the user about the result.
        """
        if self.samples.is_remote:
            return f"the training images {_REMOTE}"
        budget = memory_budget(workers) if budget is None else budget
        chans = self.preprocessing.in_chans
        shapes = _cached_shapes(self.samples, chans, self.augment.short_side, budget)
        if shapes is None:
            return f"the training images {_TOO_LARGE.format(budget / 1e9)}"
        cache = ImageCache(shapes)

        def load(index: int) -> Pixels:
            height, width = shapes[index, :2].tolist()
            image = self.samples.open(index, self.mode, at_least=min(height, width))
            if image.size != (width, height):
                size = (width, height)
                image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
            return np.asarray(image).reshape(height, width, -1)

        cache.fill(load, console=console)
        self.cache = cache
        return cache.result("the training images", self.samples.source)

    def __getitems__(self, draws: list[Draw]) -> list[Item]:
        """Return the images of a batch, and start fetching shards for later batches."""
        self.samples.prefetch(getattr(draws, "prefetch", ()))
        return [self[draw] for draw in draws]

    def __getitem__(self, draw: Draw) -> Item:
        """Return the image of a draw (round, index)."""
        number, index = draw
        bad: list[tuple[int, str]] = []
        shown, tried = index, 0
        while True:
            try:
                # Reseed for each try: an unreadable image may have used some draws.
                rng = random.Random(f"{self.seed} {number} {index}")
                image, box = self._open(shown, rng)
                break
            except BadImage as error:
                # A shard may be available again in some minutes; a damaged file stays damaged.
                if not isinstance(error, BadShard | CutShard):
                    self._known_bad[shown] = error.reason
                bad.append((shown, error.reason))
                tried += BAD_SHARD if isinstance(error, BadShard) else 1
                shown = self.samples.substitute(shown, error)
                if isinstance(self.samples, ShardSamples):
                    if shown == index or tried >= MAX_SUBSTITUTES:
                        raise ValueError(
                            f"{len(bad):,} consecutive images cannot be read, such as {error}"
                        ) from error
                elif shown == index:
                    raise ValueError(
                        f"no image of the class of {error.source} can be read, such as {error}"
                    ) from error
        pixels = to_pixels(self.augment(image, rng, box))
        return Item(pixels, self.samples.target(shown), shown, tuple(bad))

    def _open(self, index: int, rng: random.Random) -> tuple[Image.Image | Tensor, Box | None]:
        """Return an image, or the pixels that a crop needs and the crop."""
        augment = self.augment
        if index in self._known_bad:
            raise BadImage(self.samples.source(index), self._known_bad[index])
        if self.cache is None and augment.exact:
            return self.samples.open(index, self.mode, at_least=augment.short_side), None
        if self.cache is None:
            draw = augment.draw(rng)
            return self.samples.open_crop(index, self.mode, draw=draw, size=augment.size)
        if index in self.cache.bad:
            raise BadImage(self.samples.source(index), self.cache.bad[index])
        pixels = self.cache[index]
        if not augment.exact:
            return torch.from_numpy(pixels).permute(2, 0, 1), None
        return band_image(pixels), None


class EvalDataset(Dataset[Item]):
    """Images preprocessed exactly as in deployment."""

    def __init__(self, samples: Samples, preprocessing: Preprocessing) -> None:
        self.samples = samples
        self.preprocessing = preprocessing
        self.cache: ImageCache | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def fill_cache(
        self, *, budget: int | None = None, workers: int = 0, console: Console | None = None
    ) -> str:
        """Cache the preprocessed pixels of every image in memory if all fit.

        Arguments and result are those of `TrainDataset.fill_cache`.
        """
        if self.samples.is_remote:
            return f"the validation images {_REMOTE}"
        budget = memory_budget(workers) if budget is None else budget
        p = self.preprocessing
        shapes = np.array([[p.in_chans, p.image_size, p.image_size]] * len(self), dtype=np.int64)
        if int(shapes.prod(axis=1).sum()) > budget:
            return f"the validation images {_TOO_LARGE.format(budget / 1e9)}"
        cache = ImageCache(shapes)
        cache.fill(lambda index: self._read(index).numpy(), console=console)
        self.cache = cache
        return cache.result("the validation images", self.samples.source)

    def __getitems__(self, indices: list[int]) -> list[Item]:
        """Return the images of a batch, and start fetching shards for later batches.

        Torch's number of threads decodes files; in a loader's process that is one.
        """
        self.samples.read_ahead(indices[-1])
        threads = min(torch.get_num_threads(), len(indices))
        if threads == 1 or self.cache is not None or not self.samples.is_open_to_threads:
            return [self[index] for index in indices]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.__getitem__, indices))

    def __getitem__(self, index: int) -> Item:
        """Return an image, or a placeholder if it cannot be read."""
        label = self.samples.target(index)
        try:
            return Item(self._pixels(index), label, index, ())
        except BadImage as error:
            p = self.preprocessing
            nothing = torch.zeros((p.in_chans, p.image_size, p.image_size), dtype=torch.uint8)
            return Item(nothing, label, index, ((index, error.reason),))

    def _pixels(self, index: int) -> Tensor:
        if self.cache is None:
            return self._read(index)
        if index in self.cache.bad:
            raise BadImage(self.samples.source(index), self.cache.bad[index])
        return torch.from_numpy(self.cache[index])

    def _read(self, index: int) -> Tensor:
        image = self.samples.open(index, self.preprocessing.mode)
        return torch.from_numpy(self.preprocessing.pixels(image))


def _cached_shapes(
    samples: Samples, chans: int, short: int, budget: int
) -> NDArray[np.int64] | None:
    """Return the shapes (n, 3) of the cached images, or None if they exceed the budget.

    A sample of the headers shows early that a large set does not fit. Images without a readable
    header take no room.
    """
    n = len(samples)

    def shape(index: int) -> tuple[int, int, int]:
        try:
            header = samples.header(index)
        except BadImage:
            return 1, 1, chans
        size = (header.width, header.height)
        width, height = fit_short_side(size, short) if min(size) > short else size
        return height, width, chans

    some = [int(np.prod(shape(i))) for i in range(0, n, max(1, n // 200))]
    if float(np.mean(some)) * n > budget:
        return None
    shapes = np.array([shape(i) for i in range(n)], dtype=np.int64)
    return shapes if int(shapes.prod(axis=1).sum()) <= budget else None
