"""The published layouts of a segmentor: those of its backbone with a head's names beside them.

Sources: the authors' repository and mmsegmentation, which name the heads alike and the blocks
differently, and `UperNetForSemanticSegmentation` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from convnext.tasks.segmentation.model import PREFIX, UPerNetConfig
from convnext.weights.infer import infer_model
from convnext.weights.layouts import LAYOUTS as BACKBONE_LAYOUTS
from convnext.weights.layouts import Layout
from convnext.weights.translate import bare, recognise

OPENMMLAB_HEADS = {
    "decode_head.pools.{s}.conv": "decode_head.psp_modules.{s}.1.conv",
    "decode_head.pools.{s}.norm": "decode_head.psp_modules.{s}.1.bn",
    "decode_head.bottleneck.conv": "decode_head.bottleneck.conv",
    "decode_head.bottleneck.norm": "decode_head.bottleneck.bn",
    "decode_head.laterals.{s}.conv": "decode_head.lateral_convs.{s}.conv",
    "decode_head.laterals.{s}.norm": "decode_head.lateral_convs.{s}.bn",
    "decode_head.outputs.{s}.conv": "decode_head.fpn_convs.{s}.conv",
    "decode_head.outputs.{s}.norm": "decode_head.fpn_convs.{s}.bn",
    "decode_head.fusion.conv": "decode_head.fpn_bottleneck.conv",
    "decode_head.fusion.norm": "decode_head.fpn_bottleneck.bn",
    "decode_head.classifier": "decode_head.conv_seg",
    "auxiliary_head.conv.conv": "auxiliary_head.convs.0.conv",
    "auxiliary_head.conv.norm": "auxiliary_head.convs.0.bn",
    "auxiliary_head.classifier": "auxiliary_head.conv_seg",
}
TRANSFORMERS_HEADS = {
    ours: theirs.replace(".bn", ".batch_norm").replace("conv_seg", "classifier")
    for ours, theirs in OPENMMLAB_HEADS.items()
}

_MM = {"output_norms.{s}": "backbone.norm{s}"} | OPENMMLAB_HEADS
_BESIDE = {
    "convnext": {name: name for name in _MM},
    "official": _MM,
    "openmmlab": _MM,
    "transformers": {"output_norms.{s}": "backbone.hidden_states_norms.stage{s+1}"}
    | TRANSFORMERS_HEADS,
}

MARK = "decode_head."
"""How a file shows that it is a segmentor's."""
CLASSIFIERS = ("decode_head.classifier.", "auxiliary_head.classifier.")
"""Tensors whose shape follows from the classes."""
OPTIONAL = ("auxiliary_head.",)
"""Tensors that only one of file and network may have."""


def _with_heads(layout: Layout) -> Layout:
    rows = {
        f"backbone.{ours}": f"backbone.{bare(theirs)}"
        for ours, theirs in layout.rows.items()
        if not ours.startswith("head.")
    }
    return Layout(
        name=layout.name,
        rows=rows | _BESIDE[layout.name],
        like=layout.like,
        free=layout.free,
        num_dims=layout.num_dims,
    )


LAYOUTS = tuple(
    _with_heads(layout)
    for layout in BACKBONE_LAYOUTS
    if layout.name in _BESIDE and (layout.like is None or len(layout.like.depths) > 1)
)


def infer(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the name and the changes with which `create_model` builds the segmentor of a file.

    Raises:
        ValueError: If the tensors are not those of one on a backbone of our own.
    """
    names = recognise(state_dict, LAYOUTS).names
    found = {ours: state_dict[theirs] for theirs, ours in names.items()}
    backbone, changes = infer_model(
        {n.removeprefix("backbone."): t for n, t in found.items() if n.startswith("backbone.")}
    )
    sizes = {
        "num_classes": "decode_head.classifier.weight",
        "channels": "decode_head.fusion.conv.weight",
        "auxiliary_channels": "auxiliary_head.conv.conv.weight",
    }
    told: dict[str, Any] = {key: len(found[n]) for key, n in sizes.items() if n in found}
    told["auxiliary"] = sizes["auxiliary_channels"] in found
    changes = {key: value for key, value in changes.items() if key != "num_classes"}
    changes |= {key: v for key, v in told.items() if v != getattr(UPerNetConfig(), key)}
    normed = "stages.0.0.pwconv1_norm.weight" not in {n.removeprefix("backbone.") for n in found}
    if ("output_norms.0.weight" in found) != normed:
        changes["output_norms"] = not normed
    return f"{PREFIX}{backbone}", changes
