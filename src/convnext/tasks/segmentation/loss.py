"""The losses of segmentation: cross-entropy per pixel, and optionally soft Dice.

Logits have the stride of their head. They are resized to the masks bilinearly, without aligned
corners, and all losses are computed in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Average = Literal["all", "labelled"]


@dataclass(frozen=True, kw_only=True)
class HardExamples:
    """Online hard example mining: uses only pixels that the network is not yet sure of.

    It keeps the pixels whose true class has a probability below `threshold`, and at least the
    `min_kept` pixels with the lowest ones per image on average; all others are ignored.
    """

    threshold: float = 0.7
    min_kept: int = 100_000

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, but must be above 0 and at most 1")
        if self.min_kept < 0:
            raise ValueError(f"min_kept is {self.min_kept}, but must be at least 0")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The losses of a segmentor. The defaults are the published ones (`reference/recipes.md`)."""

    ignore_index: int = 255
    average: Average = "all"
    """Divide the cross-entropy by `all` pixels, as published, or by the `labelled` ones."""
    auxiliary_weight: float = 0.4
    dice_weight: float = 0.0
    """Weight of the Dice loss of the decode head; 0 turns it off."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class; empty for equal weights."""
    ohem: HardExamples | None = None
    """Hard example mining for the cross-entropy of both heads."""

    def __post_init__(self) -> None:
        if self.average not in get_args(Average):
            choices = ", ".join(get_args(Average))
            raise ValueError(f"average is {self.average!r}, but must be one of {choices}")
        if min(self.auxiliary_weight, self.dice_weight, *self.class_weights) < 0:
            raise ValueError("weights of losses and classes must be at least 0")


def losses(heads: Mapping[str, Tensor], masks: Tensor, settings: LossSettings) -> dict[str, Tensor]:
    """Return the named losses with their weights applied; the total is their sum.

    Args:
        heads: "decode" logits (N, K, h, w), and optionally "auxiliary" ones at another stride.
        masks: Class indices (N, H, W) of any integer type.
        settings: Weights and averages.
    """

    def ce(logits: Tensor) -> Tensor:
        return cross_entropy(
            logits,
            masks,
            ignore_index=settings.ignore_index,
            average=settings.average,
            class_weights=settings.class_weights,
            ohem=settings.ohem,
        )

    named = {"decode_ce": ce(heads["decode"])}
    if "auxiliary" in heads:
        named["auxiliary_ce"] = settings.auxiliary_weight * ce(heads["auxiliary"])
    if settings.dice_weight:
        overlap = dice(heads["decode"], masks, ignore_index=settings.ignore_index)
        named["decode_dice"] = settings.dice_weight * overlap
    return named


def cross_entropy(
    logits: Tensor,
    masks: Tensor,
    *,
    ignore_index: int = 255,
    average: Average = "all",
    class_weights: tuple[float, ...] = (),
    ohem: HardExamples | None = None,
) -> Tensor:
    """Return the cross-entropy of logits (N, K, h, w) and masks (N, H, W), a scalar.

    `average="all"` divides by all pixels including ignored ones, as in the published training;
    `labelled` divides by the sum of the class weights of the labeled pixels. Without any, the loss
    and its gradients are zero.

    Raises:
        ValueError: If there are not K class weights.
    """
    num_classes = logits.shape[1]
    if class_weights and len(class_weights) != num_classes:
        raise ValueError(f"{len(class_weights)} class weights were given for {num_classes} classes")
    logits, masks = resize(logits, masks), masks.long()
    per_pixel = F.cross_entropy(logits, masks, ignore_index=ignore_index, reduction="none")
    weights = (masks != ignore_index).float()  # (N, H, W)
    if ohem is not None:
        weights = weights * keep_hard(per_pixel.detach(), weights.bool(), ohem)
    if class_weights:
        factors = torch.tensor(class_weights, device=logits.device)
        # Ignored pixels index class 0; their weight is already zero.
        weights = weights * factors[masks.masked_fill(masks == ignore_index, 0)]
    total = (per_pixel * weights).sum()
    if average == "all":
        return total / masks.numel()
    count = weights.sum()
    return total / torch.where(count > 0, count, torch.ones_like(count))


def keep_hard(losses: Tensor, labeled: Tensor, ohem: HardExamples) -> Tensor:
    """Return a mask (N, H, W) of the hard labeled pixels, given all losses (N, H, W)."""
    kept = labeled & (losses > -math.log(ohem.threshold))
    candidates = losses[labeled]
    count = min(ohem.min_kept * len(losses), candidates.numel())
    if count:
        least = candidates.topk(count, sorted=False).values.min()
        kept |= labeled & (losses >= least)
    return kept


def dice(logits: Tensor, masks: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Return the soft Dice loss of logits (N, K, h, w) and masks (N, H, W), a scalar in [0, 1].

    One minus 2 |P T| / (|P| + |T|) of the softmax P and the truth T, over the labeled pixels of the
    whole batch, averaged over the classes that occur. With two classes that is binary Dice of
    background and foreground. Without labeled pixels, the loss and its gradients are zero.
    """
    num_classes = logits.shape[1]
    labeled = (masks != ignore_index)[:, None]  # (N, 1, H, W)
    probabilities = resize(logits, masks).softmax(1) * labeled
    truth = masks.long().masked_fill(masks == ignore_index, 0)[:, None]
    of_truth = probabilities.gather(1, truth) * labeled
    counts = torch.bincount(masks[labeled[:, 0]].long(), minlength=num_classes)  # (K,)
    hits = logits.new_zeros(num_classes, dtype=torch.float32)
    hits = hits.index_add(0, truth.flatten(), of_truth.flatten())
    overlap = 2 * hits / (probabilities.sum((0, 2, 3)) + counts).clamp(min=1e-6)
    present = counts > 0
    return ((1 - overlap) * present).sum() / present.sum().clamp(min=1)


def resize(logits: Tensor, masks: Tensor) -> Tensor:
    """Return logits (N, K, h, w) in fp32 at the size of masks (N, H, W)."""
    if logits.shape[-2:] == masks.shape[-2:]:
        return logits.float()
    size = masks.shape[-2:]
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
