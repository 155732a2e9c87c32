"""What a machine can do at most, measured, and what a network asks of it, counted."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnext.hardware.devices import wait_for
from convnext.hardware.peak_rates import matrix_limit
from convnext.models.flops import cost, in_chans

# Larger than any cache, small enough for a laptop.
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31, "mps": 2**29}
NUM_COPIES = 7


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Operations per second of a large matrix product, and bytes per second of a large copy."""

    flops: dict[str, float]
    """By precision."""
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one image asks of a machine."""

    params: int
    flops: int
    """Two for each multiply-accumulate."""
    activation_bytes: int
    """What convolutions and linear layers read and write in fp32, if all else is fused to them."""
    weight_bytes: int
    """In fp32; once for each batch."""

    def bytes_of(self, batch: int, precision: str) -> float:
        """Return what a batch reads and writes in a precision."""
        in_fp32 = batch * self.activation_bytes + self.weight_bytes
        return in_fp32 if precision == "fp32" else in_fp32 / 2


def measure_limits(device: torch.device, precisions: Iterable[str]) -> Limits:
    """Measure for about a second, with the threads that torch has."""
    flops = {precision: matrix_limit(device, precision) for precision in precisions}
    return Limits(flops=flops, bytes_per_s=copy_limit(device))


def copy_limit(device: torch.device) -> float:
    """Return bytes read and written per second by the copy of a large tensor."""
    source = torch.ones(COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(NUM_COPIES):
        began = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        times.append(time.perf_counter() - began)
    return 2 * source.nbytes / min(times[1:])


def demand(model: nn.Module, size: tuple[int, int]) -> Demand:
    """Count on shapes alone what an image of `size` (H, W) asks for."""
    counted = cost(model, size)
    shapes = copy.deepcopy(model).to("meta").eval()
    moved = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += 4 * (inputs[0].numel() + output.numel())

    hooks = [
        m.register_forward_hook(count)
        for m in shapes.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    images = torch.empty(1, in_chans(model), *size, device="meta")
    with torch.no_grad():
        getattr(shapes, "run_for_cost", shapes)(images)
    for hook in hooks:
        hook.remove()
    return Demand(
        params=counted.params,
        flops=2 * counted.macs,
        activation_bytes=moved,
        weight_bytes=4 * counted.params,
    )
