"""What receives weights: which module, what it expects, and which of that is its head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from convnext.models.network import Network
from convnext.weights.dense import tables_of_file, tables_of_model
from convnext.weights.layouts import LAYOUTS, Layout


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
    outside: tuple[str, ...] = ()
    """Tensors of the network that are not the module's, which the source cannot have."""

    @classmethod
    def of(cls, model: nn.Module, tensors: Mapping[str, Tensor]) -> Target:
        """Return what weights of these names go into: a network, or only its backbone."""
        tables = tables_of_model(str(getattr(model, "name", "")))
        if tables is not None and tables_of_file(tensors) is tables:
            return cls(
                name=str(model.name),
                module=model,
                expected=model.state_dict(),
                classifiers=tables.CLASSIFIERS,
                ours=isinstance(model.backbone, Network),
                optional=tables.OPTIONAL,
                layouts=tables.LAYOUTS,
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
