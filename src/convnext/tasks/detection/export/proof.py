"""The proof of a detector's file: its detections on real images, beside those of the network.

Detections are paired by class and overlap, and the pairs are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask
from PIL import Image
from torch import Tensor, nn

from convnext.data.tensors import to_batch
from convnext.deploy.runtimes import Exported
from convnext.deploy.verify import ENOUGH_IMAGES, MOST_LOST, Comparison, Proof, Verdict, metric_row
from convnext.tasks.detection.export.exported import OnCanvas, open_network
from convnext.tasks.detection.inference import Detections, detect
from convnext.tasks.detection.metric import Metric
from convnext.tasks.detection.model.batch import padded_size, stack
from convnext.tasks.detection.model.boxes import iou
from convnext.tasks.detection.model.detector import Detector
from convnext.weights.checkpoint import Card

# Overlaps of boxes from which two detections of one class are the same.
OVERLAP, CLOSE_OVERLAP = 0.5, 0.9
# Largest difference of a score, least share of detections with a partner, and of their masks' mean
# overlap. Half precision moves a box now and then over the threshold of a suppression.
MOST_DIFFERENCE = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 2e-1, "int8": 1.0}
LEAST_MATCHED = {"fp32": 0.99, "fp16": 0.95, "bf16": 0.90, "int8": 0.80}
LEAST_MASK_IOU = {"fp32": 0.98, "fp16": 0.95, "bf16": 0.90, "int8": 0.80}
# By how much a score may differ before a detection at its threshold counts.
MARGIN = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 1e-1}
CPU = torch.device("cpu")


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


@dataclass(frozen=True, kw_only=True)
class DetectorProof(Proof):
    """What becomes of the detections, and AP of masks."""

    detections: DetectionProof

    def answer_rows(self) -> list[tuple[str, str]]:
        """Return how the detections compare."""
        return self.detections.rows()

    def extra_metric_rows(self) -> list[tuple[str, str]]:
        """Return AP of masks."""
        found = self.detections
        return metric_row("mask AP", found.mask_before, found.mask_after)


@dataclass(frozen=True, kw_only=True)
class DetectorVerdict(Verdict):
    """With what becomes of the detections."""

    detections: DetectionProof


class DetectorComparison(Comparison[Detections]):
    """Detections of a network and of its file.

    The network is given images as they are, and for the verdict on a canvas of the file's size,
    where zeros around an image change what lies at its edge.
    """

    proof = DetectorProof

    def __init__(self, model: Detector, card: Card, exported: Exported) -> None:
        self.model, self.card = model, card
        self.exported, own = open_network(exported)
        self.left = own.preprocessing
        self.canvas: tuple[int, int] = tuple(exported.graph["canvas"])
        self.fitted = OnCanvas(inner=card.preprocessing, size=self.canvas)
        self.padded = _Network(model, self.canvas)
        self.found: list[tuple[Detections, Detections, Detections]] = []
        self.truths: list[tuple[Any, int]] = []

    def network(self, image: Image.Image) -> Detections:
        return _detect(self.model, self.card.preprocessing, image)

    def file(self, image: Image.Image) -> Detections:
        return _detect(self.exported, self.left, image)

    def add(self, image: Image.Image, network: Detections, file: Detections, truth: Any) -> None:
        is_plain = _fills(self.model, self.card.preprocessing.size_of(*image.size), self.canvas)
        on_canvas = network if is_plain else _detect(self.padded, self.fitted, image)
        self.found.append((on_canvas, file, network))
        if truth is not None:
            self.truths.append(truth)

    def verdict(self, num_images: int, precision: str) -> DetectorVerdict:
        if self.exported.graph["inside"] == "full" and precision == "fp32":
            precision = "fp16"  # A pixel is now and then rounded the other way.
        config = self.exported.config
        compared = compare(
            self.found,
            least_score=config.score_threshold,
            most=config.max_detections,
            margin=MARGIN[precision],
        )
        before = after = None
        if self.truths:
            (before, mask_before), (after, mask_after) = (self._aps(side) for side in (2, 1))
            if mask_before is not None and mask_after is not None:
                compared = replace(compared, mask_before=mask_before, mask_after=mask_after)
        any_found = any(len(d) for network, file, _ in self.found for d in (network, file))
        return DetectorVerdict(
            max_difference=compared.score_difference,
            agreement=compared.matched,
            metric="box AP",
            before=before,
            after=after,
            failure=judge_detections(
                *(compared, before, after, num_images, precision), any_found=any_found
            ),
            detections=compared,
        )

    def _aps(self, side: int) -> tuple[float | None, float | None]:
        """Return AP of boxes and of masks for one of the three."""
        metric = Metric(self.truths[0][0], self.card.classes, self.exported.config.max_detections)
        for (_, index), found in zip(self.truths, self.found, strict=True):
            metric.update(index, found[side])
        evaluation = metric.compute()
        return evaluation.box.ap, None if evaluation.mask is None else evaluation.mask.ap


class _Network(nn.Module):
    """A detector on images with more zeros around them, as in a batch with larger ones."""

    def __init__(self, detector: Detector, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.detector = detector
        self.canvas = canvas

    def forward(self, images: list[Tensor], *, paste: bool) -> Any:
        detector = self.detector
        nothing = images[0].new_zeros(len(images[0]), *self.canvas)
        batch, sizes = stack([*images, nothing], detector.strides[-1])
        maps = detector.features(batch[:-1])
        proposals = [boxes for boxes, _ in detector.proposals(maps, sizes[:-1])]
        return detector.detect(maps, proposals, sizes[:-1], paste=paste)


def _fills(model: Detector, size: tuple[int, int], canvas: tuple[int, int]) -> bool:
    """Whether an image read at `size` (width, height) is padded to just the canvas."""
    return padded_size([(size[1], size[0])], model.strides[-1]) == canvas


def _detect(network: nn.Module, preprocessing: Any, image: Image.Image) -> Detections:
    with torch.inference_mode():
        pixels = to_batch(preprocessing, image)[0]
        size = (image.height, image.width)
        return detect(network, pixels, size, device=CPU, precision="fp32")


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


def judge_detections(
    compared: DetectionProof,
    before: float | None,
    after: float | None,
    num_images: int,
    precision: str,
    *,
    any_found: bool,
) -> str:
    """Return what is wrong with a file of a precision; empty if nothing is.

    Args:
        compared: How the detections of the file compare with the network's.
        before: Box AP of the network in percent; None without labels.
        after: Of the file.
        num_images: On which both were run.
        precision: Whose limits hold.
        any_found: Whether either of them detected anything, however near the threshold.
    """
    if not compared.num_detections:
        if any_found:
            return (
                "of the detections none is surely above the threshold of the score, which proves "
                "nothing: give other images with --images"
            )
        return "nothing was detected on any image, which proves nothing: give others with --images"
    if not compared.score_difference <= MOST_DIFFERENCE[precision]:
        return (
            f"a score differs by {compared.score_difference:.2g}, more than "
            f"{MOST_DIFFERENCE[precision]:g}"
        )
    if num_images >= ENOUGH_IMAGES:
        pairs = ((before, after, "box"), (compared.mask_before, compared.mask_after, "mask"))
        for old, new, name in pairs:
            if old is not None and new is not None and old - new > MOST_LOST:
                return f"{old - new:.2f} points of {name} AP are lost, more than {MOST_LOST}"
        if before is not None:
            return ""
    if compared.matched < LEAST_MATCHED[precision]:
        return (
            f"only {100 * compared.matched:.1f} % of the detections are found by both, less than "
            f"{100 * LEAST_MATCHED[precision]:g} %"
        )
    if compared.mask_iou is not None and compared.mask_iou < LEAST_MASK_IOU[precision]:
        return (
            f"masks overlap by {100 * compared.mask_iou:.1f} % in the mean, less than "
            f"{100 * LEAST_MASK_IOU[precision]:g} %"
        )
    return ""
