"""The tasks, one folder each, with the same file names; no other module names a task.

A task's `recipe.py` has a dataclass for each verb with options of its own, and `recognizes`;
importing it loads neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from convnext.names import nearest
from convnext.recipes.schema import check_value, register_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from convnext.data.bands import Clipping
    from convnext.data.formats.records import ReadOptions
    from convnext.data.images import BadImage
    from convnext.data.sources import Source
    from convnext.deploy.runtimes import Exported
    from convnext.results import Predictions
    from convnext.tasks.base import Task

# Deleting a task's folder and its line here does not affect the others.
_CLASSES = {
    "classify": "classification.task.ClassificationTask",
    "segment": "segmentation.task.SegmentationTask",
    "detect": "detection.task.DetectionTask",
}

# The recipe of a task is in its `recipe.py`.
for _name, _path in _CLASSES.items():
    _folder, _, _class = _path.partition(".task.")
    _class = f"{_class.removesuffix('Task')}Recipe"
    register_recipe(_name, f"convnext.tasks.{_folder}.recipe.{_class}")

DEFAULT = next(iter(_CLASSES))
"""The task of a recipe or checkpoint that does not name one."""


def task_names() -> tuple[str, ...]:
    """Return the names of the tasks."""
    return tuple(_CLASSES)


def task_folders() -> dict[str, str]:
    """Return the folder of every task by the task's name."""
    return {name: path.partition(".")[0] for name, path in _CLASSES.items()}


def task_folder(name: str) -> str:
    """Return the folder of a task, or of the default task for an empty name.

    Raises:
        ValueError: If there is no such task.
    """
    return _class_of(name).partition(".")[0]


def _class_of(name: str) -> str:
    if (name or DEFAULT) not in _CLASSES:
        raise ValueError(f"there is no task {name!r}{nearest(name, _CLASSES)}")
    return _CLASSES[name or DEFAULT]


def task_class(name: str) -> type[Task]:
    """Return the class of a task, or of the default task for an empty name.

    Raises:
        ValueError: If there is no such task.
    """
    module, _, attribute = _class_of(name).rpartition(".")
    found: type[Task] = getattr(importlib.import_module(f"convnext.tasks.{module}"), attribute)
    return found


def task_module(name: str, module: str) -> Any:
    """Import a module of a task's folder, such as `task_module("segment", "model")`."""
    return importlib.import_module(f"convnext.tasks.{task_folder(name)}.{module}")


def task_with(module: str) -> str:
    """Return the task whose folder has a module that the others lack, such as "shards".

    Nothing is imported.

    Raises:
        ValueError: If no task has it.
    """
    for name, folder in task_folders().items():
        path = Path(__file__).parent / folder / Path(*module.split("."))
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return name
    raise ValueError(f"none of the tasks {', '.join(_CLASSES)} has {module.replace('.', ' ')}")


def task_to_fix(path: str | Path, options: Mapping[str, Any]) -> str:
    """Return the task that fixes a data set: the one that recognizes it, else the last one.

    Args:
        path: The data set.
        options: Options of `data`, some of which only one task has.
    """
    folders = task_folders()
    fixing = [
        task
        for task, folder in folders.items()
        if (Path(__file__).parent / folder / "fix.py").is_file()
    ]
    given = {name for name, value in options.items() if value}
    classes = options_of_tasks("data")
    fits = [t for t in fixing if given <= {f.name for f in fields(classes[folders[t]])}]
    found = [t for t in fits if task_module(t, "recipe").recognizes(Path(path))]
    return found[0] if len(found) == 1 else (fits if len(fits) == 1 else fixing)[-1]


def task_of_metric(metric: str) -> type[Task]:
    """Return the task that may have a primary metric of this name.

    Raises:
        ValueError: If there is none.
    """
    for found in map(task_class, _CLASSES):
        if metric in found.metrics():
            return found
    raise ValueError(f"{metric!r} is not the primary metric of a task")


CLASSES = {
    "predict": "PredictOptions",
    "evaluate": "EvaluateOptions",
    "export": "ExportOptions",
    "data": "DataOptions",
}
"""Names of the verbs' dataclasses."""


def options_of_tasks(verb: str) -> dict[str, Any]:
    """Return the dataclass of every task that has options for a verb, by the task's folder."""
    found = {}
    for task, folder in task_folders().items():
        module = task_module(task, "recipe")
        if hasattr(module, CLASSES[verb]):
            found[folder] = getattr(module, CLASSES[verb])
    return found


def given_options(task: str, verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task: the given ones, and the defaults of the others.

    Raises:
        TypeError: If an option has another type.
        ValueError: If the task lacks a given option; the message names the task that has it, or the
            nearest option. Also if a value is not one of a fixed set.
    """
    classes = options_of_tasks(verb)
    own = task_folder(task)
    known = {f.name for f in fields(classes[own])} if own in classes else set()
    hints = get_type_hints(classes[own]) if own in classes else {}
    for name, value in given.items():
        option = _option(name)
        if name in known:
            check_value(option, value, hints[name])
            continue
        others = [
            folder for folder, kind in classes.items() if name in {f.name for f in fields(kind)}
        ]
        if others:
            raise ValueError(f"{option} is an option for {' and '.join(others)}; this is {own}")
        raise ValueError(f"{verb} has no option {option}{nearest(name, sorted(known), _option)}")
    return asdict(classes[own](**given)) if own in classes else {}


def reading_options(task: str, given: Mapping[str, Any]) -> ReadOptions:
    """Return the options by which a task reads annotated objects.

    Raises:
        ValueError: If an option is not one of objects.
    """
    from convnext.data.formats.records import ReadOptions

    return ReadOptions(**given_options(task, "data", given))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def recognize_task(path: str | Path, options: Mapping[str, Any] | None = None) -> str:
    """Return the task of a data set by its layout, or by options that only one task has.

    Raises:
        ValueError: If it could be for several tasks.
    """
    given = {name for name, value in (options or {}).items() if value}
    layout = (options or {}).get("layout")
    modules = {task: task_module(task, "recipe") for task in task_folders()}
    own_layouts = {task: getattr(one, "LAYOUT_NAMES", ()) for task, one in modules.items()}
    # Options that a task takes too, but that speak for another one.
    shared: dict[str, frozenset[str]] = {
        task: getattr(one, "SHARED_OPTIONS", frozenset()) for task, one in modules.items()
    }
    fitting = [
        task
        for task, folder in task_folders().items()
        if given
        <= {f.name for f in fields(options_of_tasks("data").get(folder, _NoOptions))} - shared[task]
        and (not layout or not own_layouts[task] or layout in own_layouts[task])
    ]
    by_layout = [task for task in fitting if layout and layout in own_layouts[task]]
    fitting = by_layout or fitting
    if given and len(fitting) == 1:
        return fitting[0]
    found = [task for task, one in modules.items() if one.recognizes(Path(path))]
    fits_too = getattr(modules[DEFAULT], "fits_too", None)
    if found and DEFAULT not in found and fits_too is not None and fits_too(Path(path)):
        found.insert(0, DEFAULT)
    if len(found) > 1:
        raise ValueError(f"{path} could be data to {' or to '.join(found)}; pass --task to choose")
    return found[0] if found else DEFAULT


def inspect(
    path: str,
    task: str | None,
    options: Mapping[str, Any],
    *,
    contact_sheet: bool = False,
    deep: bool = False,
    cache: bool = True,
    range: Sequence[float] = (),
) -> tuple[Any, Any]:
    """Return the report of a task on a data set, and a contact sheet if requested.

    While no file of the data changes, the report of an earlier time is returned, unless `cache` is
    False or a contact sheet is requested.

    Args:
        path: The data set.
        task: The task; None to recognize it.
        options: Options of the task.
        contact_sheet: Whether to draw one.
        deep: Look for near duplicates of all held-out images.
        cache: Use what is known from earlier reports.
        range: The range of 16-bit and float images that the user gives; () for none.

    Raises:
        ValueError: If there is no such data or task, or the task has no such option.
    """
    from convnext.data.facts import StoredReport

    question = {"task": task, "deep": deep, "range": [*range], **options}
    stored = StoredReport(path, question) if cache and not contact_sheet else None
    if stored is not None:
        found = stored.load(lambda task: task_module(task, "inspect").DataReport)
        if found is not None:
            return found, None
    task = task or recognize_task(path, options)
    own = given_options(task, "data", options)
    report, sheet = task_module(task, "inspect").inspect_with_sheet(
        path, own, sheet=contact_sheet, deep=deep, cache=cache, range=range
    )
    if stored is not None:
        stored.save(report, task)
    return report, sheet


@dataclass(frozen=True)
class _NoOptions:
    pass


def num_int8_images(task: str) -> int:
    """Return how many images an int8 file is verified on by default."""
    return int(task_module(task, "recipe").NUM_INT8_IMAGES)


def predictor_class(task: str) -> Any:
    """Import and return the predictor class of a task."""
    return task_module(task, "predict").PREDICTOR


def predict_by_file(
    exported: Exported,
    sources: Iterable[Source],
    *,
    max_bad_share: float = 1.0,
    console: Console | None = None,
) -> Predictions | None:
    """Predict images with an exported file alone; None if the task needs torch for that.

    Raises:
        ValueError: If no image can be read, or too many cannot.
    """
    module = task_module(exported.card.task, "recipe")
    if not hasattr(module, "file_predictor"):
        return None
    from convnext.results import Predictions

    bad = Skipped(len(sources) if isinstance(sources, Sized) else None, max_bad_share)
    counted: list[Clipping] = []

    def watched() -> Iterator[Source]:
        for source in sources:
            counted[:] = [source.clipping]  # All sources have the same.
            yield source

    results = tuple(module.file_predictor(exported).predict(watched(), bad))
    bad.require(len(results))
    for clipping in counted:
        clipping.print(console)
    return Predictions(results=results, bad_images=tuple(bad.images))


class Skipped:
    """Collects images that cannot be read; called with each of them.

    Args:
        total: Number of images; None if it is not known.
        max_share: Maximum fraction of images that may be unreadable.
    """

    def __init__(self, total: int | None, max_share: float) -> None:
        self.total, self.max_share = total, max_share
        self.images: list[tuple[str, str]] = []
        """Their names, each with the reason."""

    def __call__(self, source: Source, error: BadImage) -> None:
        """Add an image.

        Raises:
            ValueError: If there are too many.
        """
        self.images.append((source.name, error.reason))
        if self.total is not None and len(self.images) > self.max_share * self.total:
            raise ValueError(
                f"{len(self.images):,} of {self.total:,} images cannot be read, such as {error}; "
                "allow more with --max-bad-share"
            ) from error

    def require(self, count: int) -> None:
        """Check the number of images that could be read.

        Raises:
            ValueError: If there is none.
        """
        if not count:
            first = ": {}: {}".format(*self.images[0]) if self.images else ""
            total = len(self.images) if self.total is None else self.total
            raise ValueError(f"none of the {total} images can be read{first}")
