"""Build a backend of a network: a function that takes images and returns outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from convnext.deploy.backends import Backend, Precision
from convnext.deploy.fold import fold
from convnext.deploy.layers import spell_out
from convnext.deploy.runtimes import import_openvino, openvino_request, quiet
from convnext.hardware.devices import AMP_DTYPES, autocast
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
    import onnxruntime

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
