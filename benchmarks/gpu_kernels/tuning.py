"""How every kernel is compiled and tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

# Fusing products and sums halves the arithmetic of the depthwise convolution. Triton 3.10 no longer
# does so by itself.
LAUNCH = {"enable_fp_fusion": True}


def tuned(configs: Sequence[triton.Config], key: Sequence[str]) -> Callable[[Any], Any]:
    """Return the decorator that picks the fastest configuration for each value of some arguments.

    Results are kept on disk, so that later runs on this machine add in the same order and get the
    same bits. The interpreter has nothing to measure and takes the first configuration.
    """
    if triton.knobs.runtime.interpret:
        configs = configs[:1]
    decorate: Callable[[Any], Any] = triton.autotune(
        configs=list(configs), key=list(key), cache_results=True
    )
    return decorate


def run_in_autocast(x: Tensor) -> Tensor:
    """Return x in the dtype that autocast uses for a convolution or product."""
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def split(channels: int) -> tuple[int, int]:
    """Return the number and the width of the parts that channels are split into: (1 or 3, 2^n).

    Tiles have powers of two, networks 96, 192, 384 channels: three parts leave nothing unused.
    """
    whole = triton.next_power_of_2(channels)
    third = triton.next_power_of_2(triton.cdiv(channels, 3))
    parts, width = (3, third) if 3 * third < whole else (1, whole)
    # Tensor cores multiply matrices of at least 16 x 16.
    return (parts, width) if width >= 16 else (1, max(16, whole))
