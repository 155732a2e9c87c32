"""The backends that can run a network: as data, as candidates for a device, and their builders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from convnext.deploy.fold import PointwiseForm, fold
from convnext.deploy.layers import spell_out
from convnext.deploy.runtimes import import_openvino, need, openvino_request, quiet
from convnext.hardware.devices import AMP_DTYPES, autocast
from convnext.hardware.peak_rates import has_fast_bf16
from convnext.kernels.winograd import with_winograd

Runner = Callable[[Tensor], Tensor]
"""Maps images (N, C, H, W) in fp32 to outputs in fp32."""

# Maximum number of compiled networks of one class; torch's default of 8 runs the next one eagerly.
NUM_COMPILED = 256
_FORMATS = {"channels_last": torch.channels_last, "channels_first": torch.contiguous_format}


def build(
    backend: Backend, model: nn.Module, example: Tensor, calibration: Sequence[Tensor] = ()
) -> Runner:
    """Build a backend. Engines other than eager only take images of the example's shape.

    Args:
        backend: The backend; its engine must be installed.
        model: A network in evaluation mode and fp32; it is not changed.
        example: Images (N, C, H, W) in fp32, on the network's device.
        calibration: For int8, batches of images from the user's data.

    Raises:
        Exception: Any exception of an engine that cannot build this network on this machine.
    """
    if not backend.folded:
        return _as_trained(model.eval(), backend.precision)
    with torch.autocast(example.device.type, enabled=False):  # Tracers would record its casts.
        folded = fold(model, form=backend.pointwise)
        if backend.dense == "winograd":
            folded = with_winograd(folded)
        return _build(backend, folded, example, calibration)


def _as_trained(model: nn.Module, precision: Precision) -> Runner:
    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        with autocast(images.device, precision):
            outputs: Tensor = model(images)
        return outputs.float()

    return run


def _build(
    backend: Backend, folded: nn.Module, example: Tensor, calibration: Sequence[Tensor]
) -> Runner:
    if backend.precision == "int8":
        from convnext.deploy.quantize import int8_runner

        return int8_runner(folded, example, calibration)
    if backend.engine == "openvino":
        return _openvino(spell_out(folded), example, backend.precision)
    if backend.engine == "onnxruntime":
        return _onnxruntime(folded, example)
    memory_format = _FORMATS[backend.layout]
    dtype = AMP_DTYPES.get(backend.precision, torch.float32)
    folded = folded.to(dtype).to(memory_format=memory_format)

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            outputs: Tensor = folded(images.to(dtype=dtype, memory_format=memory_format))
        return outputs.float()

    return _inductor(folded, run) if backend.engine == "inductor" else run


def _inductor(folded: nn.Module, run: Runner) -> Runner:
    """Compile a network in place, and return a function that runs it.

    Freezing packs the weights and precomputes everything that depends on them only. It must be set
    in torch's global config: as an option of the compiler it comes too late, since the tracer has
    already turned the weights into inputs.
    """
    from torch._dynamo import config as tracer
    from torch._inductor import config as compiler

    folded.compile(dynamic=False)

    def compiled(images: Tensor) -> Tensor:
        with (
            compiler.patch(freezing=True),
            tracer.patch(recompile_limit=NUM_COMPILED),
        ):
            return run(images)

    return compiled


def _openvino(folded: nn.Module, example: Tensor, precision: Precision) -> Runner:
    openvino = import_openvino()
    with quiet():
        converted = openvino.convert_model(
            folded, example_input=example.contiguous(), input=[list(example.shape)]
        )
    request = openvino_request(converted, precision)

    def run(images: Tensor) -> Tensor:
        outputs = request.infer([images.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(outputs[0]).float()

    return run


def _onnxruntime(folded: nn.Module, example: Tensor) -> Runner:
    (onnxruntime,) = need("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            folded,
            (example.contiguous(),),
            str(path),
            dynamo=True,
            external_data=True,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

    return run


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
