"""Export of a detector to a file that maps pixels to boxes, scores, labels and masks.

`DetectorGraph` is the detector on a canvas of fixed size. Options add resizing, normalization and
mask bitmaps to the file. Pixels outside of the image become zero after normalization, as everywhere
in detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.data.preprocessing import DensePreprocessing
from convnext.data.tensors import normalize_batch
from convnext.deploy.export import ExportRequest, ExportSpec
from convnext.deploy.fold import fold
from convnext.deploy.formats import Blueprint, ExportSettings, Given, Masks
from convnext.deploy.graphs import (
    MAX_SIDE,
    MIN_SIDE,
    FittedImage,
    as_given,
    example_images,
    halved,
    open_dims,
    prepare,
)
from convnext.deploy.layers import Scaled, spell_out
from convnext.deploy.quantize import Calibration
from convnext.hardware.devices import AMP_DTYPES
from convnext.tasks.detection.export.exported import OnCanvas
from convnext.tasks.detection.export.graph import OUTPUTS, DetectorGraph, check_size, paste
from convnext.tasks.detection.export.proof import DetectorComparison
from convnext.tasks.detection.model.boxes import DIVISOR, padded_size
from convnext.tasks.detection.model.detector import Detector
from convnext.tasks.detection.model.heads import BOX_SIDE, MASK_SIDE, DetectorConfig, pool_rois
from convnext.weights.checkpoint import Card

# Number of boxes per image on which the heads are compared, a few of each size.
NUM_BOXES = 32


def export_spec(request: ExportRequest) -> ExportSpec:
    """Return the export spec of a detector; see `Task.export_spec`."""
    from convnext.tasks.detection.evaluate import open_split

    model, card, source = request.model, request.card, request.source
    settings = request.settings
    assert isinstance(model, Detector)
    check_settings(settings)
    check_detector(model, settings)
    proofs = request.proofs(
        lambda name: open_split(None, name, card, source).images, lambda split, i: (split, i)
    )
    if settings.size is None:
        sizes = [image.size for image in proofs.images()]
        size = default_canvas(card.preprocessing, sizes, int(model.strides[-1]))
        request.note(
            f"the file takes images of up to {size[0]} x {size[1]} pixels, to fit the largest of "
            f"{len(sizes):,} images; it shrinks larger ones (--size HxW changes the limit)"
        )
        settings = replace(settings, size=size)
    assert isinstance(settings.size, tuple)
    return ExportSpec(
        source=source,
        card=card,
        settings=settings,
        facts=facts_of(model, settings),
        blueprint=lambda: detector_blueprint(model, card, settings),
        images=proofs,
        compare=lambda exported: DetectorComparison(model, card, exported),
        calibration=calibration_of(model, card, settings, settings.size),
    )


def check_settings(settings: ExportSettings) -> None:
    """Check that a detector supports the settings.

    Raises:
        ValueError: If it does not; the message names the option and an alternative.
    """
    if settings.size == "any":
        raise ValueError(
            "--size any is only for segmentors: a detector's file has a fixed size, which smaller "
            "images are padded to"
        )
    if not settings.answers:
        raise ValueError("a detector's file does not return logits; leave out --logits")
    if settings.batch not in (None, 1):
        raise ValueError("a detector's file takes one image at a time; leave out --batch")
    if settings.format == "openvino" and settings.precision == "bf16":
        raise ValueError(
            "OpenVINO would also compute box corners in bf16, which is inexact: use --precision "
            "int8 or fp32"
        )
    if settings.format == "onnx" and settings.precision == "int8":
        raise ValueError("a detector's int8 is for OpenVINO: --format openvino --precision int8")


class DetectorFile(nn.Module):
    """Maps an image on a canvas with its height and width, or any image, to detections.

    With all preprocessing inside, it takes one image of any size. Boxes are in pixels of the input
    image.

    Args:
        graph: The detector on the canvas.
        preprocessing: The detector's preprocessing.
        settings: Which part of the preprocessing is in the file.
        masks: The masks to return besides boxes, scores and labels.
        mask_threshold: Mask probability from which a pixel belongs to an object.
    """

    def __init__(
        self,
        graph: DetectorGraph,
        preprocessing: DensePreprocessing,
        settings: ExportSettings,
        *,
        masks: Masks,
        mask_threshold: float,
    ) -> None:
        super().__init__()
        self.detect = graph  # `graph` would clash with an attribute of traced modules.
        self.inside = settings.inside
        self.masks = masks
        self.mask_threshold = mask_threshold
        self.prepare = prepare(settings, FittedImage, preprocessing, graph.size)
        mean, std = (255 * torch.tensor(v) for v in (preprocessing.mean, preprocessing.std))
        self.normalize = nn.Identity() if self.inside == "none" else Scaled(1 / std, -mean / std)

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


def detector_blueprint(model: Detector, card: Card, settings: ExportSettings) -> Blueprint:
    """Return the folded graph of a detector for the writers.

    Raises:
        ValueError: If the size does not fit the detector.
    """
    assert isinstance(settings.size, tuple)
    config, masks = model.config, masks_of(model.config, settings)
    folded: Any = fold(model, form="conv")
    if settings.format == "openvino":
        folded = spell_out(folded, two_passes=settings.precision != "int8")
    elif settings.precision in AMP_DTYPES:
        folded = halved(folded, AMP_DTYPES[settings.precision])
    on_canvas = DetectorGraph(
        folded,
        size=settings.size,
        score_threshold=config.score_threshold,
        nms_threshold=config.nms_threshold,
        max_detections=config.max_detections,
        masks=masks != "none",
    )
    pre, threshold = card.preprocessing, config.mask_threshold
    graph = DetectorFile(on_canvas, pre, settings, masks=masks, mask_threshold=threshold).eval()
    image, names = example_images(pre, settings, 1, settings.size), output_names(masks)
    if settings.inside == "full":
        dims = open_dims(settings, MIN_SIDE, MAX_SIDE)
        return Blueprint(graph=graph, examples=(image,), open_dims=(dims,), outputs=names)
    return Blueprint(
        graph=graph,
        examples=(image, torch.tensor(settings.size)),
        open_dims=({}, {}),
        inputs=("images", "size"),
        outputs=names,
    )


def output_names(masks: Masks) -> tuple[str, ...]:
    """Return the names of a file's outputs, in order."""
    return OUTPUTS[: 3 if masks == "none" else 4]


def check_detector(model: Detector, settings: ExportSettings) -> None:
    """Check the settings against the detector, before any work.

    Raises:
        ValueError: If the size does not fit the detector, or it has no masks to export.
    """
    masks_of(model.config, settings)
    if isinstance(settings.size, tuple):
        check_size(model, settings.size)


def masks_of(config: DetectorConfig, settings: ExportSettings) -> Masks:
    """Return the kind of masks in a file.

    Raises:
        ValueError: If masks are requested but the detector was trained on boxes alone.
    """
    if config.masks:
        return settings.masks or "shares"
    if settings.masks not in (None, "none"):
        raise ValueError("the detector was trained on boxes alone; leave out --masks")
    return "none"


def facts_of(model: Detector, settings: ExportSettings) -> dict[str, Any]:
    """Return the metadata of a detector's file."""
    assert isinstance(settings.size, tuple)
    config, masks = model.config, masks_of(model.config, settings)
    return {
        "batch": 1,
        "size": None if settings.inside == "full" else list(settings.size),
        "canvas": list(settings.size),
        "output": "detections",
        "outputs": list(output_names(masks)),
        "masks": masks,
        "score_threshold": config.score_threshold,
        "nms_threshold": config.nms_threshold,
        "max_detections": config.max_detections,
        "mask_threshold": config.mask_threshold,
    }


def default_canvas(
    preprocessing: DensePreprocessing, sizes: Sequence[tuple[int, int]], stride: int = DIVISOR
) -> tuple[int, int]:
    """Return the min height and width that fit resized images of the given (width, height).

    Both are multiples of 32 and of the backbone's last stride.
    """
    assert sizes
    read = [preprocessing.size_of(*size) for size in sizes]
    return padded_size([(height, width) for width, height in read], stride)


def calibration_of(
    model: Detector, card: Card, settings: ExportSettings, size: tuple[int, int]
) -> Calibration:
    """Return calibration data for int8: images on the canvas, and the detector's parts."""
    on_canvas = OnCanvas(inner=card.preprocessing, size=size)

    def given(pixels: Tensor) -> Given:
        (images,) = as_given(pixels, card.preprocessing, settings)
        if settings.inside == "none":
            return _padded(images, size), torch.tensor(pixels.shape[2:])
        images = _padded(images.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1).contiguous()
        return images, torch.tensor(pixels.shape[2:])

    def parts(pixels: Sequence[Tensor]) -> tuple[nn.Module, Tensor]:
        judged = [_padded(normalize_batch(card.preprocessing, x), size) for x in pixels]
        folded: Any = fold(model, form="conv")
        return _Parts(folded, judged[0], size), torch.cat(judged)

    return Calibration(
        num_images=32,
        num_judged=1,
        pixels=lambda image: torch.from_numpy(on_canvas.pixels(image))[None],
        given=given,
        parts=parts,
    )


def _padded(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))


class _Parts(nn.Module):
    """All matrix products of a detector on fixed boxes, with outputs scaled to unit spread.

    Scaling gives proposals, classes, deltas and masks the same weight.
    """

    def __init__(self, detector: Detector, image: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        random = torch.Generator().manual_seed(0)
        limits = torch.tensor([size[1], size[0]]).float()
        corners = torch.rand(NUM_BOXES, 2, generator=random) * limits / 2
        sides = limits / 2 * torch.logspace(-2, 0, NUM_BOXES, base=2)[:, None]
        self.boxes = torch.cat((corners, corners + sides), 1)
        self.scales = [float(1 / out.std().clamp_min(1e-12)) for out in self._outputs(image)]

    def forward(self, images: Tensor) -> Tensor:
        outputs = zip(self.scales, self._outputs(images), strict=True)
        return torch.cat([scale / out.numel() ** 0.5 * out for scale, out in outputs])

    def _outputs(self, images: Tensor) -> list[Tensor]:
        detector = self.detector
        maps = detector.features(images)
        outputs = [x.flatten() for level in detector.rpn(maps) for x in level]
        boxes = [self.boxes] * len(images)
        features, parts = (
            pool_rois(maps[:-1], detector.strides, boxes, side) for side in (BOX_SIDE, MASK_SIDE)
        )
        for head in detector.box_heads:
            outputs.extend(x.flatten() for x in head(features))
        if detector.config.masks:
            outputs.extend(head(parts).flatten() for head in detector.mask_heads)
        return outputs
