"""What int8 needs of a user's images: ranges, and which layers bear it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.data.tensors import normalize_batch
from convnext.deploy.blueprints import example_size, given
from convnext.deploy.export_settings import ExportSettings
from convnext.deploy.fold import fold
from convnext.deploy.quantize import LayerSensitivity, sensitivity
from convnext.deploy.runtimes import fill_up, mean_pixel
from convnext.deploy.verify import Proofs
from convnext.deploy.writers import Given
from convnext.tasks.detection.export.exported import OnCanvas
from convnext.tasks.detection.model import box_head, mask_head
from convnext.tasks.detection.model.detector import Detector
from convnext.tasks.detection.model.roi import pool_rois
from convnext.weights.checkpoint import Card

NUM_IMAGES = {"classify": 128, "segment": 128, "detect": 32}
# That layers are judged on.
NUM_JUDGED = {"classify": 8, "segment": 4, "detect": 1}
# Boxes of an image that the heads are judged on, a few of each size.
NUM_BOXES = 32


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Images as a graph takes them, and what each layer alone in int8 does to the outputs."""

    given: Sequence[Given]
    layers: Sequence[LayerSensitivity]
    """The worst first."""


def calibrate(
    model: nn.Module,
    card: Card,
    settings: ExportSettings,
    proofs: Proofs,
    note: Callable[[str], None],
) -> Calibration:
    """Read images of training, and measure how sensitive each layer is.

    Images of a segmentor or a detector are cut, or filled up, to one size.

    Raises:
        ValueError: If none can be read.
    """
    size = example_size(card, settings)
    pre = card.preprocessing
    if card.task == "detect":
        pre = OnCanvas(inner=pre, size=size)
    pixels = [
        torch.from_numpy(pre.pixels(image))[None]
        for image in proofs.calibration(NUM_IMAGES[card.task])
    ]
    if not pixels:
        raise ValueError(
            "int8 needs images to calibrate its ranges on, and none of those given can be read; "
            "give --images FOLDER"
        )
    if card.task == "segment":
        grey = mean_pixel(card)
        pixels = [fill_up(x[..., : size[0], : size[1]], size, grey) for x in pixels]
    judged = [normalize_batch(card.preprocessing, x) for x in pixels[: NUM_JUDGED[card.task]]]
    note(f"measuring how sensitive each layer is to int8, on {len(judged)} images")
    folded: Any = fold(model, form="conv")
    if card.task == "detect":
        judged = [_padded(x, size) for x in judged]
        items = [_on_canvas(x, card, settings, size) for x in pixels]
        layers = sensitivity(_Parts(folded, judged[0], size), torch.cat(judged))
        return Calibration(given=items, layers=layers)
    items = [(part,) for x in pixels for part in torch.split(given(x, card, settings), 1)]
    return Calibration(given=items, layers=sensitivity(folded, torch.cat(judged)))


def _on_canvas(
    pixels: Tensor, card: Card, settings: ExportSettings, size: tuple[int, int]
) -> Given:
    extent = torch.tensor(pixels.shape[2:])
    if settings.inside == "none":
        normalized = normalize_batch(card.preprocessing, pixels)
        return _padded(normalized, size), extent
    return _padded(pixels, size).permute(0, 2, 3, 1).contiguous(), extent


def _padded(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))


class _Parts(nn.Module):
    """All products of a detector, on boxes that do not move: its outputs, each of spread 1.

    Every output of a head counts as much as another: proposals, classes, deltas and masks.
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
            pool_rois(maps[:-1], detector.strides, boxes, side)
            for side in (box_head.SIDE, mask_head.SIDE)
        )
        for head in detector.box_heads:
            outputs.extend(x.flatten() for x in head(features))
        if detector.config.masks:
            outputs.extend(head(parts).flatten() for head in detector.mask_heads)
        return outputs
