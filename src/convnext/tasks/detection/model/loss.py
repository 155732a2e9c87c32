"""What detection minimises, as pure functions in fp32 of what the heads say and should say.

Sums are divided by the number of all boxes that were chosen, positive or negative, so that an
image with few objects weighs its few positive boxes no more than another.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from convnext.tasks.detection.model.boxes import giou
from convnext.tasks.detection.model.coding import Stds, decode, encode
from convnext.tasks.detection.model.config import BoxLoss


def smooth_l1(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """Return the sum of smooth L1, quadratic below `beta`; a beta of 0 is L1."""
    return F.smooth_l1_loss(predicted, target, reduction="sum", beta=beta)


def objectness_loss(positive: Tensor, negative: Tensor, num: int) -> Tensor:
    """Return binary cross-entropy of the logits of positive and negative anchors, over `num`."""
    logits = torch.cat((positive, negative)).float()
    labels = torch.cat((torch.ones_like(positive), torch.zeros_like(negative))).float()
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / num


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:  # R K+1, R
    """Return the mean cross-entropy of boxes; 0 where there is none."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)


def box_loss(
    kind: BoxLoss, boxes: Tensor, deltas: Tensor, targets: Tensor, *, stds: Stds, num: int
) -> Tensor:
    """Return the loss of positive boxes, all (P, 4), over `num`.

    `giou` compares the boxes that the deltas lead to, without clipping them to the image.
    """
    deltas = deltas.float()
    if kind == "l1":
        return smooth_l1(deltas, encode(boxes, targets, stds), 0.0) / num
    return (1 - giou(decode(boxes, deltas, stds), targets)).sum() / num


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:  # P K S S, P, P S S
    """Return the mean binary cross-entropy of the masks of each box's own class; 0 without any."""
    own = logits[torch.arange(len(labels), device=labels.device), labels].float()
    total = F.binary_cross_entropy_with_logits(own, targets, reduction="sum")
    return total / max(targets.numel(), 1)
