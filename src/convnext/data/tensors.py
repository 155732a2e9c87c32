"""Normalization of tensors, with the same bits as `convnext.data.preprocessing` in numpy.

It runs on the device of the batch and keeps its memory format.
"""

from __future__ import annotations

from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from convnext.data.preprocessing import Pixels, to_array


class Normalizing(Protocol):
    """The part of a preprocessing that describes the values of the input."""

    @property
    def normalizes(self) -> bool: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class Preprocesses(Normalizing, Protocol):
    """A preprocessing that makes a network's input from an image."""

    def pixels(self, image: Image.Image) -> Pixels: ...


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an "RGB" or "L" image as contiguous uint8 (C, H, W)."""
    return torch.from_numpy(to_array(image))


def to_batch(preprocessing: Preprocesses, image: Image.Image) -> Tensor:
    """Return an image of any mode as a network's input, fp32 (1, C, H, W)."""
    return normalize_batch(preprocessing, torch.from_numpy(preprocessing.pixels(image))[None])


def normalize_batch(preprocessing: Normalizing, batch: Tensor) -> Tensor:
    """Return pixels (N, C, H, W), 0 to 255, as a network's input in fp32.

    It has mean 0 and standard deviation 1, unless the network normalizes itself.
    """
    if not preprocessing.normalizes:
        return batch.float()
    return normalize(batch, preprocessing.mean, preprocessing.std)


def normalize(batch: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Scale uint8 pixels (N, C, H, W) to [0, 1], subtract `mean` and divide by `std`, in fp32.

    The memory format is kept.
    """
    means, stds = (torch.tensor(values, device=batch.device) for values in (mean, std))
    images = torch.empty_like(batch, dtype=torch.float32)
    source, target = batch, images
    if batch.is_contiguous():
        means, stds = means.view(-1, 1, 1), stds.view(-1, 1, 1)
    else:
        source, target = batch.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)  # N H W C
        if source.is_contiguous():  # Loops over rows are faster than loops over three channels.
            means, stds = means.repeat(batch.shape[3]), stds.repeat(batch.shape[3])
            source, target = source.flatten(2), target.flatten(2)  # N H WC
    # On a CPU one image at a time, which stays in the cache between the operations.
    size = 1 if batch.device.type == "cpu" else max(1, len(batch))
    for pixels, part in zip(torch.split(source, size), torch.split(target, size), strict=True):
        part.copy_(pixels).div_(255).sub_(means).div_(stds)
    return images  # N C H W
