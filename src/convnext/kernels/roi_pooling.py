"""RoIAlign as matrix products on channels_last maps, for CPUs.

The samples of a box lie on a grid with separable weights, so their means are two small products:
the window of the map that the box covers, times vertical weights, times horizontal weights. The
window is read in place, with contiguous channels. torchvision's operator needs channels-first maps
and reads four values for every sample of every channel.

Shapes: R boxes, C channels, H W positions of a map, S cells along a side of a box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CELLS = 14
"""Minimum side of a box in strides of its level; 56 pixels at stride 4."""


def roi_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:  # R 4 -> R
    """Return the index into `strides` of each box's level: one level coarser per doubling."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    side = (width * height).clamp(min=0).sqrt()
    level = torch.log2(side / (CELLS * strides[0]) + 1e-6).floor()
    return level.clamp(0, len(strides) - 1).long()


def pool_rois_by_products(
    maps: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], side: int
) -> Tensor:
    """Pool boxes like the detector's `pool_rois`, up to rounding, in fp32 and channels_last.

    Args:
        maps: (N, C, H_l, W_l) for each level.
        strides: The stride of each level.
        boxes: (R_n, 4) for each image n.
        side: S.

    Returns:
        (sum of R_n, C, S, S), in the dtype of the maps.
    """
    rois = torch.cat(list(boxes)).float()
    channels = maps[0].shape[1]
    out = rois.new_empty(len(rois), side, side, channels)
    if not len(rois):
        return out.permute(0, 3, 1, 2).to(maps[0].dtype)
    image_of = [n for n, own in enumerate(boxes) for _ in range(len(own))]
    level_of = roi_levels(rois, strides)
    rows = [
        m.float().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1) for m in maps
    ]
    stride_of = torch.tensor(strides, device=rois.device)[level_of]
    sides = torch.tensor([[m.shape[2], m.shape[3]] for m in maps], device=rois.device)[level_of]
    across = _axis(rois[:, 0], rois[:, 2], stride_of, sides[:, 1], side)
    down = _axis(rois[:, 1], rois[:, 3], stride_of, sides[:, 0], side)
    plan = zip(level_of.tolist(), image_of, *down[1:], *across[1:], strict=True)
    for r, (level, n, y, height, x, width) in enumerate(plan):
        window = rows[level][n, y : y + height, x : x + width]  # h w C
        lines = torch.mm(down[0][r, :, :height], window.reshape(height, width * channels))
        torch.matmul(across[0][r, :, :width], lines.view(side, width, channels), out=out[r])
    return out.permute(0, 3, 1, 2).to(maps[0].dtype)


def _axis(
    first: Tensor, last: Tensor, stride: Tensor, length: Tensor, side: int
) -> tuple[Tensor, list[int], list[int]]:
    """Return the weights of the positions in each cell of a box, along one axis.

    Args:
        first: (R,), the start of each box in pixels.
        last: (R,), its end.
        stride: (R,), the stride of its level in pixels.
        length: (R,), the number of positions of its map.
        side: S.

    Returns:
        Weights (R, S, maximum number of positions), and for each box its first position and its
        number of positions.
    """
    # The order of operations is torchvision's, so that coordinates are rounded in the same way.
    scale = 1 / stride.float()
    start = first * scale - 0.5
    extent = last * scale - 0.5 - start
    cell = extent / side  # R
    num = cell.ceil().clamp_min(0)  # Samples per cell; 0 for an empty box.
    most = max(1, int(num.max()))
    i = torch.arange(side, device=first.device)
    k = torch.arange(most, device=first.device)
    step = (k + 0.5) * cell[:, None] / num.clamp_min(1)[:, None]  # R most
    at = start[:, None, None] + (i * cell[:, None])[:, :, None] + step[:, None]  # R S most
    end = length[:, None, None]
    seen = (at >= -1) & (at <= end) & (k < num[:, None])[:, None]
    at = at.clamp_min(0).minimum(end - 1.0)
    low = at.floor().long()
    high = (low + 1).minimum(end - 1)
    share = at - low
    weight = seen / num.clamp_min(1)[:, None, None]
    begin = low.masked_fill(~seen, 2**31).flatten(1).amin(1).clamp_max(length - 1)
    stop = high.masked_fill(~seen, 0).flatten(1).amax(1)
    width = (stop - begin + 1).clamp_min(1)
    weights = first.new_zeros(len(first), side, int(width.max()))
    for position, part in ((low, weight * (1 - share)), (high, weight * share)):
        index = (position - begin[:, None, None]).clamp(0, weights.shape[2] - 1)
        weights.scatter_add_(2, index, part)
    return weights, begin.tolist(), width.tolist()
