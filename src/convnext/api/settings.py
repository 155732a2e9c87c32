"""The arguments of the verbs: recipe settings, how the command line parses the others, and errors.

Messages name options as the command line writes them: `--batch-size`. A function that Python calls
raises the same error with the argument's name: `batch_size`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    cast,
)

from convnext.names import nearest
from convnext.recipes.recipe import (
    Recipe,
    all_settings,
    change_recipe,
    parse_settings,
    read_recipe,
)
from convnext.recipes.schema import Auto, check_value

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as PilImage
    from rich.console import Console
    from torch import Tensor, nn

    from convnext.api.model import Model
    from convnext.training.trackers import Callback

    Image: TypeAlias = str | Path | PilImage | np.ndarray[Any, Any] | Tensor


class Table(Protocol):
    """A table in memory, such as a DataFrame of pandas or polars."""

    @property
    def columns(self) -> Any:
        """The names of its columns."""
        ...

    def __getitem__(self, name: Any, /) -> Any:
        """Return a column."""
        ...


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

    A data set of the hub is fetched.

    Raises:
        TypeError: If it is neither a `str` nor a `Path`.
        ValueError: If it cannot be fetched.
    """
    kinds = "data is a path or a name here; write a table as a CSV with the columns path and label"
    return None if data is None else local_path(text_of(data, kinds))


def local_path(path: str | Path) -> str:
    """Return a path that the user gives; for a data set of the hub, that of its copy here.

    Raises:
        ValueError: If it cannot be fetched.
    """
    if not str(path).startswith("hf:"):
        return str(path)
    from convnext.data.downloads import local_data

    return local_data(str(path))


def with_local_data(recipe: Recipe) -> Recipe:
    """Return a recipe that the user gives with its data here, as `local_path`.

    Raises:
        ValueError: If it cannot be fetched.
    """
    return replace(recipe, data=local_path(recipe.data))


def words(text: str) -> list[str]:
    """Split a text at commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str) -> tuple[float, ...]:
    """Return numbers that are separated by commas, perhaps in brackets.

    Raises:
        ValueError: If one of the parts is not a number.
    """
    try:
        return tuple(float(part) for part in text.strip("[]() ").split(","))
    except ValueError as error:
        raise ValueError(f"{text!r} must be numbers separated by commas, such as 0,4095") from error


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
Images = Annotated["Image | Iterable[Image]", OnCommandLine(nargs="+", metavar="IMAGE")]
"""Images, as `convnext.data.sources.image_sources` takes them."""
Paths = Annotated["Sequence[str | Path]", OnCommandLine(nargs="+", metavar="PATH")]
Data = Annotated[
    "str | Path | Table | Mapping[str, Sequence[Any]] | Iterable[Sequence[Any]]",
    OnCommandLine(metavar="PATH"),
]
"""A path, a URL, `hf:owner/name`, `digits`, a table with the columns path and label, or a list of
pairs."""
DataPath = Annotated["str | Path", OnCommandLine(metavar="PATH")]
"""A path, a URL, `hf:owner/name` or `digits`."""
RecipeSource = Annotated["str | Path | Recipe", OnCommandLine(metavar="RECIPE")]
Network = Annotated["str | nn.Module", OnCommandLine(metavar="MODEL")]
Models = Annotated["str | Sequence[str]", OnCommandLine(nargs="+", metavar="MODEL")]
Repeated = Annotated["Sequence[str]", OnCommandLine(action="append")]
"""An option that may be repeated."""
Words = Annotated["Sequence[str]", OnCommandLine(convert=words, metavar="NAME,...")]
"""Words, separated by commas on the command line."""
Numbers = Annotated["Sequence[float]", OnCommandLine(convert=numbers)]
"""Numbers, separated by commas on the command line."""
Integers = Annotated["Sequence[int]", OnCommandLine(type=int, nargs="+", metavar="N")]
Show = Annotated["bool | Console", PythonOnly()]
"""Where a verb prints: True for standard output, False for nowhere, or a rich `Console`."""
Callbacks = Annotated["Callback | Sequence[Callback]", PythonOnly()]

# Frozen by a test: scripts rely on these names, so later settings must not change them.
SHORT = {
    "epochs": "schedule.epochs",
    "warmup_epochs": "schedule.warmup_epochs",
    "batch_size": "optim.batch_size",
    "micro_batch_size": "optim.micro_batch_size",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "layer_decay": "optim.layer_decay",
    "freeze": "optim.freeze",
    "unfreeze_at": "optim.unfreeze_at",
    "image_size": "input.image_size",
    "drop_path_rate": "network.drop_path_rate",
    "mixup": "augment.mixup",
    "cutmix": "augment.cutmix",
    "rand_augment": "augment.rand_augment",
    "label_smoothing": "loss.label_smoothing",
    "thresholds": "loss.thresholds",
    "balance": "loss.balance",
    "ema_decay": "ema.decay",
    "workers": "loader.workers",
    "val_share": "loader.val_share",
    "max_bad_share": "loader.max_bad_share",
    "group": "loader.group",
    "columns": "loader.columns",
    "fold": "loader.fold",
    "layout": "detect.layout",
    "annotations": "detect.annotations",
    "images": "detect.images",
    "exif": "detect.exif",
    "boxes": "detect.boxes",
    "allow_outside": "detect.allow_outside",
    "device": "run.device",
    "devices": "run.devices",
    "precision": "run.precision",
    "eval_every": "run.eval_every",
    "primary": "run.primary",
    "patience": "run.patience",
    "seed": "run.seed",
    "deterministic": "run.deterministic",
}
"""Short names of settings, and their full names."""
ONLY_IN_FULL_HELP = {
    *("group", "columns", "fold", "layout", "annotations", "images", "exif", "boxes"),
    *("allow_outside", "thresholds"),
}
"""Short names for unusual data; `data --help` shows them, `train --help-all` too."""
ONLY_IN_HELP_OF_TRAIN = {"freeze", "unfreeze_at", "balance", "primary"}
"""Short names that the help of studies shows only with --help-all."""


@functools.cache
def short_names() -> Mapping[str, str]:
    """Return `SHORT` for the tasks that are installed.

    A setting of a task that is not is replaced by the one that other tasks call the same.
    """
    known = all_settings()
    same = {name.rpartition(".")[2]: name for name in known}
    found = {short: full if full in known else same.get(short, "") for short, full in SHORT.items()}
    return {short: full for short, full in found.items() if full}


class Settings(TypedDict, total=False):
    """Recipe settings by short name, or a section as a mapping.

    Every setting also has a full name: `train(**{"schedule.min_lr": 0})`.
    """

    epochs: int | Auto
    warmup_epochs: float | Auto
    batch_size: int | Auto
    micro_batch_size: int | Auto
    lr: float | Auto
    weight_decay: float | Auto
    layer_decay: float | Auto
    freeze: str
    unfreeze_at: float
    image_size: int | Auto
    drop_path_rate: float | Auto
    mixup: float | Auto
    cutmix: float | Auto
    rand_augment: str
    label_smoothing: float | Auto
    thresholds: str
    balance: Literal["auto", "none", "sampler", "loss", "logit"]
    ema_decay: float | Auto
    workers: int | Auto
    val_share: float
    max_bad_share: float
    group: str
    columns: str
    fold: str | int
    layout: str
    annotations: str
    images: str
    exif: Literal["", "turned", "unturned"]
    boxes: Literal["", "xywh", "xyxy", "cxcywh"]
    allow_outside: bool
    device: str
    devices: int | Auto
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    eval_every: int | Auto
    primary: Literal["auto", "top1", "balanced_accuracy", "macro_f1", "map"]
    patience: int
    seed: int
    deterministic: bool
    network: Mapping[str, Any]
    input: Mapping[str, Any]
    augment: Mapping[str, Any]
    loss: Mapping[str, Any]
    segment: Mapping[str, Any]
    detect: Mapping[str, Any]
    optim: Mapping[str, Any]
    schedule: Mapping[str, Any]
    ema: Mapping[str, Any]
    loader: Mapping[str, Any]
    run: Mapping[str, Any]


def full_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their full names, with checked values.

    Args:
        given: Settings by short name, full name (`schedule.epochs`), or section
            (`schedule={"epochs": 20}`).

    Raises:
        ValueError: If a name is unknown (the nearest one is suggested), a value has the wrong type,
            or a setting is given twice.
    """
    leaves = all_settings()
    sections = {name.partition(".")[0] for name in leaves if "." in name}
    full: dict[str, Any] = {}

    def take(name: str, value: Any, called: str) -> None:
        if name in full:
            raise ValueError(f"{name} is given twice, the second time as {called}")
        if name not in leaves:
            known = nearest(called, [*short_names(), *leaves])
            raise ValueError(f"there is no setting {called}{known}")
        full[name] = value

    for name, value in given.items():
        if name in sections:
            if not isinstance(value, Mapping):
                raise ValueError(f"{name} is a section of settings, not {value!r}")
            for leaf, inner in value.items():
                take(f"{name}.{leaf}", inner, f"{name}.{leaf}")
        else:
            take(short_names().get(name, name), value, name)
    checked = parse_settings(_nested(full)) if full else {}
    return {name: checked[name] for name in full}


def given_settings(settings: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Return `settings` and the arguments in `own` that are not None, by full names.

    Raises:
        ValueError: As for `full_settings`.
    """
    asked = {name: value for name, value in own.items() if value is not None}
    return full_settings({**settings, **asked})


def make_recipe(source: Any, given: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some settings changed.

    Args:
        source: A bundled name, a file, or a `Recipe`; None for the defaults.
        given: Settings by full name, as `full_settings` returns them.

    Raises:
        ValueError: If the recipe does not exist.
    """
    if source is None:
        recipe = Recipe()
    else:
        recipe = source if isinstance(source, Recipe) else read_recipe(source)
    return change_recipe(recipe, _for_task(given, given.get("task", recipe.task)))


def _for_task(given: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return settings with those that have one short name for all tasks under the task's own.

    `--layout` is `detect.layout` for objects and `loader.layout` for classes.

    Raises:
        ValueError: If the task's setting does not take the value, or is given too.
    """
    own = {name for name, setting in all_settings().items() if task in setting.tasks}
    found: dict[str, Any] = {}
    for name, value in given.items():
        short = name.rpartition(".")[2]
        same = [other for other in own if other.rpartition(".")[2] == short]
        if name in own or short_names().get(short) != name or len(same) != 1:
            found[name] = value
        elif same[0] in given:
            raise ValueError(f"{same[0]} is given twice, the second time as {short}")
        else:
            found |= full_settings({same[0]: value})
    return found


def _nested(full: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in full.items():
        section, _, leaf = name.rpartition(".")
        plain = list(value) if isinstance(value, tuple) else value
        if section:
            tree.setdefault(section, {})[leaf] = plain
        else:
            tree[leaf] = plain
    return tree


F = TypeVar("F", bound=Callable[..., Any])
ON_COMMAND_LINE: ContextVar[bool] = ContextVar("on_command_line", default=False)
"""Whether the command line calls the verbs."""

# Commands stay as they are: in backquotes, or `convnext VERB ...` up to the end of the clause.
_COMMAND = re.compile(r"(`[^`]*`|\bconvnext [a-z]+ [^;,()]*)")
_OPTION = re.compile(r"(?<![\w-])--([a-z](?:[\w.-]*\w)?)")


def verb(function: F) -> F:
    """Decorate a verb's function: check simple arguments, and name them in errors as Python does.

    Hyphens in names are underscores: `train(**{"batch-size": 4})`.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            named = {name.replace("-", "_"): value for name, value in kwargs.items()}
            if len(named) < len(kwargs):
                both = next(name for name in kwargs if "-" in name)
                raise TypeError(f"--{both} is given twice, with a hyphen and an underscore")
            _check_arguments(function, args, named)
            return function(*args, **named)
        except (ValueError, TypeError, ArithmeticError, OSError) as error:
            if not ON_COMMAND_LINE.get() and len(error.args) == 1:
                message = in_python(str(error.args[0]), function)
                error.args = (as_given(message, kwargs),)
            raise

    return cast(F, call)


def _check_arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Check the arguments that are one of a fixed set, numbers, or true or false.

    Raises:
        TypeError: If one has another type.
        ValueError: If one is not in its set.
    """
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:  # The call itself says which argument is missing or unknown.
        return
    hints = _hints(function)
    for name, value in bound.arguments.items():
        if name in hints:
            check_value(name, value, hints[name])


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's arguments that are known when it runs."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        with suppress(NameError):  # It names a class that is imported for the type checker only.
            found[name] = eval(parameter.annotation, function.__globals__)
    return found


def as_given(message: str, names: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return a message with full names of settings as the user wrote them, where they are short.

    Args:
        message: A message such as "schedule.epochs is ten, but must be an integer".
        names: The names that the user wrote.
        show: How the message writes a short name, such as an option with its hyphens.
    """
    for name in names:
        short = name.replace("-", "_")
        fulls = [short_names().get(short, "")]
        if short in ONLY_IN_FULL_HELP:  # Each task has a setting of this name.
            fulls = [full for full in all_settings() if full.rpartition(".")[2] == short]
        for full in filter(None, fulls):
            message = re.sub(rf"(?<![\w.-]){re.escape(full)}(?![\w.]*\w)", show(short), message)
    return message


def in_python(message: str, function: Callable[..., Any]) -> str:
    """Return a message with each option as the argument of a function.

    Args:
        message: A message such as "choose another --output, or continue with --resume".
        function: A verb's function, whose arguments are flags or may have other names.
    """
    names = _argument_names(function)

    def argument(found: re.Match[str]) -> str:
        name = found.group(1).replace("-", "_")
        return names.get(name, name)

    parts = _COMMAND.split(message)  # Commands are at odd positions.
    parts[::2] = [_OPTION.sub(argument, part) for part in parts[::2]]
    return "".join(parts)


def _argument_names(function: Callable[..., Any]) -> dict[str, str]:
    """Return how Python writes the options of a verb that it does not call by their name."""
    from convnext.tasks import CLASSES, options_of_tasks

    names = {full: short for short, full in short_names().items()}
    defaults: dict[str, Any] = {}
    name = function.__name__
    for kind in options_of_tasks(name).values() if name in CLASSES else ():
        defaults |= {f.name: f.default for f in fields(kind)}
    for p in inspect.signature(function).parameters.values():
        defaults[p.name] = p.default
        flag = re.search(r"flag=[\"'](\w+)", str(p.annotation))
        if flag is not None:
            names[flag.group(1)] = p.name
    names |= {name: f"{name}=True" for name, default in defaults.items() if default is False}
    names |= {
        f"no_{name}": f"{name}=False" for name, default in defaults.items() if default is True
    }
    return names
