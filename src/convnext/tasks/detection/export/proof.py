"""Verification of a detector's file: its detections on real images against the network's.

Detections are matched by class and IoU, and the pairs are compared.
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
from convnext.deploy.verify import ENOUGH_IMAGES, MAX_LOST, Comparison, Proof, Verdict, metric_row
from convnext.tasks.detection.export.exported import OnCanvas, open_network
from convnext.tasks.detection.inference import Detections, detect
from convnext.tasks.detection.metric import Metric
from convnext.tasks.detection.model.boxes import iou, padded_size, stack
from convnext.tasks.detection.model.detector import Detector
from convnext.weights.checkpoint import Card

# IoU of boxes from which two detections of a class match, and match closely.
OVERLAP, CLOSE_OVERLAP = 0.5, 0.9
# Max score difference, min fraction of detections with a match, and min mean IoU of their masks. In
# half precision, a box occasionally crosses the threshold of NMS.
MAX_DIFFERENCE = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 2e-1, "int8": 1.0}
MIN_MATCHED = {"fp32": 0.99, "fp16": 0.95, "bf16": 0.90, "int8": 0.80}
MIN_MASK_IOU = {"fp32": 0.98, "fp16": 0.95, "bf16": 0.90, "int8": 0.80}
# Detections count only if their score exceeds the threshold by this margin.
MARGIN = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 1e-1}
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class DetectionProof:
    """Comparison of the detections of a network and of its file."""

    num_detections: int
    """Detections of both, without those that rounding may add or drop: near the score threshold, or
    at the end of a full list."""
    matched: float
    """Fraction with a match of the same class and an IoU of at least 0.5."""
    matched_close: float
    """The same with an IoU of at least 0.9."""
    matched_own: float
    """As `matched`, with a network that runs without the canvas. The zeros around an image on a
    canvas change the results near its edges."""
    score_difference: float
    """Max score difference of the pairs with an IoU of at least 0.9."""
    mask_iou: float | None
    """Mean IoU of the masks of a pair; None without masks."""
    mask_before: float | None = None
    """Mask AP of the network in percent; None without labels or masks."""
    mask_after: float | None = None
    """Mask AP of the file in percent."""

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values for a table."""
        rows = [
            ("detections compared", f"{self.num_detections:,}"),
            ("found by both, box IoU 0.5", f"{100 * self.matched:.2f} %"),
            ("found by both, box IoU 0.9", f"{100 * self.matched_close:.2f} %"),
            ("max score difference", f"{self.score_difference:.2g}"),
        ]
        if self.mask_iou is not None:
            rows.append(("mean mask IoU", f"{100 * self.mask_iou:.2f} %"))
        if self.matched_own != self.matched:
            name = "found by both, network without canvas"
            rows.append((name, f"{100 * self.matched_own:.2f} %"))
        return rows


@dataclass(frozen=True, kw_only=True)
class DetectorProof(Proof):
    """Proof with a comparison of detections and the mask AP."""

    detections: DetectionProof

    def answer_rows(self) -> list[tuple[str, str]]:
        """Return the comparison of the detections."""
        return self.detections.rows()

    def extra_metric_rows(self) -> list[tuple[str, str]]:
        """Return the mask AP."""
        found = self.detections
        return metric_row("mask AP", found.mask_before, found.mask_after)


@dataclass(frozen=True, kw_only=True)
class DetectorVerdict(Verdict):
    """Verdict with a comparison of detections."""

    detections: DetectionProof


class DetectorComparison(Comparison[Detections]):
    """Compares the detections of a network and of its file.

    For the verdict, the network sees images on a canvas of the file's size, because the zeros
    around an image change the results near its edges.
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
            precision = "fp16"  # Occasionally a pixel is rounded differently.
        config = self.exported.config
        compared = compare(
            self.found,
            min_score=config.score_threshold,
            max_detections=config.max_detections,
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
        """Return the AP of boxes and of masks for one of the three sets of detections."""
        metric = Metric(self.truths[0][0], self.card.classes, self.exported.config.max_detections)
        for (_, index), found in zip(self.truths, self.found, strict=True):
            metric.update(index, found[side])
        evaluation = metric.compute()
        return evaluation.box.ap, None if evaluation.mask is None else evaluation.mask.ap


class _Network(nn.Module):
    """A detector on zero-padded images, as in a batch with larger ones."""

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
    """Whether a detector pads an image of `size` (width, height) exactly to the canvas."""
    return padded_size([(size[1], size[0])], model.strides[-1]) == canvas


def _detect(network: nn.Module, preprocessing: Any, image: Image.Image) -> Detections:
    with torch.inference_mode():
        pixels = to_batch(preprocessing, image)[0]
        size = (image.height, image.width)
        return detect(network, pixels, size, device=CPU, precision="fp32")


def compare(
    images: Iterable[tuple[Detections, Detections, Detections]],
    *,
    min_score: float,
    max_detections: int,
    margin: float,
) -> DetectionProof:
    """Compare the detections of a file with those of its network, with and without the canvas.

    Args:
        images: Detections of every image: network on a canvas, file, network without a canvas.
        min_score: The score threshold.
        max_detections: Maximum number of detections per image.
        margin: Margin of a score above the threshold.
    """
    totals = np.zeros(2, np.int64)
    hits, differences, overlaps = np.zeros((2, 2), np.int64), [0.0], []
    for network, file, plain in images:
        for row, reference in enumerate((network, plain)):
            pairs = _pairs(reference, file)
            partners = {a: (b, overlap) for a, b, overlap in pairs}
            back = {b: overlap for _, b, overlap in pairs}
            confident = [
                _confident(d, min_score, max_detections, margin) for d in (reference, file)
            ]
            own = [partners[i][1] for i in confident[0] if i in partners]
            own += [back[i] for i in confident[1] if i in back]
            totals[row] += len(confident[0]) + len(confident[1])
            for column, least in enumerate((OVERLAP, CLOSE_OVERLAP)):
                hits[row, column] += sum(overlap >= least for overlap in own)
            if row == 1:
                continue
            for i in confident[0]:
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
    """Return pairs of detections of the same class with their IoU, largest first."""
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


def _confident(
    found: Detections, min_score: float, max_detections: int, margin: float
) -> Sequence[int]:
    """Return the detections that remain if every score changes by up to the margin."""
    if len(found) >= max_detections:
        min_score = max(min_score, float(found.scores.min()))
    return [i for i, score in enumerate(found.scores.tolist()) if score >= min_score + margin]


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
    """Return why a file fails verification; empty if it passes.

    Args:
        compared: The comparison of the detections of file and network.
        before: Box AP of the network in percent; None without labels.
        after: Box AP of the file in percent.
        num_images: Number of images that both ran on.
        precision: The precision, which determines the limits.
        any_found: Whether either of them detected anything, even near the threshold.
    """
    if not compared.num_detections:
        if any_found:
            return (
                "no detection is clearly above the score threshold, so nothing can be compared "
                "(pass images with objects as --images)"
            )
        return (
            "the network detects no object in these images, so nothing can be compared (pass "
            "images with objects as --images, or train longer)"
        )
    if not compared.score_difference <= MAX_DIFFERENCE[precision]:
        return (
            f"a score differs by {compared.score_difference:.2g}, more than "
            f"{MAX_DIFFERENCE[precision]:g}"
        )
    if num_images >= ENOUGH_IMAGES:
        pairs = ((before, after, "box"), (compared.mask_before, compared.mask_after, "mask"))
        for old, new, name in pairs:
            if old is not None and new is not None and old - new > MAX_LOST:
                return f"{old - new:.2f} points of {name} AP are lost, more than {MAX_LOST}"
        if before is not None:
            return ""
    if compared.matched < MIN_MATCHED[precision]:
        return (
            f"only {100 * compared.matched:.1f} % of the detections were found by both, less than "
            f"{100 * MIN_MATCHED[precision]:g} %"
        )
    if compared.mask_iou is not None and compared.mask_iou < MIN_MASK_IOU[precision]:
        return (
            f"the mean mask IoU is {100 * compared.mask_iou:.1f} %, less than "
            f"{100 * MIN_MASK_IOU[precision]:g} %"
        )
    return ""
