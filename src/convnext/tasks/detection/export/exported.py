"""An exported file with the interface of a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.data.images import Mode, as_mode
from convnext.data.masks import paste_masks
from convnext.data.preprocessing import RESAMPLING, DensePreprocessing, Pixels, to_array
from convnext.deploy.formats import Masks
from convnext.deploy.graphs import to_pixels
from convnext.deploy.runtimes import Exported, outside
from convnext.tasks.detection.export.graph import OUTPUTS
from convnext.tasks.detection.model.heads import DetectorConfig
from convnext.weights.checkpoint import Card


class ExportedDetector(nn.Module):
    """An exported detector with the interface of `Detector`.

    Its images are normalized, or pixels from 0 to 255 if the file normalizes. `config` has the
    inference settings; the file reports no more than it was exported with.
    """

    def __init__(self, exported: Exported, card: Card) -> None:
        super().__init__()
        self.exported = exported
        self.graph = exported.graph
        _check(self.graph, exported.source)
        known = {field.name for field in fields(DetectorConfig)}
        own = {name: value for name, value in card.changes.items() if name in known}
        written = {name: value for name, value in self.graph.items() if name in known}
        written["masks"] = self.graph["masks"] != "none"
        try:
            self.config = DetectorConfig(**{**own, **written})
        except TypeError as error:
            raise ValueError(f"{exported.source} has damaged metadata: {error}") from error

    def forward(self, images: Sequence[Tensor], *, paste: bool = True) -> list[dict[str, Tensor]]:
        """Detect objects on images (C, H, W), as `Detector` does.

        Without `paste` the masks are mask probabilities `shares` (M, 28, 28) if the file has them.
        """
        return [self._detect(image, paste=paste) for image in images]

    def change(self, **changes: Any) -> None:
        """Restrict the inference settings.

        Raises:
            ValueError: If the file reports less than a setting asks for.
        """
        limit = changes.get("max_detections", 1)
        score = changes.get("score_threshold", 1.0)
        graph = self.graph
        for wrong, name in (
            (score < graph["score_threshold"], "score_threshold"),
            (changes.get("nms_threshold", graph["nms_threshold"]) != graph["nms_threshold"],
             "nms_threshold"),
            (limit > graph["max_detections"], "max_detections"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(
                    f"{self.exported.path} was exported with a {name} of {graph[name]:g}, which "
                    f"cannot become {changes[name]:g}; use the network it was exported from"
                )
        self.config = replace(self.config, **changes)

    def _detect(self, image: Tensor, *, paste: bool) -> dict[str, Tensor]:
        height, width = image.shape[1:]
        outputs = self.exported.call(self._inputs(image.cpu()))
        found = {
            name: torch.from_numpy(out)
            for name, out in zip(self.graph["outputs"], outputs, strict=True)
        }
        # Detections are sorted by score; padding has a score of 0.
        threshold = max(self.config.score_threshold, 1e-12)
        num = min(int((found["scores"] >= threshold).sum()), self.config.max_detections)
        found = {name: out[:num] for name, out in found.items()}
        found["labels"] = found["labels"].long()
        if self.graph["masks"] == "full":
            found["masks"] = found["masks"][:, :height, :width].bool()
        elif self.graph["masks"] == "shares":
            shares = found.pop("masks")
            if paste:
                size, threshold = (height, width), self.config.mask_threshold
                found["masks"] = paste_masks(shares, found["boxes"], size, threshold)
            else:
                found["shares"] = shares
        return found

    def _inputs(self, image: Tensor) -> list[Any]:
        """Return the inputs of the file for an image (C, H, W)."""
        height, width = image.shape[1:]
        if self.graph["inside"] == "full":
            return [to_pixels(image[None]).contiguous().numpy()]
        canvas = self.graph["size"]
        if height > canvas[0] or width > canvas[1]:
            raise ValueError(
                f"the file takes images of up to {canvas[0]} x {canvas[1]} pixels, not {height} x "
                f"{width}"
            )
        filled = F.pad(image, (0, canvas[1] - width, 0, canvas[0] - height))[None]
        given = filled if self.graph["inside"] == "none" else to_pixels(filled)
        return [given.contiguous().numpy(), torch.tensor([height, width]).numpy()]


def _check(graph: Mapping[str, Any], where: str) -> None:
    """Check the metadata that only files of detectors have.

    Raises:
        ValueError: If an entry is missing or damaged; the message names the first one.
    """
    masks, numbers = graph.get("masks"), ("score_threshold", "nms_threshold", "mask_threshold")
    for name, is_right in (
        ("masks", masks in get_args(Masks)),
        ("outputs", graph.get("outputs") == list(OUTPUTS[: 3 if masks == "none" else 4])),
        ("size", graph["size"] is not None or graph["inside"] == "full"),
        ("max_detections", type(graph.get("max_detections")) is int),
        *((name, type(graph.get(name)) in (int, float)) for name in numbers),
    ):
        if not is_right:
            value = repr(graph.get(name))[:40]
            raise ValueError(f"{where} has damaged metadata: {name} of the graph is {value}")


def open_network(exported: Exported) -> tuple[ExportedDetector, Card]:
    """Return a file as a detector, and a card with the preprocessing outside of the file.

    That preprocessing shrinks images that are too large for the file.
    """
    card, graph = exported.card, exported.graph
    network, pre = ExportedDetector(exported, card).eval(), card.preprocessing
    if graph["size"] is not None:
        pre = OnCanvas(inner=pre, size=tuple(graph["size"]))
    return network, replace(card, preprocessing=outside(pre, graph["inside"]))


@dataclass(frozen=True, kw_only=True)
class OnCanvas:
    """Preprocessing for a file with a size limit: larger images are shrunk."""

    inner: DensePreprocessing
    size: tuple[int, int]
    """Height and width."""

    @property
    def mode(self) -> Mode:
        """Mode of the checkpoint's preprocessing."""
        return self.inner.mode

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an image of this size is resized to."""
        read = self.inner.size_of(width, height)
        rows, columns = self.size
        if read[0] <= columns and read[1] <= rows:
            return read
        # Integers as in the file; the side with the larger ratio fills the canvas.
        over, under = (rows, height) if height * columns > width * rows else (columns, width)
        fitted = ((2 * side * over + under) // (2 * under) for side in (width, height))
        fitted_width, fitted_height = (max(1, side) for side in fitted)
        return fitted_width, fitted_height

    def pixels(self, image: Image.Image) -> Pixels:
        """Return uint8 pixels (C, H, W) for the network, from an image of any mode."""
        size = self.size_of(*image.size)
        if size == self.inner.size_of(*image.size):
            return self.inner.pixels(image)
        shrunk = as_mode(image, self.mode).resize(size, RESAMPLING[self.inner.interpolation])
        return to_array(shrunk)
