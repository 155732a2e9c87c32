"""Augmentation of training images together with their objects: flip, crop, resize, distort.

Torchvision transforms pixels and boxes. Masks stay compressed until the heads need a region of
them. The policies are the paper's (resize to one of several sizes, half of the images cropped
before) and large-scale jittering (Ghiasi et al., 2021).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from convnext.data.dense import distort
from convnext.data.formats.records import Objects
from convnext.data.masks import Mask, place
from convnext.data.preprocessing import DensePreprocessing, fit_within

Target = dict[str, object]
"""See `convnext.tasks.detection.model.targets`."""

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
            low, most = self.crop_range
            crop_h = rng.randint(min(high, low), min(high, most))
            crop_w = rng.randint(min(wide, low), min(wide, most))
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
