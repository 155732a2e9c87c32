"""The name of a network says which task it is for."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from convnext.recipes.recipe import Recipe, change_recipe
from convnext.tasks import DEFAULT, task_class, task_names

PREFIXES = [prefix for task in task_names() for prefix in task_class(task).prefixes]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_default_task_refuses_the_networks_of_the_others(prefix: str) -> None:
    name = f"{prefix}convnext_atto"
    recipe = change_recipe(Recipe(), {"data": "digits", "model": name})
    with pytest.raises(ValueError, match=f"{name} does not {DEFAULT}; use --model convnext_atto"):
        task_class(DEFAULT).open(recipe, torch.device("cpu"), Console(quiet=True))
