"""What is in an exported file, and how each format is written: ONNX, OpenVINO, torch.export.

Settings are the user's, a `Blueprint` is a graph with all that a writer needs to know about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from convnext.deploy.runtimes import EXTRA, need

Format = Literal["onnx", "openvino", "pt2"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Inside = Literal["none", "normalize", "full"]
"""How much of the preprocessing is in a file: nothing (images are normalized floats, N C H W), the
normalization (pixels, uint8 N H W C, of the network's size), or all of it (one whole image, uint8
1 H W C, of any size)."""
Masks = Literal["none", "shares", "full"]
"""Of a task with objects: no masks, the shares of 28 x 28 cells of each box, or a bitmap of the
image."""
AnySize = Literal["any"]
LIBRARIES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "pt2": (),
}
"""Modules that write and run a format, beside torch; int8 needs nncf too."""
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
# LayerNormalization came with 17, antialiasing and fp16 casts of today's runtimes with 18.
OPSET = 18
MAX_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is in a file, and in which form. What only some tasks have, the task checks."""

    format: Format = "onnx"
    precision: Precision = "fp32"
    inside: Inside = "normalize"
    answers: bool = True
    """Probabilities of a classifier, labels of a segmentor; else logits."""
    batch: int | None = None
    """Images at a time; None leaves it open."""
    size: tuple[int, int] | AnySize | None = None
    """Height and width of the images; "any" leaves both open; None for those of the checkpoint."""
    masks: Masks | None = None
    """Of a detector; None for `shares` where it has masks."""

    def __post_init__(self) -> None:
        """Check what goes together.

        Raises:
            ValueError: Naming the field, its value and what it can be.
        """
        for value, kinds, name in (
            (self.format, Format, "format"),
            (self.precision, Precision, "precision"),
            (self.inside, Inside, "preprocess"),
            (self.masks or "none", Masks, "masks"),
        ):
            if value not in get_args(kinds):
                raise ValueError(f"{name} is {value!r}; choose of {', '.join(get_args(kinds))}")
        if self.batch is not None and not 1 <= self.batch <= MAX_BATCH:
            raise ValueError(f"batch is {self.batch}, but must be from 1 to {MAX_BATCH:,}")
        if isinstance(self.size, tuple) and min(self.size) < 1:
            raise ValueError(f"size is {self.size[0]} x {self.size[1]}, but must be positive")
        if self.format == "onnx" and self.precision == "bf16":
            raise ValueError(
                "ONNX Runtime has no kernels for bf16 on CPUs: take fp16, or OpenVINO for bf16"
            )
        if self.format == "pt2" and self.precision == "int8":
            raise ValueError("int8 is for OpenVINO and ONNX: --format openvino --precision int8")
        if self.precision == "int8" and self.inside == "full":
            raise ValueError(
                "int8 is calibrated on pixels of the network's size: take --preprocess normalize"
            )
        if self.precision == "int8" and self.format == "onnx" and self.batch is not None:
            raise ValueError("int8 in ONNX leaves the batch open: leave out --batch")
        if self.inside == "full" and self.batch not in (None, 1):
            raise ValueError(
                "with --preprocess full a file takes one image at a time: leave out --batch, or "
                "take --preprocess normalize"
            )

    @property
    def fixed_batch(self) -> int | None:
        """How many images a file takes at a time; None for any number."""
        return 1 if self.inside == "full" else self.batch


Given = tuple[Tensor, ...]
"""Everything that a graph takes for one image: pixels, and of a detector their height and width."""


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A graph and all that a writer needs to know about it."""

    graph: nn.Module
    examples: tuple[Tensor, ...]
    """What it takes."""
    open_dims: tuple[Mapping[int, Any], ...]
    """For every input, the `torch.export.Dim` of the dimensions that stay open."""
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


Writer = Callable[[Blueprint, Path, dict[str, str], ExportSettings], None]
WRITERS: dict[str, Writer] = {"onnx": write_onnx, "openvino": write_openvino, "pt2": write_pt2}
