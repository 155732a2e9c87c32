"""The roadmap from ResNet-50 to ConvNeXt-T (and ResNet-200 to ConvNeXt-B), one choice per step.

Each step is a name and the fields that it changes. The last step is the family member:

    roadmap("resnet50")[-1].config == FAMILY["convnext_tiny"]
    roadmap("resnet200")[-1].config == FAMILY["convnext_base"]

`mini` is the roadmap from ResNet-50 at a third of its depth and a quarter of its width, for laptops
and small images. It changes the same fields in the same order; the paper does not report it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from convnext.models.config import NetworkConfig
from convnext.names import nearest

Group = Literal["start", "macro", "resnext", "inverted", "kernel", "micro"]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One step of the roadmap: its changes, its configuration, and what the paper reports."""

    name: str
    group: Group
    what: str
    """The change in a few words."""
    changes: dict[str, Any]
    """The fields that differ from the step `departs_from`."""
    departs_from: str
    """The previous step, except after kernel 7: the larger kernels are not kept."""
    config: NetworkConfig
    paper_top1: float
    """ImageNet-1K top-1 in percent (paper, Tables 10 and 11); for `mini`, that of `resnet50`."""
    paper_top1_std: float | None
    """Standard deviation over three seeds; None if the paper has a single run."""
    paper_gmacs: float | None
    """Cost at 224 as printed in the paper, in 10^9 multiply-accumulates; None for `mini`."""
    paper_misprint: bool = False
    """Whether no consistent definition of the step gives the printed cost."""


RESNET50 = NetworkConfig(
    depths=(3, 4, 6, 3),
    dims=(64, 128, 256, 512),
    stem="conv_pool",
    depthwise=False,
    bottleneck="narrow",
    spatial_first=False,
    kernel_size=3,
    act="relu",
    acts="every",
    norm="batch",
    norms="every",
    downsample="in_block",
    layer_scale_init=0.0,
)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A row of the table below: the changes of a step in each regime, and the paper's figures."""

    name: str
    group: Group
    what: str
    changes: dict[str, Any]
    paper: tuple[float, float | None, float, float, float]
    """ResNet-50: top-1, its standard deviation, cost; ResNet-200: top-1, cost."""
    departs_from: str | None = None
    resnet50: dict[str, Any] | None = None
    resnet200: dict[str, Any] | None = None
    mini: dict[str, Any] | None = None
    misprint: bool = False


def _dims(width: int) -> tuple[int, ...]:
    return tuple(width * 2**s for s in range(4))


# fmt: off
_STEPS = (
    _Step(name="resnet_baseline", group="start", what="the ResNet as published",
          changes={}, paper=(76.13, None, 4.09, 78.20, 15.01)),
    _Step(name="enhanced_recipe", group="start", what="the recipe of ConvNeXt, without EMA",
          changes={}, paper=(78.82, 0.07, 4.09, 81.14, 15.01)),
    _Step(name="stage_ratio", group="macro", what="stage ratio",
          changes={}, paper=(79.36, 0.07, 4.53, 81.33, 14.52),
          resnet50={"depths": (3, 3, 9, 3)},
          resnet200={"depths": (3, 3, 27, 3), "dims": _dims(84)},
          mini={"depths": (1, 1, 3, 1)}),
    _Step(name="patchify_stem", group="macro", what="patchify stem",
          changes={"stem": "patchify"}, paper=(79.51, 0.18, 4.42, 81.59, 14.38)),
    _Step(name="depthwise_conv", group="resnext", what="depthwise spatial convolution",
          changes={"depthwise": True}, paper=(78.28, 0.08, 2.35, 80.54, 7.23)),
    _Step(name="increase_width", group="resnext", what="wider",
          changes={}, paper=(80.50, 0.02, 5.27, 81.85, 16.76),
          resnet50={"dims": _dims(96)}, resnet200={"dims": _dims(128)},
          mini={"dims": _dims(24)}),
    _Step(name="inverting_dimensions", group="inverted", what="inverted bottleneck",
          changes={"bottleneck": "inverted"}, paper=(80.64, 0.03, 4.64, 82.64, 15.68)),
    _Step(name="move_up_depthwise", group="kernel", what="spatial convolution first",
          changes={"spatial_first": True}, paper=(79.92, 0.08, 4.07, 82.04, 14.63)),
    _Step(name="kernel_5", group="kernel", what="kernel 5x5",
          changes={"kernel_size": 5}, paper=(80.35, 0.08, 4.10, 82.32, 14.70)),
    _Step(name="kernel_7", group="kernel", what="kernel 7x7, kept",
          changes={"kernel_size": 7}, paper=(80.57, 0.14, 4.15, 82.30, 14.81)),
    _Step(name="kernel_9", group="kernel", what="kernel 9x9", departs_from="kernel_7",
          changes={"kernel_size": 9}, paper=(80.57, 0.06, 4.21, 82.27, 14.95)),
    _Step(name="kernel_11", group="kernel", what="kernel 11x11", departs_from="kernel_7",
          changes={"kernel_size": 11}, paper=(80.47, 0.11, 4.29, 82.18, 15.13)),
    _Step(name="relu_to_gelu", group="micro", what="ReLU to GELU", departs_from="kernel_7",
          changes={"act": "gelu"}, paper=(80.62, 0.14, 4.15, 82.19, 14.81)),
    _Step(name="fewer_activations", group="micro", what="one activation per block",
          changes={"acts": "one"}, paper=(81.27, 0.06, 4.15, 82.71, 14.81)),
    _Step(name="fewer_norms", group="micro", what="one norm per block",
          changes={"norms": "one"}, paper=(81.41, 0.09, 4.15, 83.17, 14.81)),
    _Step(name="bn_to_ln", group="micro", what="batch norm to layer norm", misprint=True,
          changes={"norm": "layer"}, paper=(81.47, 0.09, 4.46, 83.35, 14.81)),
    _Step(name="separate_downsampling", group="micro", misprint=True,
          what="separate downsampling, layer scale",
          changes={"downsample": "between_stages", "layer_scale_init": 1e-6},
          paper=(81.97, 0.06, 4.49, 83.60, 15.35)),
)
# fmt: on

_STARTS = {
    "resnet50": RESNET50,
    "resnet200": replace(RESNET50, depths=(3, 24, 36, 3)),
    "mini": replace(RESNET50, depths=(1, 1, 2, 1), dims=_dims(16)),
}
REGIMES = tuple(_STARTS)
PAPER_REGIMES = REGIMES[:2]


@cache
def roadmap(regime: str = "resnet50") -> tuple[Rung, ...]:
    """Return the steps of a regime in the order of the paper's Tables 10 and 11.

    Raises:
        ValueError: If the regime is not "resnet50", "resnet200" or "mini".
    """
    if regime not in REGIMES:
        raise ValueError(f"there is no regime {regime!r}{nearest(regime, REGIMES)}")
    rungs: dict[str, Rung] = {}
    previous = _STEPS[0].name
    for step in _STEPS:
        departs_from = step.departs_from or previous
        own: dict[str, Any] | None = getattr(step, regime)
        changes = step.changes | (own or {})
        base = rungs[departs_from].config if rungs else _STARTS[regime]
        top1, std, gmacs = (
            (step.paper[3], None, step.paper[4]) if regime == "resnet200" else step.paper[:3]
        )
        rungs[step.name] = Rung(
            name=step.name,
            group=step.group,
            what=step.what,
            changes=changes,
            departs_from=departs_from,
            config=replace(base, **changes),
            paper_top1=top1,
            paper_top1_std=std,
            paper_gmacs=None if regime == "mini" else gmacs,
            # Both misprints are in the table of the ResNet-50 regime.
            paper_misprint=step.misprint and regime == "resnet50",
        )
        previous = step.name
    return tuple(rungs.values())


def kept_rungs(rungs: tuple[Rung, ...]) -> frozenset[str]:
    """Return the names of the steps that lead to the last one; kernels 9 and 11 do not."""
    before = {rung.name: rung.departs_from for rung in rungs}
    name, kept = rungs[-1].name, {rungs[0].name}
    while name not in kept:
        kept.add(name)
        name = before[name]
    return frozenset(kept)


def stem_stride(image_size: int) -> int:
    """Return the stem stride for a size of images: 4, but 2 up to 64 pixels and 1 up to 16."""
    return 1 if image_size <= 16 else 2 if image_size <= 64 else 4
