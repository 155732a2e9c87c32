"""Detectors of a few thousand parameters, and objects to train them on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convnext.tasks.factory import create_model

METHODS = ["cascade_mask_rcnn_", "mask_rcnn_"]
NARROW = {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}
SMALL = {"num_classes": 5, "channels": 16, "fc_dim": 24}
# A fresh box head gives each of five classes a score of about 1/6.
SHY = {"num_proposals": 50, "score_threshold": 0.1, "max_detections": 10}


def small_detector(name: str, **changes: Any) -> nn.Module:
    """Build a detector by its full name, narrow where the backbone is ours."""
    torch.manual_seed(0)
    narrow = {} if "timm/" in name else NARROW
    return create_model(name, **{**narrow, **SMALL, **SHY, **changes})


def sharpen(model: Any) -> None:
    """Make the boxes, scores and masks of a fresh detector differ from each other."""
    with torch.no_grad():
        model.rpn.objectness.weight.mul_(30)
        model.rpn.deltas.weight.mul_(20)
        for box, mask in zip(model.box_heads, model.mask_heads, strict=True):
            box.classifier.weight.mul_(30)
            box.regressor.weight.mul_(100)
            mask.classifier.weight.mul_(30)


def random_target(num: int, height: int, width: int, seed: int = 0) -> dict[str, Any]:
    """Return `num` boxes with labels from 0 to 4, and rectangular masks as polygons."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(num, 2, generator=random) * torch.tensor([width - 24.0, height - 24.0])
    sides = 8 + 16 * torch.rand(num, 2, generator=random)
    boxes = torch.cat((corner, corner + sides), 1)
    return {
        "boxes": boxes,
        "labels": torch.randint(0, 5, (num,), generator=random),
        "masks": [[rectangle(box)] for box in boxes],
    }


def rectangle(box: Tensor) -> list[float]:
    """Return the ring around a box."""
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2, y1, x2, y2, x1, y2]
