"""The weight gradient of a depthwise convolution on a CPU, computed over tiles.

Shapes: N images, C channels, H W positions, k kernel size.
"""

from __future__ import annotations

import torch
from torch import Tensor
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
