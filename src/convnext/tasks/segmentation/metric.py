"""Mean intersection over union (mIoU), and other scores from the confusion matrix of pixels.

Pixel counts are exact integers, summed over all images and processes before any ratio is computed:
no score is a mean of per-image scores. A class that occurs neither in the truth nor in the
prediction has no IoU and is left out of the mean, as in the published evaluation.

Counts of boundary pixels give the boundary F-score. Csurka et al., "What is a good evaluation
measure for semantic segmentation?" (2013): a boundary pixel matches if the other mask has a
boundary of the same class within 0.75 percent of the image's diagonal. Pixels are counted over all
images, and the score is computed once per class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convnext.hardware.devices import Ranks

NUM_WORST = 16
# The result leaves out larger confusion matrices.
MAX_CONFUSION = 1000
# Pixels counted at a time: as int64 they take eight times the memory of a mask.
CHUNK = 2**22

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Scores of one class, fractions in [0, 1] or None for 0/0, and its number of pixels."""

    name: str
    pixels: int
    iou: float | None
    accuracy: float | None
    """Recall: the fraction of its pixels with the right prediction."""
    precision: float | None
    f1: float | None
    """Also known as Dice."""
    boundary_f1: float | None = None


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """The IoU of one image: mean over the classes that occur in it, a fraction in [0, 1]."""

    index: int
    iou: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a segmentor on a labeled data set, in percent."""

    miou: float
    """Mean IoU over the classes that occur in truth or prediction."""
    accuracy: float
    """Pixel accuracy: the percentage of labeled pixels with the right prediction."""
    mean_accuracy: float
    """Mean recall over the classes in the truth."""
    loss: float | None
    """Mean cross-entropy of a labeled pixel."""
    num_images: int
    num_pixels: int
    """Number of labeled pixels."""
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Pixels: rows are the truth, columns the prediction; empty above 1,000 classes."""
    per_class: tuple[ClassScore, ...]
    boundary_f1: float | None
    """Mean over the classes; None if it was not requested."""
    worst: tuple[ImageScore, ...]
    """The images with the lowest IoU, lowest first."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)


class Metric:
    """Collects predictions image by image; exact for any order and number of processes.

    Args:
        classes: Class names, in the order of the indices.
        ignore_index: The value of mask pixels to ignore.
        boundary: Whether to measure the boundary F-score too, which takes longer than the rest.

    Raises:
        ValueError: If the ignored value is a class.
    """

    def __init__(
        self, classes: Sequence[str], ignore_index: int = 255, boundary: bool = False
    ) -> None:
        if 0 <= ignore_index < len(classes):
            raise ValueError(
                f"class {ignore_index} of {len(classes)} classes cannot be distinguished from "
                "ignored pixels; set ignore_index to a value that is not a class"
            )
        self.classes, self.ignore_index, self.boundary = tuple(classes), ignore_index, boundary
        self._confusion: Counts = np.zeros((len(classes), len(classes)), np.int64)
        self._boundaries: Counts = np.zeros((4, len(classes)), np.int64)
        self._num_images = 0
        self._loss = 0.0
        self._has_loss = True
        self._worst: list[tuple[float, int]] = []

    def update(
        self, prediction: ArrayLike, mask: ArrayLike, index: int, loss: float | None = None
    ) -> None:
        """Add the labels (H, W) of one image, its mask (H, W) and its index in the data set.

        `loss` is the cross-entropy summed over the labeled pixels.

        Raises:
            ValueError: If sizes differ, or a value is not a class.
        """
        found, truth = np.asarray(prediction), np.asarray(mask)
        if found.shape != truth.shape:
            raise ValueError(
                f"image {index} has a prediction of {found.shape} but a mask of {truth.shape} "
                "pixels; resize logits to the mask, never the mask"
            )
        confusion = count_confusion(found, truth, len(self.classes), self.ignore_index)
        self._confusion += confusion
        self._num_images += 1
        self._has_loss &= loss is not None
        self._loss += loss or 0.0
        if self.boundary:
            self._boundaries += count_boundaries(found, truth, len(self.classes), self.ignore_index)
        if confusion.any():
            self._keep([(float(np.nanmean(class_iou(confusion))), index)])

    def merge(self, ranks: Ranks) -> None:
        """Add the counts of the other processes; all processes must call this."""
        mine = (
            self._confusion,
            self._boundaries,
            self._num_images,
            self._loss,
            self._has_loss,
            self._worst,
        )
        confusions, boundaries, nums, sums, have, worst = zip(*ranks.gather(mine), strict=True)
        self._confusion = np.sum(confusions, axis=0)
        self._boundaries = np.sum(boundaries, axis=0)
        self._num_images, self._has_loss = sum(nums), all(have)
        self._loss = math.fsum(sums)
        self._worst = []
        self._keep([score for scores in worst for score in scores])

    def compute(self) -> Evaluation:
        """Return the metrics of all images added.

        Raises:
            ValueError: If there is no labeled pixel.
        """
        matrix = self._confusion
        total = int(matrix.sum())
        if not total:
            raise ValueError(
                "there is no readable image with labeled pixels to evaluate on"
                if self._num_images
                else "there is no readable image to evaluate on"
            )
        scores = class_scores(matrix, self.classes, self._boundaries if self.boundary else None)
        edges = [s.boundary_f1 for s in scores if s.boundary_f1 is not None]
        return Evaluation(
            miou=100 * _mean([s.iou for s in scores]),
            accuracy=100 * int(np.trace(matrix)) / total,
            mean_accuracy=100 * _mean([s.accuracy for s in scores]),
            loss=self._loss / total if self._has_loss else None,
            num_images=self._num_images,
            num_pixels=total,
            classes=self.classes,
            confusion=tuple(map(tuple, matrix.tolist() if len(matrix) <= MAX_CONFUSION else [])),
            per_class=scores,
            boundary_f1=100 * _mean(edges) if edges else None,
            worst=tuple(ImageScore(index=index, iou=iou) for iou, index in self._worst),
        )

    def _keep(self, scores: Sequence[tuple[float, int]]) -> None:
        # Sorting by IoU and index makes the result independent of the order of updates.
        self._worst = sorted([*self._worst, *scores])[:NUM_WORST]


def count_confusion(
    prediction: NDArray[Any], mask: NDArray[Any], num_classes: int, ignore_index: int = 255
) -> Counts:
    """Return the number of pixels (K, K) per truth (row) and prediction (column), without ignored.

    Raises:
        ValueError: If a labeled pixel has a value that is not a class.
    """
    counts = np.zeros(num_classes**2, np.int64)
    for start in range(0, mask.size, CHUNK):
        sides = [side.reshape(-1)[start : start + CHUNK] for side in (mask, prediction)]
        labeled = sides[0] != ignore_index
        truth, found = (side[labeled].astype(np.int64) for side in sides)
        for name, values in (("mask", truth), ("prediction", found)):
            if len(values) and not 0 <= values.min() <= values.max() < num_classes:
                wrong = values[(values < 0) | (values >= num_classes)][0]
                raise ValueError(
                    f"the {name} has the value {wrong}, but classes are 0 to {num_classes - 1} "
                    f"and {ignore_index} is ignored"
                )
        counts += np.bincount(truth * num_classes + found, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_iou(confusion: Counts) -> NDArray[np.float64]:
    """Return the IoU (K,) of every class, NaN if it neither occurs nor is predicted."""
    hits = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def class_scores(
    confusion: Counts, classes: Sequence[str], boundaries: Counts | None = None
) -> tuple[ClassScore, ...]:
    """Return the scores of each class from a matrix (K, K), rows truth, columns prediction.

    `boundaries` (4, K) are the counts of `count_boundaries`.
    """
    hits = np.diagonal(confusion).tolist()
    support, predicted = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    edges: list[float | None] = [None] * len(classes)
    if boundaries is not None:
        edges = [_f1(*counts) for counts in boundaries.T.tolist()]
    return tuple(
        ClassScore(
            name=name,
            pixels=support[c],
            iou=_ratio(hits[c], support[c] + predicted[c] - hits[c]),
            accuracy=_ratio(hits[c], support[c]),
            precision=_ratio(hits[c], predicted[c]),
            f1=_ratio(2 * hits[c], support[c] + predicted[c]),
            boundary_f1=edges[c],
        )
        for c, name in enumerate(classes)
    )


def _f1(found: int, predicted: int, recalled: int, true: int) -> float | None:
    """Return the F-score of boundary pixels; None without any boundary."""
    if not predicted + true:
        return None
    precision, recall = found / max(predicted, 1), recalled / max(true, 1)
    return 2 * precision * recall / max(precision + recall, 1e-12)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known)


TOLERANCE = 0.0075


def count_boundaries(
    prediction: NDArray[Any], mask: NDArray[Any], num_classes: int, ignore_index: int = 255
) -> NDArray[np.int64]:
    """Return four counts (4, K) of boundary pixels per class, of labels and mask (H, W).

    They are: predicted with a match, predicted, true with a match, true. The edge of an ignored
    region is not a boundary.
    """
    labeled = mask != ignore_index
    sides = [
        np.where(find_boundaries(side, labeled), side.astype(np.int32), -1)
        for side in (prediction, mask)
    ]
    reach = max(1.0, TOLERANCE * math.hypot(*mask.shape))
    counts = np.zeros((4, num_classes), np.int64)
    for c in range(num_classes):
        found, true = (side == c for side in sides)
        counts[1, c], counts[3, c] = np.count_nonzero(found), np.count_nonzero(true)
        if counts[1, c] and counts[3, c]:
            counts[0, c] = np.count_nonzero(found & is_near(true, reach))
            counts[2, c] = np.count_nonzero(true & is_near(found, reach))
    return counts


def find_boundaries(labels: NDArray[Any], labeled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which labeled pixels (H, W) touch another class above, below, left or right."""
    found = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = (labels[first] != labels[second]) & labeled[first] & labeled[second]
        found[first] |= differ
        found[second] |= differ
    return found


def is_near(pixels: NDArray[np.bool_], reach: float) -> NDArray[np.bool_]:
    """Return which positions (H, W) lie within `reach` of one of `pixels` (at least one is set)."""
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    near: NDArray[np.bool_] = distance_transform_edt(~pixels) <= reach
    return near
