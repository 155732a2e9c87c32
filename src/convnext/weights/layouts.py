"""The published layouts of the same networks, one table of names each; recognized and converted.

A row pairs our name with theirs. It names a module, whose tensors (`weight`, `bias`, the running
statistics of a batch norm) keep the last part of their names, or a single tensor such as the layer
scale. Placeholders are `{b}` for the block and `{s}`, `{s+1}`, `{2s}` or `{2s+1}` for the stage. A
row without placeholders takes precedence.

Sources: the authors' repository, timm, torchvision, transformers and mmpretrain. The tests prove
the tables of timm, torchvision and transformers: the same weights give the same logits.

The functions that recognize a layout, rename it to another, and change the shapes of its tensors
are pure. Shapes: O output channels, I input channels, K kernel side, C channels, F features.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from convnext.models.config import FAMILY, NetworkConfig
from convnext.models.roadmap import RESNET50

# Our names, for every network of the roadmap.
OURS = (
    "stem.conv",
    "stem.norm",
    "downsample.{s}.norm",
    "downsample.{s}.conv",
    "stages.{s}.{b}.gamma",
    "stages.{s}.{b}.spatial",
    "stages.{s}.{b}.spatial_norm",
    "stages.{s}.{b}.norm",
    "stages.{s}.{b}.pwconv1",
    "stages.{s}.{b}.pwconv1_norm",
    "stages.{s}.{b}.pwconv2",
    "stages.{s}.{b}.pwconv2_norm",
    "stages.{s}.{b}.shortcut.conv",
    "stages.{s}.{b}.shortcut.norm",
    "head.norm",
    "head.fc",
)

OFFICIAL = {
    "stem.conv": "downsample_layers.0.0",
    "stem.norm": "downsample_layers.0.1",
    "downsample.{s}.norm": "downsample_layers.{s}.0",
    "downsample.{s}.conv": "downsample_layers.{s}.1",
    "stages.{s}.{b}.gamma": "stages.{s}.{b}.gamma",
    "stages.{s}.{b}.spatial": "stages.{s}.{b}.dwconv",
    "stages.{s}.{b}.norm": "stages.{s}.{b}.norm",
    "stages.{s}.{b}.pwconv1": "stages.{s}.{b}.pwconv1",
    "stages.{s}.{b}.pwconv2": "stages.{s}.{b}.pwconv2",
    "head.norm": "norm",
    "head.fc": "head",
}

OFFICIAL_ISOTROPIC = {
    "stem.conv": "stem",
    "stages.0.{b}.gamma": "blocks.{b}.gamma",
    "stages.0.{b}.spatial": "blocks.{b}.dwconv",
    "stages.0.{b}.norm": "blocks.{b}.norm",
    "stages.0.{b}.pwconv1": "blocks.{b}.pwconv1",
    "stages.0.{b}.pwconv2": "blocks.{b}.pwconv2",
    "head.norm": "norm",
    "head.fc": "head",
}

TIMM = {
    "stem.conv": "stem.0",
    "stem.norm": "stem.1",
    "downsample.{s}.norm": "stages.{s}.downsample.0",
    "downsample.{s}.conv": "stages.{s}.downsample.1",
    "stages.{s}.{b}.gamma": "stages.{s}.blocks.{b}.gamma",
    "stages.{s}.{b}.spatial": "stages.{s}.blocks.{b}.conv_dw",
    "stages.{s}.{b}.norm": "stages.{s}.blocks.{b}.norm",
    "stages.{s}.{b}.pwconv1": "stages.{s}.blocks.{b}.mlp.fc1",
    "stages.{s}.{b}.pwconv2": "stages.{s}.blocks.{b}.mlp.fc2",
    "head.norm": "head.norm",
    "head.fc": "head.fc",
}

TORCHVISION = {
    "stem.conv": "features.0.0",
    "stem.norm": "features.0.1",
    "downsample.{s}.norm": "features.{2s}.0",
    "downsample.{s}.conv": "features.{2s}.1",
    "stages.{s}.{b}.gamma": "features.{2s+1}.{b}.layer_scale",
    "stages.{s}.{b}.spatial": "features.{2s+1}.{b}.block.0",
    "stages.{s}.{b}.norm": "features.{2s+1}.{b}.block.2",
    "stages.{s}.{b}.pwconv1": "features.{2s+1}.{b}.block.3",
    "stages.{s}.{b}.pwconv2": "features.{2s+1}.{b}.block.5",
    "head.norm": "classifier.0",
    "head.fc": "classifier.2",
}

TRANSFORMERS = {
    "stem.conv": "convnext.embeddings.patch_embeddings",
    "stem.norm": "convnext.embeddings.layernorm",
    "downsample.{s}.norm": "convnext.encoder.stages.{s}.downsampling_layer.0",
    "downsample.{s}.conv": "convnext.encoder.stages.{s}.downsampling_layer.1",
    "stages.{s}.{b}.gamma": "convnext.encoder.stages.{s}.layers.{b}.layer_scale_parameter",
    "stages.{s}.{b}.spatial": "convnext.encoder.stages.{s}.layers.{b}.dwconv",
    "stages.{s}.{b}.norm": "convnext.encoder.stages.{s}.layers.{b}.layernorm",
    "stages.{s}.{b}.pwconv1": "convnext.encoder.stages.{s}.layers.{b}.pwconv1",
    "stages.{s}.{b}.pwconv2": "convnext.encoder.stages.{s}.layers.{b}.pwconv2",
    "head.norm": "convnext.layernorm",
    "head.fc": "classifier",
}

OPENMMLAB = {
    "stem.conv": "backbone.downsample_layers.0.0",
    "stem.norm": "backbone.downsample_layers.0.1",
    "downsample.{s}.norm": "backbone.downsample_layers.{s}.0",
    "downsample.{s}.conv": "backbone.downsample_layers.{s}.1",
    "stages.{s}.{b}.gamma": "backbone.stages.{s}.{b}.gamma",
    "stages.{s}.{b}.spatial": "backbone.stages.{s}.{b}.depthwise_conv",
    "stages.{s}.{b}.norm": "backbone.stages.{s}.{b}.norm",
    "stages.{s}.{b}.pwconv1": "backbone.stages.{s}.{b}.pointwise_conv1",
    "stages.{s}.{b}.pwconv2": "backbone.stages.{s}.{b}.pointwise_conv2",
    "head.norm": "backbone.norm3",
    "head.fc": "head.fc",
}

RESNET = {
    "stem.conv": "conv1",
    "stem.norm": "bn1",
    "stages.{s}.{b}.pwconv1": "layer{s+1}.{b}.conv1",
    "stages.{s}.{b}.pwconv1_norm": "layer{s+1}.{b}.bn1",
    "stages.{s}.{b}.spatial": "layer{s+1}.{b}.conv2",
    "stages.{s}.{b}.spatial_norm": "layer{s+1}.{b}.bn2",
    "stages.{s}.{b}.pwconv2": "layer{s+1}.{b}.conv3",
    "stages.{s}.{b}.pwconv2_norm": "layer{s+1}.{b}.bn3",
    "stages.{s}.{b}.shortcut.conv": "layer{s+1}.{b}.downsample.0",
    "stages.{s}.{b}.shortcut.norm": "layer{s+1}.{b}.downsample.1",
    "head.fc": "fc",
}

# Prefixes of wrappers around a network, which do not depend on the layout.
WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "backbone.", "convnext.")

LINEAR = {"pwconv1.weight": 2, "pwconv2.weight": 2}
"""Dimensions of the tensors whose shape differs from ours: linear layers for 1x1 convolutions."""

_SIZES = frozenset(
    {"depths", "dims", "stem_stride", "kernel_size", "num_classes", "in_chans", "layer_scale_init"}
    | {"drop_path_rate", "head_init_scale"}
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One table of names, and the networks that it applies to."""

    name: str
    rows: Mapping[str, str]
    like: NetworkConfig | None
    """A network that the table applies to; None for all our networks."""
    free: frozenset[str] = _SIZES
    """The fields in which other networks may differ from `like`."""
    num_dims: Mapping[str, int] = field(default_factory=dict)
    """Number of dimensions of exported tensors by the end of our name, if it differs."""
    ignored: tuple[str, ...] = ()
    """First components of names that are not part of the network, or belong to dense heads."""

    def covers(self, config: NetworkConfig) -> bool:
        """Whether the table applies to a network."""
        if self.like is None:
            return True
        same_stages = (len(config.depths) == 1) == (len(self.like.depths) == 1)
        return same_stages and not self.differences(config)

    def differences(self, config: NetworkConfig) -> list[str]:
        """Return the fields of a network that the table does not allow, as `norm=batch`."""
        return [
            f"{name}={getattr(config, name)}"
            for name, value in vars(self.like).items()
            if getattr(config, name) != value and name not in self.free
        ]


_RESNET_FREE = frozenset({"depths", "num_classes", "in_chans", "drop_path_rate", "head_init_scale"})
_OUTPUT_NORMS = ("norm0", "norm1", "norm2", "norm3")
_TINY = FAMILY["convnext_tiny"]

# In order of precedence if several match equally well.
LAYOUTS = (
    Layout(name="convnext", rows={name: name for name in OURS}, like=None),
    Layout(name="official", rows=OFFICIAL, like=_TINY, num_dims=LINEAR, ignored=_OUTPUT_NORMS),
    Layout(
        name="official",
        rows=OFFICIAL_ISOTROPIC,
        like=FAMILY["convnext_isotropic_small"],
        num_dims=LINEAR,
    ),
    Layout(name="timm", rows=TIMM, like=_TINY, num_dims=LINEAR),
    Layout(name="torchvision", rows=TORCHVISION, like=_TINY, num_dims=LINEAR | {"gamma": 3}),
    Layout(
        name="transformers",
        rows=TRANSFORMERS,
        like=_TINY,
        num_dims=LINEAR,
        ignored=("hidden_states_norms",),
    ),
    Layout(
        name="openmmlab",
        rows=OPENMMLAB,
        like=_TINY,
        num_dims=LINEAR,
        ignored=("data_preprocessor", *_OUTPUT_NORMS[:3]),
    ),
    Layout(name="torchvision", rows=RESNET, like=RESNET50, free=_RESNET_FREE),
    Layout(name="timm", rows=RESNET, like=RESNET50, free=_RESNET_FREE),
)

LAYOUT_NAMES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))

# timm builds these with 1x1 convolutions (`conv_mlp=True`) and the others with linear layers.
_CONV_MLP = tuple(FAMILY[f"convnext_{size}"].dims for size in ("atto", "femto", "pico", "nano"))


def num_dims(layout: Layout, config: NetworkConfig) -> dict[str, int]:
    """Return `Layout.num_dims` for one network."""
    as_convolutions = layout.name == "timm" and config.dims in _CONV_MLP
    return {} if as_convolutions else dict(layout.num_dims)


def layout_for(name: str, config: NetworkConfig, layouts: tuple[Layout, ...] = LAYOUTS) -> Layout:
    """Return the table of a layout that applies to a network, or to its backbone.

    Raises:
        ValueError: If there is no such layout, or it does not apply; names those that do.
    """
    if name not in LAYOUT_NAMES:
        raise ValueError(f"there is no layout {name!r}; choose one of {', '.join(LAYOUT_NAMES)}")
    found = {layout.name: layout for layout in layouts if layout.covers(config)}
    if name not in found:
        tables = [layout for layout in layouts if layout.name == name]
        differ = min((table.differences(config) for table in tables), key=len, default=[])
        why = f", whose networks do not have {', '.join(differ)}" if differ else ""
        raise ValueError(
            f"this network cannot be written in the layout {name!r}{why}; choose {', '.join(found)}"
        )
    return found[name]


_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_PLACEHOLDER = re.compile(r"\{(\d*)([sb])(?:\+(\d+))?\}")


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The names of a file, read by one table."""

    layout: Layout
    names: dict[str, str]
    """Our name by the name in the file."""
    unknown: tuple[str, ...]
    """Names inside the network that the table does not have: another kind of network."""
    extra: tuple[str, ...]
    """Names outside the network: heads of other tasks, preprocessing, counters."""


def rename(name: str, source: str, target: str) -> str | None:
    """Return the name of a tensor under the row `target`, or None if `source` does not match.

    rename("features.5.2.block.3.bias", "features.{2s+1}.{b}.block.3", "stages.{s}.{b}.pwconv1")
    == "stages.2.2.pwconv1.bias"
    """
    matcher, forms = _compiled(source)
    match = matcher.fullmatch(name)
    if match is None:
        return None
    indices = {}
    for symbol, factor, offset in forms:
        index, rest = divmod(int(match[symbol]) - offset, factor)
        if rest or index < 0:
            return None
        indices[symbol] = index
    filled = _PLACEHOLDER.sub(
        lambda m: str(int(m[1] or 1) * indices[m[2]] + int(m[3] or 0)), target
    )
    return filled + (match["leaf"] or "")


def to_layout(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """Return the name of each of our tensors in a layout; names without a row are left out."""
    found = ((name, _first(name, layout.rows.items())) for name in names)
    return {ours: theirs for ours, theirs in found if theirs is not None}


def recognize(names: Iterable[str], layouts: Iterable[Layout] = LAYOUTS) -> Recognition:
    """Read the names of a file by the table that knows most of them."""
    names = list(names)
    return max((_read(names, layout) for layout in layouts), key=lambda r: len(r.names))


def bare(name: str) -> str:
    """Return a name without the wrappers around the network (`module.`, `backbone.`, ...)."""
    while wrapper := next((w for w in WRAPPERS if name.startswith(w)), None):
        name = name.removeprefix(wrapper)
    return name


def _read(names: list[str], layout: Layout) -> Recognition:
    rows = [(bare(theirs), ours) for ours, theirs in layout.rows.items()]
    roots = {_root(theirs) for theirs, ours in rows if not ours.startswith("head.")}
    known: dict[str, str] = {}
    unknown, extra = [], []
    for name in names:
        ours = _first(bare(name), rows)
        if ours is not None and ours not in known.values():
            known[name] = ours
        elif _root(bare(name)) in roots and bare(name).split(".")[0] not in layout.ignored:
            unknown.append(name)
        else:
            extra.append(name)
    return Recognition(layout=layout, names=known, unknown=tuple(unknown), extra=tuple(extra))


def _first(name: str, rows: Iterable[tuple[str, str]]) -> str | None:
    return next((new for row in rows if (new := rename(name, *row)) is not None), None)


def _root(name: str) -> str:
    """Return the first component without its number: `layer` of `layer{s+1}.0` and `layer3.0`."""
    return re.sub(r"\{.*?\}|\d+", "", name.split(".")[0])


@cache
def _compiled(row: str) -> tuple[re.Pattern[str], tuple[tuple[str, int, int], ...]]:
    """Return a row as a regular expression, and (symbol, factor, offset) per placeholder."""
    expression, forms, end = "", [], 0
    for match in _PLACEHOLDER.finditer(row):
        expression += re.escape(row[end : match.start()]) + rf"(?P<{match[2]}>\d+)"
        forms.append((match[2], int(match[1] or 1), int(match[3] or 0)))
        end = match.end()
    expression += re.escape(row[end:])
    # A layer scale is a single tensor; every other row is a module.
    single = row.endswith(("gamma", "layer_scale", "layer_scale_parameter"))
    leaf = r"(?P<leaf>)" if single else rf"(?P<leaf>\.(?:{'|'.join(_LEAVES)}))"
    return re.compile(expression + leaf), tuple(forms)


IMAGENET_22K, IMAGENET_1K = 21841, 1000


def with_num_dims(tensor: Tensor, num_dims: int) -> Tensor:
    """Add or drop trailing dimensions of size 1: a linear layer as a 1x1 convolution and back."""
    while tensor.ndim < num_dims:
        tensor = tensor.unsqueeze(-1)
    while tensor.ndim > num_dims and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    return tensor


def fit(name: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """Return a tensor in the shape of our tensor of that name, or None if it cannot be adapted.

    Trailing dimensions of size 1 are added or dropped. The stem may change its channels and its
    kernel size, spatial convolutions their kernel size.
    """
    tensor = with_num_dims(tensor, len(shape))
    if tensor.shape == shape:
        return tensor
    stem, spatial = name.endswith("stem.conv.weight"), name.endswith(".spatial.weight")
    if not (stem or spatial) or tensor.ndim != len(shape) or tensor.shape[0] != shape[0]:
        return None
    if stem:
        tensor = adapt_channels(tensor, shape[1])
    if tensor.shape[1] != shape[1]:
        return None
    return resize_kernel(tensor, shape[-1])


def adapt_channels(kernel: Tensor, in_chans: int) -> Tensor:  # O I K K -> O in_chans K K
    """Change the input channels of a kernel, keeping its response to a gray image.

    One channel is the sum over RGB. More channels repeat cyclically, scaled by I / in_chans.
    """
    num_chans = kernel.shape[1]
    if in_chans == num_chans:
        return kernel
    if in_chans == 1:
        return kernel.sum(1, keepdim=True)
    repeated = kernel[:, torch.arange(in_chans) % num_chans]
    # Scaling alone does not preserve the sum of an incomplete cycle.
    lost = kernel.sum(1, keepdim=True) - repeated.sum(1, keepdim=True) * num_chans / in_chans
    return repeated * (num_chans / in_chans) + lost / in_chans


def resize_kernel(kernel: Tensor, size: int) -> Tensor:  # O I K K -> O I size size
    """Resample a kernel to another size, keeping its response to a constant image."""
    old = kernel.shape[-1]
    if old == size:
        return kernel
    wide = kernel.float()
    new = F.interpolate(wide, (size, size), mode="bicubic", antialias=True) * (old / size) ** 2
    # Interpolation keeps the sum only roughly; the difference is spread evenly.
    lost = wide.sum((2, 3), keepdim=True) - new.sum((2, 3), keepdim=True)
    return (new + lost / size**2).to(kernel.dtype)


def fold_layer_scale(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors with each layer scale multiplied into the convolution before it."""
    folded = {name: tensor for name, tensor in tensors.items() if not name.endswith(".gamma")}
    for name in tensors.keys() - folded.keys():
        gamma = tensors[name].flatten()
        for leaf in ("weight", "bias"):
            target = f"{name.removesuffix('gamma')}pwconv2.{leaf}"
            if target in folded:
                column = gamma.view(-1, *[1] * (folded[target].ndim - 1))
                folded[target] = folded[target] * column
    return folded


def imagenet_1k_of_22k() -> list[int | None]:
    """Return, for each class of ImageNet-1K, its index among the 21,841 classes of ImageNet-22K.

    Both are sorted by WordNet synset, like the authors' class folders; timm has the lists. One
    class, n04399382 (teddy bear), is not among the 21,841 and gets None.
    """
    from timm.data import ImageNetInfo

    index = {name: i for i, name in enumerate(ImageNetInfo("imagenet-22k").label_names())}
    return [index.get(name) for name in ImageNetInfo("imagenet-1k").label_names()]


def slice_head(head: Tensor) -> Tensor:  # 21841 F -> 1000 F, or 21841 -> 1000
    """Keep the rows of an ImageNet-22K head that are classes of ImageNet-1K.

    The class that ImageNet-22K lacks gets the mean of the others. It is then not predicted before
    it is trained, and the others keep their logits.
    """
    indices = imagenet_1k_of_22k()
    known = torch.tensor([i for i in indices if i is not None])
    mean = head[known].mean(0)
    return torch.stack([mean if i is None else head[i] for i in indices])
