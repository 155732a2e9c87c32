"""`export_weights`: the weights of a network as another package names and shapes them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from convnext.config import NetworkConfig
from convnext.network import Network
from convnext.weights.adapt import with_num_dims
from convnext.weights.layouts import LAYOUT_NAMES, form_of, num_dims
from convnext.weights.translate import to_layout


def export_weights(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """Return the weights of a network of our own in a published layout.

    Args:
        model: A member of the family, or a rung of the roadmap.
        layout: "official", "timm", "torchvision", "transformers", "openmmlab" or "convnext".

    Returns:
        The tensors, which share memory with the network's.

    Raises:
        ValueError: If there is no such layout, or the network has no form in it.
    """
    if isinstance(model, Network):
        return export_tensors(model.state_dict(), model.config, layout)
    name = getattr(model, "name", type(model).__name__)
    inner = getattr(model, "network", None)
    if isinstance(inner, nn.Module) and layout == "timm":
        return dict(inner.state_dict())
    if layout not in LAYOUT_NAMES:
        raise ValueError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUT_NAMES)}")
    raise ValueError(
        f"{name} has no form in the layout {layout!r}"
        + ("; it has one in timm" if isinstance(inner, nn.Module) else "")
    )


def export_tensors(
    tensors: Mapping[str, Tensor], config: NetworkConfig, layout: str
) -> dict[str, Tensor]:
    """Return tensors under our names in a published layout, as `export_weights` does."""
    form = form_of(layout, config)
    dims = num_dims(form, config)
    names = to_layout(tensors, form)
    assert len(names) == len(tensors), "a layout that covers a network names all its tensors"
    exported = {}
    for ours, theirs in names.items():
        wanted = next((n for end, n in dims.items() if ours.endswith(f".{end}")), None)
        tensor = tensors[ours].detach()
        exported[theirs] = tensor if wanted is None else with_num_dims(tensor, wanted)
    return exported
