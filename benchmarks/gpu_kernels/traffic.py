"""What a piece must move and compute, and what a device could do in that time.

The floor of a piece is the largest of three times: bytes over bandwidth, products on the tensor
cores, and operations outside of them. The last one is what 49 products a value (depthwise) and the
error function (GELU) are limited by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Piece = Literal["conv", "conv training", "spatial", "pair"]

# Instructions of an erf in fp32: an estimate, not counted in a compiled kernel.
ERF_OPS = 25


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device does in a second."""

    bytes: float
    tensor_flops: float
    """In bf16."""
    other_ops: float
    """Fused multiply-adds and other single instructions outside of the tensor cores."""


# Assumed: what is reached of bandwidth and matrix rate; 132 multiprocessors, 128 lanes, 1.7 GHz.
H200 = Device(bytes=4.3e12, tensor_flops=790e12, other_ops=28.7e12)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call of a piece needs, at least."""

    bytes: float
    tensor_flops: float = 0.0
    other_ops: float = 0.0

    def seconds(self, device: Device) -> float:
        """Return the least seconds that a device needs for it."""
        return max(
            self.bytes / device.bytes,
            self.tensor_flops / device.tensor_flops,
            self.other_ops / device.other_ops,
        )


def work_of(
    piece: Piece, option: str, shape: Sequence[int], itemsize: int, *, kernel_size: int = 7
) -> list[Work]:
    """Return the passes of an option of a piece, for maps (N, C, H, W), which run one by one.

    Options: `torch`, one pass for each of torch's layers; `depthwise`; `fused`. The hidden width
    of a pair is 4C. Weights are left out; they are small where memory counts.
    """
    num, channels, height, width = shape
    values = num * channels * height * width
    one = values * itemsize
    conv = Work(bytes=2 * one, other_ops=kernel_size**2 * values)
    norm = Work(bytes=2 * one, other_ops=8 * values)
    product = 2 * values * 4 * channels
    erf = ERF_OPS * 4 * values
    if piece == "conv":
        return [conv]
    if piece == "conv training":
        # Forward, and backward by input and by weight.
        return [conv, conv, conv]
    if piece == "spatial":
        if option != "fused":
            return [conv, norm]
        both = kernel_size**2 * values + 8 * values
        return [Work(bytes=2 * one, other_ops=both)]
    if option == "fused":
        return [Work(bytes=3 * one, tensor_flops=2 * product, other_ops=erf)]
    return [
        Work(bytes=5 * one, tensor_flops=product),
        Work(bytes=8 * one, other_ops=erf),
        Work(bytes=5 * one, tensor_flops=product),
        Work(bytes=2 * one),  # The layer scale.
        Work(bytes=3 * one),  # The residual.
    ]


def floor_seconds(passes: Sequence[Work], device: Device = H200) -> float:
    """Return the least seconds of passes that run one after the other."""
    return sum(work.seconds(device) for work in passes)


def total_bytes(passes: Sequence[Work]) -> float:
    """Return the bytes that passes move."""
    return sum(work.bytes for work in passes)
