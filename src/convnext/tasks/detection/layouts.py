"""The published layouts of a detector: those of its backbone with the names of its parts beside.

Sources: the authors' repository and mmdetection 3, which name everything alike but the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from convnext.tasks.detection.model.config import METHODS, DetectorConfig
from convnext.weights.infer import infer_model
from convnext.weights.layouts import LAYOUTS as BACKBONE_LAYOUTS
from convnext.weights.layouts import Layout
from convnext.weights.translate import bare, recognise

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
# A single stage has no number in their names, and no convolutions in its box head.
_ONE_STAGE = {
    ours.replace(".{s}", ".0", 1): theirs.replace(".{s}", "", 1)
    for ours, theirs in _CASCADE.items()
    if "box_heads.{s}.convs" not in ours
}


@dataclass(frozen=True, kw_only=True)
class DetectorTables:
    """The tables of one method, in the form that `convnext.weights.dense` asks for."""

    PREFIX: str
    LAYOUTS: tuple[Layout, ...]
    MARK: tuple[str, ...]
    """How a file shows that it is of this method."""
    CLASSIFIERS: tuple[str, ...]
    """Tensors whose shape follows from the classes."""
    OPTIONAL: tuple[str, ...] = ()
    """Tensors that only one of file and network may have."""

    def infer(self, state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
        """Return the name and the changes with which `create_model` builds the detector of a file.

        Raises:
            ValueError: If the tensors are not those of one on a backbone of our own.
        """
        names = recognise(state_dict, self.LAYOUTS).names
        found = {ours: state_dict[theirs] for theirs, ours in names.items()}
        inner = {n.removeprefix("backbone."): t for n, t in found.items() if "backbone." in n}
        backbone, changes = infer_model(inner)
        shapes = {
            "num_classes": ("mask_heads.0.classifier.weight", 0),
            "channels": ("rpn.conv.weight", 0),
            "fc_dim": ("box_heads.0.classifier.weight", 1),
        }
        told = {key: found[n].shape[dim] for key, (n, dim) in shapes.items() if n in found}
        changes = {key: value for key, value in changes.items() if key != "num_classes"}
        changes |= {key: v for key, v in told.items() if v != getattr(DetectorConfig(), key)}
        normed = "stages.0.0.pwconv1_norm.weight" not in inner
        if ("output_norms.0.weight" in found) != normed:
            changes["output_norms"] = not normed
        return f"{self.PREFIX}{backbone}", changes


def _layouts(heads: dict[str, str]) -> tuple[Layout, ...]:
    beside = _SHARED | heads
    by_name = {
        "convnext": {ours: ours for ours in beside},
        "official": beside,
        "openmmlab": beside,
    }
    return tuple(
        replace(
            layout,
            rows={
                f"backbone.{ours}": f"backbone.{bare(theirs)}"
                for ours, theirs in layout.rows.items()
                if not ours.startswith("head.")
            }
            | by_name[layout.name],
            ignored=("data_preprocessor",),
        )
        for layout in BACKBONE_LAYOUTS
        if layout.name in by_name and (layout.like is None or len(layout.like.depths) > 1)
    )


def _tables(prefix: str, heads: dict[str, str], mark: tuple[str, ...]) -> DetectorTables:
    stages = range(len(METHODS[prefix].stages))
    ends = ("box_heads.{}.classifier.", "box_heads.{}.regressor.", "mask_heads.{}.classifier.")
    return DetectorTables(
        PREFIX=prefix,
        LAYOUTS=_layouts(heads),
        MARK=mark,
        CLASSIFIERS=tuple(end.format(s) for s in stages for end in ends),
    )


BY_PREFIX = {
    "mask_rcnn_": _tables(
        "mask_rcnn_", _ONE_STAGE, ("roi_head.bbox_head.fc_cls.", "box_heads.0.fcs.1.")
    ),
    "cascade_mask_rcnn_": _tables(
        "cascade_mask_rcnn_", _CASCADE, ("roi_head.bbox_head.1.fc_cls.", "box_heads.1.")
    ),
}
