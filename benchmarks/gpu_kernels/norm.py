"""The depthwise convolution and the layer norm after it in one pass over memory, for inference.

A program holds all channels of its pixels, in one part or in three (`tuning.split`). With more
channels, fewer pixels share what is read. If this costs more than writing and reading the map
between the two layers, `gpu_kernels.choose` keeps them separate.

Registers: a thread holds up to `ROWS * TILE / threads` sums, and the inputs and taps of one part of
a row. Compiled for compute capability 9.0, at least four configurations do not spill at
96, 256, 768, 1024, 1536 and `MAX_CHANNELS` channels (the last stage of xlarge); tuning drops those
that do.
"""

# Kernels are typed by Triton: constants in capitals, tuples that grow.
# ruff: noqa: N803, N806, RUF005
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu_kernels.depthwise import taps_of, window_sums
from gpu_kernels.tuning import LAUNCH, run_in_autocast, split, tuned

MAX_CHANNELS = 2048

CONFIGS = [
    triton.Config({"ROWS": rows, "TILE": tile}, num_warps=num_warps)
    for rows, tile, num_warps in (
        # 16 bytes of bf16 a thread with three parts,
        (2, 1024, 1),
        (4, 1024, 1),
        (2, 2048, 2),
        (4, 2048, 2),
        # and with one.
        (2, 1024, 4),
        (4, 1024, 4),
        (2, 2048, 8),
        (4, 2048, 8),
    )
]


@tuned(CONFIGS, ["height", "width", "channels", "KERNEL"])
@triton.jit
def _forward(
    x,
    taps,
    bias,
    scale,
    shift,
    y,
    eps,
    height,
    width,
    channels,
    KERNEL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_AFFINE: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    COLUMNS: tl.constexpr = 1 if TILE < PADDED else TILE // PADDED
    at = tl.program_id(0)
    w = at % tl.cdiv(width, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    at = at // tl.cdiv(width, COLUMNS)
    top = at % tl.cdiv(height, ROWS) * ROWS
    image = (at // tl.cdiv(height, ROWS)).to(tl.int64) * height * width * channels
    sums = ()
    for part in tl.static_range(PARTS):
        c = part * WIDTH + tl.arange(0, WIDTH)
        of_part = window_sums(x + image, taps, top, w, c, height, width, channels, KERNEL, ROWS)
        for row in tl.static_range(ROWS):
            out = of_part[row]
            if HAS_BIAS:
                out += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            sums = sums + (out,)
    for row in tl.static_range(ROWS):
        mean = tl.zeros((COLUMNS,), tl.float32)
        for part in tl.static_range(PARTS):
            mean += tl.sum(sums[part * ROWS + row], axis=1) / channels
        variance = tl.zeros((COLUMNS,), tl.float32)
        for part in tl.static_range(PARTS):
            c = part * WIDTH + tl.arange(0, WIDTH)
            away = sums[part * ROWS + row] - mean[:, None]
            away = tl.where((c < channels)[None, :], away, 0.0)
            variance += tl.sum(away * away, axis=1) / channels
        inverse = tl.rsqrt(variance + eps)
        h = top + row + 0 * w
        for part in tl.static_range(PARTS):
            c = part * WIDTH + tl.arange(0, WIDTH)
            out = (sums[part * ROWS + row] - mean[:, None]) * inverse[:, None]
            if IS_AFFINE:
                by = tl.load(scale + c, mask=c < channels, other=0.0).to(tl.float32)
                plus = tl.load(shift + c, mask=c < channels, other=0.0).to(tl.float32)
                out = out * by[None, :] + plus[None, :]
            tl.store(
                y + image + (h * width + w)[:, None] * channels + c[None, :],
                out.to(y.dtype.element_ty),
                mask=((w < width) & (h < height))[:, None] & (c < channels)[None, :],
            )


@torch.library.custom_op("convnext::depthwise_norm", mutates_args=())
def depthwise_norm_op(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> Tensor:
    """Convolve maps (N, H, W, C) with taps (k, k, C), and normalize each pixel over C."""
    x, taps = x.contiguous(), taps.contiguous()
    num, height, width, channels = x.shape
    parts, part_width = split(channels)
    padded = triton.next_power_of_2(parts) * part_width
    y = torch.empty_like(x)

    def grid(tile: dict[str, int]) -> tuple[int]:
        columns = max(1, tile["TILE"] // padded)
        return (num * triton.cdiv(height, tile["ROWS"]) * triton.cdiv(width, columns),)

    if x.numel():
        _forward[grid](
            x,
            taps,
            taps if bias is None else bias.contiguous(),
            taps if scale is None else scale.contiguous(),
            taps if shift is None else shift.contiguous(),
            y,
            eps,
            height,
            width,
            channels,
            KERNEL=taps.shape[0],
            HAS_BIAS=bias is not None,
            IS_AFFINE=scale is not None,
            PARTS=parts,
            WIDTH=part_width,
            PADDED=padded,
            **LAUNCH,
        )
    return y


@depthwise_norm_op.register_fake
def _(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def depthwise_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Return the layer norm of a depthwise convolution over its channels. It has no gradient.

    Args:
        x: (N, C, H, W) in fp32, bf16 or fp16, like the result; copied unless it is channels_last.
            Between the two layers everything is in fp32.
        weight: (C, 1, k, k), k odd.
        bias: (C,) or None.
        norm_weight: (C,); None for a norm whose weights are folded into the next layer.
        norm_bias: (C,), with `norm_weight`.
        eps: The epsilon of the norm.

    Returns:
        (N, C, H, W), channels_last.

    Raises:
        ValueError: If the weights do not fit, or there are more than 2048 channels.
    """
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("give norm_weight and norm_bias together, or neither")
    if x.shape[1] > MAX_CHANNELS:
        raise ValueError(
            f"{x.shape[1]} channels do not fit into the registers of a program, {MAX_CHANNELS} do; "
            "use depthwise and a norm after it"
        )
    taps = taps_of(weight, x)
    maps = run_in_autocast(x).permute(0, 2, 3, 1)
    y: Tensor = depthwise_norm_op(maps, taps, bias, norm_weight, norm_bias, eps)
    return y.permute(0, 3, 1, 2)
