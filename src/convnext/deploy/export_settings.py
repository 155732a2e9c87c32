"""What is in an exported file, and in which form: the settings of `convnext export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from convnext.deploy.graphs import Inside

Format = Literal["onnx", "openvino", "pt2"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Masks = Literal["none", "shares", "full"]
"""Of a detector: no masks, the shares of 28 x 28 cells of each box, or a bitmap of the image."""
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
    """What is in a file, and in which form."""

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

    def check_task(self, task: str) -> None:
        """Check what only some tasks have.

        Raises:
            ValueError: Naming the option and what to take instead.
        """
        if task != "detect" and self.masks is not None:
            raise ValueError("--masks is for detectors")
        if task == "classify" and isinstance(self.size, tuple) and self.size[0] != self.size[1]:
            raise ValueError(
                f"a classifier's images are squares, not {self.size[0]} x {self.size[1]}: take "
                f"--size {min(self.size)}"
            )
        if task == "segment" and self.inside == "full":
            raise ValueError(
                "a segmentor looks at images in their own ratio, and so is given them resized: "
                "take --preprocess normalize"
            )
        if self.size == "any" and task != "segment":
            what = "classifier" if task == "classify" else "detector"
            raise ValueError(
                f"--size any is for segmentors: the file of a {what} takes images of one size"
                + (", and smaller ones within it" if task == "detect" else "")
            )
        if task != "detect":
            return
        if not self.answers:
            raise ValueError("a detector has no logits to give; leave out --logits")
        if self.batch not in (None, 1):
            raise ValueError("a detector's file takes one image at a time; leave out --batch")
        if self.format == "openvino" and self.precision == "bf16":
            raise ValueError(
                "OpenVINO computes the corners of boxes in bf16, too, which loses pixels: take "
                "--precision int8 or fp32"
            )
        if self.format == "onnx" and self.precision == "int8":
            raise ValueError(
                "a detector's int8 is for OpenVINO: --format openvino --precision int8"
            )
