"""A detector as one graph of fixed size for exporters: an image to its detections.

In `Detector`, shapes depend on the data: the number of boxes per pyramid level and of detections
per image varies. Here all shapes are fixed except those after the score threshold and NMS:

    proposals    a fixed number, padded with empty boxes of score 0
    pooling      all levels lie in one map, so that one RoIAlign serves boxes of every level
    detections   a fixed number, padded with empty boxes of score 0

torch.export, the ONNX exporter from opset 18 on, and OpenVINO translate all remaining operations:
`torchvision::nms` becomes NonMaxSuppression, `torchvision::roi_align` becomes RoIAlign with
half-pixel centers. OpenVINO needs the module, which it traces, or the ONNX file: it cannot convert
`torchvision.nms` in a program of torch.export (as of 2026.4). Loading such a program requires
importing torchvision first.

Shapes: C channels, H x W pixels, R proposals, K classes, L levels, P candidates, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from convnext.kernels.roi_pooling import roi_levels
from convnext.tasks.detection.model.boxes import (
    DIVISOR,
    Size,
    Stds,
    decode,
    has_area,
    level_anchors,
    padded_size,
)
from convnext.tasks.detection.model.detector import Detector
from convnext.tasks.detection.model.heads import BOX_SIDE, MASK_SIDE, NMS_THRESHOLD, by_anchor

OUTPUTS = ("boxes", "scores", "labels", "masks")
"""Names of a graph's outputs, in order; without masks the first three."""
MISSING = -1.0
"""The score of padding among the proposals; real scores are not negative."""
NUM_EMPTY = 2
"""Number of empty boxes added to every NMS: torch.export assumes at least two results and fails
otherwise, and no runtime gets an empty list."""


class DetectorGraph(nn.Module):
    """Maps an image (1, C, H, W) to boxes (D, 4), scores (D,), labels (D,), masks (D, 28, 28).

    The image is normalized. A smaller image lies in the upper left corner of a canvas of zeros; a
    second input (2,) has its height and width, and boxes stay inside.

    The first detections are those of `detector([image], paste=False)`, best first; the masks are
    its mask probabilities `shares`. Missing detections up to D have score 0, an empty box and label
    0. The order of equal scores may differ.

    Args:
        detector: A detector in evaluation mode, preferably folded by
            `convnext.deploy.fold.fold(form="conv")`. In half precision, inputs, boxes and scores
            stay in fp32.
        size: Height and width of the images.
        score_threshold: Classes of a box with a higher score are candidates.
        nms_threshold: IoU threshold of NMS within a class.
        max_detections: D.
        masks: Whether to compute masks; without them there are three outputs.

    Raises:
        ValueError: If the size does not fit the detector, or a threshold or D is out of range.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        size: Size,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
        masks: bool = True,
    ) -> None:
        super().__init__()
        _check(detector, size, score_threshold, nms_threshold, max_detections)
        self.detector = detector
        self.size = size
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.masks = masks
        strides, config = detector.strides, detector.config
        like = next(detector.parameters())
        self.dtype, device = like.dtype, like.device
        self.anchors: list[str] = []
        for level, stride in enumerate([*strides, 2 * strides[-1]]):
            # Rounded up, since the last map is every second position of the previous one.
            shape = (-(-size[0] // stride), -(-size[1] // stride))
            self.anchors.append(f"anchors{level}")
            anchors = level_anchors(shape, stride, device, config.anchor_scale)
            self.register_buffer(self.anchors[-1], anchors, persistent=False)
        scales, tops = packing(size, strides)
        self.scales: Tensor
        self.tops: Tensor
        self.register_buffer("scales", scales.to(device), persistent=False)
        self.register_buffer("tops", tops.to(device), persistent=False)
        self.whole: Tensor
        self.register_buffer("whole", torch.tensor(size, device=device), persistent=False)

    def forward(self, image: Tensor, extent: Tensor | None = None) -> tuple[Tensor, ...]:
        detector = self.detector
        height, width = (self.whole if extent is None else extent).float().unbind()
        limits = torch.stack((width, height, width, height))
        maps = detector.features(image.to(self.dtype))
        boxes, found = self.proposals(maps, limits)  # R 4, R
        packed = pack(maps[:-1])
        stages = detector.method.stages
        total = torch.zeros((), device=image.device)
        for s, stage in enumerate(stages):
            features = self.pool(packed, boxes, BOX_SIDE)  # R C 7 7
            logits, deltas = detector.box_heads[s](features)  # R K+1, R K 4
            total = total + logits.float() / len(stages)
            if s + 1 < len(stages):
                best = logits[:, :-1].argmax(1)
                own = deltas[torch.arange(len(best), device=best.device), best].float()
                boxes = moved(boxes, own, stage.stds, limits)
        scores = total.softmax(1)[:, :-1] * found[:, None]  # R K
        boxes, scores, labels = self.select(boxes, deltas.float(), scores, limits)
        if not self.masks:
            return boxes, scores, labels
        return boxes, scores, labels, self.shares(packed, boxes, labels)

    def proposals(self, maps: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (R, 4) from maps p2 to p6, best first, and which of them are real (R,).

        They are clipped to the right and lower edges of the image, `limits` (4,), as x y x y. R is
        the number of proposals, or of anchors if that is smaller.
        """
        num = self.detector.config.num_proposals
        chosen, scores = [], []
        for name, outputs in zip(self.anchors, self.detector.rpn(maps), strict=True):
            logit, delta = (out[0] for out in by_anchor(*outputs))
            score, index = logit.sigmoid().topk(min(num, len(logit)))
            boxes = moved(getattr(self, name)[index], delta[index], (1, 1, 1, 1), limits)
            if self.detector.config.empty_proposals is False:
                score = torch.where(has_area(boxes), score, MISSING)
            boxes, score = with_empty(boxes, score, MISSING)
            keep = nms(boxes, score, NMS_THRESHOLD)
            chosen.append(boxes)
            scores.append(torch.full_like(score, MISSING).scatter(0, keep, score[keep]))
        every = torch.cat(scores)
        score, index = every.topk(min(num, len(every)))
        found = score > MISSING
        return torch.cat(chosen)[index] * found[:, None], found

    def pool(self, packed: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return the features (R, C, side, side) of boxes (R, 4), by the level of their size."""
        level = roi_levels(boxes, self.detector.strides)
        corners = boxes * self.scales[level][:, None] + self.tops[level].repeat(1, 2)
        rois = torch.cat((torch.zeros_like(corners[:, :1]), corners), 1)
        # In fp32, as in `convnext.tasks.detection.model.heads`.
        features: Tensor = roi_align(packed.float(), rois, side, 1.0, 0, aligned=True)
        return features.to(packed.dtype)

    def select(
        self, boxes: Tensor, deltas: Tensor, scores: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes (D, 4), scores (D,) and labels (D,) of the detections, best first.

        Args:
            boxes: (R, 4), the proposals.
            deltas: (R, K, 4), of the last stage.
            scores: (R, K), without the background.
            limits: (4,), the right and lower edges of the image, as x y x y.
        """
        num_classes = scores.shape[1]
        index = (scores.flatten() > self.score_threshold).nonzero()[:, 0]  # P
        row, label = index // num_classes, index % num_classes
        stds = self.detector.method.stages[-1].stds
        candidates = moved(boxes[row], deltas.flatten(0, 1)[index], stds, limits)
        candidates, score = with_empty(candidates, scores.flatten()[index], 0.0)
        label = torch.cat((label.new_zeros(NUM_EMPTY), label))
        # Offsets keep boxes of different classes apart, so that NMS runs within each class.
        apart = label.to(candidates.dtype) * (candidates.max() + 1)
        keep = nms(candidates + apart[:, None], score, self.nms_threshold)
        # Index 0, an empty box, pads missing detections.
        keep = torch.cat((keep, keep.new_zeros(self.max_detections)))[: self.max_detections]
        return candidates[keep], score[keep], label[keep]

    def shares(self, packed: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the mask probabilities (D, 28, 28) of boxes (D, 4) with labels (D,)."""
        heads = self.detector.mask_heads
        features = self.pool(packed, boxes, MASK_SIDE)
        rows = torch.arange(self.max_detections, device=labels.device)
        total = torch.zeros((), device=packed.device)
        for head in heads:
            total = total + head(features)[rows, labels].float().sigmoid() / len(heads)
        return total


def moved(boxes: Tensor, deltas: Tensor, stds: Stds, limits: Tensor) -> Tensor:  # R 4 -> R 4
    """Apply deltas to boxes, and clip them to the image with edges `limits` (4,)."""
    return torch.minimum(decode(boxes, deltas, stds).clamp(min=0), limits)


def paste(
    shares: Tensor, boxes: Tensor, size: tuple[Tensor, Tensor], threshold: float
) -> Tensor:  # D S S, D 4 -> D H W
    """Paste mask probabilities into their boxes, by the rule of `paste_masks`.

    Each direction is a matrix product with the weights of each pixel's two neighboring cells.

    Args:
        shares: Mask probabilities (D, S, S).
        boxes: (D, 4).
        size: The rows (H,) and columns (W,) of the image, counted from 0, in fp32.
        threshold: Probability from which a pixel belongs to an object.

    Returns:
        Booleans.
    """
    side = shares.shape[1]
    x1, y1, x2, y2 = boxes.unbind(1)
    rows, columns = size
    down, across = _cells(rows, y1, y2, side), _cells(columns, x1, x2, side)  # D H S, D W S
    spread = torch.bmm(torch.bmm(down, shares), across.transpose(1, 2))
    inside = _near(rows, y1, y2)[:, :, None] & _near(columns, x1, x2)[:, None]
    return (spread >= threshold) & inside


def _cells(pixels: Tensor, first: Tensor, last: Tensor, side: int) -> Tensor:  # -> D len side
    """Return the weights of a box's cells for each pixel of a line."""
    extent = (last - first)[:, None]
    middle = (side - 1) / 2  # A box without width repeats the middle of its mask.
    at = (pixels[None] + 0.5 - first[:, None]) / torch.where(extent > 0, extent, 1.0)
    at = torch.where(extent > 0, at * side - 0.5, middle)
    cells = torch.arange(side, dtype=torch.float32, device=pixels.device)
    return (1 - (at[:, :, None] - cells).abs()).clamp_min(0)


def _near(pixels: Tensor, first: Tensor, last: Tensor) -> Tensor:  # -> D len
    """Whether each pixel of a line lies in a box with a margin of one pixel."""
    low, high = torch.floor(first) - 1, torch.ceil(last) + 1
    return (pixels[None] >= low[:, None]) & (pixels[None] < high[:, None])


def with_empty(boxes: Tensor, scores: Tensor, score: float) -> tuple[Tensor, Tensor]:
    """Prepend two empty boxes with a low score: boxes (P + 2, 4) and scores (P + 2,).

    They overlap no other box, so NMS treats the others as before.
    """
    return (
        torch.cat((boxes.new_zeros(NUM_EMPTY, 4), boxes)),
        torch.cat((scores.new_full((NUM_EMPTY,), score), scores)),
    )


def pack(maps: Sequence[Tensor]) -> Tensor:
    """Pack maps (1, C, H_l, W_l), widest first, into one map (1, C, sum of H_l + 2, W_1 + 2).

    They lie below each other. Each has a replicated border, since RoIAlign extends a separate map
    that way.
    """
    width = maps[0].shape[3]
    return torch.cat(
        [F.pad(m, (1, 1 + width - m.shape[3], 1, 1), mode="replicate") for m in maps], 2
    )


def packing(size: Size, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return scales (L,) and corners (L, 2) as x y that map image points into a packed map."""
    heights = torch.tensor([size[0] // stride + 2 for stride in strides])
    tops = heights.cumsum(0) - heights + 1
    corners = torch.stack((torch.ones_like(tops), tops), 1).float()
    return 1 / torch.tensor(strides).float(), corners


def check_size(detector: Detector, size: Size) -> None:
    """Check that a height and width are multiples of the detector's strides.

    Raises:
        ValueError: If they are not; the message names a size that fits.
    """
    height, width = padded_size([size], detector.strides[-1])
    if size != (height, width):
        divisor = max(DIVISOR, detector.strides[-1])
        raise ValueError(
            f"{detector.name} is exported for sizes that are multiples of {divisor}, not "
            f"{size[0]} x {size[1]}: use {height} x {width} (--size {height}x{width})"
        )


def _check(
    detector: Detector,
    size: Size,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> None:
    check_size(detector, size)
    for name, value in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], not {value}")
    if max_detections < 1:
        raise ValueError(f"max_detections must be positive, not {max_detections}")
