"""Weights in and out: recognize a layout, load it safely, write it in another one.

The public names are imported on first use, because a model card needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.weights.layouts import LAYOUT_NAMES as LAYOUT_NAMES
    from convnext.weights.load import LoadReport as LoadReport
    from convnext.weights.load import export_weights as export_weights
    from convnext.weights.load import load_weights as load_weights
    from convnext.weights.published import find_published as find_published
    from convnext.weights.sources import read_source as read_source

_HOMES = {
    "export_weights": "load",
    "LAYOUT_NAMES": "layouts",
    "LoadReport": "load",
    "load_weights": "load",
    "find_published": "published",
    "read_source": "sources",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convnext.weights' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convnext.weights.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
