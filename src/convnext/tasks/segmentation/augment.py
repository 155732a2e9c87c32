"""What happens to training images and their masks, together: resize, crop, flip, distort, pad.

The transforms are torchvision's, on tensors of bytes; images are resampled bilinearly, masks by the
nearest pixel and never otherwise. As in the recipes of ADE20K, the image is resized by a random
factor, a square is cut out of it in which no class fills more than a share, and what is missing is
padded with pixels that do not count.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import Image, Mask

from convnext.data.dense import distort
from convnext.data.preprocessing import DensePreprocessing, fit_within

# How often a crop is drawn anew because one class fills it.
TRIES = 10


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """A training image (C, H, W) of uint8 and its mask (H, W), at `crop` x `crop` pixels."""

    crop: int
    preprocessing: DensePreprocessing
    """Whose size the random factor multiplies."""
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
            grey = [round(255 * value) for value in self.preprocessing.mean]
            pixels = tv.pad(pixels, [0, 0, right, bottom], fill=grey)
            labels = tv.pad(labels, [0, 0, right, bottom], fill=self.ignore_index)
        return pixels.as_subclass(Tensor), labels.as_subclass(Tensor)[0]

    def _cut(self, image: Image, mask: Mask, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Resize by a random factor and cut, in one go: what is outside is never resized."""
        height, width = image.shape[-2:]
        p, factor = self.preprocessing, rng.uniform(*self.jitter)
        short = round((p.image_size or min(height, width)) * factor)
        wide, high = fit_within(width, height, max(1, short), round(p.max_size * factor))
        crop_h, crop_w = min(self.crop, high), min(self.crop, wide)
        for _ in range(TRIES):
            top, left = rng.randint(0, high - crop_h), rng.randint(0, wide - crop_w)
            # The same region of the image as it is stored.
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
    """Tell whether no class fills more than a share of the labelled pixels of a crop."""
    if max_share >= 1:
        return True
    labelled = labels[labels != ignore_index]
    counts = torch.bincount(labelled.flatten().long())
    return bool((counts > 0).sum() > 1 and counts.max() < max_share * labelled.numel())
