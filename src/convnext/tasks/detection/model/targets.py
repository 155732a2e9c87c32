"""Training targets: the objects of an image, and the boxes sampled for them.

A target is a dict of `boxes` (M, 4) xyxy in pixels of the image, `labels` (M,), and `masks`, one
`masks.Mask` per object or None if it has only a box. Optionally it has `ignored` (I, 4), regions
with unlabeled objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convnext.data.masks import Mask, size_of
from convnext.tasks.detection.model.boxes import clip, match, sample, usable
from convnext.tasks.detection.model.config import RPN_THRESHOLDS, DetectorConfig, Method, Stage

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
            f"labels must lie in 0 to {num_classes - 1}, and some lie in {int(labels.min())} to "
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
