"""Dense networks: their tables of names, and the module that receives weights.

The tables of a dense network are those of its backbone plus the names of its heads. Each network
provides its own (`layout_tables`), so that this module knows no task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from convnext.models.network import Network
from convnext.weights.infer import infer_model
from convnext.weights.layouts import LAYOUTS, Layout
from convnext.weights.translate import bare, recognize


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
