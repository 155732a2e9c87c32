"""Which tables of names a network or a file takes: a classifier's, or those of a dense task.

The tables of a dense task lie beside its model, in `<package>.layouts`: `LAYOUTS`; `MARK`, the
beginning of names that only files of the task have; `CLASSIFIERS` and `OPTIONAL`, beginnings of
our names; and `infer`, the name and changes of a file's network. A task with several methods has
an object of these names for each, by its prefix, in `BY_PREFIX`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

from torch import Tensor

from convnext.models.family import DENSE, dense_prefix
from convnext.weights.layouts import LAYOUTS, Layout
from convnext.weights.translate import bare


class Tables(Protocol):
    """What the module `layouts` of a dense task holds."""

    @property
    def LAYOUTS(self) -> tuple[Layout, ...]: ...  # noqa: N802

    @property
    def MARK(self) -> str | tuple[str, ...]: ...  # noqa: N802

    @property
    def CLASSIFIERS(self) -> tuple[str, ...]: ...  # noqa: N802

    @property
    def OPTIONAL(self) -> tuple[str, ...]: ...  # noqa: N802

    def infer(self, state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]: ...


def tables_of_model(name: str) -> Tables | None:
    """Return the tables for a network by its name, or None for a classifier."""
    prefix = dense_prefix(name)
    return None if prefix is None else _import(prefix)


def tables_of_file(names: Iterable[str]) -> Tables | None:
    """Return the tables for the names in a file, or None for a classifier's or a backbone's."""
    names = [bare(name) for name in names]
    for prefix in DENSE:
        tables = _import(prefix)
        if any(name.startswith(tables.MARK) for name in names):
            return tables
    return None


def layouts_of_model(name: str) -> tuple[Layout, ...]:
    """Return the layouts that a network may have a form in, by its name."""
    tables = tables_of_model(name)
    return LAYOUTS if tables is None else tables.LAYOUTS


def _import(prefix: str) -> Tables:
    module = importlib.import_module("convnext.tasks." + DENSE[prefix].split(".")[2] + ".layouts")
    return cast(Tables, getattr(module, "BY_PREFIX", {}).get(prefix, module))
