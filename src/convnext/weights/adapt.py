"""Recognize a layout by its names, rename it to another, and change the shapes of its tensors.

All functions are pure.

Shapes: O output channels, I input channels, K kernel side, C channels, F features.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from convnext.weights.layouts import LAYOUTS, WRAPPERS, Layout

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
