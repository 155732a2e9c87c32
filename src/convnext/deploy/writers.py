"""The files themselves: a graph as ONNX, as OpenVINO's model, as a program of torch.export."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.deploy.export_settings import OPSET, ExportSettings
from convnext.deploy.runtimes import EXTRA, need


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A graph and all that a writer needs to know of it."""

    graph: nn.Module
    examples: tuple[Tensor, ...]
    """What it takes."""
    open_dims: tuple[Mapping[int, Any], ...]
    """Of every input, the `torch.export.Dim` of the dimensions that stay open."""
    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ("output",)

    def program(self) -> torch.export.ExportedProgram:
        """Return the graph as torch.export has it."""
        shapes = tuple(dict(dims) for dims in self.open_dims)
        return torch.export.export(self.graph, self.examples, dynamic_shapes=shapes)


def write_onnx(
    blueprint: Blueprint, path: Path, metadata: dict[str, str], settings: ExportSettings
) -> None:
    """Write a graph with the exporter of torch, weights inside."""
    onnx, _ = need("onnx", "onnxscript")
    torch.onnx.export(
        blueprint.program(),
        (),
        str(path),
        input_names=list(blueprint.inputs),
        output_names=list(blueprint.outputs),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    written = onnx.load(str(path))
    onnx.helper.set_model_props(written, metadata)
    written.producer_name = "convnext"
    onnx.save(written, str(path))


def write_openvino(
    blueprint: Blueprint, path: Path, metadata: dict[str, str], settings: ExportSettings
) -> None:
    """Write a graph as `.xml`, and its weights as `.bin` beside it."""
    (openvino,) = need("openvino")
    converted = to_openvino(blueprint)
    converted.set_rt_info(json.dumps(metadata), ["convnext"])
    openvino.save_model(converted, str(path), compress_to_fp16=settings.precision == "fp16")


def to_openvino(blueprint: Blueprint) -> Any:
    """Return OpenVINO's model of a graph, straight from torch: twice as fast as by way of ONNX."""
    (openvino,) = need("openvino")
    kinds = {torch.uint8: openvino.Type.u8, torch.int64: openvino.Type.i64}
    given = []
    for example, dims in zip(blueprint.examples, blueprint.open_dims, strict=True):
        shape = [-1 if i in dims else n for i, n in enumerate(example.shape)]
        kind = kinds.get(example.dtype, openvino.Type.f32)
        given.append((openvino.PartialShape(shape), kind))
    examples = blueprint.examples
    converted = openvino.convert_model(
        blueprint.graph,
        example_input=examples[0] if len(examples) == 1 else examples,
        input=given,
    )
    for port, name in zip(converted.inputs, blueprint.inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(converted.outputs, blueprint.outputs, strict=True):
        port.get_tensor().set_names({name})
    return converted


def write_pt2(
    blueprint: Blueprint, path: Path, metadata: dict[str, str], settings: ExportSettings
) -> None:
    """Write a graph as an archive of tensors and a program."""
    torch.export.save(blueprint.program(), str(path), extra_files={EXTRA: json.dumps(metadata)})


Given = tuple[Tensor, ...]
"""All that a graph takes: images, and of a detector their height and width."""
Writer = Callable[[Blueprint, Path, dict[str, str], ExportSettings], None]
WRITERS: dict[str, Writer] = {"onnx": write_onnx, "openvino": write_openvino, "pt2": write_pt2}
