"""One folder per task, with the same file names in each; the loop knows none of them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from rich.console import Console

from convnext.ranks import ALONE, Ranks
from convnext.recipe import Recipe

HOMES = {"classify": "classification"}


def open_task(recipe: Recipe, device: torch.device, console: Console, ranks: Ranks = ALONE) -> Any:
    """Open the task of a recipe: its data, and its settings that read `auto`.

    Raises:
        ValueError: If the task is not there yet, or the data cannot be used.
    """
    if recipe.task not in HOMES:
        raise ValueError(f"the task {recipe.task!r} is not there yet; there is {', '.join(HOMES)}")
    module = importlib.import_module(f"convnext.tasks.{HOMES[recipe.task]}.task")
    return module.open_task(recipe, device, console, ranks)
