"""Data sets for the loader's processes: images and objects to pixels and targets.

A training image is a pure function of (seed, round, index), so that neither the number of worker
processes nor resuming changes it. In training, the next image replaces one that cannot be read; in
evaluation it is left out. Both report it with the batch.

Torchvision transforms pixels and boxes. Masks stay compressed until the heads need a region of
them. The policies are the paper's (resize to one of several sizes, half of the images cropped
before) and large-scale jittering (Ghiasi et al., 2021).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from convnext.data.dense import TrainImages, distort
from convnext.data.formats.records import Objects
from convnext.data.images import BadImage
from convnext.data.masks import Mask, place
from convnext.data.objects import DetectionImages
from convnext.data.preprocessing import DensePreprocessing, fit_within, to_array
from convnext.data.samples import ImageCache
from convnext.data.sampling import StepBatches

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
    """In training: the target; see `convnext.tasks.detection.model.training`."""


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

    def _make_cache(self, budget: int, console: Console | None) -> str | None:
        channels = self.transform.preprocessing.in_chans
        shapes = np.array(
            [(channels, record.height, record.width) for record in self.images.records], np.int64
        )
        if int(shapes.prod(1).sum()) > budget:
            return None
        cache = ImageCache(shapes)
        cache.fill(self._read, console=console)
        self.cache = cache
        return cache.result("the training images", self.images.source)

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


Target = dict[str, object]
"""See `convnext.tasks.detection.model.training`."""

Region = tuple[int, int, int, int]
"""Left, top, width and height of a crop, in pixels of the original image."""

# Objects whose visible part is narrower, in pixels of the result, are removed.
MIN_SIDE = 1.0


@dataclass(frozen=True, kw_only=True)
class MultiScale:
    """Resizes to a short side drawn from `sides`; crops half of the images first."""

    sides: tuple[int, ...]
    max_size: int = 1333
    crop_sides: tuple[int, ...] = ()
    """Short sides at which images are cropped; () for no crops."""
    crop_range: tuple[int, int] = (384, 600)

    def __call__(self, width: int, height: int, rng: random.Random) -> tuple[Region, int, int]:
        """Return the crop of an image, and the width and height to resize it to."""
        kept = (0, 0, width, height)
        if self.crop_sides and rng.random() < 0.5:
            wide, high = fit_within(width, height, rng.choice(self.crop_sides), self.max_size)
            low, high_side = self.crop_range
            crop_h = rng.randint(min(high, low), min(high, high_side))
            crop_w = rng.randint(min(wide, low), min(wide, high_side))
            kept = scaled_back(
                rng.randint(0, wide - crop_w),
                rng.randint(0, high - crop_h),
                (crop_w, crop_h),
                (wide, high),
                (width, height),
            )
        size = fit_within(kept[2], kept[3], rng.choice(self.sides), self.max_size)
        return kept, *size


@dataclass(frozen=True, kw_only=True)
class LargeScaleJitter:
    """Scales by a random factor, relative to the size that just fits, and crops or pads to a
    square.
    """

    crop: int
    jitter: tuple[float, float] = (0.1, 2.0)

    def __call__(self, width: int, height: int, rng: random.Random) -> tuple[Region, int, int]:
        """Return the crop of an image, and the width and height to resize it to."""
        factor = rng.uniform(*self.jitter) * self.crop / max(width, height)
        wide, high = max(1, round(width * factor)), max(1, round(height * factor))
        crop_w, crop_h = min(self.crop, wide), min(self.crop, high)
        left, top = rng.randint(0, wide - crop_w), rng.randint(0, high - crop_h)
        kept = scaled_back(left, top, (crop_w, crop_h), (wide, high), (width, height))
        return kept, crop_w, crop_h


Policy = MultiScale | LargeScaleJitter


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Augments uint8 images (C, H, W) and their objects."""

    preprocessing: DensePreprocessing
    policy: Policy
    hflip: float = 0.5
    vflip: float = 0.0
    photometric: bool = False
    ignore_crowd: bool = True
    """Whether the target has crowd regions as `ignored`."""

    def __call__(
        self, image: Tensor, objects: Objects, rng: random.Random
    ) -> tuple[Tensor, Target]:
        """Return uint8 pixels (C, h, w) and their target."""
        height, width = image.shape[-2:]
        boxes = BoundingBoxes(
            torch.from_numpy(objects.boxes),
            format=BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        )
        (left, top, wide, high), new_width, new_height = self.policy(width, height, rng)
        pixels = tv.crop(Image(image), top, left, high, wide)
        boxes = tv.crop(boxes, top, left, high, wide)
        new_size = (new_height, new_width)
        if (high, wide) != new_size:
            pixels = tv.resize(pixels, list(new_size), InterpolationMode.BILINEAR, antialias=True)
            boxes = tv.resize(boxes, list(new_size))
        scale, start = [wide / new_width, high / new_height], [float(left), float(top)]
        if rng.random() < self.hflip:
            pixels, boxes = tv.horizontal_flip(pixels), tv.horizontal_flip(boxes)
            scale[0], start[0] = -scale[0], start[0] + wide
        if rng.random() < self.vflip:
            pixels, boxes = tv.vertical_flip(pixels), tv.vertical_flip(boxes)
            scale[1], start[1] = -scale[1], start[1] + high
        if self.photometric:
            pixels = distort(pixels, rng)

        def transform_mask(mask: Mask) -> Mask:
            return place(
                mask,
                source=(height, width),
                size=new_size,
                scale=(scale[0], scale[1]),
                start=(start[0], start[1]),
            )

        return (
            pixels.as_subclass(Tensor),
            self._target(boxes.as_subclass(Tensor), objects, transform_mask),
        )

    def _target(
        self, boxes: Tensor, objects: Objects, transform_mask: Callable[[Mask], Mask]
    ) -> Target:
        visible = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(1)
        crowd = torch.from_numpy(objects.crowd)
        rows = (visible & ~crowd).nonzero()[:, 0]
        masks = (objects.masks[row] for row in rows.tolist())
        target: Target = {
            "boxes": boxes[rows].float(),
            "labels": torch.from_numpy(objects.labels)[rows],
            "masks": [None if mask is None else transform_mask(mask) for mask in masks],
        }
        if self.ignore_crowd:
            target["ignored"] = boxes[visible & crowd].float()
        return target


def scaled_back(
    left: int,
    top: int,
    crop: tuple[int, int],
    resized: tuple[int, int],
    size: tuple[int, int],
) -> Region:
    """Return the region of an image of `size` that becomes a crop of the resized image.

    All sizes are (width, height). Only that region has to be resized.
    """
    (crop_w, crop_h), (wide, high), (width, height) = crop, resized, size
    x1, x2 = round(left * width / wide), round((left + crop_w) * width / wide)
    y1, y2 = round(top * height / high), round((top + crop_h) * height / high)
    x1, y1 = min(x1, width - 1), min(y1, height - 1)
    return x1, y1, max(x2 - x1, 1), max(y2 - y1, 1)
