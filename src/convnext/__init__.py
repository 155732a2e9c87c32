"""ConvNeXt, the road that leads to it, and everything to train, use and deploy it.

The public names are imported when first used, so that `import convnext` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.blocks import Row as Row
    from convnext.blocks import block_rows as block_rows
    from convnext.config import NetworkConfig as NetworkConfig
    from convnext.costs import Cost as Cost
    from convnext.costs import cost as cost
    from convnext.deploy.fold import fold as fold
    from convnext.deploy.optimize import optimize as optimize
    from convnext.family import FAMILY as FAMILY
    from convnext.family import create_model as create_model
    from convnext.family import list_models as list_models
    from convnext.network import Network as Network
    from convnext.recipe import Recipe as Recipe
    from convnext.recipe import read_recipe as read_recipe
    from convnext.road import Rung as Rung
    from convnext.road import roadmap as roadmap
    from convnext.weights import LoadReport as LoadReport
    from convnext.weights import export_weights as export_weights
    from convnext.weights import load_weights as load_weights

__version__ = "0.1.0"

_HOMES = {
    "Row": "blocks",
    "block_rows": "blocks",
    "NetworkConfig": "config",
    "Cost": "costs",
    "cost": "costs",
    "fold": "deploy.fold",
    "optimize": "deploy.optimize",
    "FAMILY": "family",
    "create_model": "family",
    "list_models": "family",
    "Network": "network",
    "Recipe": "recipe",
    "read_recipe": "recipe",
    "Rung": "road",
    "roadmap": "road",
    "LoadReport": "weights",
    "export_weights": "weights",
    "load_weights": "weights",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convnext' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convnext.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
