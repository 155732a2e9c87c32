"""int8 weights and activations, for CPUs with VNNI or AMX, by OpenVINO and NNCF.

Pointwise layers and the strided convolutions run in int8; the depthwise convolutions, which are no
faster in it, the norms and the sums of the residuals stay in fp32. Ranges come from images of the
user's own data. How much each layer alone changes the outputs is measured first, so that the most
sensitive ones can stay in fp32.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convnext.deploy.formats import Blueprint, ExportSettings, Given, to_openvino, write_onnx
from convnext.deploy.layers import spell_out
from convnext.deploy.runtimes import Array, need, open_exported, openvino_request, quiet
from convnext.deploy.verify import ProofImages
from convnext.hardware.timer import samples

# Layers that stay in fp32, the most sensitive ones: none, and if that loses too much, more.
NUM_KEPT = (0, 4, 12)
NUM_TIMED = 5
# What is no product is not worth an int8 of its own, and the variance of a norm does not bear it.
FLOAT_TYPES = (
    "GroupConvolution",
    "Multiply",
    "Add",
    "Subtract",
    "ReduceMean",
    "ReduceSum",
    "Power",
)
FLOAT_ONNX_TYPES = ("LayerNormalization", "Mul", "Add", "Sub", "ReduceMean", "Pow", "Erf", "Div")


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer in int8 does to the outputs of a network."""

    name: str
    error: float
    """Relative L2 distance of the outputs."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What int8 needs of a task: how its images look to the graph, and where layers show."""

    num_images: int
    """Images of training that ranges are taken from, at most."""
    num_judged: int
    """Of them, those that layers are judged on."""
    pixels: Callable[[Image.Image], Tensor]
    """From an image to pixels, uint8 (1, C, H, W), all of one size where they are judged."""
    given: Callable[[Tensor], Given]
    """From pixels to what the graph takes."""
    parts: Callable[[Sequence[Tensor]], tuple[nn.Module, Tensor]]
    """From the pixels to judge by to a folded network and its input; layer names are those of the
    graph's network."""


def calibrate(
    calibration: Calibration, images: ProofImages, note: Callable[[str], None]
) -> tuple[list[Given], list[LayerSensitivity]]:
    """Read images of training, and measure how sensitive each layer is.

    Returns:
        Images as the graph takes them, and what each layer alone in int8 does to the outputs, the
        worst first.

    Raises:
        ValueError: If no image can be read.
    """
    found = images.calibration(calibration.num_images)
    pixels = [calibration.pixels(image) for image in found]
    if not pixels:
        raise ValueError(
            "int8 needs images to calibrate its ranges on, and none of those given can be read; "
            "give --images FOLDER"
        )
    judged = pixels[: calibration.num_judged]
    note(f"measuring how sensitive each layer is to int8, on {len(judged)} images")
    network, inputs = calibration.parts(judged)
    return [calibration.given(x) for x in pixels], sensitivity(network, inputs)


@torch.no_grad()
def sensitivity(network: nn.Module, images: Tensor) -> list[LayerSensitivity]:
    """Return how much each dense product in int8, alone, changes the outputs; the worst first.

    Weights are rounded per output channel, inputs per tensor within the range that they have on
    these images, as the runtime does it.

    Args:
        network: A folded classifier or segmentor, or the parts of a detector.
        images: Normalised, (N, C, H, W).
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "groups", 1) == 1
    }
    expected = network(images)
    found = []
    for name, layer in layers.items():
        weight = layer.weight.data
        layer.weight.data = _rounded_weight(weight)
        hook = layer.register_forward_pre_hook(lambda _, inputs: (_rounded_input(inputs[0]),))
        try:
            outputs = network(images)
        finally:
            hook.remove()
            layer.weight.data = weight
        error = torch.linalg.vector_norm(outputs - expected) / torch.linalg.vector_norm(expected)
        found.append(LayerSensitivity(name, float(error)))
    return sorted(found, key=lambda layer: -layer.error)


def _rounded_weight(weight: Tensor) -> Tensor:
    """Return weights of 255 steps, symmetric about 0, for each output channel."""
    rows = weight.flatten(1)
    step = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (torch.round(rows / step) * step).view_as(weight)


def _rounded_input(x: Tensor) -> Tensor:
    """Return activations of 256 steps from the least to the largest."""
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    step = ((high - low) / 255).clamp_min(1e-12)
    return torch.round((x - low) / step) * step + low


def quantize(
    network: nn.Module,
    example: Tensor,
    calibration: Sequence[Tensor],
    *,
    batch: int | None = None,
    keep_float: Sequence[str] = (),
) -> Any:
    """Return OpenVINO's model of a network with its products in int8.

    Args:
        network: Folded with `form="conv"`, norms spelled out; or a graph around one.
        example: What it takes.
        calibration: Batches of what it takes, from the user's data.
        batch: The batch of the model; None leaves it open.
        keep_float: Names of modules that stay in fp32.

    Raises:
        ValueError: If there is nothing to calibrate on, or a library is not installed.
    """
    blueprint = Blueprint(graph=network, examples=(example,), open_dims=({0: None},))
    given = [(part,) for images in calibration for part in torch.split(images, 1)]
    model = quantize_graph(blueprint, given, keep_float=keep_float)
    if batch is not None:
        model.reshape([batch, *example.shape[1:]])
    return model


def quantize_graph(
    blueprint: Blueprint, calibration: Sequence[Given], *, keep_float: Sequence[str] = ()
) -> Any:
    """Return OpenVINO's model of a graph with its products in int8.

    Args:
        blueprint: Open in its batch, if it takes several images.
        calibration: One image each, as the graph takes it.
        keep_float: As in `quantize`.

    Raises:
        ValueError: As `quantize`.
    """
    (nncf,) = need("nncf")
    with quiet():
        converted = to_openvino(blueprint)
    return _calibrated(nncf, converted, calibration, FLOAT_TYPES, keep_float)


def _calibrated(
    nncf: Any,
    model: Any,
    calibration: Sequence[Given],
    float_types: Sequence[str],
    keep_float: Sequence[str],
    names: Sequence[str] | None = None,
) -> Any:
    if not calibration:
        raise ValueError("int8 needs images to calibrate its ranges on; give --images FOLDER")
    import logging

    nncf.set_log_level(logging.ERROR)

    def given(item: Given) -> Any:
        arrays = [part.numpy() for part in item]
        if names is not None:
            return dict(zip(names, arrays, strict=True))
        return arrays if len(arrays) > 1 else arrays[0]

    scope = nncf.IgnoredScope(
        types=list(float_types),
        patterns=[
            *(f".*{layer.replace('.', '[./]')}/.*" for layer in keep_float),
            ".*aten::bmm.*",  # No layer: masks are pasted so.
        ],
        validate=False,
    )
    # Its progress bars are no output of a program.
    with quiet(), contextlib.redirect_stdout(sys.stderr):
        return nncf.quantize(
            model,
            nncf.Dataset(list(calibration), given),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            ignored_scope=scope,
        )


def write_int8(
    blueprint: Blueprint,
    path: Path,
    metadata: dict[str, str],
    calibration: Sequence[Given],
    settings: ExportSettings,
    keep_float: Sequence[str] = (),
) -> str:
    """Write a graph in int8; return what is wrong with its speed, or nothing.

    Raises:
        ValueError: As `quantize`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _write_int8(
            *(blueprint, path, metadata, calibration, settings, keep_float),
            plain=Path(folder) / "float.onnx",
        )


def _write_int8(
    blueprint: Blueprint,
    path: Path,
    metadata: dict[str, str],
    calibration: Sequence[Given],
    settings: ExportSettings,
    keep_float: Sequence[str],
    *,
    plain: Path,
) -> str:
    assert settings.inside != "full"
    if settings.format == "onnx":
        onnx, nncf = need("onnx", "nncf")
        write_onnx(blueprint, plain, metadata, settings)
        model = _calibrated(
            nncf,
            onnx.load(str(plain)),
            calibration,
            FLOAT_ONNX_TYPES,
            keep_float,
            blueprint.inputs,
        )
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, str(path))
        fast, slow = (open_exported(p).call for p in (path, plain))
    else:
        (openvino,) = need("openvino")
        # Calibrated image by image.
        batched = len(blueprint.inputs) == 1
        dims = tuple({0: None, **d} if batched else d for d in blueprint.open_dims)
        opened = replace(blueprint, open_dims=dims)
        model = quantize_graph(opened, calibration, keep_float=keep_float)
        if batched and settings.batch is not None:
            shape = [-1 if i in blueprint.open_dims[0] else n
                     for i, n in enumerate(blueprint.examples[0].shape)]  # fmt: skip
            model.reshape(shape)
        model.set_rt_info(json.dumps(metadata), ["convnext"])
        openvino.save_model(model, str(path))
        fast, slow = (_openvino_call(m) for m in (model, to_openvino(blueprint)))
    ratio = _ratio(slow, fast, [example.numpy() for example in blueprint.examples])
    if ratio < 1:
        return f"int8 is slower on this machine, {ratio:.2f} times fp32 in the same runtime"
    return ""


def _openvino_call(model: Any) -> Callable[[Sequence[Array]], Any]:
    request = openvino_request(model, "fp32")
    return lambda given: request.infer(list(given))


def openvino_runner(model: Any, precision: str = "fp32") -> Callable[[Array], Array]:
    """Return what runs an OpenVINO model with the threads that torch has."""
    request = openvino_request(model, precision)
    return lambda images: np.array(request.infer([images], share_inputs=True)[0])


def _ratio(
    slow: Callable[[Sequence[Array]], Any],
    fast: Callable[[Sequence[Array]], Any],
    given: Sequence[Array],
) -> float:
    """Return how many times as fast one is as the other, in turns."""
    # The first turn allocates, and does not count.
    slow_s, fast_s = samples([partial(run, given) for run in (slow, fast)], rounds=NUM_TIMED)
    return statistics.median(a / b for a, b in zip(slow_s, fast_s, strict=True))


def int8_runner(
    folded: nn.Module, example: Tensor, calibration: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return a folded network in int8 as a function of normalised images in torch."""
    model = quantize(spell_out(folded, two_passes=False), example, calibration, batch=len(example))
    run = openvino_runner(model)
    return lambda images: torch.from_numpy(run(images.contiguous().numpy())).float()
