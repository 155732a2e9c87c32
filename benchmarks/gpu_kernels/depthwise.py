"""The k x k depthwise convolution with stride 1 over channels_last maps, forward and backward.

It is limited by arithmetic rather than memory: each value that is read and written once takes 49
products outside the tensor cores, and every bf16 operand has to be widened first. A program
therefore computes several output rows at a time, and uses each widened value for all of them.

Shapes: N batch, H and W positions, C channels, k an odd kernel size. `taps` are weights (k, k, C),
so that neighboring threads read neighboring channels.
"""

# Kernels are typed by Triton: constants in capitals, tuples that grow.
# ruff: noqa: N803, RUF005
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu_kernels.tuning import LAUNCH, run_in_autocast, tuned

# Programs for the weight gradient: a few waves on 132 multiprocessors. It is constant, because the
# order of the sums must not depend on the device.
NUM_PROGRAMS = 4096


def _tile(rows: int, columns: int, channels: int, num_warps: int) -> triton.Config:
    tile = {"ROWS": rows, "COLUMNS": columns, "CHANNELS": channels}
    return triton.Config(tile, num_warps=num_warps)


# 8 to 16 values per thread and row: one or two 16-byte loads of bf16.
FORWARD = [
    _tile(2, 8, 32, 1),
    _tile(4, 8, 32, 1),
    _tile(4, 4, 64, 1),
    _tile(2, 8, 64, 2),
    _tile(4, 8, 64, 2),
    _tile(4, 16, 32, 2),
    _tile(4, 8, 64, 4),
    _tile(1, 8, 64, 2),
]
GRADIENT = [
    triton.Config({"COLUMNS": columns, "CHANNELS": channels}, num_warps=num_warps)
    for columns, channels, num_warps in (
        (8, 32, 4),
        (8, 64, 8),
        (4, 64, 4),
        (16, 32, 4),
        (16, 32, 8),
        (2, 128, 4),
    )
]


@triton.jit
def window_sums(
    x,
    taps,
    top,
    w,
    c,
    height,
    width,
    channels,
    KERNEL: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Return ROWS tiles (len(w), len(c)): the convolution of an image x (H, W, C) from row `top`.

    Each input row is used for all output rows that it contributes to.
    """
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (tl.zeros((w.shape[0], c.shape[0]), tl.float32),)
    for kx in range(KERNEL):
        from_w = w + kx - KERNEL // 2
        inside = ((from_w >= 0) & (from_w < width))[:, None] & (c < channels)[None, :]
        for r in tl.static_range(ROWS + KERNEL - 1):
            # A vector: the interpreter cannot combine masks of a vector and of a number.
            from_h = top + r - KERNEL // 2 + 0 * w
            is_row = ((from_h >= 0) & (from_h < height))[:, None]
            values = tl.load(
                x + (from_h * width + from_w)[:, None] * channels + c[None, :],
                mask=inside & is_row,
                other=0.0,
            ).to(tl.float32)
            added = ()
            for row in tl.static_range(ROWS):
                if (r >= row) & (r < row + KERNEL):
                    tap = tl.load(
                        taps + ((r - row) * KERNEL + kx) * channels + c,
                        mask=c < channels,
                        other=0.0,
                    ).to(tl.float32)
                    added = added + (sums[row] + values * tap[None, :],)
                else:
                    added = added + (sums[row],)
            sums = added
    return sums


@tuned(FORWARD, ["height", "width", "channels", "KERNEL"])
@triton.jit
def _forward(
    x,
    taps,
    bias,
    y,
    height,
    width,
    channels,
    KERNEL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # Neighbors in memory run at the same time: channels first, then columns, rows, images.
    at = tl.program_id(0)
    c = at % tl.cdiv(channels, CHANNELS) * CHANNELS + tl.arange(0, CHANNELS)
    at = at // tl.cdiv(channels, CHANNELS)
    w = at % tl.cdiv(width, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    at = at // tl.cdiv(width, COLUMNS)
    top = at % tl.cdiv(height, ROWS) * ROWS
    image = (at // tl.cdiv(height, ROWS)).to(tl.int64) * height * width * channels
    sums = window_sums(x + image, taps, top, w, c, height, width, channels, KERNEL, ROWS)
    inside = (w < width)[:, None] & (c < channels)[None, :]
    for row in tl.static_range(ROWS):
        out = sums[row]
        if HAS_BIAS:
            out += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        h = top + row + 0 * w
        to = y + image + (h * width + w)[:, None] * channels + c[None, :]
        tl.store(to, out.to(y.dtype.element_ty), mask=inside & (h < height)[:, None])


@tuned(GRADIENT, ["height", "width", "channels", "KERNEL"])
@triton.jit
def _gradient(
    grad,
    x,
    partial,
    num_rows,
    rows_each,
    height,
    width,
    channels,
    KERNEL: tl.constexpr,
    PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sum one row of taps over `rows_each` rows of the batch, for some channels.

    `partial` is (splits, k * k + 1, C); its last row belongs to the bias. The programs for the k
    rows of taps run side by side and share their input through the L2 cache.
    """
    at = tl.program_id(0)
    ky = at % KERNEL
    at = at // KERNEL
    c = at % tl.cdiv(channels, CHANNELS) * CHANNELS + tl.arange(0, CHANNELS)
    split = at // tl.cdiv(channels, CHANNELS)
    kx = tl.arange(0, PADDED)
    sums = tl.zeros((PADDED, COLUMNS, CHANNELS), tl.float32)
    sums_bias = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    for row in range(split * rows_each, tl.minimum((split + 1) * rows_each, num_rows)):
        h = row % height
        from_h = h + ky - KERNEL // 2 + 0 * kx
        is_row = (from_h >= 0) & (from_h < height) & (kx < KERNEL)
        image = (row // height).to(tl.int64) * height * width * channels
        for start in range(0, width, COLUMNS):
            w = start + tl.arange(0, COLUMNS)
            g = tl.load(
                grad + image + (h * width + w)[:, None] * channels + c[None, :],
                mask=(w < width)[:, None] & (c < channels)[None, :],
                other=0.0,
            ).to(tl.float32)
            from_w = w[None, :] + kx[:, None] - KERNEL // 2
            inside = (from_w >= 0) & (from_w < width) & is_row[:, None]
            values = tl.load(
                x
                + image
                + (from_h[:, None] * width + from_w)[:, :, None] * channels
                + c[None, None, :],
                mask=inside[:, :, None] & (c < channels)[None, None, :],
                other=0.0,
            ).to(tl.float32)
            sums += values * g[None, :, :]
            sums_bias += g
    partial += split.to(tl.int64) * (KERNEL * KERNEL + 1) * channels
    tl.store(
        partial + (ky * KERNEL + kx)[:, None] * channels + c[None, :],
        tl.sum(sums, axis=1),
        mask=(kx < KERNEL)[:, None] & (c < channels)[None, :],
    )
    to = partial + KERNEL * KERNEL * channels + c
    tl.store(to, tl.sum(sums_bias, axis=0), mask=(c < channels) & (ky + 0 * c == 0))


@torch.library.custom_op("convnext::depthwise", mutates_args=())
def depthwise_op(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve zero-padded maps (N, H, W, C) with taps (k, k, C); sums are in fp32."""
    x, taps = x.contiguous(), taps.contiguous()
    num, height, width, channels = x.shape
    y = torch.empty_like(x)

    def grid(tile: dict[str, int]) -> tuple[int]:
        columns = triton.cdiv(width, tile["COLUMNS"]) * triton.cdiv(channels, tile["CHANNELS"])
        return (num * triton.cdiv(height, tile["ROWS"]) * columns,)

    if x.numel():
        given = taps if bias is None else bias.contiguous()
        _forward[grid](
            x,
            taps,
            given,
            y,
            height,
            width,
            channels,
            KERNEL=taps.shape[0],
            HAS_BIAS=bias is not None,
            **LAUNCH,
        )
    return y


@depthwise_op.register_fake
def _(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("convnext::depthwise_gradient", mutates_args=())
def gradient_op(grad: Tensor, x: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of the taps (k, k, C) and the bias (C,), in fp32.

    Each program sums its own rows, and one sum over programs follows. There are no atomic
    additions, so the order is fixed.
    """
    grad, x = grad.contiguous(), x.contiguous()
    num, height, width, channels = x.shape
    num_rows = num * height
    splits = max(1, min(num_rows, NUM_PROGRAMS // (kernel_size * triton.cdiv(channels, 32))))
    rows_each = triton.cdiv(num_rows, splits)
    num_taps = kernel_size * kernel_size
    if not x.numel():
        return x.new_zeros((kernel_size, kernel_size, channels), dtype=torch.float32), x.new_zeros(
            channels, dtype=torch.float32
        )
    partial = x.new_empty((splits, num_taps + 1, channels), dtype=torch.float32)

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (kernel_size * triton.cdiv(channels, tile["CHANNELS"]) * splits,)

    _gradient[grid](
        grad,
        x,
        partial,
        num_rows,
        rows_each,
        height,
        width,
        channels,
        KERNEL=kernel_size,
        PADDED=triton.next_power_of_2(kernel_size),
        **LAUNCH,
    )
    sums = partial.sum(0)
    by_taps = sums[:num_taps].view(kernel_size, kernel_size, channels).clone()
    return by_taps, sums[num_taps].clone()


@gradient_op.register_fake
def _(grad: Tensor, x: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    channels = x.shape[3]
    by_taps = x.new_empty((kernel_size, kernel_size, channels), dtype=torch.float32)
    return by_taps, x.new_empty((channels,), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, taps, bias = inputs
    ctx.save_for_backward(x, taps)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, taps = ctx.saved_tensors
    wants_x, wants_taps, wants_bias = ctx.needs_input_grad
    by_x = by_taps = by_bias = None
    if wants_x:
        by_x = depthwise_op(grad, taps.flip(0, 1), None)
    if wants_taps or wants_bias:
        by_taps, by_bias = gradient_op(grad, x, taps.shape[0])
        by_taps = by_taps.to(taps.dtype)
        by_bias = None if ctx.bias_dtype is None else by_bias.to(ctx.bias_dtype)
    return by_x, by_taps, by_bias


depthwise_op.register_autograd(_backward, setup_context=_setup_context)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each channel with its own kernel, zero-padded to the same size, with stride 1.

    Args:
        x: (N, C, H, W) in fp32, bf16 or fp16, like the result; copied unless it is channels_last.
            Sums are in fp32. Under autocast x is converted; the weights may stay in fp32.
        weight: (C, 1, k, k), k odd.
        bias: (C,) or None.

    Returns:
        (N, C, H, W), channels_last.

    Raises:
        ValueError: If the weights do not fit.
    """
    y: Tensor = depthwise_op(run_in_autocast(x).permute(0, 2, 3, 1), taps_of(weight, x), bias)
    return y.permute(0, 3, 1, 2)


def taps_of(weight: Tensor, x: Tensor) -> Tensor:
    """Return weights (C, 1, k, k) as taps (k, k, C) for maps x (N, C, H, W).

    Raises:
        ValueError: If they do not fit.
    """
    channels, per_group, k, across = weight.shape
    if per_group != 1 or k != across or k % 2 == 0 or x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(
            "the depthwise kernel takes maps (N, C, H, W) and weights (C, 1, k, k) with k odd, "
            f"not {tuple(x.shape)} and {tuple(weight.shape)}; other convolutions stay torch's"
        )
    return weight.reshape(channels, k, k).permute(1, 2, 0)
