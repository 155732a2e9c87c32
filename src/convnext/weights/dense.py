"""The network that tensors belong to; of dense networks also the names, and what receives weights.

The tables of a dense network are those of its backbone plus the names of its heads. Each network
provides its own (`layout_tables`), so that this module knows no task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from convnext.models.config import FAMILY, NetworkConfig
from convnext.models.network import Network
from convnext.models.roadmap import REGIMES, RESNET50, roadmap
from convnext.weights.layouts import LAYOUTS, Layout, Recognition, bare, fit, recognize

# Fields that follow from shapes. The stride of a conv_pool stem and layers without weights do not.
_FROM_SHAPES = ("depths", "dims", "stem_stride", "kernel_size", "num_classes", "in_chans")


def infer_model(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the name and the changes with which `create_model` builds the network of a file.

    The network is a member of the family or the ResNet at the start of a roadmap, with other
    `depths` and `dims` if needed. All layouts are recognized. The steps in between are not, because
    most of them differ in layers without weights. For a dense network, this infers the backbone.

    Raises:
        ValueError: If the tensors are not those of such a network.
    """
    recognition = recognize(state_dict)
    config = infer_config(recognition, state_dict)
    name = next((n for n, known in _named() if _same_size(known, config)), None)
    if name is None:
        name = next(n for n, known in _named() if _same_design(known, config))
    known = dict(_named())[name]
    inferred = (*_FROM_SHAPES, "layer_scale_init")
    changes = {f: getattr(config, f) for f in inferred if getattr(config, f) != getattr(known, f)}
    return name, changes


def infer_config(recognition: Recognition, tensors: Mapping[str, Tensor]) -> NetworkConfig:
    """Return the configuration of the network that a recognized file is from.

    Raises:
        ValueError: If the file is not a complete ConvNeXt or ResNet.
    """
    shapes = {ours: tuple(tensors[theirs].shape) for theirs, ours in recognition.names.items()}
    resnet = "stages.0.0.pwconv1_norm.weight" in shapes
    width = "pwconv1" if resnet else "spatial"
    depths: list[int] = []
    dims: list[int] = []
    while f"stages.{len(depths)}.0.{width}.weight" in shapes:
        s, depth = len(depths), 0
        while f"stages.{s}.{depth}.{width}.weight" in shapes:
            depth += 1
        depths.append(depth)
        dims.append(shapes[f"stages.{s}.0.{width}.weight"][0])
    stem = shapes.get("stem.conv.weight", ())
    if not depths or len(stem) != 4:
        raise ValueError(_unrecognized(recognition))
    base = _base(shapes, resnet=resnet)
    head = shapes.get("head.fc.weight", (0,))
    scaled = "stages.0.0.gamma" in shapes
    config = replace(
        base,
        depths=tuple(depths),
        dims=tuple(dims),
        # A stem of stride 1 has a 3x3 kernel, see `Stem`.
        stem_stride=base.stem_stride if resnet else 1 if stem[-1] == 3 else stem[-1],
        kernel_size=shapes["stages.0.0.spatial.weight"][-1],
        num_classes=head[0],
        in_chans=stem[1],
        layer_scale_init=(base.layer_scale_init or 1e-6) if scaled else 0.0,
    )
    _check(config, recognition, tensors)
    return _canonical(config)


def expected_tensors(config: NetworkConfig) -> dict[str, Tensor]:
    """Return the tensors of a network on the meta device: shapes without memory."""
    from convnext.models.network import Network

    with torch.device("meta"):
        return dict(Network(config).state_dict())


def _base(shapes: Mapping[str, tuple[int, ...]], *, resnet: bool) -> NetworkConfig:
    if resnet:
        return RESNET50
    isotropic = "stem.norm.weight" not in shapes
    return FAMILY["convnext_isotropic_small" if isotropic else "convnext_tiny"]


def _check(config: NetworkConfig, recognition: Recognition, tensors: Mapping[str, Tensor]) -> None:
    expected = {n: t for n, t in expected_tensors(config).items() if not n.startswith("head.")}
    found = {ours: tensors[theirs] for theirs, ours in recognition.names.items()}
    fitting = [
        name
        for name, tensor in expected.items()
        if name in found and fit(name, found[name].to("meta"), tensor.shape) is not None
    ]
    known = found.keys() & expected.keys()
    inside = len(expected.keys() | {n for n in found if not n.startswith("head.")})
    if len(fitting) < max(len(known), 0.9 * (inside + len(recognition.unknown))):
        raise ValueError(_unrecognized(recognition))


def _unrecognized(recognition: Recognition) -> str:
    unknown = ", ".join((recognition.unknown or recognition.extra)[:4])
    return (
        "these tensors belong to neither a ConvNeXt nor a bottleneck ResNet; the nearest layout "
        f"is {recognition.layout.name!r}" + (f", which has no {unknown}" if unknown else "")
    )


def _named() -> list[tuple[str, NetworkConfig]]:
    starts = [(f"roadmap/{r}/{roadmap(r)[0].name}", roadmap(r)[0].config) for r in REGIMES]
    # Tiny first: sizes without a name of their own are described as changes to it.
    return [("convnext_tiny", FAMILY["convnext_tiny"]), *FAMILY.items(), *starts]


def _same_design(a: NetworkConfig, b: NetworkConfig) -> bool:
    one_stage = len(a.depths) == 1, len(b.depths) == 1
    return a.norms == b.norms and one_stage[0] == one_stage[1]


def _same_size(a: NetworkConfig, b: NetworkConfig) -> bool:
    return _same_design(a, b) and (a.depths, a.dims) == (b.depths, b.dims)


def _canonical(config: NetworkConfig) -> NetworkConfig:
    """Take the initial layer scale, which no file contains, from the named network of that size."""
    known = next((k for _, k in _named() if _same_size(k, config)), config)
    if config.layer_scale_init and known.layer_scale_init:
        return replace(config, layer_scale_init=known.layer_scale_init)
    return config


@dataclass(frozen=True, kw_only=True)
class DenseTables:
    """The tables of one kind of dense network."""

    prefix: str
    """The beginning of the network's name, before the name of the backbone."""
    layouts: tuple[Layout, ...]
    marks: tuple[str, ...]
    """Prefixes of tensor names by which a file of this kind is recognized."""
    classifiers: tuple[str, ...]
    """Tensors whose shape depends on the number of classes."""
    shapes: Mapping[str, tuple[str, int]]
    """Settings that follow from shapes: for each, a tensor and a dimension of it."""
    defaults: Mapping[str, Any]
    """The defaults of all settings of the heads."""
    input_size: tuple[int, int]
    """Height and width of the images for which costs and speeds are published."""
    optional: tuple[str, ...] = ()
    """Tensors that the file or the network may lack."""
    present: Mapping[str, str] = field(default_factory=dict)
    """Settings that are on if a tensor is present."""
    by_layout: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that follow from the layout of a file, if they are None."""

    def matches(self, names: Iterable[str]) -> bool:
        """Whether a file with these names is of this kind."""
        return any(bare(name).startswith(self.marks) for name in names)

    def infer(self, state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
        """Return the name and the changes with which `create_model` builds the network of a file.

        Raises:
            ValueError: If the tensors are not those of a network with a backbone of our own.
        """
        recognition = recognize(state_dict, self.layouts)
        found = {ours: state_dict[theirs] for theirs, ours in recognition.names.items()}
        inner = {
            name.removeprefix("backbone."): tensor
            for name, tensor in found.items()
            if name.startswith("backbone.")
        }
        backbone, changes = infer_model(inner)
        inferred: dict[str, Any] = {
            key: found[name].shape[dim] for key, (name, dim) in self.shapes.items() if name in found
        }
        inferred |= {key: name in found for key, name in self.present.items()}
        inferred |= self.by_layout.get(recognition.layout.name, {})
        changes = {key: value for key, value in changes.items() if key != "num_classes"}
        changes |= {key: value for key, value in inferred.items() if value != self.defaults[key]}
        # The maps of a network with batch norms are used as they are.
        normed = "stages.0.0.pwconv1_norm.weight" not in inner
        if ("output_norms.0.weight" in found) != normed:
            changes["output_norms"] = not normed
        return f"{self.prefix}{backbone}", changes


@runtime_checkable
class DenseNetwork(Protocol):
    """A network with a backbone and its own tables."""

    name: str
    backbone: Any
    config: Any
    """The settings of the heads, a frozen dataclass."""

    def layout_tables(self) -> DenseTables: ...


def dense_layouts(
    heads: Mapping[str, Mapping[str, str]], *, ignored: tuple[str, ...] = ()
) -> tuple[Layout, ...]:
    """Return the layouts of backbones with a pyramid, extended by the names of heads.

    Args:
        heads: The rows of the heads by the name of the layout; other layouts are left out.
        ignored: See `Layout`.
    """
    return tuple(
        replace(
            layout,
            rows={
                f"backbone.{ours}": f"backbone.{bare(theirs)}"
                for ours, theirs in layout.rows.items()
                if not ours.startswith("head.")
            }
            | dict(heads[layout.name]),
            ignored=ignored,
        )
        for layout in LAYOUTS
        if layout.name in heads and (layout.like is None or len(layout.like.depths) > 1)
    )


def layouts_of_model(model: nn.Module) -> tuple[Layout, ...]:
    """Return the layouts that the weights of a network may be written in."""
    return model.layout_tables().layouts if isinstance(model, DenseNetwork) else LAYOUTS


@dataclass(frozen=True, kw_only=True)
class Target:
    """The module that receives the weights, and the names of its classifier."""

    name: str
    module: nn.Module
    expected: Mapping[str, Tensor]
    classifiers: tuple[str, ...]
    ours: bool
    optional: tuple[str, ...] = ()
    """Other prefixes of tensors outside the backbone that a source may lack."""
    layouts: tuple[Layout, ...] = LAYOUTS
    prefix: str = ""
    """The path of the module in the network, if it is only the backbone."""
    tables: DenseTables | None = None
    """The tables of a dense network, if the source has its heads too."""
    outside: tuple[str, ...] = ()
    """Tensors of the network outside the module, which the source cannot have."""

    @classmethod
    def of(cls, model: nn.Module, tensors: Mapping[str, Tensor]) -> Target:
        """Return the target of weights with these names: a network, or only its backbone."""
        tables = model.layout_tables() if isinstance(model, DenseNetwork) else None
        if tables is not None and tables.matches(tensors):
            return cls(
                name=str(model.name),
                module=model,
                expected=model.state_dict(),
                classifiers=tables.classifiers,
                ours=isinstance(model.backbone, Network),
                optional=tables.optional,
                layouts=tables.layouts,
                tables=tables,
            )
        if tables is not None:
            assert isinstance(model.backbone, nn.Module)
            backbone = cls.of(model.backbone, tensors)
            path = next(n for n, m in model.named_modules() if m is backbone.module)
            names = tuple(n for n in model.state_dict() if not n.startswith(f"{path}."))
            return replace(backbone, name=str(model.name), prefix=f"{path}.", outside=names)
        name = str(getattr(model, "name", type(model).__name__))
        if isinstance(model, Network):
            return cls(
                name=name,
                module=model,
                expected=model.state_dict(),
                classifiers=("head.fc.",),
                ours=True,
                optional=("head.",),
            )
        # A timm model keeps timm's names, without the attribute that wraps it here.
        inner = getattr(model, "network", model)
        known = (getattr(inner, "pretrained_cfg", None) or {}).get("classifier") or ()
        classifiers = (known,) if isinstance(known, str) else tuple(known)
        return cls(
            name=name,
            module=inner,
            expected=inner.state_dict(),
            classifiers=tuple(f"{classifier}." for classifier in classifiers),
            ours=False,
        )

    def is_head(self, name: str) -> bool:
        """Whether a tensor is outside the backbone."""
        return name.startswith((*self.optional, *self.classifiers))
