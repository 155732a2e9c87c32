"""`export_weights`: the weights of a network in the layout of another package."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from convnext.models.config import NetworkConfig
from convnext.weights.adapt import to_layout, with_num_dims
from convnext.weights.dense import layouts_of_model
from convnext.weights.layouts import LAYOUT_NAMES, LAYOUTS, Layout, layout_for, num_dims


def export_weights(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """Return the weights of a network of our own in a published layout.

    Args:
        model: A member of the family, a step of the roadmap, or a dense network on one.
        layout: "official", "timm", "torchvision", "transformers", "openmmlab" or "convnext".

    Returns:
        The tensors, which share memory with those of the network.

    Raises:
        ValueError: If there is no such layout, or it cannot hold this network.
    """
    name = str(getattr(model, "name", type(model).__name__))
    config = getattr(getattr(model, "backbone", model), "config", None)
    if isinstance(config, NetworkConfig):
        return export_tensors(model.state_dict(), config, layout, layouts_of_model(model))
    if layout == "convnext" and hasattr(model, "backbone"):
        return dict(model.state_dict())
    inner = getattr(model, "network", None)
    if isinstance(inner, nn.Module) and layout == "timm":
        return dict(inner.state_dict())
    if layout not in LAYOUT_NAMES:
        raise ValueError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUT_NAMES)}")
    raise ValueError(
        f"{name} cannot be written in the layout {layout!r}"
        + ("; choose timm" if isinstance(inner, nn.Module) else "")
    )


def export_tensors(
    tensors: Mapping[str, Tensor],
    config: NetworkConfig,
    layout: str,
    layouts: tuple[Layout, ...] = LAYOUTS,
) -> dict[str, Tensor]:
    """Convert tensors under our names to a published layout, as `export_weights` does.

    `config` is that of the network or its backbone; `layouts` are the tables to choose from.
    """
    form = layout_for(layout, config, layouts)
    if layout != "convnext" and "output_norms.{s}" in form.rows and not _has_norms(tensors):
        raise ValueError(
            f"the layout {layout!r} has norms on the maps of the backbone, this network has none; "
            "build it with output_norms=True, or write it as 'convnext'"
        )
    dims = num_dims(form, config)
    names = to_layout(tensors, form)
    assert len(names) == len(tensors), "a layout that covers a network names all its tensors"
    exported = {}
    for ours, theirs in names.items():
        wanted = next((n for end, n in dims.items() if ours.endswith(f".{end}")), None)
        tensor = tensors[ours].detach()
        exported[theirs] = tensor if wanted is None else with_num_dims(tensor, wanted)
    return exported


def _has_norms(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("output_norms.") for name in tensors)
