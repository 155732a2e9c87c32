"""The boxes that the proposal network starts from."""

from __future__ import annotations

import torch
from torch import Tensor

RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""
SCALE = 8.0
"""Side of a square anchor, in strides, of the published networks."""
DIVISOR = 32
"""Sides of padded images are multiples of this."""


def base_anchors(stride: int, scale: float = SCALE) -> Tensor:  # -> A 4
    """Return the anchors of one position around the origin, one per ratio, of equal area."""
    root = torch.tensor(RATIOS).sqrt()
    half_width, half_height = scale * stride / root / 2, scale * stride * root / 2
    return torch.stack((-half_width, -half_height, half_width, half_height), 1)


def level_anchors(
    size: tuple[int, int],
    stride: int,
    device: torch.device | str = "cpu",
    scale: float = SCALE,
) -> Tensor:
    """Return the anchors of a map of `size` (H, W) as (H * W * A, 4): rows, columns, ratios.

    They are centred on the top left corner of their cell, as in the reference.
    """
    height, width = size
    y = torch.arange(height, device=device) * stride
    x = torch.arange(width, device=device) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
    return (shifts + base_anchors(stride, scale).to(device)).view(-1, 4)


def usable(anchors: Tensor, size: tuple[int, int], border: int) -> Tensor:  # R 4 -> R
    """Whether anchors may be trained on for an image of `size` (H, W) in a larger batch.

    They leave it by no more than `border` pixels. A negative border keeps all whose cells lie in
    the image padded to a multiple of `DIVISOR`, as the reference pads each before it stacks them.
    """
    height, width = size
    if border < 0:
        x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
        return (x < -(-width // DIVISOR) * DIVISOR) & (y < -(-height // DIVISOR) * DIVISOR)
    first = (anchors[:, :2] >= -border).all(1)
    return first & (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border)
