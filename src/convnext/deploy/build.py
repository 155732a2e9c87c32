"""From a form and a network to something that can be called with images."""

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
"""Images (N, C, H, W) in fp32 to outputs in fp32."""

# Networks of one class that a process may compile; torch runs the ninth in eager mode by default.
NUM_COMPILED = 256
_FORMATS = {"channels_last": torch.channels_last, "channels_first": torch.contiguous_format}


def build(
    backend: Backend, model: nn.Module, example: Tensor, calibration: Sequence[Tensor] = ()
) -> Runner:
    """Return a network in a form. Engines other than eager are built for the example's shape alone.

    Args:
        form: Any whose engine is installed.
        model: In evaluation mode and fp32; it is left as it is.
        example: Images (N, C, H, W) in fp32, on the network's device.
        calibration: For int8: batches of images like it, from the user's data.

    Raises:
        Exception: Whatever an engine raises that cannot build this network here.
    """
    if not backend.folded:
        return _as_trained(model.eval(), backend.precision)
    with torch.autocast(example.device.type, enabled=False):  # Tracers would write it down.
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
    """Compile a network in place, and return what runs it.

    Freezing knows that weights stay as they are: it packs them, and computes what depends on
    nothing else. Of torch's settings, as an option of the compiler alone it comes too late: the
    tracer has made the weights inputs by then.
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
