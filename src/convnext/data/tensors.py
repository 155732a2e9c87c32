"""Pixels as tensors: what `convnext.data.preprocessing` computes in numpy, for training and torch.

Both give the same bits. This one runs on the device of the batch and keeps its memory format.
"""

from __future__ import annotations

from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from convnext.data.preprocessing import Pixels, to_array


class Normalizing(Protocol):
    """What a preprocessing says of the values that its network takes."""

    @property
    def normalizes(self) -> bool: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class Preprocesses(Normalizing, Protocol):
    """What turns an image into what a network takes."""

    def pixels(self, image: Image.Image) -> Pixels: ...


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an "RGB" or "L" image as contiguous uint8 (C, H, W)."""
    return torch.from_numpy(to_array(image))


def to_batch(preprocessing: Preprocesses, image: Image.Image) -> Tensor:
    """Return an image of any mode as the network takes it, fp32 (1, C, H, W)."""
    return normalize_batch(preprocessing, torch.from_numpy(preprocessing.pixels(image))[None])


def normalize_batch(preprocessing: Normalizing, batch: Tensor) -> Tensor:
    """Return pixels (N, C, H, W), 0 to 255, as the fp32 values that a network takes.

    They have mean 0 and deviation 1, unless the network normalizes itself.
    """
    if not preprocessing.normalizes:
        return batch.float()
    return normalize(batch, preprocessing.mean, preprocessing.std)


def normalize(batch: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return uint8 pixels (N, C, H, W) as fp32, less `mean`, by `std`, of values in [0, 1].

    The memory format stays as it is.
    """
    means, stds = (torch.tensor(values, device=batch.device) for values in (mean, std))
    images = torch.empty_like(batch, dtype=torch.float32)
    source, target = batch, images
    if batch.is_contiguous():
        means, stds = means.view(-1, 1, 1), stds.view(-1, 1, 1)
    else:
        source, target = batch.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)  # N H W C
        if source.is_contiguous():  # Loops over three channels are slow, over rows they are fast.
            means, stds = means.repeat(batch.shape[3]), stds.repeat(batch.shape[3])
            source, target = source.flatten(2), target.flatten(2)  # N H WC
    # On a CPU one image at a time, which stays in the cache from step to step.
    size = 1 if batch.device.type == "cpu" else max(1, len(batch))
    for pixels, part in zip(torch.split(source, size), torch.split(target, size), strict=True):
        part.copy_(pixels).div_(255).sub_(means).div_(stds)
    return images  # N C H W
