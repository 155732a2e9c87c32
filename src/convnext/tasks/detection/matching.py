"""Which object a box is responsible for: the one that it overlaps most, if enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convnext.tasks.detection.boxes import covered, iou

NEGATIVE, UNUSED = -1, -2
MAX_PAIRS = 2**24
"""Overlaps that are computed at once, 64 MiB for each tensor of them."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """How much a box must overlap an object, in intersection over union."""

    positive: float
    """From here on it is responsible for the object."""
    negative: float
    """Below, for nothing; in between it is not used."""
    low_quality: float | None = None
    """From here on the best boxes of an object are responsible for it whatever else they overlap.

    None leaves objects that no box overlaps enough without one."""
    ignore: float | None = None
    """Boxes of which this share lies in a region to ignore are not used; None uses all of them, as
    the published models do."""


def match(
    boxes: Tensor, objects: Tensor, thresholds: Thresholds, ignored: Tensor | None = None
) -> Tensor:
    """Return for each box the index of its object, or `NEGATIVE` or `UNUSED`.

    Args:
        boxes: (R, 4).
        objects: (M, 4); M may be 0.
        thresholds: Who counts as what.
        ignored: Regions (I, 4) whose content is unlabelled, such as crowds.

    Returns:
        (R,) integers. All boxes that share the best overlap with an object are its low-quality
        matches; where those of several objects meet, the last object wins, as in the reference.
    """
    if len(objects) == 0 or len(boxes) == 0:
        matches = torch.full((len(boxes),), NEGATIVE, dtype=torch.long, device=boxes.device)
    else:
        # In chunks: a million anchors times a thousand objects are too many at once.
        chunks = torch.split(boxes, max(MAX_PAIRS // len(objects), 1))
        best, index = (torch.cat(x) for x in zip(*(_best(c, objects) for c in chunks), strict=True))
        matches = torch.where(best < thresholds.negative, NEGATIVE, UNUSED)
        matches = torch.where(best >= thresholds.positive, index, matches)
        if thresholds.low_quality is not None:
            rescuer = _rescuers(chunks, objects, thresholds.low_quality)
            matches = torch.where(rescuer >= 0, rescuer, matches)
    if thresholds.ignore is not None and ignored is not None and len(ignored) and len(boxes):
        unlabelled = covered(boxes, ignored).amax(1) > thresholds.ignore
        matches = torch.where(unlabelled, UNUSED, matches)
    return matches


def _best(boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:  # R 4, M 4 -> R, R
    best, index = iou(objects, boxes).max(0)
    return best, index


def _rescuers(chunks: Sequence[Tensor], objects: Tensor, least: float) -> Tensor:
    """Return for each box the last object that it is a best box of, or -1."""
    most = torch.stack([iou(objects, c).amax(1) for c in chunks]).amax(0)[:, None]  # M 1
    number = torch.arange(len(objects), device=objects.device)[:, None]
    found = []
    for chunk in chunks:
        rescued = (iou(objects, chunk) == most) & (most >= least)
        found.append(torch.where(rescued, number, -1).amax(0))
    return torch.cat(found)
