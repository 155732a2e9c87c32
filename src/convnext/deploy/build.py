"""From a form and a network to something that can be called with images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.deploy.fold import fold
from convnext.deploy.forms import Form, Precision
from convnext.deploy.layers import spell_out
from convnext.deploy.quiet import quiet
from convnext.device import AMP_DTYPES

Runner = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in fp32 to outputs in fp32."""

_FORMATS = {"channels_last": torch.channels_last, "channels_first": torch.contiguous_format}


def build(
    form: Form, model: nn.Module, example: Tensor, calibration: Sequence[Tensor] = ()
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
    if not form.folded:
        return _eager(model.eval(), form, torch.contiguous_format)
    folded = fold(model, form=form.pointwise)
    if form.precision == "int8":
        from convnext.deploy.quantize import int8_runner

        return int8_runner(folded, example, calibration)
    if form.engine == "openvino":
        return _openvino(spell_out(folded), example, form.precision)
    if form.engine == "onnxruntime":
        return _onnxruntime(folded, example)
    memory_format = _FORMATS[form.layout]
    dtype = AMP_DTYPES.get(form.precision, torch.float32)
    folded = folded.to(dtype).to(memory_format=memory_format)
    if form.engine == "inductor":
        # Freezing knows that weights stay as they are: it packs them, and computes what depends on
        # nothing else.
        folded = torch.compile(folded, dynamic=False, options={"freezing": True})  # type: ignore[assignment]
    return _eager(folded, form, memory_format)


def _eager(model: Callable[..., Any], form: Form, memory_format: torch.memory_format) -> Runner:
    dtype = AMP_DTYPES.get(form.precision, torch.float32)

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            outputs: Tensor = model(images.to(dtype=dtype, memory_format=memory_format))
        return outputs.float()

    return run


def _openvino(folded: nn.Module, example: Tensor, precision: Precision) -> Runner:
    import openvino

    with quiet():
        converted = openvino.convert_model(
            folded, example_input=example.contiguous(), input=[list(example.shape)]
        )
    compiled = openvino.Core().compile_model(
        converted,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
        },
    )
    request = compiled.create_infer_request()

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
            folded, (example.contiguous(),), str(path), dynamo=True, external_data=True
        )
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

    return run
