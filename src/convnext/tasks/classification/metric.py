"""Top-1, top-5, the confusion matrix, and per-class scores; for several labels, AP and F1.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from convnext.hardware.devices import Ranks

# ImageNet-22K would need a matrix of 477 million cells.
MAX_CONFUSION = 2000


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Scores of one class, fractions in [0, 1]; `support` is its number of images."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A misclassified image, and the probability of the predicted class."""

    index: int
    truth: str
    prediction: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a network on a labeled data set. `top1` and `top5` are in percent."""

    top1: float
    top5: float
    loss: float
    balanced_accuracy: float
    """The mean recall of the classes that have images, in percent."""
    macro_f1: float
    """The mean F1 of the classes that have images or are predicted, in percent."""
    num_images: int
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows are the truth, columns the prediction; empty above 2,000 classes."""
    per_class: tuple[ClassScore, ...]
    mistakes: tuple[Mistake, ...]
    """The most confident mistakes first."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)

    def scores(self) -> dict[str, float]:
        """Return the scores of all images by name."""
        names = ("top1", "top5", "loss", "balanced_accuracy", "macro_f1")
        return {name: getattr(self, name) for name in names}


class Logits:
    """Collects logits batch by batch; the result does not depend on the batches."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._indices: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add logits (N, K), labels (N,) or targets (N, K), and indices (N,) in the data set."""
        self._logits.append(logits.detach().float().cpu())
        self._labels.append(labels.cpu())
        self._indices.append(indices.cpu())

    def merge(self, ranks: Ranks) -> None:
        """Add the logits of the other processes; all processes must call this."""
        if ranks.count == 1:
            return
        mine = [torch.cat(part) for part in (self._logits, self._labels, self._indices) if part]
        found = [parts for parts in ranks.gather(mine) if parts]
        logits, labels, indices = (torch.cat(part) for part in zip(*found, strict=True))
        order = indices.argsort()
        self._logits, self._labels = [logits[order]], [labels[order]]
        self._indices = [indices[order]]

    def whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all logits, labels or targets, and indices.

        Raises:
            ValueError: If there are none.
        """
        if not self._labels:
            raise ValueError("there is no readable image to evaluate on")
        return torch.cat(self._logits), torch.cat(self._labels), torch.cat(self._indices)


class Metric(Logits):
    """The metric of images with one label, or with probabilities, of which the largest counts."""

    def compute(self, *, num_mistakes: int = 24) -> Evaluation:
        """Return the metrics of all images added.

        Raises:
            ValueError: If there is none.
        """
        logits, targets, indices = self.whole()
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        num_classes = len(self.classes)
        probabilities = logits.softmax(1)
        predictions = logits.argmax(1)
        confusion = torch.zeros((0, 0), dtype=torch.int64)
        if num_classes <= MAX_CONFUSION:
            confusion = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
            confusion = confusion.view(num_classes, num_classes)
        within_top5 = logits.topk(min(5, num_classes), 1).indices.eq(labels[:, None]).any(1)

        wrong = (predictions != labels).nonzero().flatten()
        confidence = probabilities[wrong, predictions[wrong]]
        wrong = wrong[confidence.argsort(descending=True, stable=True)][:num_mistakes]
        return Evaluation(
            top1=100 * float((predictions == labels).double().mean()),
            top5=100 * float(within_top5.double().mean()),
            loss=float(F.cross_entropy(logits, targets)),
            **macro_scores(labels, predictions, num_classes),
            num_images=len(labels),
            classes=self.classes,
            confusion=tuple(map(tuple, confusion.tolist())),
            per_class=class_scores(labels, predictions, self.classes),
            mistakes=tuple(
                Mistake(
                    index=int(indices[i]),
                    truth=self.classes[int(labels[i])],
                    prediction=self.classes[int(predictions[i])],
                    probability=float(probabilities[i, predictions[i]]),
                )
                for i in wrong.tolist()
            ),
        )


def macro_scores(labels: Tensor, predictions: Tensor, num_classes: int) -> dict[str, float]:
    """Return the balanced accuracy and the macro F1 in percent, which count classes equally.

    Args:
        labels: (N,)
        predictions: (N,)
        num_classes: The number of classes.
    """
    hits, support, predicted = (
        torch.bincount(which, minlength=num_classes).double()
        for which in (labels[labels == predictions], labels, predictions)
    )
    both = support + predicted
    return {
        "balanced_accuracy": 100 * float((hits / support)[support > 0].mean()),
        "macro_f1": 100 * float((2 * hits / both)[both > 0].mean()),
    }


def class_scores(
    labels: Tensor, predictions: Tensor, classes: Sequence[str]
) -> tuple[ClassScore, ...]:
    """Return the scores of each class from labels (N,) and predictions (N,).

    A class without images has recall 0; a class that is never predicted has precision 0.
    """

    def count(positions: Tensor) -> list[int]:
        return torch.bincount(positions, minlength=len(classes)).tolist()

    hits = count(labels[labels == predictions])
    support, predicted = count(labels), count(predictions)
    return tuple(
        ClassScore(
            name=name,
            support=support[c],
            precision=hits[c] / max(predicted[c], 1),
            recall=hits[c] / max(support[c], 1),
            f1=2 * hits[c] / max(support[c] + predicted[c], 1),
        )
        for c, name in enumerate(classes)
    )


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """Scores of one class among several labels, fractions in [0, 1].

    Precision, recall and F1 count the images whose probability reaches the threshold.
    """

    name: str
    support: int
    """Number of images with the label."""
    ap: float | None
    """Average precision; None without an image with the label."""
    precision: float
    recall: float
    f1: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class MultiLabelEvaluation:
    """Metrics of a network on images with several labels. `map` and F1 are in percent.

    `map` and `macro_f1` are means over the classes that some image has. In `sample_f1`, the mean
    over images, one without any label counts 100 % if none is predicted.
    """

    map: float
    micro_f1: float
    macro_f1: float
    sample_f1: float
    loss: float
    """The binary cross-entropy, without weights."""
    num_images: int
    classes: tuple[str, ...]
    per_class: tuple[LabelScore, ...]
    mistakes: tuple[Mistake, ...]
    """The most confident mistakes first, one for each image; "no cat" for a missed label."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)

    def scores(self) -> dict[str, float]:
        """Return the scores of all images by name."""
        names = ("map", "micro_f1", "macro_f1", "sample_f1", "loss")
        return {name: getattr(self, name) for name in names}


class MultiLabelMetric(Logits):
    """The metric of images with several labels.

    A class whose targets are not numbers is not known to the data, and is left out.
    """

    def fit(self, rule: str) -> tuple[float, ...]:
        """Return the threshold of each class by a rule, as for `loss.thresholds`.

        Raises:
            ValueError: If there is no such rule, or no image.
        """
        parse_thresholds(rule)
        logits, targets, _ = self.whole()
        probabilities, truths = _arrays(logits, targets)
        return tuple(
            fitted_threshold(probabilities[:, c], truths[:, c] > 0.5, rule)
            for c in range(len(self.classes))
        )

    def compute(
        self, thresholds: Sequence[float], *, num_mistakes: int = 24
    ) -> MultiLabelEvaluation:
        """Return the metrics of all images added.

        Raises:
            ValueError: If there is none.
        """
        logits, targets, indices = self.whole()
        known = [c for c in range(len(self.classes)) if not targets[:, c].isnan().all()]
        logits, targets = logits[:, known], targets[:, known]
        probabilities, truths = _arrays(logits, targets)
        classes = [self.classes[c] for c in known]
        limits = np.asarray([thresholds[c] for c in known])
        truth, predicted = truths > 0.5, probabilities >= limits
        hits, support, chosen = (m.sum(0) for m in (truth & predicted, truth, predicted))
        f1 = 2 * hits / np.maximum(support + chosen, 1)
        per_class = tuple(
            LabelScore(
                name=name,
                support=int(support[c]),
                ap=average_precision(probabilities[:, c], truth[:, c]),
                precision=float(hits[c] / max(chosen[c], 1)),
                recall=float(hits[c] / max(support[c], 1)),
                f1=float(f1[c]),
                threshold=float(limits[c]),
            )
            for c, name in enumerate(classes)
        )
        of_image = 2 * (truth & predicted).sum(1), truth.sum(1) + predicted.sum(1)
        precisions = [score.ap for score in per_class if score.ap is not None]
        return MultiLabelEvaluation(
            map=100 * float(np.mean(precisions)) if precisions else 0.0,
            micro_f1=100 * float(2 * hits.sum() / max(support.sum() + chosen.sum(), 1)),
            macro_f1=100 * float(f1[support > 0].mean()) if precisions else 0.0,
            sample_f1=100 * float(np.where(of_image[1] == 0, 1, _ratio(*of_image)).mean()),
            loss=float(F.binary_cross_entropy_with_logits(logits, targets)),
            num_images=len(truth),
            classes=tuple(classes),
            per_class=per_class,
            mistakes=_label_mistakes(
                probabilities, truth, predicted, classes, indices.tolist(), num_mistakes
            ),
        )


def _arrays(logits: Tensor, targets: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probabilities and the targets (N, K) as arrays; of unknown classes, 0."""
    return (
        logits.sigmoid().double().numpy(),
        targets.double().nan_to_num(0.0).numpy(),
    )


def _ratio(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(one / np.maximum(other, 1), np.float64)


def _label_mistakes(
    probabilities: NDArray[np.float64],
    truth: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    classes: Sequence[str],
    indices: Sequence[int],
    count: int,
) -> tuple[Mistake, ...]:
    """Return the images with a wrong label, each with the most confident one, worst first."""
    confidence = np.where(predicted, probabilities, 1 - probabilities)
    confidence = np.where(truth != predicted, confidence, -1.0)
    worst, which = confidence.max(1), confidence.argmax(1)
    order = np.argsort(-worst, kind="stable")[:count]
    found = []
    for i in (int(i) for i in order if worst[i] >= 0):
        c = int(which[i])
        names = [classes[k] for k in np.flatnonzero(truth[i]).tolist()]
        found.append(
            Mistake(
                index=indices[i],
                truth=", ".join(names) or "without any label",
                prediction=classes[c] if predicted[i, c] else f"no {classes[c]}",
                probability=float(worst[i]),
            )
        )
    return tuple(found)


def _steps(
    scores: NDArray[np.float64], truth: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct scores, highest first, and the hits and images at each or above."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    hits = np.cumsum(truth[order], dtype=np.int64)[last]
    return ranked[last], hits, (last + 1).astype(np.int64)


def average_precision(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """Return the sum of precisions, each weighted by the recall that it adds; None without a hit.

    Args:
        scores: (N,)
        truth: (N,)
    """
    if not truth.any():
        return None
    _, hits, chosen = _steps(scores, truth)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits / chosen))


def parse_thresholds(rule: str) -> tuple[str, float]:
    """Return the kind of a rule ("f1", "precision" or "fixed") and its number.

    Raises:
        ValueError: If there is no such rule.
    """
    kind, _, number = rule.partition(":")
    if kind == "f1" and not number:
        return "f1", 0.0
    try:
        value = float(number if kind == "precision" else rule)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ValueError(
            f"loss.thresholds is {rule!r}, but must be f1, a precision such as precision:0.9, or "
            "a probability such as 0.5"
        )
    return ("precision" if kind == "precision" else "fixed"), value


def fitted_threshold(scores: NDArray[np.float64], truth: NDArray[np.bool_], rule: str) -> float:
    """Return the threshold of a class; 0.5 if no image has the label.

    It lies halfway between two scores, so that rounding in other runtimes changes no label. If no
    threshold has the wanted precision, the one with the highest precision is taken.
    """
    kind, value = parse_thresholds(rule)
    if kind == "fixed":
        return value
    if not truth.any():
        return 0.5
    steps, hits, chosen = _steps(scores, truth)
    if kind == "f1":
        best = int(np.argmax(2 * hits / (chosen + hits[-1])))
    else:
        precision = hits / chosen
        enough = np.flatnonzero(precision >= value)
        best = int(enough[-1]) if len(enough) else int(np.argmax(precision))
    below = steps[best + 1] if best + 1 < len(steps) else 0.0
    return float((steps[best] + below) / 2)
