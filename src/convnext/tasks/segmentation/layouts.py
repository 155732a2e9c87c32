"""Published layouts of a segmentor: the layout of its backbone and the names of its heads.

Sources: the authors' repository and mmsegmentation, whose names differ only in the blocks, and
`UperNetForSemanticSegmentation` of transformers.
"""

from __future__ import annotations

from dataclasses import asdict

from convnext.tasks.segmentation.heads import PREFIX, UPerNetConfig
from convnext.weights.dense import DenseTables, dense_layouts

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

TABLES = DenseTables(
    prefix=PREFIX,
    layouts=dense_layouts(_BESIDE),
    marks=("decode_head.",),
    classifiers=("decode_head.classifier.", "auxiliary_head.classifier."),
    optional=("auxiliary_head.",),
    shapes={
        "num_classes": ("decode_head.classifier.weight", 0),
        "channels": ("decode_head.fusion.conv.weight", 0),
        "auxiliary_channels": ("auxiliary_head.conv.conv.weight", 0),
    },
    present={"auxiliary": "auxiliary_head.conv.conv.weight"},
    defaults=asdict(UPerNetConfig()),
    input_size=(512, 512),
)
