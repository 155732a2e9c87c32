"""The published weights of our networks, as data.

Accuracies are ImageNet-1K top-1 in percent, as published and not measured here, at the size and
crop of the row: the authors' from the paper (Table 1), timm's for atto to nano and for `in12k` from
its model cards, torchvision's from its documentation, `a1` from arXiv 2110.00476.

Licenses are those of the model cards on the hub. The authors' own repository is under MIT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from convnext.data.preprocessing import RESAMPLING, DensePreprocessing, Preprocessing
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
    license: str
    top1: float | None
    """Top-1 in percent; None for weights with the classes of another data set."""
    num_classes: int
    input_size: int
    crop_pct: float
    """Side of the center crop as a share of the resized image's side."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


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
              license="bsd-3-clause", top1=76.130, num_classes=1000, input_size=224,
              crop_pct=0.875, interpolation="bilinear"),
    Published(model="resnet50", tag="tv2_in1k", hub_id="timm/resnet50.tv2_in1k",
              source=_TORCHVISION, license="bsd-3-clause", top1=80.858, num_classes=1000,
              input_size=224, crop_pct=0.965, interpolation="bilinear"),
    Published(model="resnet50", tag="a1_in1k", hub_id="timm/resnet50.a1_in1k", source=_TIMM,
              license="apache-2.0", top1=80.4, num_classes=1000, input_size=224, crop_pct=0.95),
)
# fmt: on

# Available only as a pickle in the layout of transformers.
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
        license="apache-2.0",
        top1=top1,
        num_classes=21841 if tag.endswith("in22k") else 1000,
        input_size=size,
        crop_pct=1.0 if size >= 384 else small_crop,
    )


PUBLISHED: tuple[Published, ...] = (*(_row(*row) for row in _ROWS), *_RESNETS)

# Steps of the roadmap that others have published as networks.
_SAME = {
    "roadmap/resnet50/resnet_baseline": "resnet50",
    "roadmap/resnet50/enhanced_recipe": "resnet50",
} | {
    f"roadmap/{regime}/{roadmap(regime)[-1].name}": member
    for regime, member in zip(PAPER_REGIMES, ("convnext_tiny", "convnext_base"), strict=True)
}


@dataclass(frozen=True, kw_only=True)
class PublishedDense:
    """Published weights of a dense network, and the scores that its authors report."""

    model: str
    tag: str
    """The data set, and perhaps the pre-training of the backbone, as in "ade20k_22k"."""
    url: str
    scores: Mapping[str, float]
    """Scores in percent by the name of the metric; `_ms` means multi-scale testing."""
    num_classes: int
    input_size: int
    """Short side of the images."""
    source: str = _AUTHORS
    license: str = "mit"

    @property
    def filename(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


_FILES = "https://dl.fbaipublicfiles.com/convnext"

# fmt: off
# reference: the paper, Tables 3 and 7 to 8, and the authors' repository
_ADE20K: tuple[tuple[str, str, int, float, float], ...] = (
    # size    pretraining  crop  multi-scale mIoU, single-scale mIoU
    ("tiny",   "1k",  512, 46.7, 46.0),
    ("small",  "1k",  512, 49.6, 48.7),
    ("base",   "1k",  512, 49.9, 49.1),
    ("base",   "22k", 640, 53.1, 52.6),
    ("large",  "22k", 640, 53.7, 53.2),
    ("xlarge", "22k", 640, 54.0, 53.6),
)
_COCO: tuple[tuple[str, str, str, float, float], ...] = (
    # method            size      pretraining  box AP, mask AP
    ("mask_rcnn",         "tiny",   "1k",  46.2, 41.7),
    ("cascade_mask_rcnn", "tiny",   "1k",  50.4, 43.7),
    ("cascade_mask_rcnn", "small",  "1k",  51.9, 45.0),
    ("cascade_mask_rcnn", "base",   "1k",  52.7, 45.6),
    ("cascade_mask_rcnn", "base",   "22k", 54.0, 46.9),
    ("cascade_mask_rcnn", "large",  "22k", 54.8, 47.6),
    ("cascade_mask_rcnn", "xlarge", "22k", 55.2, 47.7),
)
# fmt: on

PUBLISHED_DENSE: tuple[PublishedDense, ...] = (
    *(
        PublishedDense(
            model=f"upernet_convnext_{size}",
            tag=f"ade20k_{first}",
            url=f"{_FILES}/ade20k/upernet_convnext_{size}_{first}_{crop}x{crop}.pth",
            scores={"miou_ms": several, "miou": one},
            num_classes=150,
            input_size=crop,
        )
        for size, first, crop, several, one in _ADE20K
    ),
    *(
        PublishedDense(
            model=f"{method}_convnext_{size}",
            tag=f"coco_{first}",
            url=f"{_FILES}/coco/{method}_convnext_{size}_{first}_3x.pth",
            scores={"box_ap": box, "mask_ap": mask},
            num_classes=80,
            input_size=800,
        )
        for method, size, first, box, mask in _COCO
    ),
)


def published_dense(model: str) -> list[PublishedDense]:
    """Return the published weights of a dense network, by its name; often none."""
    return [entry for entry in PUBLISHED_DENSE if entry.model == model]


def find_published_dense(source: str, model: str = "") -> PublishedDense | None:
    """Return the entry that a source names, or None.

    Args:
        source: A tag of `model` ("ade20k_22k", or "ade20k" if that is unique), or a name and a tag
            ("upernet_convnext_tiny.ade20k").
        model: The network that a tag belongs to.

    Raises:
        ValueError: If several entries match.
    """
    name, _, tag = source.rpartition(".")
    entries = published_dense(name or model)
    found = [e for e in entries if tag == e.tag] or [
        e for e in entries if tag == e.tag.partition("_")[0]
    ]
    if len(found) > 1:
        tags = " or ".join(
            f"{e.tag} ({', '.join(f'{m} {v}' for m, v in e.scores.items())})" for e in found
        )
        raise ValueError(f"{name or model} has several weights {tag!r}: choose {tags}")
    return found[0] if found else None


def models_of_tag(tag: str) -> list[str]:
    """Return the names of the networks with published weights of this tag.

    The tag of a dense network may lack the pre-training of its backbone: "coco" for "coco_1k".
    """
    found = [entry.model for entry in PUBLISHED if entry.tag == tag]
    dense = [e.model for e in PUBLISHED_DENSE if tag in (e.tag, e.tag.partition("_")[0])]
    return list(dict.fromkeys(found + dense))


def published(model: str) -> list[Published]:
    """Return the published weights of a network, by its name; often none."""
    return [entry for entry in PUBLISHED if entry.model == _SAME.get(model, model)]


def find_published(source: str, model: str | None = None) -> Published | None:
    """Return the entry that a source names, or None.

    Args:
        source: A tag of `model`, `name.tag` as in timm, a hub id (`hf:` before it and a revision
            after @ are ignored), or a path inside the hub's cache.
        model: The network that a tag belongs to.
    """
    name = source.removeprefix("hf:").partition("@")[0]
    for entry in PUBLISHED:
        folder = f"models--{entry.hub_id.replace('/', '--')}"
        if name in (entry.hub_id, f"{entry.model}.{entry.tag}") or folder in name:
            return entry
    return next((e for e in published(model or "") if e.tag == name), None)


def dense_preprocessing(image_size: int, max_size: int, in_chans: int) -> DensePreprocessing:
    """Return the preprocessing of published dense networks; a gray channel averages the colors."""
    return DensePreprocessing(
        image_size=image_size,
        max_size=max_size,
        in_chans=in_chans,
        mean=_per_channel(IMAGENET_MEAN, in_chans),
        std=_per_channel(IMAGENET_STD, in_chans),
    )


def preprocessing_of_timm(model: str) -> Preprocessing:
    """Return the preprocessing of the default weights of a timm model."""
    from timm.models import get_pretrained_cfg

    name, _, tag = model.removeprefix("timm/").partition(".")
    known = get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    if known is None:
        return preprocessing_of(None)
    interpolation: Any = known.interpolation if known.interpolation in RESAMPLING else "bicubic"
    return Preprocessing(
        image_size=known.input_size[-1],
        crop_pct=known.crop_pct,
        interpolation=interpolation,
        mean=tuple(known.mean),
        std=tuple(known.std),
    )


def preprocessing_of(published: Published | None, in_chans: int = 3) -> Preprocessing:
    """Return the preprocessing of published weights, or the usual one if none is known."""
    return Preprocessing(
        image_size=published.input_size if published else 224,
        crop_pct=published.crop_pct if published else 0.875,
        interpolation=published.interpolation if published else "bicubic",
        in_chans=in_chans,
        mean=_per_channel(published.mean if published else IMAGENET_MEAN, in_chans),
        std=_per_channel(published.std if published else IMAGENET_STD, in_chans),
    )


def _per_channel(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    """Return a value per channel; a gray channel gets the mean over the colors."""
    return values if in_chans == len(values) else (sum(values) / len(values),) * in_chans
