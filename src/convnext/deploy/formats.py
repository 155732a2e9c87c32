"""Settings of exported files, and a writer for each format: ONNX, OpenVINO, torch.export.

A `Blueprint` is a graph with everything that a writer needs to know about it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from convnext.deploy.runtimes import Inside, need
from convnext.deploy.untrusted import EXTRA, digest_of, digest_of_archive, digest_of_file
from convnext.weights.checkpoint import DIGEST, EXPORTED

Format = Literal["onnx", "openvino", "pt2"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Masks = Literal["none", "shares", "full"]
"""For detection: no masks, 28 x 28 mask probabilities for each box, or a bitmap of the image's
size."""
AnySize = Literal["any"]
LIBRARIES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "pt2": (),
}
"""Modules, besides torch, that write and run a format; int8 also needs nncf."""
SUFFIX = {format: suffix for suffix, format in EXPORTED.items()}
# 17 introduced LayerNormalization, 18 antialiasing; current runtimes need 18 for fp16 casts.
OPSET = 18
NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
MAX_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of an exported file. The task checks settings that only some tasks have."""

    format: Format = "onnx"
    precision: Precision = "fp32"
    inside: Inside = "normalize"
    answers: bool = True
    """Output probabilities (classification) or labels (segmentation) instead of logits."""
    batch: int | None = None
    """Batch size; None for any."""
    size: tuple[int, int] | AnySize | None = None
    """Height and width of the images; "any" for any; None for those of the checkpoint."""
    masks: Masks | None = None
    """Masks of a detector; None for `shares` if it predicts masks."""

    def __post_init__(self) -> None:
        """Check the settings and their combinations.

        Raises:
            ValueError: If one is invalid; names the field, its value and the valid values.
        """
        for value, kinds, name in (
            (self.format, Format, "format"),
            (self.precision, Precision, "precision"),
            (self.inside, Inside, "preprocess"),
            (self.masks or "none", Masks, "masks"),
        ):
            if value not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise ValueError(f"{name} is {value!r}, but must be one of {known}")
        if self.batch is not None and not 1 <= self.batch <= MAX_BATCH:
            raise ValueError(f"batch is {self.batch}, but must be from 1 to {MAX_BATCH:,}")
        if isinstance(self.size, tuple) and min(self.size) < 1:
            raise ValueError(f"size is {self.size[0]} x {self.size[1]}, but must be positive")
        if self.format == "onnx" and self.precision == "bf16":
            raise ValueError(
                "ONNX Runtime has no bf16 kernels for CPUs: use fp16, or OpenVINO for bf16"
            )
        if self.format == "pt2" and self.precision == "int8":
            raise ValueError(
                "pt2 has no int8; use --format openvino --precision int8, or --format onnx"
            )
        if self.precision == "int8" and self.inside == "full":
            raise ValueError(
                "int8 is calibrated on pixels of the network's input size: use "
                "--preprocess normalize"
            )
        if self.precision == "int8" and self.format == "onnx" and self.batch is not None:
            raise ValueError("int8 in ONNX takes any batch size: leave out --batch")
        if self.inside == "full" and self.batch not in (None, 1):
            raise ValueError(
                "with --preprocess full a file takes one image at a time: leave out --batch, or "
                "use --preprocess normalize"
            )

    @property
    def fixed_batch(self) -> int | None:
        """The batch size; None for any."""
        return 1 if self.inside == "full" else self.batch


Given = tuple[Tensor, ...]
"""All inputs of a graph for one image: pixels, and for detection their height and width."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A graph with everything that a writer needs to know about it."""

    graph: nn.Module
    examples: tuple[Tensor, ...]
    """Example inputs."""
    open_dims: tuple[Mapping[int, Any], ...]
    """The `torch.export.Dim` of each input's dynamic dimensions."""
    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ("output",)

    def program(self) -> torch.export.ExportedProgram:
        """Export the graph with torch.export, without the notes on its nodes.

        They contain stack traces, and so paths of this machine and lines of code.

        Raises:
            ValueError: If torch.export does not support the network.
        """
        shapes = tuple(dict(dims) for dims in self.open_dims)
        try:
            program = torch.export.export(self.graph, self.examples, dynamic_shapes=shapes)
        except MemoryError:
            raise
        except Exception as error:  # Whatever a network of the user's own raises.
            raise ValueError(
                "torch.export does not support this network; its `forward` must compute the same "
                f"operations for every number and size of images: {_first_lines(error)}"
            ) from error
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta = {k: v for k, v in node.meta.items() if k not in NOTES}
        return program


def _first_lines(error: Exception) -> str:
    """Return the beginning of an error that may fill pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:400]


def write_onnx(
    blueprint: Blueprint, path: Path, metadata: dict[str, str], settings: ExportSettings
) -> None:
    """Write a graph with torch's exporter, including the weights."""
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
    _remove_notes(written.graph)
    written.producer_name = "convnext"
    save_onnx(written, path, metadata)


def save_onnx(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX model with its metadata and the SHA-256 of its weights."""
    (onnx,) = need("onnx")
    digest = digest_of(tensor.SerializeToString() for tensor in model.graph.initializer)
    onnx.helper.set_model_props(model, {**metadata, DIGEST: digest})
    onnx.save(model, str(path))


def _remove_notes(graph: Any) -> None:
    """Remove from an ONNX graph what torch's exporter adds, such as the names of our classes."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.HasField("g"):
            _remove_notes(attribute.g)


def write_openvino(
    blueprint: Blueprint, path: Path, metadata: dict[str, str], settings: ExportSettings
) -> None:
    """Write a graph as `.xml`, and its weights as `.bin` next to it."""
    fp16 = settings.precision == "fp16"
    save_openvino(to_openvino(blueprint), path, metadata, compress_to_fp16=fp16)


def save_openvino(model: Any, path: Path, metadata: Mapping[str, str], **options: Any) -> None:
    """Write an OpenVINO model with its metadata and the SHA-256 of its weights."""
    (openvino,) = need("openvino")
    openvino.save_model(model, str(path), **options)
    # The second time, the same weights are written with what is known about them now.
    digest = digest_of_file(path.with_suffix(".bin"))
    model.set_rt_info(json.dumps({**metadata, DIGEST: digest}), ["convnext"])
    openvino.save_model(model, str(path), **options)


def to_openvino(blueprint: Blueprint) -> Any:
    """Convert a graph to an OpenVINO model without ONNX, which runs twice as fast."""
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
    program, content = blueprint.program(), BytesIO()
    torch.export.save(program, content)
    with zipfile.ZipFile(content) as archive:
        digest = digest_of_archive({name: archive.read(name) for name in archive.namelist()})
    content = BytesIO()  # On a full disk, torch's own writer would end the process.
    extra = {EXTRA: json.dumps({**metadata, DIGEST: digest})}
    torch.export.save(program, content, extra_files=extra)
    path.write_bytes(content.getbuffer())


Writer = Callable[[Blueprint, Path, dict[str, str], ExportSettings], None]
WRITERS: dict[str, Writer] = {"onnx": write_onnx, "openvino": write_openvino, "pt2": write_pt2}
