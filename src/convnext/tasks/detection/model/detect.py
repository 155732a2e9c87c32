"""From images to a batch, and from proposals to detections: the box stages, then the masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from convnext.data.masks import paste_masks
from convnext.tasks.detection.model.boxes import DIVISOR, Stds, decode

if TYPE_CHECKING:
    from convnext.tasks.detection.model.detector import Detector


def refine(
    boxes: Tensor, deltas: Tensor, labels: Tensor, stds: Stds, size: tuple[int, int]
) -> Tensor:
    """Return boxes (R, 4) moved by the deltas (R, K, 4) of their classes, inside the image."""
    own = deltas[torch.arange(len(labels), device=labels.device), labels].float()
    return decode(boxes, own, stds, size)


def select(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boxes (M, 4), scores (M,) and labels (M,) of the detections, best first.

    Args:
        boxes: (R, K, 4), for every proposal and class.
        scores: (R, K), without the background.
        score_threshold: Classes of a box with a higher score are candidates.
        nms_threshold: IoU threshold of NMS within a class.
        max_detections: Maximum number of detections.
    """
    row, label = (scores > score_threshold).nonzero(as_tuple=True)
    candidates, score = boxes[row, label], scores[row, label]
    keep = batched_nms(candidates, score, label, nms_threshold)[:max_detections]
    return candidates[keep], score[keep], label[keep]


def detections(
    detector: Detector,
    maps: Sequence[Tensor],
    proposals: Sequence[Tensor],
    sizes: Sequence[Size],
    *,
    paste: bool = True,
) -> list[dict[str, Tensor]]:
    """Return the detections of every image from its proposals (R_n, 4), as `Detector` does.

    The class logits are the mean of all stages, each on its own boxes; the boxes are those of the
    last stage, and the masks the mean of all stages. Without `paste` the mask probabilities
    `shares` (M, 28, 28) replace the masks; a detector that reports no masks has neither.
    """
    config, stages = detector.config, detector.method.stages
    boxes, total = list(proposals), torch.zeros((), device=maps[0].device)
    for s in range(len(stages)):
        logits, deltas = detector.box_logits(s, maps, boxes)
        total = total + logits.float() / len(stages)
        if s + 1 < len(stages):
            boxes = detector.refined(s, boxes, deltas, logits[:, :-1].argmax(1), sizes)
    counts = [len(own) for own in boxes]
    found = []
    for own, delta, score, size in zip(
        boxes,
        torch.split(deltas.float(), counts),
        torch.split(total.softmax(1)[:, :-1], counts),
        sizes,
        strict=True,
    ):
        chosen = select(
            decode(own[:, None], delta, stages[-1].stds, size),
            score,
            score_threshold=config.score_threshold,
            nms_threshold=config.nms_threshold,
            max_detections=config.max_detections,
        )
        found.append(dict(zip(("boxes", "scores", "labels"), chosen, strict=True)))
    if not config.masks:
        return found
    shares = mask_shares(detector, maps, [f["boxes"] for f in found], [f["labels"] for f in found])
    for f, share, size in zip(found, shares, sizes, strict=True):
        f["shares"] = share
        if paste:
            f["masks"] = paste_masks(f.pop("shares"), f["boxes"], size, config.mask_threshold)
    return found


def mask_shares(
    detector: Detector, maps: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
) -> list[Tensor]:
    """Return the mask probabilities (R_n, 28, 28) of labeled boxes, for every image."""
    own = torch.cat(list(labels))
    rows = torch.arange(len(own), device=own.device)
    num = len(detector.method.stages)
    total = torch.zeros((), device=own.device)
    for s in range(num):
        total = total + detector.mask_logits(s, maps, boxes)[rows, own].float().sigmoid() / num
    return list(torch.split(total, [len(b) for b in boxes]))


Size = tuple[int, int]
"""Height and width."""


def padded_size(sizes: Sequence[Size], stride: int) -> Size:
    """Return the min height and width that fit all images, multiples of 32 and of `stride`."""
    divisor = max(DIVISOR, stride)
    height, width = (
        max(1, -(-max(side) // divisor)) * divisor for side in zip(*sizes, strict=True)
    )
    return height, width


def stack(images: Sequence[Tensor], stride: int) -> tuple[Tensor, list[Size]]:
    """Zero-pad images (C, H, W) at the right and bottom to one size, and stack them.

    Sides become multiples of 32, and of the backbone's last `stride` if that is larger.

    Returns:
        The batch (N, C, H, W), and the sizes (H, W) of the images.

    Raises:
        ValueError: If there are no images, or one is not (C, H, W).
    """
    if not len(images) or any(image.ndim != 3 for image in images):
        shapes = [tuple(image.shape) for image in images]
        raise ValueError(f"a detector takes a non-empty list of images (C, H, W), not {shapes}")
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = padded_size(sizes, stride)
    padded = [
        F.pad(image, (0, width - w, 0, height - h))
        for image, (h, w) in zip(images, sizes, strict=True)
    ]
    return torch.stack(padded), sizes
