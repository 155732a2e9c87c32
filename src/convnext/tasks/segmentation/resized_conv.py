"""A 3x3 convolution of a map that is resized first, without computing at the larger size.

Resizing and convolving are both linear, so the channels can be mixed before the map grows: nine
pointwise products at the small size, one for each place of the kernel, then what each contributes
is resized, shifted and summed, which costs little. Of the convolution over all maps of a pyramid
of strides 4, 8, 16 and 32 this saves two thirds of the multiplications; the result is the same but
for rounding.

Shapes: N batch, C channels in, D channels out, h w the map, H W the larger one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def conv_of_maps(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Resize maps (N, C_l, h_l, w_l) to the first one's size, and convolve them side by side.

    Args:
        maps: The first is the largest.
        weight: Of a 3x3 convolution, (D, sum of C_l, 3, 3), padded by one pixel.
        bias: (D,), if it has one.

    Returns:
        (N, D, H, W), as resizing, `torch.cat` and `conv2d` give it.
    """
    size = (maps[0].shape[2], maps[0].shape[3])
    if not saves(maps):
        resized = [resize(x, size) for x in maps]
        return F.conv2d(torch.cat(resized, 1), weight, bias, padding=1)
    own = torch.split(weight, [x.shape[1] for x in maps], 1)
    out = F.conv2d(maps[0], own[0], bias, padding=1).contiguous()
    for x, part in zip(maps[1:], own[1:], strict=True):
        add_conv_of_resized(out, x, part)
    return out


def saves(maps: Sequence[Tensor]) -> bool:
    """Tell whether mixing channels first is less work.

    Resizing by matrices costs in proportion to the sides of the map, mixing channels to their
    number. Costs are counted on shapes alone, and by convention of the plain convolution.
    """
    height, width = maps[0].shape[2:]
    smaller = all(x.shape[2] < height and x.shape[3] < width for x in maps[1:])
    return smaller and max(height, width) <= min(x.shape[1] for x in maps) and not maps[0].is_meta


def add_conv_of_resized(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add to `out` (N, D, H, W) the convolution of x (N, C, h, w) resized to its size."""
    num, dim, high, wide = out.shape
    height, width = x.shape[2:]
    # Places across, then channels, then places down: so that every product is of whole blocks.
    taps = weight.permute(3, 0, 2, 1).reshape(9 * dim, -1, 1, 1)
    mixed = F.conv2d(x, taps).contiguous().view(num, 3, 3 * dim * height, width)
    across = [shifted(width, wide, tap, like=mixed).T.expand(num, -1, -1) for tap in range(3)]
    lines = torch.bmm(mixed[:, 0], across[0])
    for tap in (1, 2):
        lines.baddbmm_(mixed[:, tap], across[tap])
    down = torch.cat([shifted(height, high, tap, like=mixed) for tap in range(3)], 1)
    out.view(num * dim, high, wide).baddbmm_(
        down.expand(num * dim, -1, -1), lines.view(num * dim, 3 * height, wide)
    )


def shifted(small: int, large: int, tap: int, like: Tensor) -> Tensor:  # -> large small
    """Return the matrix that resizes a line linearly and shows each place a neighbour of it.

    `tap` 0 is the neighbour before, 1 the place itself, 2 the one after; beyond the ends is 0.
    """
    eye = torch.eye(small, dtype=torch.float32, device=like.device)
    matrix = F.interpolate(eye[None], large, mode="linear", align_corners=False)[0].T
    padded = F.pad(matrix, (0, 0, 1, 1))
    return padded[tap : tap + large].to(like.dtype)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:  # N C H W -> N C *size
    """Resample bilinearly, corners not aligned; a map of that size already comes back as it is."""
    if x.shape[2:] == tuple(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)
