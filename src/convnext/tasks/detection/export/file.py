"""What the file of a detector computes: pixels to boxes, scores, labels and masks.

`DetectorGraph` is the detector itself, on a canvas of fixed size. Around it go, by option, the
resizing, the normalisation, and the bitmaps of the masks. What is not image is zero after the
normalisation, as everywhere in detection, whatever lay there before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convnext.data.preprocessing import DensePreprocessing
from convnext.deploy.export_settings import ExportSettings, Masks
from convnext.deploy.fold import fold
from convnext.deploy.graphs import FittedImage, Inside, Pixels, halved
from convnext.deploy.layers import Scaled, spell_out
from convnext.deploy.writers import Blueprint
from convnext.hardware.devices import AMP_DTYPES
from convnext.tasks.detection.export.graph import OUTPUTS, DetectorGraph, check_size, paste
from convnext.tasks.detection.model.anchors import DIVISOR
from convnext.tasks.detection.model.batch import padded_size
from convnext.tasks.detection.model.config import DetectorConfig
from convnext.tasks.detection.model.detector import Detector
from convnext.weights.checkpoint import Card

# Sides of images that a file with everything inside may be given.
LEAST_SIDE, MOST_SIDE = 8, 32768


class DetectorFile(nn.Module):
    """An image on a canvas, and its height and width; or with all preprocessing one of any size.

    Args:
        graph: On the canvas.
        preprocessing: Of the detector.
        inside: How much of it is in the file.
        masks: What is returned beside boxes, scores and labels.
        mask_threshold: Share from which a pixel belongs to an object.

    Boxes are in the pixels of the images that are given.
    """

    def __init__(
        self,
        graph: DetectorGraph,
        preprocessing: DensePreprocessing,
        *,
        inside: Inside,
        masks: Masks,
        mask_threshold: float,
    ) -> None:
        super().__init__()
        self.detect = graph  # `graph` would be an attribute of the tracers' modules.
        self.inside = inside
        self.masks = masks
        self.mask_threshold = mask_threshold
        self.prepare: nn.Module = {"none": nn.Identity(), "normalize": Pixels()}.get(
            inside
        ) or FittedImage(preprocessing, graph.size)
        mean, std = (255 * torch.tensor(v) for v in (preprocessing.mean, preprocessing.std))
        self.normalize = nn.Identity() if inside == "none" else Scaled(1 / std, -mean / std)

    def forward(self, images: Tensor, size: Tensor | None = None) -> tuple[Tensor, ...]:
        """Map images, and their height and width (2,) unless all is inside, to detections."""
        if self.inside == "full":
            x, extent, given = self.prepare(images)
        else:
            assert size is not None
            x, extent = self.prepare(images), size.float()
            given = extent
        rows, columns = (torch.arange(n, device=x.device).float() for n in self.detect.size)
        image = self.normalize(x) * ((rows < extent[0])[:, None] * (columns < extent[1])[None])
        boxes, scores, labels, *shares = self.detect(image, extent)
        height, width = (given / extent).unbind()
        boxes = boxes * torch.stack((width, height, width, height))
        if self.masks != "full":
            return boxes, scores, labels, *shares
        if self.inside == "full":
            rows, columns = (torch.ones_like(x).float().cumsum(0) - 1 for x in _lines(images))
        pasted = paste(shares[0], boxes, (rows, columns), self.mask_threshold)
        return boxes, scores, labels, pasted & (scores > 0)[:, None, None]


def _lines(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a column and a row of images (1, H, W, C)."""
    return images[0, :, 0, 0], images[0, 0, :, 0]


def build_detector(model: nn.Module, card: Card, settings: ExportSettings) -> DetectorFile:
    """Return a detector with what goes into the file around it, folded.

    Raises:
        ValueError: If the size does not fit the detector.
    """
    assert isinstance(model, Detector)
    config, masks = model.config, masks_of(model.config, settings)
    folded: Any = fold(model, form="conv")
    if settings.format == "openvino":
        folded = spell_out(folded, two_passes=settings.precision != "int8")
    elif settings.precision in AMP_DTYPES:
        folded = halved(folded, AMP_DTYPES[settings.precision])
    assert isinstance(settings.size, tuple)
    graph = DetectorGraph(
        folded,
        size=settings.size,
        score_threshold=config.score_threshold,
        nms_threshold=config.nms_threshold,
        max_detections=config.max_detections,
        masks=masks != "none",
    )
    return DetectorFile(
        graph,
        card.preprocessing,
        inside=settings.inside,
        masks=masks,
        mask_threshold=config.mask_threshold,
    ).eval()


def detector_blueprint(model: nn.Module, card: Card, settings: ExportSettings) -> Blueprint:
    """Return the graph of a detector as writers take it.

    Raises:
        ValueError: As `build_detector`.
    """
    graph = build_detector(model, card, settings)
    names = OUTPUTS[: 3 if graph.masks == "none" else 4]
    height, width = graph.detect.size
    random = torch.Generator().manual_seed(0)
    chans = int(card.preprocessing.in_chans)
    if settings.inside == "none":
        image = torch.randn(1, chans, height, width, generator=random)
    else:
        extra = (37, 91) if settings.inside == "full" else (0, 0)  # No side is a special case.
        shape = (1, height + extra[0], width + extra[1], chans)
        image = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
    if settings.inside == "full":
        sides = (
            torch.export.Dim(name, min=LEAST_SIDE, max=MOST_SIDE) for name in ("height", "width")
        )
        dims = dict(zip((1, 2), sides, strict=True))
        return Blueprint(graph=graph, examples=(image,), open_dims=(dims,), outputs=names)
    return Blueprint(
        graph=graph,
        examples=(image, torch.tensor([height, width])),
        open_dims=({}, {}),
        inputs=("images", "size"),
        outputs=names,
    )


def check_detector(model: nn.Module, settings: ExportSettings) -> None:
    """Check what depends on the detector itself, before anything is read or computed.

    Raises:
        ValueError: If the size does not fit the detector, or it has none of the masks asked for.
    """
    assert isinstance(model, Detector)
    masks_of(model.config, settings)
    if isinstance(settings.size, tuple):
        check_size(model, settings.size)


def masks_of(config: DetectorConfig, settings: ExportSettings) -> Masks:
    """Return which masks a file has.

    Raises:
        ValueError: If some are asked for of a detector that was trained on boxes alone.
    """
    if config.masks:
        return settings.masks or "shares"
    if settings.masks not in (None, "none"):
        raise ValueError("the detector was trained on boxes alone; leave out --masks")
    return "none"


def facts_of(model: nn.Module, settings: ExportSettings) -> dict[str, Any]:
    """Return what a file says of a detector in it, beside what all files say."""
    assert isinstance(model, Detector)
    config, masks = model.config, masks_of(model.config, settings)
    return {
        "output": "detections",
        "outputs": list(OUTPUTS[: 3 if masks == "none" else 4]),
        "masks": masks,
        "score_threshold": config.score_threshold,
        "nms_threshold": config.nms_threshold,
        "max_detections": config.max_detections,
        "mask_threshold": config.mask_threshold,
    }


def last_stride(model: nn.Module) -> int:
    """Return the stride of a detector's coarsest map of the backbone."""
    assert isinstance(model, Detector)
    return int(model.strides[-1])


def default_canvas(
    preprocessing: DensePreprocessing, sizes: Sequence[tuple[int, int]], stride: int = DIVISOR
) -> tuple[int, int]:
    """Return the least height and width that take images of (width, height) as they are read.

    Both are multiples of 32, and of the backbone's last stride.
    """
    assert sizes
    read = [preprocessing.size_of(*size) for size in sizes]
    return padded_size([(height, width) for width, height in read], stride)
