"""Published layouts of a detector: the layout of its backbone and the names of its other parts.

Sources: the authors' repository and mmdetection 3, whose names differ only in the blocks.
"""

from __future__ import annotations

from dataclasses import asdict

from convnext.tasks.detection.model.config import METHODS, DetectorConfig
from convnext.weights.dense import DenseTables, dense_layouts

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
