"""Batching of images of different sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from convnext.tasks.detection.model.boxes import DIVISOR

Size = tuple[int, int]
"""Height and width."""


def padded_size(sizes: Sequence[Size], stride: int) -> Size:
    """Return the min height and width that fit all images, multiples of 32 and of `stride`."""
    divisor = max(DIVISOR, stride)
    height, width = (
        max(1, -(-max(side) // divisor)) * divisor for side in zip(*sizes, strict=True)
    )
    return height, width


def stack(images: Sequence[Tensor], stride: int) -> tuple[Tensor, list[Size]]:
    """Zero-pad images (C, H, W) at the right and bottom to one size, and stack them.

    Sides become multiples of 32, and of the backbone's last `stride` if that is larger.

    Returns:
        The batch (N, C, H, W), and the sizes (H, W) of the images.

    Raises:
        ValueError: If there are no images, or one is not (C, H, W).
    """
    if not len(images) or any(image.ndim != 3 for image in images):
        shapes = [tuple(image.shape) for image in images]
        raise ValueError(f"a detector takes a non-empty list of images (C, H, W), not {shapes}")
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = padded_size(sizes, stride)
    padded = [
        F.pad(image, (0, width - w, 0, height - h))
        for image, (h, w) in zip(images, sizes, strict=True)
    ]
    return torch.stack(padded), sizes
