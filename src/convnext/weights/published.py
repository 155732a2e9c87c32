"""The weights that are published for networks of our own, as data.

Accuracies are ImageNet-1K top-1 in percent, as published and not measured here, at the size and
crop of the row: the authors' from the paper (Table 1), timm's for atto to nano and for `in12k` from
its model cards, torchvision's from its documentation, `a1` from arXiv 2110.00476.

Licences are what the model card on the hub says. The authors' own repository is under MIT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from convnext.models.roadmap import PAPER_REGIMES, roadmap

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published weights, and the preprocessing that their accuracy was measured with."""

    model: str
    tag: str
    hub_id: str
    source: str
    """Who trained them."""
    licence: str
    top1: float | None
    """None for weights with the classes of another data set."""
    num_classes: int
    input_size: int
    crop_pct: float
    """Share of the resized image's side that the central crop keeps."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    filename: str = "model.safetensors"


_AUTHORS, _TIMM, _TORCHVISION = "the authors", "timm", "torchvision"

# fmt: off
_ROWS: tuple[tuple[str, str, str, float | None], ...] = (
    # model             tag                        source    top-1
    ("convnext_atto",   "d2_in1k",                 _TIMM,    75.664),
    ("convnext_femto",  "d1_in1k",                 _TIMM,    77.454),
    ("convnext_pico",   "d1_in1k",                 _TIMM,    79.526),
    ("convnext_nano",   "d1h_in1k",                _TIMM,    80.768),
    ("convnext_nano",   "in12k_ft_in1k",           _TIMM,    82.282),
    ("convnext_tiny",   "fb_in1k",                 _AUTHORS, 82.1),
    ("convnext_tiny",   "fb_in22k",                _AUTHORS, None),
    ("convnext_tiny",   "fb_in22k_ft_in1k",        _AUTHORS, 82.9),
    ("convnext_tiny",   "fb_in22k_ft_in1k_384",    _AUTHORS, 84.1),
    ("convnext_tiny",   "in12k_ft_in1k",           _TIMM,    84.186),
    ("convnext_tiny",   "in12k_ft_in1k_384",       _TIMM,    85.118),
    ("convnext_small",  "fb_in1k",                 _AUTHORS, 83.1),
    ("convnext_small",  "fb_in22k",                _AUTHORS, None),
    ("convnext_small",  "fb_in22k_ft_in1k",        _AUTHORS, 84.6),
    ("convnext_small",  "fb_in22k_ft_in1k_384",    _AUTHORS, 85.8),
    ("convnext_small",  "in12k_ft_in1k",           _TIMM,    85.174),
    ("convnext_small",  "in12k_ft_in1k_384",       _TIMM,    86.182),
    ("convnext_base",   "fb_in1k",                 _AUTHORS, 83.8),
    ("convnext_base",   "fb_in1k_384",             _AUTHORS, 85.1),
    ("convnext_base",   "fb_in22k",                _AUTHORS, None),
    ("convnext_base",   "fb_in22k_ft_in1k",        _AUTHORS, 85.8),
    ("convnext_base",   "fb_in22k_ft_in1k_384",    _AUTHORS, 86.8),
    ("convnext_large",  "fb_in1k",                 _AUTHORS, 84.3),
    ("convnext_large",  "fb_in1k_384",             _AUTHORS, 85.5),
    ("convnext_large",  "fb_in22k",                _AUTHORS, None),
    ("convnext_large",  "fb_in22k_ft_in1k",        _AUTHORS, 86.6),
    ("convnext_large",  "fb_in22k_ft_in1k_384",    _AUTHORS, 87.5),
    ("convnext_xlarge", "fb_in22k",                _AUTHORS, None),
    ("convnext_xlarge", "fb_in22k_ft_in1k",        _AUTHORS, 87.0),
    ("convnext_xlarge", "fb_in22k_ft_in1k_384",    _AUTHORS, 87.8),
)

_RESNETS: tuple[Published, ...] = (
    Published(model="resnet50", tag="tv_in1k", hub_id="timm/resnet50.tv_in1k", source=_TORCHVISION,
              licence="bsd-3-clause", top1=76.130, num_classes=1000, input_size=224,
              crop_pct=0.875, interpolation="bilinear"),
    Published(model="resnet50", tag="tv2_in1k", hub_id="timm/resnet50.tv2_in1k",
              source=_TORCHVISION, licence="bsd-3-clause", top1=80.858, num_classes=1000,
              input_size=224, crop_pct=0.965, interpolation="bilinear"),
    Published(model="resnet50", tag="a1_in1k", hub_id="timm/resnet50.a1_in1k", source=_TIMM,
              licence="apache-2.0", top1=80.4, num_classes=1000, input_size=224, crop_pct=0.95),
)
# fmt: on

# Only in the layout of transformers, and as a pickle.
_ELSEWHERE = {
    ("convnext_base", "fb_in1k_384"): "facebook/convnext-base-384",
    ("convnext_large", "fb_in1k_384"): "facebook/convnext-large-384",
}


def _row(model: str, tag: str, source: str, top1: float | None) -> Published:
    size = 384 if tag.endswith("_384") else 224
    # timm evaluates nano and its `in12k` weights with a larger crop than the paper's.
    small_crop = 0.95 if tag == "d1h_in1k" or tag.startswith("in12k") else 0.875
    elsewhere = _ELSEWHERE.get((model, tag))
    return Published(
        model=model,
        tag=tag,
        hub_id=elsewhere or f"timm/{model}.{tag}",
        source=source,
        licence="apache-2.0",
        top1=top1,
        num_classes=21841 if tag.endswith("in22k") else 1000,
        input_size=size,
        crop_pct=1.0 if size >= 384 else small_crop,
        filename="pytorch_model.bin" if elsewhere else "model.safetensors",
    )


PUBLISHED: tuple[Published, ...] = (*(_row(*row) for row in _ROWS), *_RESNETS)

# The rungs that are networks which others have published.
_SAME = {
    "roadmap/resnet50/resnet_baseline": "resnet50",
    "roadmap/resnet50/enhanced_recipe": "resnet50",
} | {
    f"roadmap/{regime}/{roadmap(regime)[-1].name}": member
    for regime, member in zip(PAPER_REGIMES, ("convnext_tiny", "convnext_base"), strict=True)
}


def published(model: str) -> list[Published]:
    """Return the weights that are published for a network, by its name; often none."""
    return [entry for entry in PUBLISHED if entry.model == _SAME.get(model, model)]


def find_published(source: str, model: str | None = None) -> Published | None:
    """Return the entry that a source names, or None.

    Args:
        source: A tag of `model`, `name.tag` as timm writes it, a hub id with or without a revision,
            or a path inside the hub's cache.
        model: The network that a tag belongs to.
    """
    name, _, _ = source.partition("@")
    for entry in PUBLISHED:
        folder = f"models--{entry.hub_id.replace('/', '--')}"
        if name in (entry.hub_id, f"{entry.model}.{entry.tag}") or folder in name:
            return entry
    return next((e for e in published(model or "") if e.tag == name), None)
