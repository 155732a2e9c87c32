"""A 3x3 convolution of an upsampled map, computed at the smaller size.

Resizing and convolution are both linear, so the channels can be mixed before the map grows: nine
pointwise products at the small size, one per kernel position. Their results are then resized,
shifted and summed, which costs little. For the convolution over all maps of a pyramid with strides
4, 8, 16 and 32 this saves two thirds of the multiplications; the results differ only by rounding.

Shapes: N batch, C input channels, D output channels, h w the map, H W the larger map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.kernels.winograd import WinogradConv


def conv_of_maps(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None, *, mix_first: bool = True
) -> Tensor:
    """Resize maps (N, C_l, h_l, w_l) to the size of the first, concatenate and convolve them.

    Args:
        maps: The first is the largest.
        weight: (D, sum of C_l, 3, 3), for a convolution with a padding of one pixel.
        bias: (D,) or None.
        mix_first: Whether channels may be mixed first; otherwise use the plain convolution.

    Returns:
        (N, D, H, W), equal to resizing, `torch.cat` and `conv2d`.
    """
    size = (maps[0].shape[2], maps[0].shape[3])
    if not (mix_first and saves(maps)):
        resized = [resize(x, size) for x in maps]
        return F.conv2d(torch.cat(resized, 1), weight, bias, padding=1)
    own = torch.split(weight, [x.shape[1] for x in maps], 1)
    out = F.conv2d(maps[0], own[0], bias, padding=1).contiguous()
    for x, part in zip(maps[1:], own[1:], strict=True):
        out = add_conv_of_resized(out, x, part)
    return out


def saves(maps: Sequence[Tensor]) -> bool:
    """Whether mixing channels first is less work.

    The cost of resizing by matrices is proportional to the sides of the map; that of mixing is
    proportional to the channels. `convnext.cost`, on shapes alone, counts the plain convolution.
    """
    height, width = maps[0].shape[2:]
    smaller = all(x.shape[2] < height and x.shape[3] < width for x in maps[1:])
    return smaller and max(height, width) <= min(x.shape[1] for x in maps) and not maps[0].is_meta


def add_conv_of_resized(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return `out` (N, D, H, W) plus the convolution of x (N, C, h, w) resized to its size.

    The sum is written in place, except while tracing, because OpenVINO cannot convert a write
    through a view.
    """
    num, dim, high, wide = out.shape
    height, width = x.shape[2:]
    # Horizontal positions, channels, vertical positions: every product uses contiguous blocks.
    taps = weight.permute(3, 0, 2, 1).reshape(9 * dim, -1, 1, 1)
    mixed = F.conv2d(x, taps).contiguous().view(num, 3, 3 * dim * height, width)
    across = [shifted(width, wide, tap, like=mixed).T.expand(num, -1, -1) for tap in range(3)]
    lines = torch.bmm(mixed[:, 0], across[0])
    for tap in (1, 2):
        lines.baddbmm_(mixed[:, tap], across[tap])
    down = torch.cat([shifted(height, high, tap, like=mixed) for tap in range(3)], 1)
    down = down.expand(num * dim, -1, -1)
    total, lines = out.view(num * dim, high, wide), lines.view(num * dim, 3 * height, wide)
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return torch.baddbmm(total, down, lines).view(num, dim, high, wide)
    total.baddbmm_(down, lines)
    return out


def shifted(small: int, large: int, tap: int, like: Tensor) -> Tensor:  # -> large small
    """Return the matrix that resizes a line linearly and shifts it by one position.

    `tap` 0 gives the previous position, 1 the position itself, 2 the next; beyond the ends is 0.
    """
    eye = torch.eye(small, dtype=torch.float32, device=like.device)
    matrix = F.interpolate(eye[None], large, mode="linear", align_corners=False)[0].T
    padded = F.pad(matrix, (0, 0, 1, 1))
    return padded[tap : tap + large].to(like.dtype)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:  # N C H W -> N C *size
    """Resample bilinearly without aligned corners; a map of that size is returned unchanged."""
    if x.shape[2:] == tuple(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


class WinogradFusion(nn.Module):
    """UPerNet's folded fusion: Winograd for the largest map, and channels_last for all.

    As in `conv_of_maps`, the channels of smaller maps are mixed before they grow. Here every step
    is a product over all channels.

    Args:
        conv: The convolution over all concatenated maps, with a bias.
        norm: The norm after it.
        act: The activation after the norm.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv, norm, act
        # All maps have the head's number of channels.
        self.dim = self.conv.out_channels
        own = torch.split(self.conv.weight.detach(), self.dim, 1)
        first = nn.Conv2d(self.dim, self.dim, 3, padding=1, device="meta")
        first.weight = nn.Parameter(own[0], requires_grad=False)
        assert self.conv.bias is not None
        first.bias = nn.Parameter(self.conv.bias.detach(), requires_grad=False)
        self.first = WinogradConv(first)
        self.taps: Tensor  # (L-1)*9 C D: vertical, then horizontal positions
        taps = torch.stack(own[1:]).permute(0, 3, 4, 2, 1)
        self.register_buffer("taps", taps.flatten(0, 2).contiguous())

    def of_maps(self, maps: Sequence[Tensor]) -> Tensor:  # N C H_l W_l -> N D H W
        """See `FusionConv.of_maps`."""
        if not saves(maps):
            out = conv_of_maps(maps, self.conv.weight, self.conv.bias)
        else:
            out = self.first(maps[0])
            for n in range(len(out)):
                self._add_resized(out[n].permute(1, 2, 0), [x[n] for x in maps[1:]])
        fused: Tensor = self.act(self.norm(out))
        return fused

    def _add_resized(self, out: Tensor, maps: Sequence[Tensor]) -> None:
        """Add the contributions of an image's smaller maps (C, h_l, w_l) to `out` (H, W, D)."""
        high, wide, dim = out.shape
        total = sum(x.shape[1] for x in maps)
        lines, down, at = out.new_empty(3 * total, wide, dim), out.new_empty(high, 3 * total), 0
        for x, taps in zip(maps, torch.split(self.taps, 9), strict=True):
            height, width = x.shape[1:]
            rows = x.permute(1, 2, 0).reshape(height * width, -1)  # h*w C
            across = [shifted(width, wide, t, like=x).expand(height, -1, -1) for t in range(3)]
            for place in range(3):
                here = slice(at, at + height)
                down[:, here] = shifted(height, high, place, like=x)
                for t in range(3):
                    mixed = (rows @ taps[3 * place + t]).view(height, width, dim)
                    lines[here].baddbmm_(across[t], mixed, beta=int(t > 0))
                at += height
        out.view(high, -1).addmm_(down, lines.flatten(1))
