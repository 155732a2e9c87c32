"""Matching of boxes to objects, and random sampling of boxes for a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convnext.tasks.detection.model.boxes import covered, iou

NEGATIVE, UNUSED = -1, -2
MAX_PAIRS = 2**24
"""Max number of IoUs computed at once: 64 MiB per tensor."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """IoU thresholds between boxes and objects."""

    positive: float
    """From here on a box is positive: it matches the object."""
    negative: float
    """Below, it is negative; in between it is unused."""
    low_quality: float | None = None
    """From here on the best boxes of an object match it even if they overlap another one more.

    None leaves objects without a match if no box overlaps them enough."""
    ignore: float | None = None
    """Boxes of which at least this fraction lies in a region to ignore are unused; None uses all of
    them, as the published models do."""


def match(
    boxes: Tensor, objects: Tensor, thresholds: Thresholds, ignored: Tensor | None = None
) -> Tensor:
    """Return for each box the index of its object, or `NEGATIVE` or `UNUSED`.

    Args:
        boxes: (R, 4).
        objects: (M, 4); M may be 0.
        thresholds: The IoU thresholds.
        ignored: Regions (I, 4) with unlabeled content, such as crowds.

    Returns:
        (R,) integers. All boxes with the highest IoU of an object are its low-quality matches; if a
        box is that of several objects, the last object wins, as in the reference.
    """
    if len(objects) == 0 or len(boxes) == 0:
        matches = torch.full((len(boxes),), NEGATIVE, dtype=torch.long, device=boxes.device)
    else:
        # A million anchors times a thousand objects are too many at once.
        chunks = torch.split(boxes, max(MAX_PAIRS // len(objects), 1))
        # A single chunk, the usual case, is compared once; several are compared twice for memory.
        overlaps = [iou(objects, chunk) if len(chunks) == 1 else None for chunk in chunks]
        pairs = list(zip(chunks, overlaps, strict=True))
        found = [_overlaps(pair, objects).max(0) for pair in pairs]
        best, index = torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
        matches = torch.where(best < thresholds.negative, NEGATIVE, UNUSED)
        matches = torch.where(best >= thresholds.positive, index, matches)
        if thresholds.low_quality is not None:
            best_of = _low_quality_matches(pairs, objects, thresholds.low_quality)
            matches = torch.where(best_of >= 0, best_of, matches)
    if thresholds.ignore is not None and ignored is not None and len(ignored) and len(boxes):
        unlabelled = covered(boxes, ignored).amax(1) > thresholds.ignore
        matches = torch.where(unlabelled, UNUSED, matches)
    return matches


Pair = tuple[Tensor, Tensor | None]
"""A chunk of boxes (R, 4), and its IoUs (M, R) with the objects if they were kept."""


def _overlaps(pair: Pair, objects: Tensor) -> Tensor:  # -> M R
    boxes, kept = pair
    return iou(objects, boxes) if kept is None else kept


def _low_quality_matches(pairs: Sequence[Pair], objects: Tensor, least: float) -> Tensor:
    """Return for each box the last object of which it is a best box, or -1."""
    most = torch.stack([_overlaps(pair, objects).amax(1) for pair in pairs]).amax(0)[:, None]
    # Objects whose best IoU is below the minimum have no best box.
    most = torch.where(most >= least, most, 2.0)
    number = torch.arange(len(objects), device=objects.device)[:, None]
    found = []
    for pair in pairs:
        is_best = _overlaps(pair, objects) == most
        found.append(torch.where(is_best, number, -1).amax(0))
    return torch.cat(found)


def sample(
    matches: Tensor, num: int, positive_fraction: float, random: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Sample positive boxes up to their fraction of `num`, and negative ones for the rest.

    Args:
        matches: (R,), returned by `match`.
        num: Total number of boxes; fewer are returned if there are not enough.
        positive_fraction: Max fraction of positive boxes.
        random: Generator on the CPU, so that all devices draw the same; None for torch's default.

    Returns:
        Indices of the positive and of the negative boxes, each in ascending order.
    """
    positive = _draw((matches >= 0).nonzero()[:, 0], int(num * positive_fraction), random)
    negative = _draw((matches == NEGATIVE).nonzero()[:, 0], num - len(positive), random)
    return positive, negative


def _draw(indices: Tensor, num: int, random: torch.Generator | None) -> Tensor:
    if len(indices) <= num:
        return indices
    chosen = torch.randperm(len(indices), generator=random)[:num].sort().values
    return indices[chosen.to(indices.device)]
