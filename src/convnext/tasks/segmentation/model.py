"""UPerNet on any backbone that has a pyramid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from convnext.models.factory import build_dense
from convnext.models.given import GivenNetwork
from convnext.models.network import DenseModule, Network
from convnext.tasks.segmentation.heads import (
    PREFIX,
    FCNHead,
    UPerHead,
    UPerNetConfig,
    make_classifier,
    resize,
)
from convnext.weights.dense import DenseTables, dense_layouts

if TYPE_CHECKING:
    from convnext.models.timm import TimmNetwork


class Segmentor(DenseModule):
    """UPerNet: normalized images (N, in_chans, H, W) to logits (N, num_classes, H, W).

    Args:
        backbone: A network with a pyramid, without a head.
        config: The configuration of the heads; kept as `segmentor.config`.

    Sizes need not be multiples of the backbone's last stride: maps are resized to each other.
    Images smaller than one stride are padded to it.
    """

    prefix = PREFIX
    config: UPerNetConfig

    def __init__(
        self, backbone: Network | TimmNetwork | GivenNetwork, config: UPerNetConfig
    ) -> None:
        super().__init__(backbone, config)
        dims = [level.channels for level in self.levels.values()]
        self.decode_head = UPerHead(
            dims,
            channels=config.channels,
            num_classes=config.num_classes,
            dropout=config.dropout,
        )
        self.auxiliary_head = (
            FCNHead(
                dims[-2],
                channels=config.auxiliary_channels,
                num_classes=config.num_classes,
                dropout=config.dropout,
            )
            if config.auxiliary
            else None
        )

    def forward(self, images: Tensor, *, heads: bool = False) -> Any:
        """Map images (N, in_chans, H, W) to logits (N, num_classes, H, W).

        With `heads`, return the result of the method `heads`, which the losses need: wrappers of a
        network (several processes, compilation) only call `forward`.
        """
        if heads:
            return self.heads(images)
        height, width = images.shape[2:]
        min_side = max(level.stride for level in self.levels.values())
        bottom, right = max(0, min_side - height), max(0, min_side - width)
        if bottom or right:
            # Smaller than one position of the coarsest map: pad with the mean, as in training.
            images = F.pad(images, (0, right, 0, bottom))
        logits = resize(self.heads(images, auxiliary=False)["decode"], images.shape[2:])
        return logits[..., :height, :width]

    def heads(self, images: Tensor, *, auxiliary: bool | None = None) -> dict[str, Tensor]:
        """Return the logits of the heads before they are resized to the images.

        Args:
            images: (N, in_chans, H, W).
            auxiliary: Whether to run the auxiliary head, if there is one; by default in training.

        Returns:
            "decode" (N, K, H/4, W/4) at the size of c2, and "auxiliary" (N, K, H/16, W/16) at that
            of c4 if it was run. The backbone decides how sizes are rounded.
        """
        maps = list(self.output_norms(self.backbone.pyramid(images)).values())
        logits = {"decode": self.decode_head(maps)}
        wanted = self.training if auxiliary is None else auxiliary
        if wanted and self.auxiliary_head is not None:
            logits["auxiliary"] = self.auxiliary_head(maps[-2])
        return logits

    def fold_layers(self, merge: Callable[[Sequence[nn.Module]], list[nn.Module]]) -> None:
        """Drop the auxiliary head, which only training needs, for `convnext.fold`."""
        self.auxiliary_head = None

    def layout_tables(self) -> DenseTables:
        """Return the tensor names in the published layouts."""
        return TABLES

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifiers of the heads by new ones for `num_classes` classes."""
        self.config = replace(self.config, num_classes=num_classes)
        for head in (self.decode_head, self.auxiliary_head):
            if head is not None:
                old = head.classifier.weight
                new = make_classifier(old.shape[1], num_classes)
                head.classifier = new.to(device=old.device, dtype=old.dtype)


def build(name: str, **changes: Any) -> Segmentor:
    """Build `upernet_<backbone>`; changes that are not of `UPerNetConfig` apply to the backbone.

    Raises:
        ValueError: If there is no such backbone, it has no pyramid, or a change is unknown.
    """
    return build_dense(Segmentor, UPerNetConfig, PREFIX, name, changes)


# The published layouts: that of the backbone, and the names of the heads. Sources: the authors'
# repository and mmsegmentation, whose names differ only in the blocks, and
# `UperNetForSemanticSegmentation` of transformers.
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
_HEAD_NAMES = {
    "convnext": {name: name for name in _MM},
    "official": _MM,
    "openmmlab": _MM,
    "transformers": {"output_norms.{s}": "backbone.hidden_states_norms.stage{s+1}"}
    | TRANSFORMERS_HEADS,
}

TABLES = DenseTables(
    prefix=PREFIX,
    layouts=dense_layouts(_HEAD_NAMES),
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
