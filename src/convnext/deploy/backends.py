"""The backends that can run a network, as data, and the candidates worth trying on a device."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from convnext.deploy.fold import PointwiseForm
from convnext.hardware.peak_rates import has_fast_bf16

Engine = Literal["eager", "inductor", "openvino", "onnxruntime"]
Layout = Literal["channels_last", "channels_first"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Dense = Literal["direct", "winograd"]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A backend: how to run a folded network."""

    engine: Engine = "eager"
    """Eager torch, torch.compile with frozen weights, or another runtime."""
    pointwise: PointwiseForm = "linear"
    layout: Layout = "channels_last"
    precision: Precision = "fp32"
    dense: Dense = "direct"
    """Implementation of dense 3x3 convolutions: torch's, or `convnext.kernels.winograd`."""
    folded: bool = True
    """False only for the unmodified network."""

    def __str__(self) -> str:
        if not self.folded:
            return f"as trained {self.precision}"
        dense = "" if self.dense == "direct" else f" {self.dense}"
        return f"{self.engine} {self.pointwise} {self.layout} {self.precision}{dense}"


PLAIN = Backend(folded=False)

# Modules that an engine needs besides torch.
_NEEDS = {
    "eager": (),
    "inductor": (),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
}


def available(engine: Engine) -> bool:
    """Return whether the modules of an engine are installed; it may still fail."""
    return all(find_spec(name) is not None for name in _NEEDS[engine])


def candidates(device: torch.device, precision: str) -> list[Backend]:
    """Return the backends to try on a device, beginning with the fastest ones in LOG.md.

    Args:
        device: Runtimes other than torch are tried on CPUs only.
        precision: `fp32`, `bf16` or `fp16`; `auto` for fp32, and bf16 if it is faster on the
            device; `int8` for int8 first, then as `auto`.
    """
    on_cpu = device.type == "cpu"
    if precision == "int8":
        quantized = Backend(
            engine="openvino", pointwise="conv", layout="channels_first", precision="int8"
        )
        possible = on_cpu and available("openvino") and find_spec("nncf") is not None
        return [quantized] * possible + candidates(device, "auto")
    if precision == "auto":
        precisions = ["bf16", "fp32"] if has_fast_bf16(device) else ["fp32"]
    else:
        precisions = [precision]
    if on_cpu:
        shapes: list[tuple[Engine, PointwiseForm, Layout]] = [
            ("eager", "chunked", "channels_last"),
            ("openvino", "conv", "channels_first"),
            ("inductor", "conv", "channels_last"),
            ("inductor", "linear", "channels_last"),
            ("openvino", "linear", "channels_first"),
            ("eager", "conv", "channels_last"),
            ("onnxruntime", "linear", "channels_first"),
            ("onnxruntime", "conv", "channels_first"),
            ("eager", "conv", "channels_first"),
            ("inductor", "conv", "channels_first"),
        ]
    else:
        shapes = [
            ("inductor", "linear", "channels_last"),
            ("inductor", "conv", "channels_last"),
            ("eager", "linear", "channels_last"),
            ("eager", "conv", "channels_last"),
        ]
    return [
        Backend(engine=engine, pointwise=pointwise, layout=layout, precision=p)  # type: ignore[arg-type]
        for engine, pointwise, layout in shapes
        for p in precisions
        if available(engine) and not (engine == "onnxruntime" and p != "fp32")
    ]
