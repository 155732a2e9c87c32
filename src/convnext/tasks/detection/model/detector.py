"""Mask R-CNN and Cascade Mask R-CNN on any backbone that has a pyramid.

A detector is a feature pyramid, a proposal network, and stages of a box head and a mask head.
Mask R-CNN has one stage; the cascade has three, each on the boxes of the previous one.

Shapes: N images of C x H x W, R boxes of all images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from convnext.models.factory import build_dense
from convnext.models.given import GivenNetwork
from convnext.models.network import DenseModule, Network
from convnext.tasks.detection.model.boxes import Size, detections, level_anchors, refine, stack
from convnext.tasks.detection.model.heads import (
    BOX_SIDE,
    FPN,
    MASK_SIDE,
    METHODS,
    BoxHead,
    DetectorConfig,
    MaskHead,
    Method,
    ProposalNetwork,
    by_anchor,
    pool_rois,
    propose,
)
from convnext.weights.dense import DenseTables, dense_layouts

if TYPE_CHECKING:
    from convnext.models.timm import TimmNetwork
    from convnext.tasks.detection.export.backend import DetectorTuner


class Detector(DenseModule):
    """Maps normalized images to boxes, scores, labels and masks.

    Args:
        backbone: A network with a pyramid, without a head.
        config: The settings; stored as `detector.config`.

    For every image (C, H, W) of any size the detector returns a dict of `boxes` (M, 4) as x1 y1 x2
    y2 in pixels of the image, `scores` (M,) in descending order, `labels` (M,) starting at 0, and
    boolean `masks` (M, H, W) unless `config.masks` is off.
    """

    config: DetectorConfig
    # An inference backend may replace it by an equivalent function.
    pool = staticmethod(pool_rois)

    def __init__(
        self, backbone: Network | TimmNetwork | GivenNetwork, config: DetectorConfig
    ) -> None:
        super().__init__(backbone, config)
        self.method: Method = METHODS[self.prefix]
        self.fpn = FPN([level.channels for level in self.levels.values()], config.channels)
        self.rpn = ProposalNetwork(config.channels)
        self.strides = [level.stride for level in self.levels.values()]
        self.box_heads = nn.ModuleList(
            BoxHead(
                self.method.box_head,
                channels=config.channels,
                fc_dim=config.fc_dim,
                num_classes=config.num_classes,
            )
            for _ in self.method.stages
        )
        self.mask_heads = nn.ModuleList(
            MaskHead(channels=config.channels, num_classes=config.num_classes)
            for _ in self.method.stages
        )

    def tuner(self) -> DetectorTuner:
        """Return the tuner that finds the fastest backend, for `convnext.optimize`."""
        from convnext.tasks.detection.export.backend import DetectorTuner

        return DetectorTuner(self)

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]] | None = None,
        seed: int | None = None,
        *,
        paste: bool = True,
    ) -> Any:
        """Detect objects in images (C, H, W), which are padded to a common size.

        Without `paste` the mask probabilities `shares` (M, 28, 28) of the boxes replace the masks;
        `masks.paste_windows` pastes them into an image of any size one by one.

        With `targets` return the losses: wrappers of a network (distributed, compiled) call
        `forward` only.
        """
        if targets is not None:
            return self.losses(images, targets, seed)
        batch, sizes = stack(images, self.strides[-1])
        maps = self.features(batch)
        proposals = [boxes for boxes, _ in self.proposals(maps, sizes)]
        return self.detect(maps, proposals, sizes, paste=paste)

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Return the named losses of images (C, H, W) and their targets; the total is their sum.

        Args:
            images: As for detection.
            targets: One per image; see `convnext.tasks.detection.model.training`.
            seed: Seed of the sampled boxes; None for torch's default generator.
        """
        from convnext.tasks.detection.model.training import detector_losses

        return detector_losses(self, images, targets, seed)

    def features(self, batch: Tensor) -> list[Tensor]:
        """Map images (N, C, H, W) to the maps p2 to p6, finest first."""
        maps: list[Tensor] = self.fpn(
            list(self.output_norms(self.backbone.pyramid(batch)).values())
        )
        return maps

    def anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors (H * W * A, 4) of every level."""
        strides = [*self.strides, 2 * self.strides[-1]]
        return [
            level_anchors(
                (map_.shape[2], map_.shape[3]), stride, map_.device, self.config.anchor_scale
            )
            for map_, stride in zip(maps, strides, strict=True)
        ]

    def proposals(
        self,
        maps: Sequence[Tensor],
        sizes: Sequence[Size],
        *,
        num_before: int | None = None,
        num_after: int | None = None,
        outputs: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Return proposals (R, 4) and their scores (R,) for every image.

        `outputs` are the outputs of the proposal network, if it has already run.
        """
        anchors = self.anchors(maps)
        outputs = self.rpn(maps) if outputs is None else outputs
        levels = [by_anchor(logits, deltas) for logits, deltas in outputs]
        return [
            propose(
                anchors,
                [logits[n] for logits, _ in levels],
                [deltas[n] for _, deltas in levels],
                size=size,
                num_before=num_before or self.config.num_proposals,
                num_after=num_after or self.config.num_proposals,
                keep_empty=self.config.empty_proposals is not False,
            )
            for n, size in enumerate(sizes)
        ]

    def box_logits(
        self, stage: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return class logits (R, K + 1) and deltas (R, K, 4) of a stage for boxes per image."""
        features = self.pool(maps[:-1], self.strides, boxes, BOX_SIDE)
        logits, deltas = self.box_heads[stage](features)
        return logits, deltas

    def mask_logits(
        self, stage: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]
    ) -> Tensor:  # R K 28 28
        """Return the mask logits of a stage for boxes per image."""
        logits: Tensor = self.mask_heads[stage](
            self.pool(maps[:-1], self.strides, boxes, MASK_SIDE)
        )
        return logits

    def detect(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[Size],
        *,
        paste: bool = True,
    ) -> list[dict[str, Tensor]]:
        """Return the detections of every image from its proposals (R_n, 4)."""
        return detections(self, maps, proposals, sizes, paste=paste)

    def refined(
        self,
        stage: int,
        boxes: Sequence[Tensor],
        deltas: Tensor,
        labels: Tensor,
        sizes: Sequence[Size],
    ) -> list[Tensor]:
        """Return the boxes per image, refined by a stage's deltas (R, K, 4) for labels (R,)."""
        counts = [len(b) for b in boxes]
        stds = self.method.stages[stage].stds
        split = zip(
            boxes, torch.split(deltas, counts), torch.split(labels, counts), sizes, strict=True
        )
        return [refine(own, delta, label, stds, size) for own, delta, label, size in split]

    def run_for_cost(self, images: Tensor) -> None:
        """Run all layers on images (N, C, H, W) with 1000 boxes and 100 masks each, to count MACs.

        No shape depends on values, so it also runs on meta tensors.
        """
        maps = self.features(images)
        self.rpn(maps)
        num, channels = len(images), self.config.channels
        for head, side, count in (
            *((head, BOX_SIDE, 1000) for head in self.box_heads),
            *((head, MASK_SIDE, 100) for head in self.mask_heads),
        ):
            head(maps[0].new_empty(num * count, channels, side, side))

    def layout_tables(self) -> DenseTables:
        """Return the tensor names in the published layouts."""
        return BY_PREFIX[self.prefix]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the heads' last layers by new ones for `num_classes` classes."""
        self.config = replace(self.config, num_classes=num_classes)
        for head in (*self.box_heads, *self.mask_heads):
            cast("BoxHead | MaskHead", head).reset_classifier(num_classes)


class MaskRCNN(Detector):
    """One stage: two fully connected layers, and L1 loss on class-specific deltas."""

    prefix = "mask_rcnn_"


class CascadeMaskRCNN(Detector):
    """Three stages of rising IoU, each with four convolutions and one layer, and GIoU loss."""

    prefix = "cascade_mask_rcnn_"


def build(name: str, **changes: Any) -> Detector:
    """Build `mask_rcnn_<backbone>` or `cascade_mask_rcnn_<backbone>`.

    Changes that are fields of `DetectorConfig` apply to the detector, all others to the backbone.

    Raises:
        ValueError: If there is no such backbone, it has no pyramid, or a change is unknown.
    """
    kind = next(k for k in (MaskRCNN, CascadeMaskRCNN) if name.startswith(k.prefix))
    return build_dense(kind, DetectorConfig, kind.prefix, name, changes)


# The published layouts: that of the backbone, and the names of the other parts. Sources: the
# authors' repository and mmdetection 3, whose names differ only in the blocks.
_SHARED = {
    "output_norms.{s}": "backbone.norm{s}",
    "fpn.laterals.{s}": "neck.lateral_convs.{s}.conv",
    "fpn.outputs.{s}": "neck.fpn_convs.{s}.conv",
    "rpn.conv": "rpn_head.rpn_conv",
    "rpn.objectness": "rpn_head.rpn_cls",
    "rpn.deltas": "rpn_head.rpn_reg",
}
_CASCADE = {
    "box_heads.{s}.convs.{b}.conv": "roi_head.bbox_head.{s}.shared_convs.{b}.conv",
    "box_heads.{s}.convs.{b}.norm": "roi_head.bbox_head.{s}.shared_convs.{b}.bn",
    "box_heads.{s}.fcs.{b}": "roi_head.bbox_head.{s}.shared_fcs.{b}",
    "box_heads.{s}.classifier": "roi_head.bbox_head.{s}.fc_cls",
    "box_heads.{s}.regressor": "roi_head.bbox_head.{s}.fc_reg",
    "mask_heads.{s}.convs.{b}": "roi_head.mask_head.{s}.convs.{b}.conv",
    "mask_heads.{s}.upsample": "roi_head.mask_head.{s}.upsample",
    "mask_heads.{s}.classifier": "roi_head.mask_head.{s}.conv_logits",
}
# Mask R-CNN's names have no stage number, and its box head has no convolutions.
_ONE_STAGE = {
    ours.replace(".{s}", ".0", 1): theirs.replace(".{s}", "", 1)
    for ours, theirs in _CASCADE.items()
    if "box_heads.{s}.convs" not in ours
}


def _tables(prefix: str, heads: dict[str, str], marks: tuple[str, ...]) -> DenseTables:
    rows = _SHARED | heads
    beside = {"convnext": {ours: ours for ours in rows}, "official": rows, "openmmlab": rows}
    ends = ("box_heads.{}.classifier.", "box_heads.{}.regressor.", "mask_heads.{}.classifier.")
    return DenseTables(
        prefix=prefix,
        layouts=dense_layouts(beside, ignored=("data_preprocessor",)),
        marks=marks,
        classifiers=tuple(
            end.format(s) for s in range(len(METHODS[prefix].stages)) for end in ends
        ),
        shapes={
            "num_classes": ("mask_heads.0.classifier.weight", 0),
            "channels": ("rpn.conv.weight", 0),
            "fc_dim": ("box_heads.0.classifier.weight", 1),
        },
        defaults=asdict(DetectorConfig()),
        input_size=(800, 1280),
        by_layout={"openmmlab": {"empty_proposals": False}},
    )


BY_PREFIX = {
    "mask_rcnn_": _tables(
        "mask_rcnn_", _ONE_STAGE, ("roi_head.bbox_head.fc_cls.", "box_heads.0.fcs.1.")
    ),
    "cascade_mask_rcnn_": _tables(
        "cascade_mask_rcnn_", _CASCADE, ("roi_head.bbox_head.1.fc_cls.", "box_heads.1.")
    ),
}
