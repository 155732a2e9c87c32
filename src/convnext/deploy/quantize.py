"""Quantize weights and activations to int8 with OpenVINO and NNCF, for CPUs with VNNI or AMX.

Pointwise layers and strided convolutions run in int8. Depthwise convolutions, which int8 does not
speed up, norms and residual sums stay in fp32. Ranges are calibrated on the user's images. The
effect of each layer alone on the outputs is measured first, so that the most sensitive layers can
stay in fp32.
"""

from __future__ import annotations

import contextlib
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

from convnext.data.tensors import normalize_batch
from convnext.deploy.fold import fold
from convnext.deploy.formats import (
    Blueprint,
    ExportSettings,
    Given,
    save_onnx,
    save_openvino,
    to_openvino,
    write_onnx,
)
from convnext.deploy.graphs import as_given
from convnext.deploy.layers import spell_out
from convnext.deploy.runtimes import Array, need, open_exported, openvino_request, quiet
from convnext.deploy.verify import ProofImages
from convnext.hardware.tuner import samples

# Number of layers that stay in fp32, most sensitive first: try none, then more if needed.
NUM_KEPT = (0, 4, 12)
NUM_TIMED = 5
# Only products gain from int8, and the variance of a norm does not tolerate it.
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
    """How much one layer in int8 changes the outputs of a network."""

    name: str
    error: float
    """Relative L2 distance of the outputs."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The task-specific parts of calibration: how images enter the graph and the network."""

    num_images: int
    """Maximum number of training images to calibrate ranges on."""
    num_judged: int
    """The number of these on which the sensitivity of layers is measured."""
    pixels: Callable[[Image.Image], Tensor]
    """Converts an image to pixels, uint8 (1, C, H, W); all of one size to measure sensitivity."""
    given: Callable[[Tensor], Given]
    """Converts pixels to the inputs of the graph."""
    parts: Callable[[Sequence[Tensor]], tuple[nn.Module, Tensor]]
    """Converts the pixels to a folded network and its input; layer names match the graph's."""


def image_calibration(
    model: nn.Module,
    preprocessing: Any,
    settings: ExportSettings,
    *,
    num_judged: int,
    pixels: Callable[[Image.Image], Tensor] | None = None,
) -> Calibration:
    """Return the calibration of a network that takes batches of images.

    Args:
        model: The network.
        preprocessing: How images become pixels.
        settings: Those of the file.
        num_judged: See `Calibration`.
        pixels: See `Calibration`; by default as in preprocessing.
    """

    def preprocessed(image: Image.Image) -> Tensor:
        return torch.from_numpy(preprocessing.pixels(image))[None]

    return Calibration(
        num_images=128,
        num_judged=num_judged,
        pixels=pixels or preprocessed,
        given=lambda x: as_given(x, preprocessing, settings),
        parts=lambda several: (
            fold(model, form="conv"),
            normalize_batch(preprocessing, torch.cat(list(several))),
        ),
    )


def calibrate(
    calibration: Calibration, images: ProofImages, note: Callable[[str], None]
) -> tuple[list[Given], list[LayerSensitivity]]:
    """Read training images, and measure how sensitive each layer is to int8.

    Returns:
        The inputs of the graph, and the sensitivity of each layer, most sensitive first.

    Raises:
        ValueError: If no image can be read.
    """
    found = images.calibration(calibration.num_images)
    pixels = [calibration.pixels(image) for image in found]
    if not pixels:
        raise ValueError(
            "int8 needs calibration images, and none of the images can be read; "
            "give --images FOLDER"
        )
    judged = pixels[: calibration.num_judged]
    note(f"measuring how sensitive each layer is to int8, on {len(judged)} images")
    network, inputs = calibration.parts(judged)
    return [calibration.given(x) for x in pixels], sensitivity(network, inputs)


@torch.no_grad()
def sensitivity(network: nn.Module, images: Tensor) -> list[LayerSensitivity]:
    """Measure how much each dense product alone in int8 changes the outputs; largest first.

    As in the runtime, weights are rounded per output channel, and inputs per tensor within their
    range on these images.

    Args:
        network: A folded classifier or segmentation network, or the parts of a detector.
        images: Normalized, (N, C, H, W).
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
    """Round weights to 255 levels, symmetric about 0, per output channel."""
    rows = weight.flatten(1)
    step = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (torch.round(rows / step) * step).view_as(weight)


def _rounded_input(x: Tensor) -> Tensor:
    """Round activations to 256 levels from minimum to maximum."""
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
    """Convert a network to an OpenVINO model with its products in int8.

    Args:
        network: Folded with `form="conv"` and `spell_out`, or a graph around such a network.
        example: An example of the network's input.
        calibration: Batches of inputs from the user's data.
        batch: The batch size of the model; None for any.
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
    """Convert a graph to an OpenVINO model with its products in int8.

    Args:
        blueprint: A graph of any batch size, if it takes several images.
        calibration: Inputs of the graph, one image each.
        keep_float: As for `quantize`.

    Raises:
        ValueError: As for `quantize`.
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
        raise ValueError("int8 needs calibration images; give --images FOLDER")
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
            ".*aten::bmm.*",  # Not a layer: it pastes masks.
        ],
        validate=False,
    )
    # Hide its progress bars.
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
    """Write a graph in int8; return the reason if it is too slow, or "".

    Raises:
        ValueError: As for `quantize`.
    """
    # Beside the file: what a killed process leaves is removed with its draft.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
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
        save_onnx(model, path, metadata)
        fast, slow = (open_exported(p).call for p in (path, plain))
    else:
        # It was calibrated on one image at a time.
        batched = len(blueprint.inputs) == 1
        dims = tuple({0: None, **d} if batched else d for d in blueprint.open_dims)
        opened = replace(blueprint, open_dims=dims)
        model = quantize_graph(opened, calibration, keep_float=keep_float)
        if batched and settings.batch is not None:
            shape = [-1 if i in blueprint.open_dims[0] else n
                     for i, n in enumerate(blueprint.examples[0].shape)]  # fmt: skip
            model.reshape(shape)
        save_openvino(model, path, metadata)
        fast, slow = (_openvino_call(m) for m in (model, to_openvino(blueprint)))
    ratio = _ratio(slow, fast, [example.numpy() for example in blueprint.examples])
    if ratio < 1:
        return f"int8 is slower on this machine: {ratio:.2f} x fp32 in the same runtime"
    return ""


def _openvino_call(model: Any) -> Callable[[Sequence[Array]], Any]:
    request = openvino_request(model, "fp32")
    return lambda given: request.infer(list(given))


def openvino_runner(model: Any, precision: str = "fp32") -> Callable[[Array], Array]:
    """Return a function that runs an OpenVINO model with torch's number of threads."""
    request = openvino_request(model, precision)
    return lambda images: np.array(request.infer([images], share_inputs=True)[0])


def _ratio(
    slow: Callable[[Sequence[Array]], Any],
    fast: Callable[[Sequence[Array]], Any],
    given: Sequence[Array],
) -> float:
    """Return the speedup of one over the other, measured in turns."""
    # The first turn allocates memory and does not count.
    slow_s, fast_s = samples([partial(run, given) for run in (slow, fast)], rounds=NUM_TIMED)
    return statistics.median(a / b for a, b in zip(slow_s, fast_s, strict=True))


def int8_runner(
    folded: nn.Module, example: Tensor, calibration: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return a folded network in int8 as a function of normalized torch images."""
    model = quantize(spell_out(folded, two_passes=False), example, calibration, batch=len(example))
    run = openvino_runner(model)
    return lambda images: torch.from_numpy(run(images.contiguous().numpy())).float()
