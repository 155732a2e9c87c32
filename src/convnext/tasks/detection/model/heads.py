"""The parts and the configuration of a detector: pyramid, proposals, RoI pooling, both heads.

The feature pyramid is that of Lin et al. (2017), the region proposal network that of Ren et al.
(2015). The T anchors of an image are always in the order of levels, rows, columns, ratios.

A configuration is a method, which is a row of a table, and adjustable settings. Sources: the
authors' released configurations, Mask R-CNN (He et al., 2017) and Cascade R-CNN (Cai and
Vasconcelos, 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from convnext.kernels.roi_pooling import roi_levels
from convnext.models.config import check_types
from convnext.tasks.detection.model.boxes import RATIOS, SCALE, Stds, Thresholds, decode, has_area

BOX_SIDE = 7
"""Side of a box's feature map, in cells."""

BoxHeadKind = Literal["two_fc", "four_conv_fc"]


class ConvNorm(nn.Sequential):
    """A 3x3 convolution, batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class BoxHead(nn.Module):
    """Maps features (R, C, 7, 7) to class logits (R, K + 1), background last, and deltas (R, K, 4).

    Args:
        kind: Two fully connected layers as in Mask R-CNN, or four convolutions with batch norm and
            one fully connected layer as in the cascade.
        channels: C.
        fc_dim: Width of the fully connected layers.
        num_classes: K.
    """

    def __init__(self, kind: BoxHeadKind, *, channels: int, fc_dim: int, num_classes: int) -> None:
        super().__init__()
        num_convs, num_fcs = {"two_fc": (0, 2), "four_conv_fc": (4, 1)}[kind]
        self.convs = nn.Sequential(*(ConvNorm(channels) for _ in range(num_convs)))
        in_dims = [channels * BOX_SIDE**2, *[fc_dim] * (num_fcs - 1)]
        fcs = [nn.Linear(dim, fc_dim) for dim in in_dims]
        for fc in fcs:
            nn.init.xavier_uniform_(fc.weight)
            nn.init.zeros_(fc.bias)
        self.fcs = nn.ModuleList(fcs)
        self.act = nn.ReLU()
        self.fc_dim = fc_dim
        self.reset_classifier(num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.convs(features).flatten(1)
        for fc in self.fcs:
            x = self.act(fc(x))
        return self.classifier(x), self.regressor(x).unflatten(1, (-1, 4))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layers by new ones for `num_classes` classes."""
        like = next(self.fcs.parameters())
        self.classifier = nn.Linear(self.fc_dim, num_classes + 1).to(like)
        self.regressor = nn.Linear(self.fc_dim, 4 * num_classes).to(like)
        for layer, std in ((self.classifier, 0.01), (self.regressor, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)


MASK_SIDE = 14
"""Side of a box's feature map, in cells; its mask has twice the resolution."""
NUM_CONVS = 4
LAST_STD = 0.01


class MaskHead(nn.Module):
    """Maps features (R, C, 14, 14) to mask logits (R, K, 28, 28) (He et al., 2017)."""

    def __init__(self, *, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(NUM_CONVS)
        )
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.act = nn.ReLU()
        for layer in (*self.convs, self.upsample):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.reset_classifier(num_classes)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for conv in self.convs:
            x = self.act(conv(x))
        logits: Tensor = self.classifier(self.act(self.upsample(x)))
        return logits

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a new one for `num_classes` classes."""
        like = self.upsample.weight
        classifier = nn.Conv2d(like.shape[1], num_classes, 1)
        # The reference scales it by fan-out like the others: a std of 0.16 for 80 classes, but 1.4
        # for one, with an initial loss of 7.
        nn.init.normal_(classifier.weight, std=LAST_STD)
        assert classifier.bias is not None
        nn.init.zeros_(classifier.bias)
        self.classifier = classifier.to(like)


def pool_rois(
    maps: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], side: int
) -> Tensor:
    """Return the features of boxes (R_n, 4) of every image n as (sum of R_n, C, side, side).

    Aligned RoIAlign with adaptive sampling. It always runs in fp32, because half precision cannot
    represent every coordinate beyond 2048 pixels.
    """
    rois = torch.cat(
        [torch.cat((b.new_full((len(b), 1), n), b), 1) for n, b in enumerate(boxes)]
    ).float()
    levels = roi_levels(rois[:, 1:], strides)
    order, parts = [], []
    for level, (map_, stride) in enumerate(zip(maps, strides, strict=True)):
        here = (levels == level).nonzero()[:, 0]
        part = roi_align(map_.float(), rois[here], side, 1 / stride, 0, aligned=True)
        order.append(here)
        parts.append(part.to(map_.dtype))
    return torch.cat(parts)[torch.cat(order).argsort()]


class FPN(nn.Module):
    """Turns maps c2 to c5 of `in_dims` channels into p2 to p6 of `channels`, without norms.

    p6 is every second position of p5; only proposals of large objects use it.
    """

    def __init__(self, in_dims: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(dim, channels, 1) for dim in in_dims)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_dims)
        for conv in (*self.laterals, *self.outputs):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:  # each N C H W, finest first
        sums = [lateral(map_) for lateral, map_ in zip(self.laterals, maps, strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            coarse = F.interpolate(sums[i], size=sums[i - 1].shape[2:], mode="nearest")
            sums[i - 1] = sums[i - 1] + coarse
        outputs = [conv(map_) for conv, map_ in zip(self.outputs, sums, strict=True)]
        return [*outputs, F.max_pool2d(outputs[-1], 1, stride=2)]


NMS_THRESHOLD = 0.7


class ProposalNetwork(nn.Module):
    """A 3x3 convolution, and two 1x1 convolutions for objectness and deltas of each anchor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(RATIOS), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(RATIOS), 1)
        for conv in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return objectness logits (N, A, H, W) and deltas (N, 4A, H, W) of every level."""
        hidden = [F.relu(self.conv(map_)) for map_ in maps]
        return [(self.objectness(x), self.deltas(x)) for x in hidden]


def by_anchor(logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps of a level as logits (N, H * W * A) and deltas (N, H * W * A, 4), in fp32."""
    num = len(logits)
    logits = logits.permute(0, 2, 3, 1).reshape(num, -1)
    return logits.float(), deltas.permute(0, 2, 3, 1).reshape(num, -1, 4).float()


def propose(
    anchors: Sequence[Tensor],
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    *,
    size: tuple[int, int],
    num_before: int,
    num_after: int,
    keep_empty: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the best boxes (R, 4) of an image of `size` (H, W), and their scores (R,), best first.

    Args:
        anchors: (T_l, 4) of every level l.
        logits: (T_l,) of every level.
        deltas: (T_l, 4) of every level.
        size: Boxes are clipped to it.
        num_before: Max number of boxes of each level before NMS.
        num_after: Max number of boxes of all levels after NMS.
        keep_empty: Whether to keep boxes that clipping leaves without area; see
            `DetectorConfig.empty_proposals`.

    NMS runs within each level.
    """
    chosen, scores, levels = [], [], []
    for level, (boxes, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
        score, index = logit.sigmoid().sort(descending=True, stable=True)
        index = index[:num_before]
        chosen.append(decode(boxes[index], delta[index], size=size))
        scores.append(score[:num_before])
        levels.append(torch.full_like(index, level))
    candidates, score, level_of = torch.cat(chosen), torch.cat(scores), torch.cat(levels)
    if not keep_empty:
        solid = has_area(candidates)
        candidates, score, level_of = candidates[solid], score[solid], level_of[solid]
    keep = batched_nms(candidates, score, level_of, NMS_THRESHOLD)[:num_after]
    return candidates[keep], score[keep]


BoxLoss = Literal["l1", "giou"]

RPN_THRESHOLDS = Thresholds(positive=0.7, negative=0.3, low_quality=0.3)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: a box head and a mask head, and the matching that they are trained with."""

    iou: float
    """IoU from which a proposal matches an object."""
    stds: Stds
    """Standard deviations that the deltas dx dy dw dh are divided by."""
    weight: float = 1.0
    """Weight of the stage's losses."""
    low_quality: bool = False
    """Whether an object also matches its best proposals if their IoU is below `iou`."""

    @property
    def thresholds(self) -> Thresholds:
        """Thresholds of positive and negative proposals; every proposal is one or the other."""
        low_quality_iou = self.iou if self.low_quality else None
        return Thresholds(positive=self.iou, negative=self.iou, low_quality=low_quality_iou)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A detection method: its heads and its losses."""

    stages: tuple[Stage, ...]
    box_head: BoxHeadKind
    box_loss: BoxLoss
    """L1 on deltas, or GIoU on the decoded boxes."""
    box_weight: float
    rpn_beta: float
    """Beta of smooth L1 on the proposals' deltas; 0 is L1."""
    rpn_border: int
    """Pixels by which anchors used in training may extend beyond the image; negative: any."""
    num_train_proposals: int
    """Proposals per image in training, after NMS."""


METHODS = {
    "mask_rcnn_": Method(
        stages=(Stage(iou=0.5, stds=(0.1, 0.1, 0.2, 0.2), low_quality=True),),
        box_head="two_fc",
        box_loss="l1",
        box_weight=1.0,
        rpn_beta=0.0,
        rpn_border=-1,
        num_train_proposals=1000,
    ),
    "cascade_mask_rcnn_": Method(
        stages=(
            Stage(iou=0.5, stds=(0.1, 0.1, 0.2, 0.2)),
            Stage(iou=0.6, stds=(0.05, 0.05, 0.1, 0.1), weight=0.5),
            Stage(iou=0.7, stds=(0.033, 0.033, 0.067, 0.067), weight=0.25),
        ),
        box_head="four_conv_fc",
        box_loss="giou",
        box_weight=10.0,
        rpn_beta=1 / 9,
        rpn_border=0,
        num_train_proposals=2000,
    ),
}
"""Methods by the prefix of a model's name."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Adjustable settings of a detector; the defaults are those of the published COCO models."""

    num_classes: int = 80
    channels: int = 256
    """Channels of the pyramid and of the convolutions of all heads."""
    fc_dim: int = 1024
    """Width of the fully connected layers of the box heads."""
    anchor_scale: float = SCALE
    """Side of a square anchor, in strides of its map."""
    output_norms: bool = True
    """Whether each map of the backbone gets its own layer norm."""
    num_proposals: int = 1000
    """Proposals per image: of each level before NMS, and of all levels after NMS."""
    empty_proposals: bool | None = None
    """Whether to keep proposals that clipping to the image leaves without area, as the code behind
    the published numbers does; current MMDetection drops them. None: as in the layout of the
    loaded weights, or keep them if it does not say."""
    score_threshold: float = 0.05
    """Minimum score of a detection."""
    nms_threshold: float = 0.5
    """IoU threshold of NMS within a class."""
    max_detections: int = 100
    """Maximum number of detections per image."""
    masks: bool = True
    """Whether masks are reported; training on boxes alone leaves the mask heads untrained."""
    mask_threshold: float = 0.5
    """Mask probability from which a pixel belongs to an object."""
    rpn_batch_size: int = 256
    """Anchors per image that the RPN is trained on, at most half of them positive."""
    box_batch_size: int = 512
    """Proposals per image that the heads are trained on, at most a quarter of them positive."""
    ignore_threshold: float | None = None
    """Fraction of a box in a region to ignore from which it is not trained on. None: such regions
    are background, as in the published models."""

    def __post_init__(self) -> None:
        check_types(self)
        counts = ("num_classes", "channels", "fc_dim", "num_proposals", "max_detections")
        for name in (*counts, "rpn_batch_size", "box_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not self.anchor_scale > 0:
            raise ValueError(f"anchor_scale must be positive, not {self.anchor_scale}")
        for name in ("score_threshold", "nms_threshold", "mask_threshold", "ignore_threshold"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], not {value}")
