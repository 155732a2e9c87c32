"""The memory traffic and operations of a piece, and the minimum time that a device needs for them.

The minimum time is the largest of three: bytes over bandwidth, products on the tensor cores, and
operations outside the tensor cores. The last one limits the 49 products per value of a depthwise
convolution and the error function of the GELU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Piece = Literal["conv", "conv training", "spatial", "pair"]

# Instructions of an erf in fp32: an estimate, not a count from a compiled kernel.
ERF_OPS = 25


@dataclass(frozen=True, kw_only=True)
class Device:
    """The rates of a device, per second."""

    bytes: float
    tensor_flops: float
    """In bf16."""
    other_ops: float
    """Fused multiply-adds and other single instructions outside the tensor cores."""


# Assumed reachable bandwidth and matrix rate; 132 multiprocessors, 128 lanes, 1.7 GHz.
H200 = Device(bytes=4.3e12, tensor_flops=790e12, other_ops=28.7e12)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The minimum work of one call of a piece."""

    bytes: float
    tensor_flops: float = 0.0
    other_ops: float = 0.0

    def seconds(self, device: Device) -> float:
        """Return the minimum seconds that a device needs."""
        return max(
            self.bytes / device.bytes,
            self.tensor_flops / device.tensor_flops,
            self.other_ops / device.other_ops,
        )


def work_of(
    piece: Piece, option: str, shape: Sequence[int], itemsize: int, *, kernel_size: int = 7
) -> list[Work]:
    """Return the consecutive passes of an option of a piece, for maps (N, C, H, W).

    Options: `torch`, one pass for each of torch's layers; `depthwise`; `fused`. The hidden width
    of a pair is 4C. Weights are not counted; they are small where memory is the limit.
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
        # Forward, and backward for the input and the weight.
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
    """Return the minimum seconds of passes that run one after the other."""
    return sum(work.seconds(device) for work in passes)


def total_bytes(passes: Sequence[Work]) -> float:
    """Return the bytes that passes move."""
    return sum(work.bytes for work in passes)
