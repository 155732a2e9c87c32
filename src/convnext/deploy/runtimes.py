"""Exported files, run by their own runtime: ONNX Runtime, OpenVINO, or torch for pt2.

`Exported` runs a file; `ExportedNetwork` lets it take the place of a network in `predict` and
`evaluate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convnext.data.images import Mode, as_mode
from convnext.data.preprocessing import Pixels, to_array
from convnext.deploy.build import import_openvino, openvino_request
from convnext.deploy.pt2 import checked_archive
from convnext.tasks.detection.export.exported import ExportedDetector, OnCanvas
from convnext.tasks.segmentation.any_size import LEAST_ANY
from convnext.weights.checkpoint import Card

SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}
EXTRA = "convnext.json"
"""Where a pt2 file keeps its metadata."""
Array = NDArray[Any]


@dataclass(frozen=True)
class Exported:
    """A file in its runtime."""

    path: Path
    metadata: Mapping[str, str]
    call: Callable[[Sequence[Array]], list[Array]]
    """From all that the graph takes to all that it gives."""

    def run(self, images: Array) -> Array:
        """Return what a graph of one input and one output gives."""
        return self.call([images])[0]

    @property
    def graph(self) -> dict[str, Any]:
        """What the file computes beside the network; see `convnext.deploy.export`."""
        return facts_of_graph(self.metadata)


def facts_of_graph(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what metadata say of a graph; nothing if they are none of ours."""
    try:
        known = json.loads(metadata.get("graph", "{}"))
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def is_exported(path: str | Path) -> bool:
    """Tell whether a path names an exported file, by its ending."""
    return Path(path).suffix in SUFFIXES


def need(*modules: str) -> list[Any]:
    """Import what an extra brings.

    Raises:
        ValueError: If it is not installed.
    """
    import importlib

    try:
        if "openvino" in modules:  # NNCF imports it, too.
            import_openvino()
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        raise ValueError(
            f"this needs {error.name}, which is not installed: pip install 'convnext[export]'"
        ) from error


def open_exported(path: str | Path) -> Exported:
    """Open a file for running.

    Raises:
        ValueError: If there is no such file, its runtime is not installed, it was not exported by
            this package, or it holds what could execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    openers = {"onnx": _open_onnx, "openvino": _open_openvino, "pt2": _open_pt2}
    exported = openers[SUFFIXES[path.suffix]](path)
    if not {"inside", "precision"} <= exported.graph.keys():
        raise ValueError(f"{path} was not written by `convnext export`: it does not say what it is")
    return exported


def _open_onnx(path: Path) -> Exported:
    (ort,) = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # Its exceptions share no base class.
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    names = [entry.name for entry in session.get_inputs()]
    metadata = session.get_modelmeta().custom_metadata_map

    def call(given: Sequence[Array]) -> list[Array]:
        found: list[Array] = session.run(None, dict(zip(names, given, strict=True)))
        return found

    return Exported(path, metadata, call)


def _open_openvino(path: Path) -> Exported:
    (openvino,) = need("openvino")
    try:
        model = openvino.Core().read_model(str(path))
        metadata = json.loads(model.get_rt_info(["convnext"]).astype(str))
    except Exception as error:  # Likewise.
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    # Halves of a file are stored so; they are computed with in fp32.
    is_bf16 = facts_of_graph(metadata).get("precision") == "bf16"
    request = openvino_request(model, "bf16" if is_bf16 else "fp32")

    def call(given: Sequence[Array]) -> list[Array]:
        found = request.infer([np.ascontiguousarray(array) for array in given])
        # The result's memory is the request's: it is copied before the next call.
        return [np.array(found[i]) for i in range(len(found))]

    return Exported(path, metadata, call)


def _open_pt2(path: Path) -> Exported:
    import torchvision  # noqa: F401 - A detector's program calls its operators.

    extra = {EXTRA: ""}
    program = torch.export.load(checked_archive(path), extra_files=extra)
    module = program.module()
    metadata = json.loads(extra[EXTRA] or "{}")

    def call(given: Sequence[Array]) -> list[Array]:
        with torch.inference_mode():
            found = module(*map(torch.from_numpy, given))
        return [out.numpy() for out in ((found,) if isinstance(found, Tensor) else found)]

    return Exported(path, metadata, call)


class ExportedNetwork(nn.Module):
    """An exported file as a network: pixels (N, C, H, W) in fp32, 0 to 255, to logits.

    Files that normalise are given pixels, others normalised images; probabilities come back as
    their logarithms, and labels as logits of 1 and 0. Files of fixed size are given windows that
    are filled up with the mean colour.
    """

    def __init__(self, exported: Exported, card: Card) -> None:
        super().__init__()
        self.exported = exported
        self.num_classes = len(card.classes)
        self.graph = exported.graph
        grey = mean_pixel(card)
        self.colour = torch.zeros_like(grey) if self.graph["inside"] == "none" else grey

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits (N, K), or (N, K, H, W) of a segmentor."""
        height, width = images.shape[2:]
        if self.graph["inside"] != "full":
            images = fill_up(images, filled_size(self.graph, height, width), self.colour)
        given = images if self.graph["inside"] == "none" else _as_pixels(images)
        parts = [self.exported.run(part) for part in self._batches(given)]
        out = torch.from_numpy(np.concatenate(parts)[: len(given)])
        if self.graph["output"] == "probabilities":
            return out.clamp_min(1e-38).log()
        if self.graph["output"] == "labels":
            out = votes(out, self.num_classes)
        return out[..., :height, :width] if out.ndim == 4 else out

    def _batches(self, given: Tensor) -> list[Array]:
        size = self.graph["batch"] or len(given)
        parts = []
        for part in torch.split(given, size):
            missing = size - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])
            parts.append(filled.contiguous().numpy())
        return parts


def votes(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels (N, H, W) as logits of 1 and 0, (N, K, H, W): windows that overlap vote."""
    return nn.functional.one_hot(labels.long(), num_classes).permute(0, 3, 1, 2).float()


def filled_size(graph: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """Return the height and width that a file is given images of, which are filled up to it."""
    if graph["size"] is not None:
        return graph["size"][0], graph["size"][1]
    return max(height, LEAST_ANY), max(width, LEAST_ANY)


def mean_pixel(card: Card) -> Tensor:
    """Return the pixel nearest to the mean of the normalisation, (C,) from 0 to 255."""
    return (255 * torch.tensor(card.preprocessing.mean)).round()


def fill_up(images: Tensor, size: Sequence[int], colour: Tensor) -> Tensor:
    """Return images (N, C, H, W) with a colour (C,) below and to the right of them, up to a size.

    Raises:
        ValueError: If they are larger.
    """
    height, width = images.shape[2:]
    if height > size[0] or width > size[1]:
        raise ValueError(
            f"the file takes images of {size[0]} x {size[1]} pixels, not {height} x {width}: give "
            f"--window {min(size)}"
        )
    filled = colour.to(images).view(-1, 1, 1).expand(*images.shape[:2], *size).clone()
    filled[:, :, :height, :width] = images
    return filled


def _as_pixels(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class NoNormalization:
    """The preprocessing of a checkpoint without its last step, which is inside of a file.

    `whole` leaves the resizing to the file, too.
    """

    normalizes: ClassVar[bool] = False
    inner: Any
    whole: bool

    @property
    def mode(self) -> Mode:
        """As the checkpoint's."""
        return cast(Mode, self.inner.mode)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def pixels(self, image: Image.Image) -> Pixels:
        """Return uint8 (C, H, W)."""
        if self.whole:
            return to_array(as_mode(image, self.mode))
        return cast(Pixels, self.inner.pixels(image))

    def normalize(self, batch: Array) -> NDArray[np.float32]:
        """Return uint8 pixels (N, C, H, W) as fp32, 0 to 255."""
        return batch.astype(np.float32)


def open_as_network(path: str | Path) -> tuple[ExportedNetwork | ExportedDetector, Card]:
    """Return an exported file as a network, and its card with the preprocessing that is left.

    Raises:
        ValueError: As `open_exported`.
    """
    exported = open_exported(path)
    card = Card.from_metadata(exported.metadata, where=str(path))
    network: ExportedNetwork | ExportedDetector
    if card.task == "detect":
        network = ExportedDetector(exported, card).eval()
    else:
        network = ExportedNetwork(exported, card).eval()
    inside, size = exported.graph["inside"], exported.graph["size"]
    if card.task == "detect" and size is not None:
        fitted = OnCanvas(inner=card.preprocessing, size=tuple(size))
        card = replace(card, preprocessing=fitted)
    if card.task == "segment" and size is not None:  # Of one size: it slides over larger images.
        own = {"mode": "slide", "window": min(size), "stride": max(1, 2 * min(size) // 3)}
        segment = {**card.recipe.get("segment", {}), **own}
        card = replace(card, recipe={**card.recipe, "segment": segment})
    if inside != "none":
        left = NoNormalization(inner=card.preprocessing, whole=inside == "full")
        card = replace(card, preprocessing=left)
    return network, card
