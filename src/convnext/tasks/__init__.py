"""The tasks, one folder each, with the same file names; no other module names a task."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convnext.names import nearest
from convnext.recipes.schema import register_recipe

if TYPE_CHECKING:
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
    """Import a module of a task's folder, such as `task_module("segment", "published")`."""
    return importlib.import_module(f"convnext.tasks.{task_folder(name)}.{module}")


def task_of_metric(metric: str) -> type[Task]:
    """Return the task whose primary metric has this name.

    Raises:
        ValueError: If there is none.
    """
    for found in map(task_class, _CLASSES):
        if found.primary == metric:
            return found
    raise ValueError(f"{metric!r} is not the primary metric of a task")
