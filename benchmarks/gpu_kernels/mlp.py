"""The pointwise pair with its GELU, for inference: the wide activations never reach memory.

A program keeps some rows and all of their C outputs in registers, and iterates over chunks of the
hidden width: a product C -> chunk, GELU, a product chunk -> C. Layer scale and residual come last.
C is processed in one part or in three (`tuning.split`), so that 96, 192 and 384 channels leave
nothing unused.

Registers, compiled for compute capability 9.0 and bf16: up to 192 channels nothing spills; at 256
three configurations do not spill, at 384 one. Beyond that the sums do not fit, and two products of
the vendor's library are faster anyway.

Shapes: M rows, C channels, D hidden width.
"""

# Kernels are typed by Triton: constants in capitals, tuples that grow.
# ruff: noqa: N803, RUF005
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu_kernels.tuning import LAUNCH, run_in_autocast, split, tuned

# 64 rows of 384 sums in fp32 are 96 of the 255 registers of a thread of eight warps.
MAX_CHANNELS = 384

CONFIGS = [
    triton.Config({"ROWS": rows, "CHUNK": chunk}, num_warps=num_warps, num_stages=num_stages)
    for rows, chunk, num_warps, num_stages in (
        (64, 32, 4, 2),
        (64, 64, 4, 2),
        (64, 32, 8, 2),
        (64, 64, 8, 2),
        (128, 32, 8, 2),
        (128, 64, 8, 2),
        (128, 64, 8, 3),
        (64, 32, 8, 1),
    )
]


@triton.jit
def _add_product(a, b, sums, WIDEN: tl.constexpr):
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@tuned(CONFIGS, ["channels", "hidden", "HAS_RESIDUAL"])
@triton.jit
def _forward(
    x,
    w1,
    b1,
    w2,
    b2,
    scale,
    residual,
    y,
    num_rows,
    channels,
    hidden,
    HAS_SCALE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    WIDEN: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = m.to(tl.int64)[:, None] * channels
    is_row = (m < num_rows)[:, None]
    rows = ()
    sums = ()
    for part in tl.static_range(PARTS):
        c = part * WIDTH + tl.arange(0, WIDTH)
        inside = is_row & (c < channels)[None, :]
        rows = rows + (tl.load(x + at + c[None, :], mask=inside, other=0.0),)
        sums = sums + (tl.zeros((ROWS, WIDTH), tl.float32),)
    for start in range(0, hidden, CHUNK):
        d = start + tl.arange(0, CHUNK)
        wide = tl.zeros((ROWS, CHUNK), tl.float32)
        for part in tl.static_range(PARTS):
            c = part * WIDTH + tl.arange(0, WIDTH)
            weight = tl.load(
                w1 + d[None, :] * channels + c[:, None],
                mask=(c < channels)[:, None] & (d < hidden)[None, :],
                other=0.0,
            )
            wide = _add_product(rows[part], weight, wide, WIDEN)
        wide += tl.load(b1 + d, mask=d < hidden, other=0.0).to(tl.float32)[None, :]
        wide = 0.5 * wide * (1.0 + tl.erf(wide * 0.7071067811865476))
        wide = wide.to(x.dtype.element_ty)
        added = ()
        for part in tl.static_range(PARTS):
            c = part * WIDTH + tl.arange(0, WIDTH)
            weight = tl.load(
                w2 + c[None, :] * hidden + d[:, None],
                mask=(d < hidden)[:, None] & (c < channels)[None, :],
                other=0.0,
            )
            added = added + (_add_product(wide, weight, sums[part], WIDEN),)
        sums = added
    for part in tl.static_range(PARTS):
        c = part * WIDTH + tl.arange(0, WIDTH)
        is_channel = c < channels
        inside = is_row & is_channel[None, :]
        out = sums[part] + tl.load(b2 + c, mask=is_channel, other=0.0).to(tl.float32)[None, :]
        if HAS_SCALE:
            out *= tl.load(scale + c, mask=is_channel, other=0.0).to(tl.float32)[None, :]
        if HAS_RESIDUAL:
            to_add = tl.load(residual + at + c[None, :], mask=inside, other=0.0)
            out += to_add.to(tl.float32)
        tl.store(y + at + c[None, :], out.to(y.dtype.element_ty), mask=inside)


@torch.library.custom_op("convnext::pointwise_pair", mutates_args=())
def pointwise_pair_op(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scale: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Map (..., C) to (..., C) through D channels that are never written to memory."""
    x, w1, w2 = x.contiguous(), w1.contiguous(), w2.contiguous()
    hidden, channels = w1.shape
    y = torch.empty_like(x, dtype=_dtype(x, residual))
    num_rows = x.numel() // channels
    parts, width = split(channels)
    if num_rows:
        _forward[lambda tile: (triton.cdiv(num_rows, tile["ROWS"]),)](
            x,
            w1,
            b1.contiguous(),
            w2,
            b2.contiguous(),
            b2 if scale is None else scale.contiguous(),
            x if residual is None else residual.contiguous(),
            y,
            num_rows,
            channels,
            hidden,
            HAS_SCALE=scale is not None,
            HAS_RESIDUAL=residual is not None,
            # The interpreter would multiply the bits of bf16 as integers.
            WIDEN=triton.knobs.runtime.interpret and x.dtype == torch.bfloat16,
            PARTS=parts,
            WIDTH=width,
            **LAUNCH,
        )
    return y


@pointwise_pair_op.register_fake
def _(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scale: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    dtype = _dtype(x, residual)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def pointwise_pair(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return `residual + scale * (w2 gelu(w1 x + b1) + b2)`, the GELU exact. It has no gradient.

    Args:
        x: (..., C), fp32, bf16 or fp16; weights are converted to it. Sums are in fp32; what enters
            the second product has the dtype of x, as without the kernel.
        w1: (D, C).
        b1: (D,).
        w2: (C, D).
        b2: (C,).
        scale: The layer scale (C,); None if it is folded into the second product.
        residual: (..., C); None if there is nothing to add.

    Returns:
        (..., C), in the wider dtype of x and the residual.

    Raises:
        ValueError: If the shapes do not fit, or there are more than 384 channels.
    """
    channels = x.shape[-1]
    if w1.shape[1:] != (channels,) or w2.shape != (channels, len(w1)):
        raise ValueError(
            f"weights {tuple(w1.shape)} and {tuple(w2.shape)} do not fit rows {tuple(x.shape)}; "
            "give (D, C) and (C, D) for (..., C)"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual is {tuple(residual.shape)}, but x is {tuple(x.shape)}")
    if channels > MAX_CHANNELS:
        raise ValueError(
            f"{channels} channels do not fit into the registers of a program, {MAX_CHANNELS} do; "
            "use two linear layers"
        )
    x = run_in_autocast(x)
    y: Tensor = pointwise_pair_op(x, w1.to(x.dtype), b1, w2.to(x.dtype), b2, scale, residual)
    return y
