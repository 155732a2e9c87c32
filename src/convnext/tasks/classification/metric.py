"""Top-1, top-5, the confusion matrix, and per-class scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
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


class Metric:
    """Collects logits batch by batch; the result does not depend on the batches."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._indices: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add logits (N, num_classes), labels (N,) and indices (N,) in the data set."""
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

    def compute(self, *, num_mistakes: int = 24) -> Evaluation:
        """Return the metrics of all images added.

        Raises:
            ValueError: If there is none.
        """
        if not self._labels:
            raise ValueError("there is no readable image to evaluate on")
        logits, labels = torch.cat(self._logits), torch.cat(self._labels)
        indices = torch.cat(self._indices)
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
            loss=float(F.cross_entropy(logits, labels)),
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
