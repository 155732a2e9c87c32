"""Types of the verbs' arguments, and how the command line takes those that Python gives as objects.

Light to import: neither numpy nor torch.
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
    """How the command line takes an argument whose type in Python is wider than text."""

    type: Any = str
    nargs: str | None = None
    action: str | None = None
    flag: str | None = None
    """The name of the option, if it differs from that of the argument."""
    const: Any = None
    """The value of an option without a value of its own, with `nargs="?"`."""
    metavar: str | None = None
    convert: Callable[[str], Any] | None = None
    """Turns the text into what the function takes."""


def words(text: str) -> list[str]:
    """Return the words of a text that are separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Marks the arguments of a verb that belong to the task of the network or of the data."""

    verb: str


@dataclass(frozen=True, kw_only=True)
class PythonOnly:
    """Marks an argument that the command line does not have."""


Device = str
"""`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Split = Literal["val", "train"]
Which = Literal["best", "last"]

PathLike = Annotated["str | Path", OnCommandLine(metavar="PATH")]
Folder = Annotated["str | Path", OnCommandLine(metavar="DIR")]
File = Annotated["str | Path", OnCommandLine(metavar="FILE")]
ModelSource = Annotated[
    "str | Path | nn.Module | Model", OnCommandLine(metavar="RUN_OR_CHECKPOINT")
]
"""A run folder, a checkpoint, an exported file, a hub id, a published name, or a network."""
Images = Annotated[Any, OnCommandLine(nargs="+", metavar="IMAGE")]
"""Whatever `convnext.data.sources.image_sources` takes."""
Paths = Annotated["Sequence[str | Path]", OnCommandLine(nargs="+", metavar="PATH")]
Data = Annotated[Any, OnCommandLine(metavar="PATH")]
"""A path, an address, `digits`, a table with the columns path and label, or a list of pairs."""
RecipeSource = Annotated["str | Path | Recipe", OnCommandLine(metavar="RECIPE")]
Network = Annotated["str | nn.Module", OnCommandLine(metavar="MODEL")]
Models = Annotated["str | Sequence[str]", OnCommandLine(nargs="+", metavar="MODEL")]
Repeated = Annotated["Sequence[str]", OnCommandLine(action="append")]
"""An option that may be given several times."""
Words = Annotated["Sequence[str]", OnCommandLine(convert=words)]
"""Words that commas separate on the command line."""
Integers = Annotated["Sequence[int]", OnCommandLine(type=int, nargs="+", metavar="N")]
Show = Annotated["bool | Console", PythonOnly()]
"""Where a verb prints: True for standard output, False for nowhere, or a console of rich."""
Callbacks = Annotated["Sequence[Callback]", PythonOnly()]
