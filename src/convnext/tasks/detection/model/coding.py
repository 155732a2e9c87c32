"""Boxes as differences from other boxes: shifts in widths and heights, and logarithms of ratios."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convnext.tasks.detection.model.boxes import clip

Stds = tuple[float, float, float, float]

MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Most that the logarithm of a width or height may change, either way; exp is finite below it."""


def encode(boxes: Tensor, targets: Tensor, stds: Stds = (1, 1, 1, 1)) -> Tensor:
    """Return what leads from `boxes` to `targets`, both (..., 4), as dx dy dw dh over `stds`.

    Both need positive widths and heights, or the deltas are not finite.
    """
    center, size = _center_and_size(boxes)
    target_center, target_size = _center_and_size(targets)
    deltas = torch.cat(((target_center - center) / size, (target_size / size).log()), -1)
    return deltas / deltas.new_tensor(stds)


def decode(
    boxes: Tensor, deltas: Tensor, stds: Stds = (1, 1, 1, 1), size: tuple[int, int] | None = None
) -> Tensor:
    """Return the boxes that `deltas` (..., 4) lead to, clipped to an image of `size` (H, W) if any.

    `boxes` are (..., 4) and broadcast: (R, 1, 4) for deltas (R, K, 4).
    """
    deltas = deltas * deltas.new_tensor(stds)
    center, extent = _center_and_size(boxes)
    new_extent = extent * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    new_center = center + extent * deltas[..., :2]
    decoded = torch.cat((new_center - new_extent / 2, new_center + new_extent / 2), -1)
    return decoded if size is None else clip(decoded, size)


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
