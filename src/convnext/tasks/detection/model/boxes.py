"""Box geometry: areas, IoU, coding as deltas, and anchors.

Boxes are (..., 4) as x1 y1 x2 y2 in pixels. An edge is a coordinate, not a pixel: a box from 0 to
10 is 10 wide. M boxes against R give (M, R); functions of pairs take equal shapes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-6
"""Min area of a denominator (union or hull), in square pixels, as in the reference."""


def area(boxes: Tensor) -> Tensor:  # ... 4 -> ...
    """Return width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def has_area(boxes: Tensor) -> Tensor:  # ... 4 -> ...
    """Whether boxes have both a width and a height."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def intersection(a: Tensor, b: Tensor) -> Tensor:  # ... 4, ... 4 -> ...
    """Return the area that two boxes share; shapes broadcast."""
    # Separate contiguous coordinates vectorize; pairs of coordinates would not.
    ax1, ay1, ax2, ay2 = a.movedim(-1, 0).contiguous()
    bx1, by1, bx2, by2 = b.movedim(-1, 0).contiguous()
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    return width * height


def iou(a: Tensor, b: Tensor) -> Tensor:  # M 4, R 4 -> M R
    """Return intersection over union of every box of `a` with every box of `b`."""
    shared = intersection(a[:, None], b[None])
    union = area(a)[:, None] + area(b)[None] - shared
    return shared / union.clamp(min=EPS)


def covered(a: Tensor, b: Tensor) -> Tensor:  # M 4, R 4 -> M R
    """Return the fraction of each box of `a` that lies in each box of `b`."""
    return intersection(a[:, None], b[None]) / area(a)[:, None].clamp(min=EPS)


def giou(a: Tensor, b: Tensor) -> Tensor:  # R 4, R 4 -> R
    """Return the generalized IoU of pairs, in [-1, 1] (Rezatofighi et al., 2019)."""
    shared = intersection(a, b)
    union = (area(a) + area(b) - shared).clamp(min=EPS)
    top_left = torch.minimum(a[..., :2], b[..., :2])
    bottom_right = torch.maximum(a[..., 2:], b[..., 2:])
    hull = area(torch.cat((top_left, bottom_right), -1)).clamp(min=EPS)
    return shared / union - (hull - union) / hull


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:  # ... 4 -> ... 4
    """Clip boxes to an image of `size` (H, W)."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), -1
    )


Stds = tuple[float, float, float, float]

MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Max absolute change of the logarithm of a width or height; keeps exp finite."""


def encode(boxes: Tensor, targets: Tensor, stds: Stds = (1, 1, 1, 1)) -> Tensor:
    """Return the deltas dx dy dw dh from `boxes` to `targets`, both (..., 4), divided by `stds`.

    Both need positive widths and heights; otherwise the deltas are not finite.
    """
    center, size = _center_and_size(boxes)
    target_center, target_size = _center_and_size(targets)
    deltas = torch.cat(((target_center - center) / size, (target_size / size).log()), -1)
    return deltas / deltas.new_tensor(stds)


def decode(
    boxes: Tensor, deltas: Tensor, stds: Stds = (1, 1, 1, 1), size: tuple[int, int] | None = None
) -> Tensor:
    """Apply `deltas` (..., 4) to boxes, and clip the result to `size` (H, W) if given.

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


RATIOS = (0.5, 1.0, 2.0)
"""Aspect ratios (height / width) of the anchors."""
SCALE = 8.0
"""Side of a square anchor of the published networks, in strides."""
DIVISOR = 32
"""Sides of padded images are multiples of this."""


def base_anchors(stride: int, scale: float = SCALE) -> Tensor:  # -> A 4
    """Return the anchors around the origin, one per aspect ratio, all of the same area."""
    root = torch.tensor(RATIOS).sqrt()
    half_width, half_height = scale * stride / root / 2, scale * stride * root / 2
    return torch.stack((-half_width, -half_height, half_width, half_height), 1)


def level_anchors(
    size: tuple[int, int],
    stride: int,
    device: torch.device | str = "cpu",
    scale: float = SCALE,
) -> Tensor:
    """Return the anchors of a map of `size` (H, W) as (H * W * A, 4), by row, column and ratio.

    They are centered on the top left corner of their cell, as in the reference.
    """
    height, width = size
    y = torch.arange(height, device=device) * stride
    x = torch.arange(width, device=device) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
    return (shifts + base_anchors(stride, scale).to(device)).view(-1, 4)


def usable(anchors: Tensor, size: tuple[int, int], border: int) -> Tensor:  # R 4 -> R
    """Whether anchors may be trained on for an image of `size` (H, W) in a larger batch.

    Usable anchors extend beyond the image by at most `border` pixels. A negative border keeps all
    anchors whose cells lie in the image padded to a multiple of `DIVISOR`, since the reference pads
    each image that way before stacking.
    """
    height, width = size
    if border < 0:
        x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
        return (x < -(-width // DIVISOR) * DIVISOR) & (y < -(-height // DIVISOR) * DIVISOR)
    first = (anchors[:, :2] >= -border).all(1)
    return first & (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border)
