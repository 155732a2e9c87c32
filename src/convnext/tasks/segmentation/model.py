"""UPerNet on any backbone that has a pyramid: the network, its losses, and published segmentors.

The losses are the cross-entropy per pixel, and optionally soft Dice. Logits have the stride of
their head. They are resized to the masks bilinearly, without aligned corners, and all losses are
computed in fp32.

The files of published segmentors hold only tensors. The reference recipes (`recipes/ade20k_*.yaml`)
train at 512 pixels, or at 640 for larger networks; the file's name tells which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.models.factory import build_dense
from convnext.models.given import GivenNetwork
from convnext.models.network import DenseModule, Network
from convnext.tasks.segmentation.heads import (
    FCNHead,
    UPerHead,
    UPerNetConfig,
    make_classifier,
    resize,
)
from convnext.tasks.segmentation.recipe import PREFIX
from convnext.tasks.segmentation.scores import default_stride
from convnext.weights.checkpoint import Card
from convnext.weights.dense import DenseTables, dense_layouts
from convnext.weights.published import dense_preprocessing

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
        return UPERNET

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

UPERNET = DenseTables(
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


Average = Literal["all", "labelled"]


@dataclass(frozen=True, kw_only=True)
class HardExamples:
    """Online hard example mining: uses only pixels that the network is not yet sure of.

    It keeps the pixels whose true class has a probability below `threshold`, and at least the
    `min_kept` pixels with the lowest ones per image on average; all others are ignored.
    """

    threshold: float = 0.7
    min_kept: int = 100_000

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, but must be above 0 and at most 1")
        if self.min_kept < 0:
            raise ValueError(f"min_kept is {self.min_kept}, but must be at least 0")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The losses of a segmentor. The defaults are the published ones."""

    ignore_index: int = 255
    average: Average = "all"
    """Divide the cross-entropy by `all` pixels, as published, or by the `labelled` ones."""
    auxiliary_weight: float = 0.4
    dice_weight: float = 0.0
    """Weight of the Dice loss of the decode head; 0 turns it off."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class; empty for equal weights."""
    ohem: HardExamples | None = None
    """Hard example mining for the cross-entropy of both heads."""

    def __post_init__(self) -> None:
        if self.average not in get_args(Average):
            choices = ", ".join(get_args(Average))
            raise ValueError(f"average is {self.average!r}, but must be one of {choices}")
        if min(self.auxiliary_weight, self.dice_weight, *self.class_weights) < 0:
            raise ValueError("weights of losses and classes must be at least 0")


def losses(heads: Mapping[str, Tensor], masks: Tensor, settings: LossSettings) -> dict[str, Tensor]:
    """Return the named losses with their weights applied; the total is their sum.

    Args:
        heads: "decode" logits (N, K, h, w), and optionally "auxiliary" ones at another stride.
        masks: Class indices (N, H, W) of any integer type.
        settings: Weights and averages.
    """

    def ce(logits: Tensor) -> Tensor:
        return cross_entropy(
            logits,
            masks,
            ignore_index=settings.ignore_index,
            average=settings.average,
            class_weights=settings.class_weights,
            ohem=settings.ohem,
        )

    named = {"decode_ce": ce(heads["decode"])}
    if "auxiliary" in heads:
        named["auxiliary_ce"] = settings.auxiliary_weight * ce(heads["auxiliary"])
    if settings.dice_weight:
        overlap = dice(heads["decode"], masks, ignore_index=settings.ignore_index)
        named["decode_dice"] = settings.dice_weight * overlap
    return named


def cross_entropy(
    logits: Tensor,
    masks: Tensor,
    *,
    ignore_index: int = 255,
    average: Average = "all",
    class_weights: tuple[float, ...] = (),
    ohem: HardExamples | None = None,
) -> Tensor:
    """Return the cross-entropy of logits (N, K, h, w) and masks (N, H, W), a scalar.

    `average="all"` divides by all pixels including ignored ones, as in the published training;
    `labelled` divides by the sum of the class weights of the labeled pixels. Without any, the loss
    and its gradients are zero.

    Raises:
        ValueError: If there are not K class weights.
    """
    num_classes = logits.shape[1]
    if class_weights and len(class_weights) != num_classes:
        raise ValueError(f"{len(class_weights)} class weights were given for {num_classes} classes")
    logits, masks = resize_to_masks(logits, masks), masks.long()
    per_pixel = F.cross_entropy(logits, masks, ignore_index=ignore_index, reduction="none")
    weights = (masks != ignore_index).float()  # (N, H, W)
    if ohem is not None:
        weights = weights * keep_hard(per_pixel.detach(), weights.bool(), ohem)
    if class_weights:
        factors = torch.tensor(class_weights, device=logits.device)
        # Ignored pixels index class 0; their weight is already zero.
        weights = weights * factors[masks.masked_fill(masks == ignore_index, 0)]
    total = (per_pixel * weights).sum()
    if average == "all":
        return total / masks.numel()
    count = weights.sum()
    return total / torch.where(count > 0, count, torch.ones_like(count))


def keep_hard(losses: Tensor, labeled: Tensor, ohem: HardExamples) -> Tensor:
    """Return a mask (N, H, W) of the hard labeled pixels, given all losses (N, H, W)."""
    kept = labeled & (losses > -math.log(ohem.threshold))
    candidates = losses[labeled]
    count = min(ohem.min_kept * len(losses), candidates.numel())
    if count:
        least = candidates.topk(count, sorted=False).values.min()
        kept |= labeled & (losses >= least)
    return kept


def dice(logits: Tensor, masks: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Return the soft Dice loss of logits (N, K, h, w) and masks (N, H, W), a scalar in [0, 1].

    One minus 2 |P T| / (|P| + |T|) of the softmax P and the truth T, over the labeled pixels of the
    whole batch, averaged over the classes that occur. With two classes that is binary Dice of
    background and foreground. Without labeled pixels, the loss and its gradients are zero.
    """
    num_classes = logits.shape[1]
    labeled = (masks != ignore_index)[:, None]  # (N, 1, H, W)
    probabilities = resize_to_masks(logits, masks).softmax(1) * labeled
    truth = masks.long().masked_fill(masks == ignore_index, 0)[:, None]
    of_truth = probabilities.gather(1, truth) * labeled
    counts = torch.bincount(masks[labeled[:, 0]].long(), minlength=num_classes)  # (K,)
    hits = logits.new_zeros(num_classes, dtype=torch.float32)
    hits = hits.index_add(0, truth.flatten(), of_truth.flatten())
    overlap = 2 * hits / (probabilities.sum((0, 2, 3)) + counts).clamp(min=1e-6)
    present = counts > 0
    return ((1 - overlap) * present).sum() / present.sum().clamp(min=1)


def resize_to_masks(logits: Tensor, masks: Tensor) -> Tensor:
    """Return logits (N, K, h, w) in fp32 at the size of masks (N, H, W)."""
    if logits.shape[-2:] == masks.shape[-2:]:
        return logits.float()
    size = masks.shape[-2:]
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


TABLES = (UPERNET,)

# In the order of the indices, each by its first name in ADE20K's list.
ADE20K = tuple(
    """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
    house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
    railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
    skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
    screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
    bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
    arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman,
    bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
    swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
    step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)


def published_card(source: str, name: str, changes: Mapping[str, Any]) -> Card:
    """Return a card for a file without one, from its source and tensor shapes.

    The classes are ADE20K's if there are 150 of them, otherwise numbers.
    """
    changes = asdict(UPerNetConfig()) | dict(changes)
    count = int(changes["num_classes"])
    side = published_side(source)
    return Card(
        task="segment",
        model=name,
        changes=changes,
        classes=ADE20K if count == len(ADE20K) else tuple(map(str, range(count))),
        preprocessing=dense_preprocessing(side, 4 * side, int(changes.get("in_chans", 3))),
        recipe=published_recipe(source),
    )


def published_recipe(source: str) -> dict[str, Any]:
    """Return the inference settings of published segmentors: windows of the crop's size."""
    side = published_side(source)
    return {"segment": {"mode": "slide", "window": side, "stride": default_stride(side)}}


def published_side(source: str) -> int:
    """Return the side of images and crops, from the name of a file or hub id.

    >>> published_side("upernet_convnext_base_22k_640x640.pth")
    640
    """
    return 640 if re.search(r"640|large", Path(source).name) else 512
