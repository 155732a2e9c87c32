"""Dense networks: their tables of names, and what of a network receives weights.

The tables of a dense network are its backbone's with the names of its heads beside them. A network
knows its own (`layout_tables`), so that nothing here knows a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from convnext.models.network import Network
from convnext.weights.infer import infer_model
from convnext.weights.layouts import LAYOUTS, Layout
from convnext.weights.translate import bare, recognise


@dataclass(frozen=True, kw_only=True)
class DenseTables:
    """The tables of one kind of dense network."""

    prefix: str
    """How its name begins, before the backbone's."""
    layouts: tuple[Layout, ...]
    marks: tuple[str, ...]
    """How a file shows that it is of this kind: beginnings of names."""
    classifiers: tuple[str, ...]
    """Tensors whose shape follows from the classes."""
    shapes: Mapping[str, tuple[str, int]]
    """The settings that shapes tell: a tensor and its dimension."""
    defaults: Mapping[str, Any]
    """All settings of the heads, as they are if nothing else is said."""
    optional: tuple[str, ...] = ()
    """Tensors that only one of file and network may have."""
    present: Mapping[str, str] = field(default_factory=dict)
    """The settings that are on where a tensor is there."""
    by_layout: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The settings that follow from the layout that a file came in, where they are None."""

    def matches(self, names: Iterable[str]) -> bool:
        """Whether a file of these names is of this kind."""
        return any(bare(name).startswith(self.marks) for name in names)

    def infer(self, state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
        """Return the name and the changes with which `create_model` builds the network of a file.

        Raises:
            ValueError: If the tensors are not those of one on a backbone of our own.
        """
        recognition = recognise(state_dict, self.layouts)
        found = {ours: state_dict[theirs] for theirs, ours in recognition.names.items()}
        inner = {
            name.removeprefix("backbone."): tensor
            for name, tensor in found.items()
            if name.startswith("backbone.")
        }
        backbone, changes = infer_model(inner)
        told: dict[str, Any] = {
            key: found[name].shape[dim] for key, (name, dim) in self.shapes.items() if name in found
        }
        told |= {key: name in found for key, name in self.present.items()}
        told |= self.by_layout.get(recognition.layout.name, {})
        changes = {key: value for key, value in changes.items() if key != "num_classes"}
        changes |= {key: value for key, value in told.items() if value != self.defaults[key]}
        # The maps of a network with batch norms are used as they are.
        normed = "stages.0.0.pwconv1_norm.weight" not in inner
        if ("output_norms.0.weight" in found) != normed:
            changes["output_norms"] = not normed
        return f"{self.prefix}{backbone}", changes


@runtime_checkable
class DenseNetwork(Protocol):
    """A network on a backbone, with its own tables."""

    name: str
    backbone: Any
    config: Any
    """The settings of its heads, a frozen dataclass."""

    def layout_tables(self) -> DenseTables: ...


def dense_layouts(
    beside: Mapping[str, Mapping[str, str]], *, ignored: tuple[str, ...] = ()
) -> tuple[Layout, ...]:
    """Return the layouts of backbones with a pyramid, and the names of heads beside theirs.

    Args:
        beside: The rows of the heads by the name of the layout; others are left out.
        ignored: As in `Layout`.
    """
    return tuple(
        replace(
            layout,
            rows={
                f"backbone.{ours}": f"backbone.{bare(theirs)}"
                for ours, theirs in layout.rows.items()
                if not ours.startswith("head.")
            }
            | dict(beside[layout.name]),
            ignored=ignored,
        )
        for layout in LAYOUTS
        if layout.name in beside and (layout.like is None or len(layout.like.depths) > 1)
    )


def layouts_of_model(model: nn.Module) -> tuple[Layout, ...]:
    """Return the layouts that a network may have a form in."""
    return model.layout_tables().layouts if isinstance(model, DenseNetwork) else LAYOUTS


@dataclass(frozen=True, kw_only=True)
class Target:
    """The module that receives the weights, and which of its tensors are the classifier."""

    name: str
    module: nn.Module
    expected: Mapping[str, Tensor]
    classifiers: tuple[str, ...]
    ours: bool
    optional: tuple[str, ...] = ()
    """Other beginnings of tensors outside the backbone that a source need not have."""
    layouts: tuple[Layout, ...] = LAYOUTS
    prefix: str = ""
    """Where the module is in the network, if it is only the backbone."""
    tables: DenseTables | None = None
    """Of a dense network whose heads the source has too."""
    outside: tuple[str, ...] = ()
    """Tensors of the network that are not the module's, which the source cannot have."""

    @classmethod
    def of(cls, model: nn.Module, tensors: Mapping[str, Tensor]) -> Target:
        """Return what weights of these names go into: a network, or only its backbone."""
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
        # A peer of timm keeps timm's names, without the attribute that wraps it here.
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
