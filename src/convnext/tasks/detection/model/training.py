"""The losses of a detector on a batch: proposals, then each stage on the previous boxes.

Losses are pure fp32 functions of predictions and targets. Sums are divided by the number of all
sampled boxes, positive or negative, so that a positive box weighs the same in images with few and
with many objects.

A target is a dict of `boxes` (M, 4) xyxy in pixels of the image, `labels` (M,), and `masks`, one
`masks.Mask` per object or None if it has only a box. Optionally it has `ignored` (I, 4), regions
with unlabeled objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convnext.data.masks import Mask, mask_targets, size_of
from convnext.tasks.detection.model.boxes import (
    Stds,
    clip,
    decode,
    encode,
    giou,
    match,
    sample,
    stack,
    usable,
)
from convnext.tasks.detection.model.heads import (
    RPN_THRESHOLDS,
    BoxLoss,
    DetectorConfig,
    Method,
    Stage,
    by_anchor,
)

if TYPE_CHECKING:
    from convnext.tasks.detection.model.detector import Detector


def smooth_l1(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """Return the sum of smooth L1, quadratic below `beta`; a beta of 0 is L1."""
    return F.smooth_l1_loss(predicted, target, reduction="sum", beta=beta)


def objectness_loss(positive: Tensor, negative: Tensor, num: int) -> Tensor:
    """Return binary cross-entropy of the logits of positive and negative anchors, over `num`."""
    logits = torch.cat((positive, negative)).float()
    labels = torch.cat((torch.ones_like(positive), torch.zeros_like(negative))).float()
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / num


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:  # R K+1, R
    """Return the mean cross-entropy of boxes; 0 without any."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)


def box_loss(
    kind: BoxLoss, boxes: Tensor, deltas: Tensor, targets: Tensor, *, stds: Stds, num: int
) -> Tensor:
    """Return the loss of positive boxes, all (P, 4), over `num`.

    `giou` compares the decoded boxes without clipping them to the image.
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


NUM_BEFORE = 2000
"""Max number of boxes of each level before NMS in training."""


def detector_losses(
    detector: Detector,
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Any]],
    seed: int | None,
) -> dict[str, Tensor]:
    """Return the named losses, as `Detector.losses` describes them.

    Raises:
        ValueError: If the numbers of images and targets differ, or a target is invalid.
    """
    if len(images) != len(targets):
        raise ValueError(f"there are {len(images)} images and {len(targets)} targets")
    random = None if seed is None else torch.Generator().manual_seed(seed)
    objects = [
        read_target(target, image, detector.num_classes)
        for target, image in zip(targets, images, strict=True)
    ]
    batch, sizes = stack(images, detector.strides[-1])
    maps = detector.features(batch)
    outputs = detector.rpn(maps)
    losses = rpn_losses(detector, maps, outputs, objects, random)
    with torch.no_grad():
        proposals = detector.proposals(
            maps,
            sizes,
            num_before=NUM_BEFORE,
            num_after=detector.method.num_train_proposals,
            outputs=outputs,
        )
    boxes = [own for own, _ in proposals]
    for s, stage in enumerate(detector.method.stages):
        chosen = [
            choose_boxes(own, o, detector.config, stage, random)
            for own, o in zip(boxes, objects, strict=True)
        ]
        named, boxes = stage_losses(detector, s, maps, chosen, objects)
        prefix = f"stage{s}_" if len(detector.method.stages) > 1 else ""
        losses |= {f"{prefix}{name}": loss for name, loss in named.items()}
    return losses


def rpn_losses(
    detector: Detector,
    maps: Sequence[Tensor],
    outputs: Sequence[tuple[Tensor, Tensor]],
    objects: Sequence[Objects],
    random: torch.Generator | None,
) -> dict[str, Tensor]:
    """Return the losses of the proposal network's outputs over all sampled anchors."""
    anchors = torch.cat(detector.anchors(maps))  # T 4
    levels = [by_anchor(logits, deltas) for logits, deltas in outputs]
    logits = torch.cat([level for level, _ in levels], 1)  # N T
    deltas = torch.cat([level for _, level in levels], 1)  # N T 4
    positive, negative, regression, num = [], [], [], 0
    for logit, delta, o in zip(logits, deltas, objects, strict=True):
        yes, no, boxes = choose_anchors(anchors, o, detector.config, detector.method, random)
        positive.append(logit[yes])
        negative.append(logit[no])
        wanted = encode(anchors[yes], boxes)
        regression.append(smooth_l1(delta[yes], wanted, detector.method.rpn_beta))
        # An image without objects counts as if it had one positive anchor, as in the reference.
        num += max(len(yes), 1) + max(len(no), 1)
    return {
        "rpn_class": objectness_loss(torch.cat(positive), torch.cat(negative), num),
        "rpn_box": torch.stack(regression).sum() / num,
    }


def stage_losses(
    detector: Detector,
    stage: int,
    maps: Sequence[Tensor],
    chosen: Sequence[Chosen],
    objects: Sequence[Objects],
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the weighted losses of a stage, and the boxes per image for the next one.

    Refined ground-truth boxes are left out, since the next stage adds ground truth itself.
    Background boxes are refined by the deltas of their most likely class.
    """
    method, step = detector.method, detector.method.stages[stage]
    boxes = [c.boxes for c in chosen]
    # A box that is not finite has no features; the loss says so, which ends the training.
    logits, deltas = detector.box_logits(stage, maps, [own.nan_to_num() for own in boxes])
    logits = logits.where(torch.cat(boxes).isfinite().all(), math.nan)
    labels = torch.cat([c.labels for c in chosen])
    positive = (labels < detector.num_classes).nonzero()[:, 0]
    own = labels[positive]
    targets = torch.cat([o.boxes[c.index] for c, o in zip(chosen, objects, strict=True)])
    regression = box_loss(
        method.box_loss,
        torch.cat(boxes)[positive],
        deltas[positive, own],
        targets,
        stds=step.stds,
        num=max(len(labels), 1),
    )
    masks = masks_loss(detector, stage, maps, chosen, objects)
    losses = {
        "class": step.weight * class_loss(logits, labels),
        "box": step.weight * method.box_weight * regression,
        "mask": step.weight * masks,
    }
    with torch.no_grad():
        likely = logits[:, :-1].argmax(1)
        best = torch.where(labels < detector.num_classes, labels, likely)
        refined = detector.refined(stage, boxes, deltas, best, [o.size for o in objects])
    return losses, [new[~c.given] for new, c in zip(refined, chosen, strict=True)]


def masks_loss(
    detector: Detector,
    stage: int,
    maps: Sequence[Tensor],
    chosen: Sequence[Chosen],
    objects: Sequence[Objects],
) -> Tensor:
    """Return the mask loss of a stage on the positive boxes whose objects have a mask."""
    boxes, labels, targets = [], [], []
    for c, o in zip(chosen, objects, strict=True):
        has_mask = torch.tensor([mask is not None for mask in o.masks], dtype=torch.bool)
        rows = has_mask.to(c.index.device)[c.index].nonzero()[:, 0]
        boxes.append(c.boxes[rows])
        labels.append(c.labels[rows])
        targets.append(mask_targets(o.masks, c.index[rows], boxes[-1], o.size))
    logits = detector.mask_logits(stage, maps, boxes)
    return mask_loss(logits, torch.cat(labels), torch.cat(targets))


RPN_POSITIVE, BOX_POSITIVE = 0.5, 0.25
"""Max fractions of positive boxes among those sampled."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The usable objects of one image, on the device of the network."""

    boxes: Tensor  # M 4
    labels: Tensor  # M
    masks: Sequence[Mask | None]
    ignored: Tensor  # I 4
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The sampled boxes of one image: positive ones first, then negative ones."""

    boxes: Tensor  # R 4
    labels: Tensor  # R, the number of classes for background
    index: Tensor  # P, the object of each positive box
    given: Tensor  # R, whether a box is a ground-truth box


def read_target(target: Mapping[str, Any], image: Tensor, num_classes: int) -> Objects:
    """Check the objects of an image (C, H, W) and move them to its device.

    Boxes are clipped to the image. Boxes without area are left out, since deltas cannot encode
    them.

    Raises:
        ValueError: If the parts of the target are inconsistent, or a label is out of range.
    """
    absent = [key for key in ("boxes", "labels", "masks") if key not in target]
    if absent:
        raise ValueError(f"a target has no {', '.join(absent)}; it has {', '.join(target)}")
    boxes = torch.as_tensor(target["boxes"]).to(image.device, torch.float32).reshape(-1, 4)
    labels = torch.as_tensor(target["labels"]).to(image.device, torch.long).reshape(-1)
    masks = target["masks"]
    if not len(boxes) == len(labels) == len(masks):
        raise ValueError(
            "a target needs a label and a mask for every box: it has "
            f"{len(boxes)} boxes, {len(labels)} labels and {len(masks)} masks"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, but are from {int(labels.min())} to "
            f"{int(labels.max())}; build the detector with num_classes={int(labels.max()) + 1}"
        )
    size = (image.shape[-2], image.shape[-1])
    others = {size_of(mask) for mask in masks if mask is not None} - {size, None}
    if others:
        raise ValueError(f"the image is {size} (height, width), and has masks of {others.pop()}")
    if not boxes.isfinite().all():
        raise ValueError("a target has a box with a coordinate that is not finite")
    ignored = torch.as_tensor(target.get("ignored", boxes[:0])).to(image.device, torch.float32)
    # RoIAlign takes as many samples as a box has pixels, so boxes must not exceed the image.
    boxes = clip(boxes, size)
    keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    return Objects(
        boxes=boxes[keep],
        labels=labels[keep],
        masks=[masks[i] for i in keep.nonzero()[:, 0].tolist()],
        ignored=ignored.reshape(-1, 4),
        size=size,
    )


def choose_anchors(
    anchors: Tensor,
    objects: Objects,
    config: DetectorConfig,
    method: Method,
    random: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample anchors (T, 4): return positive and negative indices, and the positives' targets."""
    inside = usable(anchors, objects.size, method.rpn_border).nonzero()[:, 0]
    thresholds = replace(RPN_THRESHOLDS, ignore=config.ignore_threshold)
    matches = match(anchors[inside], objects.boxes, thresholds, objects.ignored)
    positive, negative = sample(matches, config.rpn_batch_size, RPN_POSITIVE, random)
    return inside[positive], inside[negative], objects.boxes[matches[positive]]


def choose_boxes(
    proposals: Tensor,
    objects: Objects,
    config: DetectorConfig,
    stage: Stage,
    random: torch.Generator | None,
) -> Chosen:
    """Sample the boxes that a stage is trained on from proposals (R, 4) and ground truth."""
    thresholds = replace(stage.thresholds, ignore=config.ignore_threshold)
    found = match(proposals, objects.boxes, thresholds, objects.ignored)
    num_objects = len(objects.boxes)
    own = torch.arange(num_objects, device=found.device)
    matches, boxes = torch.cat((own, found)), torch.cat((objects.boxes, proposals))
    positive, negative = sample(matches, config.box_batch_size, BOX_POSITIVE, random)
    rows = torch.cat((positive, negative))
    index = matches[positive]
    nothing = torch.full_like(negative, config.num_classes)
    return Chosen(
        boxes=boxes[rows],
        labels=torch.cat((objects.labels[index], nothing)),
        index=index,
        given=rows < num_objects,
    )
