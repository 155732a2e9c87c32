"""What a detector is: a method, which is a row of a table, and settings that one may change.

Sources: the authors' released configurations, and docs of the papers: Mask R-CNN (He et al., 2017)
and Cascade R-CNN (Cai and Vasconcelos, 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from convnext.tasks.detection.model.box_head import BoxHeadKind
from convnext.tasks.detection.model.boxes import SCALE, Stds
from convnext.tasks.detection.model.matching import Thresholds

BoxLoss = Literal["l1", "giou"]

RPN_THRESHOLDS = Thresholds(positive=0.7, negative=0.3, low_quality=0.3)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A box head and a mask head, and what they are trained on."""

    iou: float
    """Overlap from which a proposal is responsible for an object."""
    stds: Stds
    """Scale of the deltas dx dy dw dh."""
    weight: float = 1.0
    """Factor on the stage's losses."""
    low_quality: bool = False
    """Whether objects keep the best of their proposals if none has `iou` more with another."""

    @property
    def thresholds(self) -> Thresholds:
        """Who is positive and who negative; no proposal is left out."""
        least = self.iou if self.low_quality else None
        return Thresholds(positive=self.iou, negative=self.iou, low_quality=least)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How boxes are found and what that is trained with."""

    stages: tuple[Stage, ...]
    box_head: BoxHeadKind
    box_loss: BoxLoss
    """On deltas, or on the boxes that they lead to."""
    box_weight: float
    rpn_beta: float
    """Where smooth L1 on the proposals' deltas turns from quadratic to linear; 0 is L1."""
    rpn_border: int
    """Pixels by which trained anchors may leave the image; negative: any."""
    num_train_proposals: int
    """Proposals of an image in training, after the suppression of doubles."""


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
"""By the prefix of a name."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What may be changed in a detector; the defaults are those of the published COCO models."""

    num_classes: int = 80
    channels: int = 256
    """Width of the pyramid and of the convolutions of all heads."""
    fc_dim: int = 1024
    """Width of the fully connected layers of the box heads."""
    anchor_scale: float = SCALE
    """Side of a square anchor, in strides of its map."""
    output_norms: bool = True
    """Whether each map of the backbone gets a layer norm of its own."""
    num_proposals: int = 1000
    """Proposals of an image, of each level before and of all after the suppression of doubles."""
    empty_proposals: bool | None = None
    """Whether proposals that lose their width or height at the border of the image stay, as in the
    stack of the published numbers; current MMDetection drops them. None: as in the layout that the
    weights come in, and they stay where it does not say."""
    score_threshold: float = 0.05
    """Least score of a detection."""
    nms_threshold: float = 0.5
    """Overlap from which the better of two detections of one class suppresses the other."""
    max_detections: int = 100
    """Most detections of an image."""
    masks: bool = True
    """Whether masks are reported; heads that were trained on boxes alone have learned nothing."""
    mask_threshold: float = 0.5
    """Share from which a pixel belongs to an object."""
    rpn_batch_size: int = 256
    """Anchors of an image that the proposals are trained on, at most half of them positive."""
    box_batch_size: int = 512
    """Proposals of an image that the heads are trained on, at most a quarter of them positive."""
    ignore_threshold: float | None = None
    """Share of a box in a region to ignore from which it is not trained on; None: such regions are
    background, as in the published models."""

    def __post_init__(self) -> None:
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
