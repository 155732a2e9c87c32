"""What becomes of a detector's detections in another form: pairs, and how they differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask

from convnext.tasks.detection.inference import Detections
from convnext.tasks.detection.model.boxes import iou

# Overlaps of boxes from which two detections of one class are the same.
OVERLAP, CLOSE_OVERLAP = 0.5, 0.9


@dataclass(frozen=True, kw_only=True)
class DetectionProof:
    """Detections of a network and of its file, paired on every image."""

    num_detections: int
    """Of both, but for those that a rounding may add or drop: at the threshold of the score, or at
    the end of a full list."""
    matched: float
    """Share of them that have a partner of the same class and an overlap of 0.5."""
    matched_close: float
    """Of 0.9."""
    matched_own: float
    """As `matched`, where the network is given images of their own size and no canvas; around
    smaller images it sees more zeros, which changes what lies at their edge."""
    score_difference: float
    """Largest difference of the scores of a pair, of those with an overlap of 0.9."""
    mask_iou: float | None
    """Mean overlap of the masks of a pair; None without masks."""
    mask_before: float | None = None
    """Mask AP in percent, of the network; None without labels or masks."""
    mask_after: float | None = None
    """Of the file."""

    def rows(self) -> list[tuple[str, str]]:
        """Return for people what was found: names and figures."""
        rows = [
            ("detections compared", f"{self.num_detections:,}"),
            ("found by both, boxes overlap by 0.5", f"{100 * self.matched:.2f} %"),
            ("found by both, boxes overlap by 0.9", f"{100 * self.matched_close:.2f} %"),
            ("largest difference of a score", f"{self.score_difference:.2g}"),
        ]
        if self.mask_iou is not None:
            rows.append(("mean overlap of their masks", f"{100 * self.mask_iou:.2f} %"))
        if self.matched_own != self.matched:
            name = "found by both, the network without a canvas"
            rows.append((name, f"{100 * self.matched_own:.2f} %"))
        return rows


def compare(
    images: Iterable[tuple[Detections, Detections, Detections]],
    *,
    least_score: float,
    most: int,
    margin: float,
) -> DetectionProof:
    """Return how the detections of a network on a canvas, of its file, and of the network compare.

    Args:
        images: The three of every image.
        least_score: The threshold of the score.
        most: Detections of an image at most.
        margin: By how much a score may differ.
    """
    totals = np.zeros(2, np.int64)
    hits, differences, overlaps = np.zeros((2, 2), np.int64), [0.0], []
    for network, file, plain in images:
        for row, reference in enumerate((network, plain)):
            pairs = _pairs(reference, file)
            partners = {a: (b, overlap) for a, b, overlap in pairs}
            back = {b: overlap for _, b, overlap in pairs}
            sure = [_sure(d, least_score, most, margin) for d in (reference, file)]
            own = [partners[i][1] for i in sure[0] if i in partners]
            own += [back[i] for i in sure[1] if i in back]
            totals[row] += len(sure[0]) + len(sure[1])
            for column, least in enumerate((OVERLAP, CLOSE_OVERLAP)):
                hits[row, column] += sum(overlap >= least for overlap in own)
            if row == 1:
                continue
            for i in sure[0]:
                if i not in partners:
                    continue
                j, overlap = partners[i]
                if overlap >= CLOSE_OVERLAP:
                    differences.append(abs(float(network.scores[i] - file.scores[j])))
                if network.masks[i] is not None and file.masks[j] is not None:
                    overlaps.append(_mask_iou(network.masks[i], file.masks[j]))
    shares = hits / np.maximum(totals, 1)[:, None]
    return DetectionProof(
        num_detections=int(totals[0]),
        matched=float(shares[0, 0]),
        matched_close=float(shares[0, 1]),
        matched_own=float(shares[1, 0]),
        score_difference=max(differences),
        mask_iou=float(np.mean(overlaps)) if overlaps else None,
    )


def _pairs(a: Detections, b: Detections) -> list[tuple[int, int, float]]:
    """Return pairs of detections of one class and their overlaps, the largest first."""
    if not len(a) or not len(b):
        return []
    overlaps = iou(torch.from_numpy(a.boxes), torch.from_numpy(b.boxes)).numpy()
    overlaps = np.where(a.labels[:, None] == b.labels[None], overlaps, 0.0)
    free_a, free_b, pairs = set(range(len(a))), set(range(len(b))), []
    for flat in np.argsort(-overlaps, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(b))
        if overlaps[i, j] < OVERLAP:
            break
        if i in free_a and j in free_b:
            free_a.remove(i)
            free_b.remove(j)
            pairs.append((i, j, float(overlaps[i, j])))
    return pairs


def _sure(found: Detections, least: float, most: int, margin: float) -> Sequence[int]:
    """Return the detections that stay whatever a score changes by."""
    if len(found) >= most:
        least = max(least, float(found.scores.min()))
    return [i for i, score in enumerate(found.scores.tolist()) if score >= least + margin]


def _mask_iou(a: Any, b: Any) -> float:
    shared, total = (coco_mask.area(coco_mask.merge([a, b], intersect=x)) for x in (True, False))
    return float(shared) / float(total) if total else 1.0
