"""Configuration of a detector: a method, which is a row of a table, and adjustable settings.

Sources: the authors' released configurations, Mask R-CNN (He et al., 2017) and Cascade R-CNN (Cai
and Vasconcelos, 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from convnext.tasks.detection.model.boxes import SCALE, Stds, Thresholds
from convnext.tasks.detection.model.heads import BoxHeadKind

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
