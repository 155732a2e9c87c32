"""3x3 convolutions with a quarter of the multiplications (Lavin and Gray, 2016).

F(4x4, 3x3): each 6 x 6 input tile is transformed to 36 coefficients, these are multiplied by 36
matrices over the channels, and the results are transformed to a 4 x 4 output tile: 36 products
instead of 144. Both transforms are matrix products. A few rows of tiles are processed at a time, so
that they stay in the cache. Rounding errors are about ten times those of the plain convolution,
1e-6 to 1e-5 relative, so it is used in fp32 only.

The weight gradient of a depthwise convolution of any kernel, computed over tiles, is here too.

Shapes: N batch, C input channels, D output channels, H W positions, T tiles of a chunk.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Side of a tile in positions: its kernel and input stay in the L1 cache.
MAX_TILE = 14


def depthwise_weight_gradient(images: Tensor, grad: Tensor, kernel_size: int) -> Tensor:
    """Return the weight gradient of a depthwise convolution with stride 1 and "same" padding.

    The gradient is itself a convolution of the images with the output gradients, with one output
    per weight. Cut into tiles, where each tile and channel is a group, it runs on the kernels of
    the forward pass; oneDNN's own gradient kernels took 1.6 to 1.8 times as long in fp32 and 4.9
    times as long in bf16 (LOG.md, 2026-11-29).

    Args:
        images: Inputs of the convolution (N, H, W, C), contiguous.
        grad: Gradient of its output, of the same shape.
        kernel_size: k, odd.

    Returns:
        (C, 1, k, k), in fp64 if the images are, else in fp32.
    """
    n, height, width, dim = images.shape
    dtype = torch.promote_types(images.dtype, torch.float32)
    rows, columns = -(-height // MAX_TILE), -(-width // MAX_TILE)
    h, w = -(-height // rows), -(-width // columns)
    halo = kernel_size - 1
    if n == 0:
        return torch.zeros(dim, 1, kernel_size, kernel_size, dtype=dtype)
    padded = _padded(images, kernel_size // 2, rows * h + halo, columns * w + halo)
    a, b, c, _ = padded.stride()
    windows = padded.as_strided(
        (h + halo, w + halo, n, rows, columns, dim), (b, c, a, h * b, w * c, 1)
    )
    kernels = _padded(grad, 0, rows * h, columns * w)
    kernels = kernels.view(n, rows, h, columns, w, dim).permute(2, 4, 0, 1, 3, 5)
    groups = n * rows * columns * dim
    # A single copy each, which transposes and, if needed, widens.
    windows, kernels = (
        torch.empty(t.shape, dtype=dtype).copy_(t).view(1, *t.shape[:2], groups)
        for t in (windows, kernels)
    )
    sums = F.conv2d(windows.permute(0, 3, 1, 2), kernels.permute(3, 0, 1, 2), groups=groups)
    return sums.view(-1, dim, 1, kernel_size, kernel_size).sum(0)


def _padded(x: Tensor, start: int, height: int, width: int) -> Tensor:
    """Pad (N, H, W, C) with zeros, `start` of them before the rows and columns."""
    if x.shape[1:3] == (height, width):
        return x
    padded = x.new_empty(len(x), height, width, x.shape[-1])
    bottom, right = start + x.shape[1], start + x.shape[2]
    padded[:, start:bottom, start:right] = x
    for border in (
        padded[:, :start],
        padded[:, bottom:],
        padded[:, :, :start],
        padded[:, :, right:],
    ):
        border.zero_()
    return padded


TILE = 4
"""Side of an output tile."""
SPAN = TILE + 2
"""Side of an input tile."""
# Minimum number of channels for which the saved products outweigh the transforms.
MIN_CHANNELS = 64
# Tiles per chunk: at 256 channels, tiles, weights and result of a product take 256 KB each.
NUM_TILES = 256

# The transforms for the points 0, 1, -1, 2, -2 and infinity.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
# The coefficient that adds to every output position with factor 1: point 1 in both directions.
CONSTANT = 1 * SPAN + 1


class WinogradConv(nn.Module):
    """A 3x3 convolution with padding 1 and stride 1 in fp32, with fixed weights.

    Args:
        conv: A convolution that `fits`; it is not changed.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        weight = conv.weight.detach()
        kernel = torch.tensor(KERNEL, dtype=torch.float64)
        wide = torch.einsum("ay,bx,dcyx->abcd", kernel, kernel, weight.double().cpu())
        self.weight: Tensor  # 36 C D
        self.bias: Tensor  # D
        self.change: Tensor  # 36 36
        self.change_back: Tensor  # 16 36
        self.register_buffer("weight", wide.flatten(0, 1).contiguous().to(weight))
        bias = weight.new_zeros(self.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", bias)
        for name, rows in (("change", INPUT), ("change_back", OUTPUT)):
            matrix = torch.tensor(rows, dtype=torch.float64)
            self.register_buffer(name, torch.kron(matrix, matrix).to(weight))

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N D H W, channels_last
        num, _, height, width = x.shape
        rows = x.permute(0, 2, 3, 1)  # N H W C
        out = x.new_empty(num, height, width, self.out_channels)
        high, wide = -(-height // TILE), -(-width // TILE)  # In tiles.
        some_images = max(1, NUM_TILES // max(1, high * wide))
        some_rows = high if some_images > 1 else max(1, NUM_TILES // max(1, wide))
        with torch.autocast(x.device.type, enabled=False):  # The transforms need fp32.
            for n in range(0, num, some_images):
                for top in range(0, high, some_rows):
                    bottom = min(high, top + some_rows)
                    images = slice(n, min(num, n + some_images))
                    self._chunk(rows[images], out[images], top, bottom, wide)
        return out.permute(0, 3, 1, 2)

    def _chunk(self, x: Tensor, out: Tensor, top: int, bottom: int, wide: int) -> None:
        """Compute the rows of tiles from `top` to `bottom` of a few images (n, H, W, D)."""
        num, height, width, dim = x.shape
        high = bottom - top
        padded = x.new_zeros(num, high * TILE + 2, wide * TILE + 2, dim)
        first, last = max(0, top * TILE - 1), min(height, bottom * TILE + 1)
        at = first - (top * TILE - 1)
        padded[:, at : at + last - first, 1 : width + 1] = x[:, first:last]
        tiles = padded.unfold(1, SPAN, TILE).unfold(2, SPAN, TILE)  # n high wide C 6 6
        flat = tiles.permute(4, 5, 0, 1, 2, 3).reshape(SPAN**2, -1)  # 36 T*C
        inner = (self.change @ flat).view(SPAN**2, -1, dim)  # 36 T C
        products = torch.bmm(inner, self.weight)  # 36 T D
        products[CONSTANT] += self.bias
        found = (self.change_back @ products.flatten(1)).view(
            TILE, TILE, num, high, wide, self.out_channels
        )
        whole = found.permute(2, 3, 0, 4, 1, 5)  # n high 4 wide 4 D
        here = slice(top * TILE, min(height, bottom * TILE))
        rows = whole.reshape(num, high * TILE, wide * TILE, self.out_channels)
        out[:, here] = rows[:, : here.stop - here.start, :width]

    def extra_repr(self) -> str:
        """Show the channels."""
        return f"{self.in_channels}, {self.out_channels}"


@runtime_checkable
class HasWinograd(Protocol):
    """A module that has its own version with `WinogradConv`."""

    def in_winograd(self) -> nn.Module | None:
        """Return an equivalent module for fixed weights; None if its layers do not fit."""
        ...


def with_winograd(module: nn.Module) -> nn.Module:
    """Replace the convolutions of a folded module that `fits`; return the resulting module."""
    if isinstance(module, nn.Conv2d) and fits(module):
        return WinogradConv(module)
    own = module.in_winograd() if isinstance(module, HasWinograd) else None
    if own is not None:
        return own
    for name, child in list(module.named_children()):
        new = with_winograd(child)
        if new is not child:
            setattr(module, name, new)
    return module


def has_any(module: nn.Module) -> bool:
    """Return whether a module contains a convolution that `fits`."""
    return any(fits(child) for child in module.modules())


def fits(module: nn.Module) -> bool:
    """Return whether `WinogradConv` can replace a module."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.padding == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and min(module.in_channels, module.out_channels) >= MIN_CHANNELS
    )
