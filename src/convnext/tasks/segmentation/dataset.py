"""From pairs to the pixels of a batch: what the data loader's processes do.

A training crop is a pure function of (seed, round, index), so that neither the number of worker
processes nor a resumed run changes anything. A pair that cannot be read is replaced in training by
the next one, left out in evaluation, and reported with the batch in both.
"""

from __future__ import annotations

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

from convnext.data.cache import ImageCache, memory_budget
from convnext.data.dense import Substitutes
from convnext.data.images import BadImage
from convnext.data.preprocessing import DensePreprocessing
from convnext.data.sampling import Draw
from convnext.data.tensors import to_tensor
from convnext.tasks.segmentation.augment import TrainTransform
from convnext.tasks.segmentation.samples import Pairs


@dataclass(frozen=True)
class Item:
    """One pair as a data set returns it."""

    pixels: Tensor
    """uint8 (C, h, w)."""
    mask: Tensor
    """(h, w) in training; (H, W) of the file itself in evaluation."""
    index: int
    """Which of the pairs it is."""
    bad: tuple[tuple[int, str], ...]
    """Pairs that could not be read on the way here, each with the reason. If `index` is among them,
    there is no image."""


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


class TrainDataset(Dataset[Item]):
    """Augmented crops, by the draws of `StepBatches`."""

    def __init__(self, pairs: Pairs, transform: TrainTransform, *, seed: int) -> None:
        self.pairs, self.transform, self.seed = pairs, transform, seed
        self.mode = transform.preprocessing.mode
        self.cache: PairCache | None = None
        self._substitutes = Substitutes(
            self._open, lambda index, error: reason_of(error, pairs, index), len(pairs)
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def fill_cache(
        self, *, budget: int | None = None, workers: int = 0, console: Console | None = None
    ) -> str:
        """Keep every pair in memory as it is on disk, decoded, if there is room.

        Args:
            budget: Bytes; by default a share of the memory that is free.
            workers: How many processes will read it.
            console: Where a progress bar goes.

        Returns:
            What was done, as one line for the user.
        """
        if self.pairs.reader.num_classes > 255:
            return "masks of more than 255 classes are not kept in memory, but read anew each time"
        budget = memory_budget(workers) if budget is None else budget
        cache = PairCache.of(self.pairs, self.transform.preprocessing, budget)
        if cache is None:
            return (
                f"the training images do not fit into the {budget / 1e9:,.2g} GB that may be used, "
                "and are read anew each time"
            )
        cache.fill(console)
        self.cache = cache
        return f"the training images are kept in memory ({cache.num_bytes / 1e6:,.3g} MB)"

    def __getitem__(self, draw: Draw) -> Item:
        """Return the crop of a draw (round, index)."""
        number, index = draw
        rng = random.Random(f"{self.seed} {number} {index}")
        (pixels, mask), shown, bad = self._substitutes(index)
        pixels, mask = self.transform(pixels, mask, rng)
        return Item(pixels, mask, shown, bad)

    def _open(self, index: int) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            return self.cache[index]
        return read_pair(self.pairs, index, self.transform.preprocessing)


class EvalDataset(Dataset[Item]):
    """Images exactly as the network will see them in use, and masks as they are on disk."""

    def __init__(self, pairs: Pairs, preprocessing: DensePreprocessing) -> None:
        self.pairs, self.preprocessing = pairs, preprocessing

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        """Return a pair, or where it cannot be read an item that says so."""
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
        assert pairs.reader.num_classes <= 255, "masks are kept as bytes"
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

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return self.images.block.nbytes + self.masks.block.nbytes

    def fill(self, console: Console | None) -> None:
        """Read every pair."""

        def load(index: int) -> NDArray[np.uint8]:
            try:
                pixels, mask = read_pair(self.pairs, index, self.preprocessing)
            except BadImage as error:
                source = self.pairs.source(index)
                raise BadImage(source, reason_of(error, self.pairs, index)) from error
            if pixels.shape != tuple(self.images.shapes[index]):
                raise BadImage(self.pairs.source(index), "has another size than it declares")
            self.masks[index][0] = mask.numpy()
            return pixels.numpy()

        self.images.fill(load, console=console)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self.images.bad:
            raise BadImage(self.pairs.source(index), self.images.bad[index])
        return torch.from_numpy(self.images[index]), torch.from_numpy(self.masks[index][0])


def reason_of(error: BadImage, pairs: Pairs, index: int) -> str:
    """Return why a pair cannot be used, with the file's name where that is not the image's."""
    return error.reason if error.source == pairs.source(index) else str(error)


def read_pair(pairs: Pairs, index: int, preprocessing: DensePreprocessing) -> tuple[Tensor, Tensor]:
    """Return an image (C, H, W) of uint8 and its mask (H, W), both of their size on disk.

    Raises:
        BadImage: If one cannot be read, or they do not go together.
    """
    image = pairs.open(index, preprocessing.mode)
    mask = pairs.mask(index, image.size)
    kind = np.uint8 if pairs.reader.num_classes <= 255 else np.int32
    return to_tensor(image), torch.from_numpy(mask.astype(kind))
