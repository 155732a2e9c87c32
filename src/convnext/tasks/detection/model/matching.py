"""Which boxes answer for which objects, and which of them a loss is taken on, at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convnext.tasks.detection.model.boxes import covered, iou

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
        # One chunk, the usual case, is compared once; several are compared twice for less memory.
        overlaps = [iou(objects, chunk) if len(chunks) == 1 else None for chunk in chunks]
        pairs = list(zip(chunks, overlaps, strict=True))
        found = [_overlaps(pair, objects).max(0) for pair in pairs]
        best, index = torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
        matches = torch.where(best < thresholds.negative, NEGATIVE, UNUSED)
        matches = torch.where(best >= thresholds.positive, index, matches)
        if thresholds.low_quality is not None:
            rescuer = _rescuers(pairs, objects, thresholds.low_quality)
            matches = torch.where(rescuer >= 0, rescuer, matches)
    if thresholds.ignore is not None and ignored is not None and len(ignored) and len(boxes):
        unlabelled = covered(boxes, ignored).amax(1) > thresholds.ignore
        matches = torch.where(unlabelled, UNUSED, matches)
    return matches


Pair = tuple[Tensor, Tensor | None]
"""Some of the boxes (R, 4), and their overlaps (M, R) with the objects, if these were kept."""


def _overlaps(pair: Pair, objects: Tensor) -> Tensor:  # -> M R
    boxes, kept = pair
    return iou(objects, boxes) if kept is None else kept


def _rescuers(pairs: Sequence[Pair], objects: Tensor, least: float) -> Tensor:
    """Return for each box the last object that it is a best box of, or -1."""
    most = torch.stack([_overlaps(pair, objects).amax(1) for pair in pairs]).amax(0)[:, None]
    # An overlap that is below the least is nobody's best.
    most = torch.where(most >= least, most, 2.0)
    number = torch.arange(len(objects), device=objects.device)[:, None]
    found = []
    for pair in pairs:
        rescued = _overlaps(pair, objects) == most
        found.append(torch.where(rescued, number, -1).amax(0))
    return torch.cat(found)


def sample(
    matches: Tensor, num: int, positive_fraction: float, random: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw positive boxes up to their share of `num`, and negative ones for the rest.

    Args:
        matches: (R,) of `match`.
        num: How many in all; fewer where there are not enough.
        positive_fraction: Share of `num` that positive boxes may have.
        random: Source of chance on the CPU, so that devices draw alike; None: torch's own.

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
