"""Types of the verbs' arguments, annotated with how the command line parses them.

Imports neither numpy nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from convnext.api.model import Model
    from convnext.recipes.recipe import Recipe
    from convnext.training.callbacks import Callback


@dataclass(frozen=True, kw_only=True)
class OnCommandLine:
    """How the command line parses an argument that may be any object in Python."""

    type: Any = None
    """The type of the value; by default that of the argument if the parser knows it, else text."""
    nargs: str | None = None
    action: str | None = None
    flag: str | None = None
    """The option's name, if it differs from the argument's."""
    const: Any = None
    """The value if the option is given without one; needs `nargs="?"`."""
    metavar: str | None = None
    convert: Callable[[str], Any] | None = None
    """Converts the text to the function's type."""


def text_of(value: Any, kinds: str) -> str:
    """Return a path or a name as text.

    Args:
        value: What was given.
        kinds: The beginning of the message, with what is accepted: "data is a path".

    Raises:
        TypeError: If it is neither a `str` nor a `Path`.
    """
    if not isinstance(value, str | Path):
        raise TypeError(f"{kinds}, not {type(value).__name__}")
    return str(value)


def data_path(data: Any) -> str | None:
    """Return the path of data for a verb that takes no tables in memory, or None.

    Raises:
        TypeError: If it is neither a `str` nor a `Path`.
    """
    kinds = "data is a path or a name here; write a table as a CSV with the columns path and label"
    return None if data is None else text_of(data, kinds)


def words(text: str) -> list[str]:
    """Split a text at commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Marks the arguments of a verb that depend on the task."""

    verb: str


@dataclass(frozen=True, kw_only=True)
class PythonOnly:
    """Marks an argument that has no option on the command line."""


DEFAULT_FOLDER: Any = object()
"""As `output` of `predict` on the command line: the task's folder, or no files for some tasks."""
Device = str
"""`cpu`, `cuda`, `mps`, or `auto` for the fastest one available."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Split = Literal["auto", "train", "val", "test", "all"]
Which = Literal["best", "last"]

PathLike = Annotated["str | Path", OnCommandLine(metavar="PATH")]
Folder = Annotated["str | Path", OnCommandLine(metavar="DIR")]
File = Annotated["str | Path", OnCommandLine(metavar="FILE")]
ModelSource = Annotated[
    "str | Path | nn.Module | Model", OnCommandLine(metavar="RUN_OR_CHECKPOINT")
]
"""A run folder, a checkpoint, an exported file, a hub id, a published name, or a network."""
Images = Annotated[Any, OnCommandLine(nargs="+", metavar="IMAGE")]
"""Images, as `convnext.data.sources.image_sources` takes them."""
Paths = Annotated["Sequence[str | Path]", OnCommandLine(nargs="+", metavar="PATH")]
Data = Annotated[Any, OnCommandLine(metavar="PATH")]
"""A path, a URL, `digits`, a table with the columns path and label, or a list of pairs."""
DataPath = Annotated["str | Path", OnCommandLine(metavar="PATH")]
"""A path, a URL or `digits`."""
RecipeSource = Annotated["str | Path | Recipe", OnCommandLine(metavar="RECIPE")]
Network = Annotated["str | nn.Module", OnCommandLine(metavar="MODEL")]
Models = Annotated["str | Sequence[str]", OnCommandLine(nargs="+", metavar="MODEL")]
Repeated = Annotated["Sequence[str]", OnCommandLine(action="append")]
"""An option that may be repeated."""
Words = Annotated["Sequence[str]", OnCommandLine(convert=words)]
"""Words, separated by commas on the command line."""
Integers = Annotated["Sequence[int]", OnCommandLine(type=int, nargs="+", metavar="N")]
Show = Annotated["bool | Console", PythonOnly()]
"""Where a verb prints: True for standard output, False for nowhere, or a rich `Console`."""
Callbacks = Annotated["Sequence[Callback]", PythonOnly()]
