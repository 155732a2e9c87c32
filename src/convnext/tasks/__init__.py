"""One folder per task, with the same file names in each; the loop knows none of them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from rich.console import Console

from convnext.hardware.ranks import ALONE, Ranks
from convnext.recipes.recipe import Recipe

HOMES = {"classify": "classification", "segment": "segmentation", "detect": "detection"}
# The metric that decides which weights of a run are the best, in percent, and its name for people.
PRIMARY = {
    "classify": ("top1", "top-1"),
    "segment": ("miou", "mIoU"),
    "detect": ("box_ap", "box AP"),
}
# What a comparison of networks reports beside it.
OTHERS = {"classify": (), "segment": ("accuracy",), "detect": ("box_ap50", "mask_ap", "mask_ap50")}


def label_of(metric: str) -> str:
    """Return a primary metric's name for people."""
    return next(label for name, label in PRIMARY.values() if name == metric)


def home(task: str, module: str) -> Any:
    """Return a module of a task's folder, such as `home("segment", "predict")`.

    Raises:
        ValueError: If the task is not there yet.
    """
    if task not in HOMES:
        raise ValueError(f"the task {task!r} is not there yet; there is {', '.join(HOMES)}")
    return importlib.import_module(f"convnext.tasks.{HOMES[task]}.{module}")


def open_task(recipe: Recipe, device: torch.device, console: Console, ranks: Ranks = ALONE) -> Any:
    """Open the task of a recipe: its data, and its settings that read `auto`.

    Raises:
        ValueError: If the task is not there yet, or the data cannot be used.
    """
    return home(recipe.task, "task").open_task(recipe, device, console, ranks)
