"""Areas and overlaps of boxes.

Boxes are (..., 4) as x1 y1 x2 y2 in pixels; an edge is a coordinate and not a pixel, so a box from
0 to 10 is 10 wide. M boxes against R are (M, R); functions of pairs take two equal shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
"""Smallest union or hull that a ratio is taken of, in square pixels, as in the reference."""


def area(boxes: Tensor) -> Tensor:  # ... 4 -> ...
    """Return width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:  # ... 4, ... 4 -> ...
    """Return the area that two boxes share; shapes broadcast."""
    # Each coordinate apart and contiguous: pairs of them would not be vectorised.
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
    """Return the share of each box of `a` that lies in each box of `b`."""
    return intersection(a[:, None], b[None]) / area(a)[:, None].clamp(min=EPS)


def giou(a: Tensor, b: Tensor) -> Tensor:  # R 4, R 4 -> R
    """Return generalised IoU of pairs, in [-1, 1] (Rezatofighi et al., 2019)."""
    shared = intersection(a, b)
    union = (area(a) + area(b) - shared).clamp(min=EPS)
    top_left = torch.minimum(a[..., :2], b[..., :2])
    bottom_right = torch.maximum(a[..., 2:], b[..., 2:])
    hull = area(torch.cat((top_left, bottom_right), -1)).clamp(min=EPS)
    return shared / union - (hull - union) / hull


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:  # ... 4 -> ... 4
    """Move edges into an image of `size` (H, W)."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), -1
    )
