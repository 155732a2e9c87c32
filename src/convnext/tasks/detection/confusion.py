"""Confusion matrix of detections and objects, matched by their boxes.

Unlike average precision it uses one IoU and one score threshold: what a user sees in the pictures.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from convnext.data.formats.records import Objects
from convnext.tasks.detection.inference import Detections
from convnext.tasks.detection.model.boxes import covered, iou

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
    sure = found.scores >= SCORE
    boxes = torch.from_numpy(found.boxes[sure])
    overlaps = iou(boxes, torch.from_numpy(objects.boxes[single])).numpy()  # R M
    in_crowd = np.zeros(len(boxes), bool)
    if objects.crowd.any() and len(boxes):
        regions = torch.from_numpy(objects.boxes[objects.crowd])
        in_crowd = (covered(boxes, regions).amax(1) > OVERLAP).numpy()
    free = np.ones(len(labels), bool)
    for row, label in enumerate(found.labels[sure].tolist()):
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
