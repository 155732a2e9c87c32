"""Box geometry: areas, IoU, coding as deltas, anchors, matching, sampling; proposals to detections.

Boxes are (..., 4) as x1 y1 x2 y2 in pixels. An edge is a coordinate, not a pixel: a box from 0 to
10 is 10 wide. M boxes against R give (M, R); functions of pairs take equal shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from convnext.data.masks import paste_masks

if TYPE_CHECKING:
    from convnext.tasks.detection.model.detector import Detector


EPS = 1e-6
"""Min area of a denominator (union or hull), in square pixels, as in the reference."""


def area(boxes: Tensor) -> Tensor:  # ... 4 -> ...
    """Return width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def has_area(boxes: Tensor) -> Tensor:  # ... 4 -> ...
    """Whether boxes have both a width and a height."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def intersection(a: Tensor, b: Tensor) -> Tensor:  # ... 4, ... 4 -> ...
    """Return the area that two boxes share; shapes broadcast."""
    # Separate contiguous coordinates vectorize; pairs of coordinates would not.
    ax1, ay1, ax2, ay2 = a.movedim(-1, 0).contiguous()
    bx1, by1, bx2, by2 = b.movedim(-1, 0).contiguous()
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    return width * height


def iou(a: Tensor, b: Tensor) -> Tensor:  # M 4, R 4 -> M R
    """Return intersection over union of every box of `a` with every box of `b`."""
    shared = intersection(a[:, None], b[None])
    union = area(a)[:, None] + area(b)[None] - shared
    return shared / union.clamp(min=EPS)


def covered(a: Tensor, b: Tensor) -> Tensor:  # M 4, R 4 -> M R
    """Return the fraction of each box of `a` that lies in each box of `b`."""
    return intersection(a[:, None], b[None]) / area(a)[:, None].clamp(min=EPS)


def giou(a: Tensor, b: Tensor) -> Tensor:  # R 4, R 4 -> R
    """Return the generalized IoU of pairs, in [-1, 1] (Rezatofighi et al., 2019)."""
    shared = intersection(a, b)
    union = (area(a) + area(b) - shared).clamp(min=EPS)
    top_left = torch.minimum(a[..., :2], b[..., :2])
    bottom_right = torch.maximum(a[..., 2:], b[..., 2:])
    hull = area(torch.cat((top_left, bottom_right), -1)).clamp(min=EPS)
    return shared / union - (hull - union) / hull


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:  # ... 4 -> ... 4
    """Clip boxes to an image of `size` (H, W)."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), -1
    )


Stds = tuple[float, float, float, float]

MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Max absolute change of the logarithm of a width or height; keeps exp finite."""


def encode(boxes: Tensor, targets: Tensor, stds: Stds = (1, 1, 1, 1)) -> Tensor:
    """Return the deltas dx dy dw dh from `boxes` to `targets`, both (..., 4), divided by `stds`.

    Both need positive widths and heights; otherwise the deltas are not finite.
    """
    center, size = _center_and_size(boxes)
    target_center, target_size = _center_and_size(targets)
    deltas = torch.cat(((target_center - center) / size, (target_size / size).log()), -1)
    return deltas / deltas.new_tensor(stds)


def decode(
    boxes: Tensor, deltas: Tensor, stds: Stds = (1, 1, 1, 1), size: tuple[int, int] | None = None
) -> Tensor:
    """Apply `deltas` (..., 4) to boxes, and clip the result to `size` (H, W) if given.

    `boxes` are (..., 4) and broadcast: (R, 1, 4) for deltas (R, K, 4).
    """
    deltas = deltas * deltas.new_tensor(stds)
    center, extent = _center_and_size(boxes)
    new_extent = extent * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    new_center = center + extent * deltas[..., :2]
    decoded = torch.cat((new_center - new_extent / 2, new_center + new_extent / 2), -1)
    return decoded if size is None else clip(decoded, size)


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


RATIOS = (0.5, 1.0, 2.0)
"""Aspect ratios (height / width) of the anchors."""
SCALE = 8.0
"""Side of a square anchor of the published networks, in strides."""
DIVISOR = 32
"""Sides of padded images are multiples of this."""


def base_anchors(stride: int, scale: float = SCALE) -> Tensor:  # -> A 4
    """Return the anchors around the origin, one per aspect ratio, all of the same area."""
    root = torch.tensor(RATIOS).sqrt()
    half_width, half_height = scale * stride / root / 2, scale * stride * root / 2
    return torch.stack((-half_width, -half_height, half_width, half_height), 1)


def level_anchors(
    size: tuple[int, int],
    stride: int,
    device: torch.device | str = "cpu",
    scale: float = SCALE,
) -> Tensor:
    """Return the anchors of a map of `size` (H, W) as (H * W * A, 4), by row, column and ratio.

    They are centered on the top left corner of their cell, as in the reference.
    """
    height, width = size
    y = torch.arange(height, device=device) * stride
    x = torch.arange(width, device=device) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
    return (shifts + base_anchors(stride, scale).to(device)).view(-1, 4)


def usable(anchors: Tensor, size: tuple[int, int], border: int) -> Tensor:  # R 4 -> R
    """Whether anchors may be trained on for an image of `size` (H, W) in a larger batch.

    Usable anchors extend beyond the image by at most `border` pixels. A negative border keeps all
    anchors whose cells lie in the image padded to a multiple of `DIVISOR`, since the reference pads
    each image that way before stacking.
    """
    height, width = size
    if border < 0:
        x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
        return (x < -(-width // DIVISOR) * DIVISOR) & (y < -(-height // DIVISOR) * DIVISOR)
    first = (anchors[:, :2] >= -border).all(1)
    return first & (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border)


NEGATIVE, UNUSED = -1, -2
MAX_PAIRS = 2**24
"""Max number of IoUs computed at once: 64 MiB per tensor."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """IoU thresholds between boxes and objects."""

    positive: float
    """From here on a box is positive: it matches the object."""
    negative: float
    """Below, it is negative; in between it is unused."""
    low_quality: float | None = None
    """From here on the best boxes of an object match it even if they overlap another one more.

    None leaves objects without a match if no box overlaps them enough."""
    ignore: float | None = None
    """Boxes of which at least this fraction lies in a region to ignore are unused; None uses all of
    them, as the published models do."""


def match(
    boxes: Tensor, objects: Tensor, thresholds: Thresholds, ignored: Tensor | None = None
) -> Tensor:
    """Return for each box the index of its object, or `NEGATIVE` or `UNUSED`.

    Args:
        boxes: (R, 4).
        objects: (M, 4); M may be 0.
        thresholds: The IoU thresholds.
        ignored: Regions (I, 4) with unlabeled content, such as crowds.

    Returns:
        (R,) integers. All boxes with the highest IoU of an object are its low-quality matches; if a
        box is that of several objects, the last object wins, as in the reference.
    """
    if len(objects) == 0 or len(boxes) == 0:
        matches = torch.full((len(boxes),), NEGATIVE, dtype=torch.long, device=boxes.device)
    else:
        # A million anchors times a thousand objects are too many at once.
        chunks = torch.split(boxes, max(MAX_PAIRS // len(objects), 1))
        # A single chunk, the usual case, is compared once; several are compared twice for memory.
        overlaps = [iou(objects, chunk) if len(chunks) == 1 else None for chunk in chunks]
        pairs = list(zip(chunks, overlaps, strict=True))
        found = [_overlaps(pair, objects).max(0) for pair in pairs]
        best, index = torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
        matches = torch.where(best < thresholds.negative, NEGATIVE, UNUSED)
        matches = torch.where(best >= thresholds.positive, index, matches)
        if thresholds.low_quality is not None:
            best_of = _low_quality_matches(pairs, objects, thresholds.low_quality)
            matches = torch.where(best_of >= 0, best_of, matches)
    if thresholds.ignore is not None and ignored is not None and len(ignored) and len(boxes):
        unlabeled = covered(boxes, ignored).amax(1) > thresholds.ignore
        matches = torch.where(unlabeled, UNUSED, matches)
    return matches


Pair = tuple[Tensor, Tensor | None]
"""A chunk of boxes (R, 4), and its IoUs (M, R) with the objects if they were kept."""


def _overlaps(pair: Pair, objects: Tensor) -> Tensor:  # -> M R
    boxes, kept = pair
    return iou(objects, boxes) if kept is None else kept


def _low_quality_matches(pairs: Sequence[Pair], objects: Tensor, min_iou: float) -> Tensor:
    """Return for each box the last object of which it is a best box, or -1."""
    best = torch.stack([_overlaps(pair, objects).amax(1) for pair in pairs]).amax(0)[:, None]
    # Objects whose best IoU is below the minimum have no best box.
    best = torch.where(best >= min_iou, best, 2.0)
    number = torch.arange(len(objects), device=objects.device)[:, None]
    found = []
    for pair in pairs:
        is_best = _overlaps(pair, objects) == best
        found.append(torch.where(is_best, number, -1).amax(0))
    return torch.cat(found)


def sample(
    matches: Tensor, num: int, positive_fraction: float, random: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Sample positive boxes up to their fraction of `num`, and negative ones for the rest.

    Args:
        matches: (R,), returned by `match`.
        num: Total number of boxes; fewer are returned if there are not enough.
        positive_fraction: Max fraction of positive boxes.
        random: Generator on the CPU, so that all devices draw the same; None for torch's default.

    Returns:
        Indices of the positive and of the negative boxes, each in ascending order.
    """
    positive = _draw((matches >= 0).nonzero()[:, 0], int(num * positive_fraction), random)
    negative = _draw((matches == NEGATIVE).nonzero()[:, 0], num - len(positive), random)
    return positive, negative


def _draw(indices: Tensor, num: int, random: torch.Generator | None) -> Tensor:
    if len(indices) <= num:
        return indices
    chosen = torch.randperm(len(indices), generator=random)[:num].sort().values
    return indices[chosen.to(indices.device)]


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


def check_finite(boxes: Sequence[Tensor]) -> None:
    """Check boxes (R, 4), whose features could not be pooled without finite coordinates.

    Raises:
        ValueError: If a coordinate is not finite.
    """
    if not all(own.isfinite().all() for own in boxes):
        raise ValueError(
            "the network predicts boxes whose coordinates are not finite: its weights or its "
            "normalization are damaged, or its training diverged"
        )


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

    Raises:
        ValueError: If a box is not finite.
    """
    config, stages = detector.config, detector.method.stages
    boxes, total = list(proposals), torch.zeros((), device=maps[0].device)
    for s in range(len(stages)):
        check_finite(boxes)
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
    check_finite([f["boxes"] for f in found])
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
