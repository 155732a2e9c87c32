"""A detector as one graph of fixed size that exporters take: an image to its detections.

`Detector` follows its data: every level of the pyramid gets as many boxes as fall to it, every
image as many detections as it has. Here the shapes between the image and the answer are fixed, but
for what passes the score threshold and the suppression of doubles:

    proposals    always as many; those that are missing are boxes of nothing, and score nothing
    pooling      all levels lie in one map, so that one RoIAlign serves boxes of every level
    detections   always as many; behind the last real one come empty boxes with a score of 0

What is left are operations that torch.export, the ONNX exporter from opset 18 on, and OpenVINO
translate by themselves: `torchvision::nms` becomes NonMaxSuppression, `torchvision::roi_align`
RoIAlign with half-pixel centres. OpenVINO must be given the module, which it traces, or the ONNX
file: for `torchvision.nms` in a program of torch.export it has no rule (as of 2026.4). Who loads
such a program has to import torchvision first.

Shapes: C channels, H x W pixels, R proposals, K classes, L levels, P candidates, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from convnext.kernels.roi_pooling import roi_levels
from convnext.tasks.detection.model import box_head, mask_head
from convnext.tasks.detection.model.batch import Size, padded_size
from convnext.tasks.detection.model.boxes import DIVISOR, Stds, decode, has_area, level_anchors
from convnext.tasks.detection.model.detector import Detector
from convnext.tasks.detection.model.rpn import NMS_THRESHOLD, by_anchor

OUTPUTS = ("boxes", "scores", "labels", "masks")
"""Names of what a graph returns, in its order; without masks the first three."""
MISSING = -1.0
"""The score of a proposal that is none; those of real ones are not below 0."""
NUM_NOTHING = 2
"""Boxes of nothing that join every suppression of doubles: torch.export takes it for granted that
at least two come out, and refuses to run otherwise; and no runtime is given an empty list."""


class DetectorGraph(nn.Module):
    """A normalised image (1, C, H, W) to boxes (D, 4), scores (D,), labels (D,), masks (D, 28, 28).

    An image that is smaller lies in the upper left corner, with zeros around it; its height and
    width are given beside it, (2,), and boxes stay inside.

    The first of them are what `detector([image], paste=False)` returns, best first; the masks are
    its `shares` of the boxes, in [0, 1]. Where there are fewer than D, the others have score 0, an
    empty box and label 0. Equal scores may come in another order.

    Args:
        detector: In evaluation mode; best one from `convnext.deploy.fold.fold(form="conv")`. One in
            half precision is given fp32 as well, and its boxes and scores are in fp32.
        size: Height and width of the images.
        score_threshold: Every class of a box above it is a candidate.
        nms_threshold: Overlap from which candidates of one class suppress each other.
        max_detections: D.
        masks: Whether masks are computed; without, three outputs are returned.

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
            # The last map is every second position of the one before, and so rounded up.
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

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what is returned, in its order."""
        return OUTPUTS if self.masks else OUTPUTS[:3]

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
            features = self.pool(packed, boxes, box_head.SIDE)  # R C 7 7
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
        """Return boxes (R, 4) from maps p2 to p6, best first, and which of them are any (R,).

        They end at the right and lower edges of the image, `limits` (4,), as x y x y. R is the
        number of proposals, or less where there are not as many anchors.
        """
        num = self.detector.config.num_proposals
        chosen, scores = [], []
        for name, outputs in zip(self.anchors, self.detector.rpn(maps), strict=True):
            logit, delta = (out[0] for out in by_anchor(*outputs))
            score, index = logit.sigmoid().topk(min(num, len(logit)))
            boxes = moved(getattr(self, name)[index], delta[index], (1, 1, 1, 1), limits)
            if self.detector.config.empty_proposals is False:
                score = torch.where(has_area(boxes), score, MISSING)
            boxes, score = with_nothing(boxes, score, MISSING)
            keep = nms(boxes, score, NMS_THRESHOLD)
            chosen.append(boxes)
            scores.append(torch.full_like(score, MISSING).scatter(0, keep, score[keep]))
        every = torch.cat(scores)
        score, index = every.topk(min(num, len(every)))
        found = score > MISSING
        return torch.cat(chosen)[index] * found[:, None], found

    def pool(self, packed: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return the features (R, C, side, side) of boxes (R, 4), each of the level of its size."""
        level = roi_levels(boxes, self.detector.strides)
        corners = boxes * self.scales[level][:, None] + self.tops[level].repeat(1, 2)
        rois = torch.cat((torch.zeros_like(corners[:, :1]), corners), 1)
        # In fp32, as in `convnext.tasks.detection.model.roi`.
        features: Tensor = roi_align(packed.float(), rois, side, 1.0, 0, aligned=True)
        return features.to(packed.dtype)

    def select(
        self, boxes: Tensor, deltas: Tensor, scores: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes (D, 4), scores (D,) and labels (D,) of the detections, best first.

        Args:
            boxes: (R, 4), of the proposals.
            deltas: (R, K, 4), of the last stage.
            scores: (R, K), without the background.
            limits: (4,), the right and lower edges of the image, as x y x y.
        """
        num_classes = scores.shape[1]
        index = (scores.flatten() > self.score_threshold).nonzero()[:, 0]  # P
        row, label = index // num_classes, index % num_classes
        stds = self.detector.method.stages[-1].stds
        candidates = moved(boxes[row], deltas.flatten(0, 1)[index], stds, limits)
        candidates, score = with_nothing(candidates, scores.flatten()[index], 0.0)
        label = torch.cat((label.new_zeros(NUM_NOTHING), label))
        # Boxes of different classes are moved apart, so that they do not suppress each other.
        apart = label.to(candidates.dtype) * (candidates.max() + 1)
        keep = nms(candidates + apart[:, None], score, self.nms_threshold)
        # What is missing in the end is the first candidate, which is nothing.
        keep = torch.cat((keep, keep.new_zeros(self.max_detections)))[: self.max_detections]
        return candidates[keep], score[keep], label[keep]

    def shares(self, packed: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the masks (D, 28, 28) of boxes (D, 4) of known classes (D,), in [0, 1]."""
        heads = self.detector.mask_heads
        features = self.pool(packed, boxes, mask_head.SIDE)
        rows = torch.arange(self.max_detections, device=labels.device)
        total = torch.zeros((), device=packed.device)
        for head in heads:
            total = total + head(features)[rows, labels].float().sigmoid() / len(heads)
        return total


def moved(boxes: Tensor, deltas: Tensor, stds: Stds, limits: Tensor) -> Tensor:  # R 4 -> R 4
    """Return boxes that deltas lead to, inside the image whose edges are `limits` (4,)."""
    return torch.minimum(decode(boxes, deltas, stds).clamp(min=0), limits)


def paste(
    shares: Tensor, boxes: Tensor, size: tuple[Tensor, Tensor], threshold: float
) -> Tensor:  # D S S, D 4 -> D H W
    """Put masks of shares in [0, 1] where their boxes are, by the rule of `paste_masks`.

    Both directions are a product with the weights of each pixel's two neighbours among the cells.

    Args:
        shares: (D, S, S).
        boxes: (D, 4).
        size: The rows (H,) and columns (W,) of the image, counted from 0, in fp32.
        threshold: Share from which a pixel belongs to an object.

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
    """Return the weight of each of a box's cells in each pixel of a line."""
    extent = (last - first)[:, None]
    middle = (side - 1) / 2  # A box without width repeats the middle of its mask.
    at = (pixels[None] + 0.5 - first[:, None]) / torch.where(extent > 0, extent, 1.0)
    at = torch.where(extent > 0, at * side - 0.5, middle)
    cells = torch.arange(side, dtype=torch.float32, device=pixels.device)
    return (1 - (at[:, :, None] - cells).abs()).clamp_min(0)


def _near(pixels: Tensor, first: Tensor, last: Tensor) -> Tensor:  # -> D len
    """Tell which pixels of a line lie under a box or a margin of one pixel."""
    low, high = torch.floor(first) - 1, torch.ceil(last) + 1
    return (pixels[None] >= low[:, None]) & (pixels[None] < high[:, None])


def with_nothing(boxes: Tensor, scores: Tensor, score: float) -> tuple[Tensor, Tensor]:
    """Return boxes (P + 2, 4) and scores (P + 2,) with two empty boxes of a low score before them.

    They overlap with nothing, so that they neither suppress nor are suppressed.
    """
    return (
        torch.cat((boxes.new_zeros(NUM_NOTHING, 4), boxes)),
        torch.cat((scores.new_full((NUM_NOTHING,), score), scores)),
    )


def pack(maps: Sequence[Tensor]) -> Tensor:
    """Return maps (1, C, H_l, W_l), the widest first, as one: (1, C, sum of H_l + 2, W_1 + 2).

    They lie below each other. Each has its border repeated around it, which is how RoIAlign reads
    on beyond the border of a map of its own.
    """
    width = maps[0].shape[3]
    return torch.cat(
        [F.pad(m, (1, 1 + width - m.shape[3], 1, 1), mode="replicate") for m in maps], 2
    )


def packing(size: Size, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return scales (L,) and corners (L, 2), as x y: where `pack` puts a point of the image."""
    heights = torch.tensor([size[0] // stride + 2 for stride in strides])
    tops = heights.cumsum(0) - heights + 1
    corners = torch.stack((torch.ones_like(tops), tops), 1).float()
    return 1 / torch.tensor(strides).float(), corners


def check_size(detector: Detector, size: Size) -> None:
    """Check that a detector's maps divide images of a height and width without a rest.

    Raises:
        ValueError: If they do not, with a size that they do.
    """
    height, width = padded_size([size], detector.strides[-1])
    if size != (height, width):
        divisor = max(DIVISOR, detector.strides[-1])
        raise ValueError(
            f"{detector.name} is exported for sizes that are multiples of {divisor}, not "
            f"{size[0]} x {size[1]}: take {height} x {width} (--size {height}x{width})"
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
