"""Loads pairs and turns them into batches, in the processes of the data loader.

A training crop is a pure function of (seed, round, index), so neither the number of worker
processes nor resuming a run changes it. If a pair cannot be read, training uses the next one and
evaluation skips it; both report it with the batch.

The transforms are torchvision's, on tensors of bytes. Images are resampled bilinearly, masks always
by the nearest pixel. As in the ADE20K recipes, the image is resized by a random factor, then a
square is cropped in which no class exceeds a given share; padding is ignored by the loss.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import Image, Mask

from convnext.data.dense import TrainImages, distort
from convnext.data.images import BadImage
from convnext.data.preprocessing import DensePreprocessing, fit_within
from convnext.data.samples import ImageCache
from convnext.data.tensors import to_tensor
from convnext.tasks.segmentation.layout import Pairs

# How often a crop is drawn again because one class fills it.
TRIES = 10


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Crops a uint8 image (C, H, W) and its mask (H, W) to `crop` x `crop` pixels."""

    crop: int
    preprocessing: DensePreprocessing
    """Defines the size that the random factor multiplies."""
    jitter: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    hflip: float = 0.5
    vflip: float = 0.0
    photometric: bool = True
    ignore_index: int = 255

    def __call__(self, image: Tensor, mask: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Return the crop (C, crop, crop) of uint8 and its classes (crop, crop)."""
        pixels, labels = self._cut(Image(image), Mask(mask[None]), rng)
        if rng.random() < self.hflip:
            pixels, labels = tv.horizontal_flip(pixels), tv.horizontal_flip(labels)
        if rng.random() < self.vflip:
            pixels, labels = tv.vertical_flip(pixels), tv.vertical_flip(labels)
        if self.photometric:
            pixels = distort(pixels, rng)
        bottom, right = self.crop - pixels.shape[-2], self.crop - pixels.shape[-1]
        if bottom or right:
            gray = [round(255 * value) for value in self.preprocessing.mean]
            pixels = tv.pad(pixels, [0, 0, right, bottom], fill=gray)
            labels = tv.pad(labels, [0, 0, right, bottom], fill=self.ignore_index)
        return pixels.as_subclass(Tensor), labels.as_subclass(Tensor)[0]

    def _cut(self, image: Image, mask: Mask, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Resize by a random factor and crop in one step, so that only the crop is resized."""
        height, width = image.shape[-2:]
        p, factor = self.preprocessing, rng.uniform(*self.jitter)
        short = round((p.image_size or min(height, width)) * factor)
        wide, high = fit_within(width, height, max(1, short), round(p.max_size * factor))
        crop_h, crop_w = min(self.crop, high), min(self.crop, wide)
        for _ in range(TRIES):
            top, left = rng.randint(0, high - crop_h), rng.randint(0, wide - crop_w)
            # The same region in the stored image.
            y0, y1 = math.floor(top * height / high), math.ceil((top + crop_h) * height / high)
            x0, x1 = math.floor(left * width / wide), math.ceil((left + crop_w) * width / wide)
            labels = tv.resize(
                mask[..., y0:y1, x0:x1], [crop_h, crop_w], InterpolationMode.NEAREST_EXACT
            )
            if is_varied(labels, self.max_class_share, self.ignore_index):
                break
        pixels = image[..., y0:y1, x0:x1]
        if pixels.shape[-2:] != (crop_h, crop_w):
            pixels = tv.resize(pixels, [crop_h, crop_w], InterpolationMode.BILINEAR, antialias=True)
        return Image(pixels), Mask(labels)


def is_varied(labels: Tensor, max_share: float, ignore_index: int) -> bool:
    """Whether no class exceeds a fraction of the labeled pixels of a crop."""
    if max_share >= 1:
        return True
    labeled = labels[labels != ignore_index]
    counts = torch.bincount(labeled.flatten().long())
    return bool((counts > 0).sum() > 1 and counts.max() < max_share * labeled.numel())


@dataclass(frozen=True)
class Item:
    """One pair of a data set."""

    pixels: Tensor
    """uint8 (C, h, w)."""
    mask: Tensor
    """(h, w) in training; (H, W) of the file in evaluation."""
    index: int
    """The index of the pair."""
    bad: tuple[tuple[int, str], ...]
    """Pairs that could not be read before this one was found, each with the reason. If `index` is
    among them, there is no image."""


class Batch(NamedTuple):
    """A batch of N crops."""

    pixels: Tensor
    """uint8 (N, C, h, w)."""
    masks: Tensor
    """(N, h, w) of uint8, or int32 for more than 255 classes."""
    indices: Tensor
    """(N,)"""
    bad: tuple[tuple[int, str], ...]


def collate(items: Sequence[Item]) -> Batch:
    """Stack the crops of a step."""
    return Batch(
        pixels=torch.stack([item.pixels for item in items]),
        masks=torch.stack([item.mask for item in items]),
        indices=torch.tensor([item.index for item in items], dtype=torch.int64),
        bad=tuple(record for item in items for record in item.bad),
    )


class TrainDataset(TrainImages):
    """Augmented crops, by the draws of `StepBatches`."""

    cache: PairCache | None = None

    def __init__(self, pairs: Pairs, transform: TrainTransform, *, seed: int) -> None:
        self.pairs = pairs
        super().__init__(transform, seed=seed, count=len(pairs))

    def fill_cache(
        self, *, budget: int | None = None, workers: int = 0, console: Console | None = None
    ) -> str:
        """Decode every pair into memory, if there is room and the masks are bytes."""
        if self.pairs.reader.num_classes > 255:
            return "masks of more than 255 classes are not cached in memory, but read each time"
        return super().fill_cache(budget=budget, workers=workers, console=console)

    def _make_cache(self, budget: int, console: Console | None) -> str | None:
        cache = PairCache.of(self.pairs, self.transform.preprocessing, budget)
        if cache is None:
            return None
        cache.fill(console)
        self.cache = cache
        return cache.result()

    def _open(self, index: int) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            return self.cache[index]
        return read_pair(self.pairs, index, self.transform.preprocessing)

    def _reason_of(self, index: int, error: BadImage) -> str:
        return reason_of(error, self.pairs, index)

    def _item(
        self,
        sample: tuple[Tensor, Tensor],
        index: int,
        bad: tuple[tuple[int, str], ...],
        rng: random.Random,
    ) -> Item:
        pixels, mask = self.transform(*sample, rng)
        return Item(pixels, mask, index, bad)


class EvalDataset(Dataset[Item]):
    """Images preprocessed as in prediction, and masks as they are on disk."""

    def __init__(self, pairs: Pairs, preprocessing: DensePreprocessing) -> None:
        self.pairs, self.preprocessing = pairs, preprocessing

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        """Return a pair, or an item that says why it cannot be read."""
        p = self.preprocessing
        try:
            image = self.pairs.open(index, p.mode)
            mask = torch.from_numpy(self.pairs.mask(index, image.size))
            return Item(torch.from_numpy(p.pixels(image)), mask, index, ())
        except BadImage as error:
            nothing = torch.zeros((p.in_chans, 1, 1), dtype=torch.uint8)
            bad = ((index, reason_of(error, self.pairs, index)),)
            return Item(nothing, torch.zeros((1, 1), dtype=torch.int32), index, bad)


class PairCache:
    """Decoded pairs in memory, which worker processes share."""

    def __init__(
        self, pairs: Pairs, preprocessing: DensePreprocessing, shapes: NDArray[np.int64]
    ) -> None:
        self.pairs, self.preprocessing = pairs, preprocessing
        self.images = ImageCache(shapes)
        self.masks = ImageCache(shapes * np.array([0, 1, 1]) + np.array([1, 0, 0]))

    @classmethod
    def of(cls, pairs: Pairs, preprocessing: DensePreprocessing, budget: int) -> PairCache | None:
        """Reserve room for all pairs, or return None if there is not enough."""
        assert pairs.reader.num_classes <= 255, "masks are cached as bytes"
        shapes = []
        for index in range(len(pairs)):
            try:
                header = pairs.header(index)
                shapes.append((preprocessing.in_chans, header.height, header.width))
            except BadImage:
                shapes.append((preprocessing.in_chans, 1, 1))
        sizes = np.array(shapes, dtype=np.int64)
        if int(sizes.prod(axis=1).sum() + sizes[:, 1:].prod(axis=1).sum()) > budget:
            return None
        return cls(pairs, preprocessing, sizes)

    def result(self) -> str:
        """Return a line for the user on what is cached."""
        more = self.masks.block.nbytes
        return self.images.result("the training images", self.pairs.source, more)

    def fill(self, console: Console | None) -> None:
        """Read every pair."""

        def load(index: int) -> NDArray[np.uint8]:
            try:
                pixels, mask = read_pair(self.pairs, index, self.preprocessing)
            except BadImage as error:
                source = self.pairs.source(index)
                raise BadImage(source, reason_of(error, self.pairs, index)) from error
            if pixels.shape != tuple(self.images.shapes[index]):
                raise BadImage(self.pairs.source(index), "does not have the size that it declares")
            self.masks[index][0] = mask.numpy()
            return pixels.numpy()

        self.images.fill(load, console=console)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self.images.bad:
            raise BadImage(self.pairs.source(index), self.images.bad[index])
        return torch.from_numpy(self.images[index]), torch.from_numpy(self.masks[index][0])


def reason_of(error: BadImage, pairs: Pairs, index: int) -> str:
    """Return why a pair cannot be used, with the file's name unless it is the image."""
    return error.reason if error.source == pairs.source(index) else str(error)


def read_pair(pairs: Pairs, index: int, preprocessing: DensePreprocessing) -> tuple[Tensor, Tensor]:
    """Return an image (C, H, W) of uint8 and its mask (H, W), both at their size on disk.

    Raises:
        BadImage: If one cannot be read, or they do not match.
    """
    image = pairs.open(index, preprocessing.mode)
    mask = pairs.mask(index, image.size)
    kind = np.uint8 if pairs.reader.num_classes <= 255 else np.int32
    return to_tensor(image), torch.from_numpy(mask.astype(kind))
