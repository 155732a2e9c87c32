"""Triton kernels for the expensive parts of a ConvNeXt block, used only if they are faster.

    depthwise  the k x k depthwise convolution over channels_last maps, forward and backward
    norm       the same with the layer norm after it, for inference
    mlp        the pointwise pair with the GELU between, for inference
    choose     `apply_kernels`: compares each kernel with torch's own and keeps the faster one
    graphs     `cuda_graph`: launches many small kernels as one, for small batches

Triton is imported when a kernel is first needed, and never by the rest of the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gpu_kernels.choose import apply_kernels as apply_kernels
    from gpu_kernels.graphs import cuda_graph as cuda_graph

_HOMES = {"apply_kernels": "choose", "cuda_graph": "graphs"}

__all__ = ["available", *_HOMES]


def available(device: torch.device) -> bool:
    """Return whether the kernels run on a device: Triton and a supported GPU are available.

    With TRITON_INTERPRET=1 in the environment they run slowly on a CPU, for tests.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gpu_kernels' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gpu_kernels.{_HOMES[name]}"), name)
