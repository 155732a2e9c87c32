"""COCO's average precision of boxes and masks, computed by faster-coco-eval.

Every process collects compact results (boxes, scores, RLE masks). The metrics are computed over
the images of all processes together, not averaged over processes.

The confusion matrix matches detections and objects by their boxes. Unlike average precision it uses
one IoU and one score threshold, as in the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from convnext.data.formats.records import Objects
from convnext.data.objects import DetectionImages
from convnext.hardware.devices import Ranks
from convnext.tasks.detection.inference import Detections
from convnext.tasks.detection.model.boxes import covered, iou

Kind = Literal["bbox", "segm"]
NUM_WORST = 16
# The result leaves out larger confusion matrices.
MAX_CONFUSION = 1001
# COCO's ranges of area, in the order of its precision and recall tables.
AREAS = ("all", "small", "medium", "large")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """COCO's metrics of boxes or masks, in percent; None where the data has no object."""

    ap: float | None
    """Mean average precision over classes and ten IoU thresholds, 0.5 to 0.95."""
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    """AP of objects smaller than 32 x 32 pixels."""
    ap_medium: float | None
    ap_large: float | None
    """AP of objects of at least 96 x 96 pixels."""
    ar_1: float | None
    """Mean recall with the top detection per image and class."""
    ar_10: float | None
    ar: float | None
    """Mean recall with all detections, at most `max_detections` per image and class."""
    per_class: tuple[float | None, ...]
    """AP of each class."""
    precision: tuple[tuple[float, ...], ...]
    """Precision of each class at IoU 0.5 and recalls 0, 0.01, ..., 1; empty without an object."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """F1 score of an image's boxes at IoU 0.5, a fraction in [0, 1]."""

    index: int
    f1: float
    missed: int
    """Objects without a matching detection."""
    false: int
    """Detections without a matching object."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a detector on a labeled data set."""

    box: Scores
    mask: Scores | None
    """None if the data has no masks, or the network was trained without masks."""
    classes: tuple[str, ...]
    num_images: int
    num_objects: int
    """Objects without crowd regions."""
    num_detections: int
    max_detections: int
    confusion: tuple[tuple[int, ...], ...]
    """Boxes at IoU 0.5 and score 0.3. Rows are the truth, columns the detections; the last row and
    column are the background. Empty above 1,000 classes."""
    worst: tuple[ImageScore, ...]
    """The images with the lowest F1 scores, lowest first."""

    @property
    def scores(self) -> dict[str, float]:
        """The scores that a run records, by name, in percent; 0 where there is no object."""
        found = {}
        for kind, scores in (("box", self.box), ("mask", self.mask)):
            for name in ("ap", "ap50", "ap75"):
                if scores is not None:
                    found[f"{kind}_{name}"] = getattr(scores, name) or 0.0
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)


class Metric:
    """Collects detections image by image.

    Args:
        images: The labeled images.
        classes: Class names, in the order of the labels.
        max_detections: Maximum number of detections that count per image and class.
    """

    def __init__(
        self, images: DetectionImages, classes: Sequence[str], max_detections: int = 100
    ) -> None:
        self.images, self.classes = images, tuple(classes)
        self.max_detections = max_detections
        self.found: dict[int, Detections] = {}
        """Detections by the index of the image."""

    def update(self, index: int, found: Detections) -> None:
        """Add the detections of an image."""
        self.found[index] = found

    def merge(self, ranks: Ranks) -> None:
        """Add the detections of the other processes; all processes must call this."""
        parts = ranks.gather(self.found)
        self.found = dict(sorted((k, v) for part in parts for k, v in part.items()))

    def compute(self) -> Evaluation:
        """Return the metrics of all images added.

        Raises:
            ValueError: If there is none.
        """
        if not self.found:
            raise ValueError("there is no readable image to evaluate on")
        objects = {index: self.images.objects(index) for index in sorted(self.found)}
        has_masks = any(mask is not None for o in objects.values() for mask in o.masks) and all(
            mask is not None for found in self.found.values() for mask in found.masks
        )
        total = np.zeros((len(self.classes) + 1,) * 2, np.int64)
        images = []
        for index, o in objects.items():
            counts = confuse(o, self.found[index], len(self.classes))
            total += counts
            missed, false = int(counts[:, -1].sum()), int(counts[-1].sum())
            images.append(ImageScore(index=index, f1=f1(counts), missed=missed, false=false))
        return Evaluation(
            box=self._scores("bbox"),
            mask=self._scores("segm") if has_masks else None,
            classes=self.classes,
            num_images=len(objects),
            num_objects=sum(int((~o.crowd).sum()) for o in objects.values()),
            num_detections=sum(len(found) for found in self.found.values()),
            max_detections=self.max_detections,
            confusion=tuple(map(tuple, total.tolist() if len(total) <= MAX_CONFUSION else [])),
            worst=tuple(sorted(images, key=lambda i: (i.f1, i.index))[:NUM_WORST]),
        )

    def _scores(self, kind: Kind) -> Scores:
        truth = COCO(self.truth(kind))
        found = truth.loadRes(self.results(kind))
        judge = COCOeval_faster(truth, found, kind)
        judge.params.maxDets = sorted({1, 10, self.max_detections})
        judge.evaluate()
        judge.accumulate()
        # Axes: IoU, recall, class, area, number of detections. `recall` has no recall axis.
        precision, recall = judge.eval["precision"], judge.eval["recall"]
        at = {limit: i for i, limit in enumerate(judge.params.maxDets)}
        all_ = at[self.max_detections]
        by_area = [precision[:, :, :, area, all_] for area in range(len(AREAS))]
        curves = precision[0, :, :, 0, all_].T
        return Scores(
            ap=percent(by_area[0]),
            ap50=percent(by_area[0][0]),
            ap75=percent(by_area[0][5]),
            ap_small=percent(by_area[1]),
            ap_medium=percent(by_area[2]),
            ap_large=percent(by_area[3]),
            ar_1=percent(recall[:, :, 0, at[1]]),
            ar_10=percent(recall[:, :, 0, at[10]]),
            ar=percent(recall[:, :, 0, all_]),
            per_class=tuple(percent(by_area[0][:, :, k]) for k in range(len(self.classes))),
            precision=tuple(
                tuple(curve.tolist()) if (curve >= 0).any() else () for curve in curves
            ),
        )

    def truth(self, kind: Kind) -> dict[str, Any]:
        """Return the objects of the images added, in the format of COCO's JSON.

        For the mask metrics, objects without a mask are regions to ignore.
        """
        annotations: list[dict[str, Any]] = []
        for index in sorted(self.found):
            for row in _rows(self.images.objects(index), self.images.size(index), kind):
                annotations.append({"id": len(annotations) + 1, "image_id": index, **row})
        images = [
            {"id": index, "width": size[0], "height": size[1]}
            for index in sorted(self.found)
            for size in [self.images.size(index)]
        ]
        categories = [{"id": k, "name": name} for k, name in enumerate(self.classes)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def results(self, kind: Kind) -> list[dict[str, Any]]:
        """Return the detections as COCO results with image indices and labels as ids."""
        rows: list[dict[str, Any]] = []
        for index, found in sorted(self.found.items()):
            for box, score, label, mask in zip(
                found.boxes, found.scores, found.labels, found.masks, strict=True
            ):
                row = {"image_id": index, "category_id": int(label), "score": float(score)}
                shape = {"bbox": xywh(box)} if kind == "bbox" else {"segmentation": mask}
                rows.append({**row, **shape})
        return rows


def _rows(objects: Objects, size: tuple[int, int], kind: Kind) -> list[dict[str, Any]]:
    rows = []
    for box, label, area, crowd, mask in zip(
        objects.boxes, objects.labels, objects.areas, objects.crowd, objects.masks, strict=True
    ):
        x1, y1, x2, y2 = box.tolist()
        row: dict[str, Any] = {
            "category_id": int(label),
            "bbox": xywh(box),
            "area": float(area),
            "iscrowd": int(crowd),
            "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        }
        if isinstance(mask, dict):
            counts = mask["counts"]
            counts = counts.tolist() if isinstance(counts, np.ndarray) else counts
            row["segmentation"] = {"size": list(mask["size"]), "counts": counts}
        elif isinstance(mask, tuple):
            row["segmentation"] = [np.asarray(ring).tolist() for ring in mask]
        elif kind == "segm":
            row["iscrowd"] = 1
        rows.append(row)
    return rows


def xywh(box: NDArray[np.float64]) -> list[float]:
    """Return a box as x, y, width, height, COCO's format."""
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def percent(values: NDArray[np.float64]) -> float | None:
    """Return the mean in percent without -1, COCO's value for classes without an object."""
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else None


OVERLAP = 0.5
SCORE = 0.3

Counts = NDArray[np.int64]


def confuse(objects: Objects, found: Detections, num_classes: int) -> Counts:
    """Return the counts (K + 1, K + 1) of truth (rows) and detections (columns) of an image.

    Detections with a score of at least `SCORE`, highest first, match the free object of any class
    with the highest IoU, if it is at least `OVERLAP`. The last row counts false detections, the
    last column missed objects. Detections inside crowd regions are not counted.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    single = ~objects.crowd
    labels = objects.labels[single]
    confident = found.scores >= SCORE
    boxes = torch.from_numpy(found.boxes[confident])
    overlaps = iou(boxes, torch.from_numpy(objects.boxes[single])).numpy()  # R M
    in_crowd = np.zeros(len(boxes), bool)
    if objects.crowd.any() and len(boxes):
        regions = torch.from_numpy(objects.boxes[objects.crowd])
        in_crowd = (covered(boxes, regions).amax(1) > OVERLAP).numpy()
    free = np.ones(len(labels), bool)
    for row, label in enumerate(found.labels[confident].tolist()):
        candidates = np.where(free, overlaps[row], 0.0)
        best = int(candidates.argmax()) if len(candidates) else -1
        if best >= 0 and candidates[best] >= OVERLAP:
            free[best] = False
            counts[labels[best], label] += 1
        elif not in_crowd[row]:
            counts[num_classes, label] += 1
    counts[:-1, num_classes] += np.bincount(labels[free], minlength=num_classes)
    return counts


def f1(counts: Counts) -> float:
    """Return the F1 score of counts (K + 1, K + 1); 1 if there are neither objects nor detections.

    A detection of the wrong class counts as both a false detection and a miss.
    """
    hits = int(np.trace(counts))
    total = int(counts[:-1].sum() + counts[:, :-1].sum())
    return 2 * hits / total if total else 1.0
