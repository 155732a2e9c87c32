"""RoI pooling: the features of each box from the pyramid level that fits its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from convnext.kernels.roi_pooling import roi_levels


def pool_rois(
    maps: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], side: int
) -> Tensor:
    """Return the features of boxes (R_n, 4) of every image n as (sum of R_n, C, side, side).

    Aligned RoIAlign with adaptive sampling. It always runs in fp32, because half precision cannot
    represent every coordinate beyond 2048 pixels.
    """
    rois = torch.cat(
        [torch.cat((b.new_full((len(b), 1), n), b), 1) for n, b in enumerate(boxes)]
    ).float()
    levels = roi_levels(rois[:, 1:], strides)
    order, parts = [], []
    for level, (map_, stride) in enumerate(zip(maps, strides, strict=True)):
        here = (levels == level).nonzero()[:, 0]
        part = roi_align(map_.float(), rois[here], side, 1 / stride, 0, aligned=True)
        order.append(here)
        parts.append(part.to(map_.dtype))
    return torch.cat(parts)[torch.cat(order).argsort()]
