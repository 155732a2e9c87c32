"""Checks that `train` makes before it reads data: the task, names, and the weights' network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from convnext.api.settings import make_recipe
from convnext.models.config import NetworkConfig
from convnext.recipes.recipe import Recipe
from convnext.recipes.schema import NetworkRecipe

# Fields of the weights' network that the new data and recipe determine instead.
_NOT_TAKEN = {"num_classes", "in_chans", "drop_path_rate", "head_init_scale"}


def table_of(data: Any, output: str | Path | None) -> tuple[str | None, str | Path | None]:
    """Return the path of the data, and the run folder.

    A table in memory is written to data.csv in the run folder, so that the run can be resumed.

    Raises:
        ValueError: If the data is not a table of paths and labels.
    """
    if data is None or isinstance(data, str | Path):
        return None if data is None else str(data), output
    from convnext.data.formats.tables import rows_of, write_table

    rows = rows_of(data)
    folder = Path(output or Path("runs") / f"table-{time.strftime('%Y%m%d-%H%M%S')}")
    write_table(rows, folder / "data.csv")
    return str(folder / "data.csv"), folder


def prepare(source: Any, given: Mapping[str, Any]) -> Recipe:
    """Return the recipe to train with, after checking its names.

    Args:
        source: A recipe's name, file or object, or None.
        given: Settings by their full names.

    Raises:
        ValueError: If the recipe, model or weights file does not exist.
    """
    if source is None and "task" not in given:
        asked = {name: given[name] for name in ("data", "model") if name in given}
        given = {**given, "task": task_of(make_recipe(None, asked))}
    recipe = make_recipe(source, given)

    from convnext.models.factory import check_name
    from convnext.tasks.factory import dense_prefix
    from convnext.weights.sources import check_source

    model = "" if recipe.model == "auto" else recipe.model
    backbone = model.removeprefix(dense_prefix(model) or "")
    if model:
        check_name(backbone)
    if model.startswith("given/"):
        from convnext.tasks import task_class

        recipe = replace(recipe, model=task_class(recipe.task).default_prefix() + model)
    if recipe.weights != "none":
        check_source(recipe.weights, model=model, backbone=backbone)
        recipe = with_network_of_weights(recipe)
    return recipe


def task_of(recipe: Recipe) -> str:
    """Return the task that matches the data's layout, or else the model's name.

    Raises:
        ValueError: If the data fits several tasks.
    """
    from convnext.tasks import DEFAULT
    from convnext.tasks.factory import task_of_name
    from convnext.tasks.verbs import recognize_task

    found = recognize_task(recipe.data)
    if found == DEFAULT and not Path(recipe.data).is_dir():
        return task_of_name(recipe.model)
    return found


def with_network_of_weights(recipe: Recipe) -> Recipe:
    """Return the recipe with the network of its weights, adapted to its task.

    Nothing changes if the recipe names a model, or if the weights come from a hub.
    """
    if recipe.model != "auto":
        return recipe
    from convnext.tasks import DEFAULT, task_class
    from convnext.tasks.factory import dense_prefix
    from convnext.weights.checkpoint import find_checkpoint
    from convnext.weights.open import card_or_none

    card = card_or_none(recipe.weights)
    if card is not None and (card.task or DEFAULT) == recipe.task:
        return recipe  # Its network is taken when the recipe is resolved.
    if card is not None:
        task, name, changes = card.task or DEFAULT, card.model, dict(card.changes)
    elif (path := find_checkpoint(recipe.weights)) is not None:
        task, name, changes = _recognized(path)
    else:
        return recipe
    if task != recipe.task:
        backbone = name.removeprefix(dense_prefix(name) or "")
        name = task_class(recipe.task).default_prefix() + backbone
    own = {f.name for f in fields(NetworkRecipe)}
    known = {f.name for f in fields(NetworkConfig)} - _NOT_TAKEN
    changes = {key: value for key, value in changes.items() if key in known}
    network = recipe.network
    for key in own & changes.keys():
        if getattr(network, key) == "auto":
            network = replace(network, **{key: changes[key]})
    rest = {key: value for key, value in changes.items() if key not in own}
    return replace(recipe, model=name, network=replace(network, changes=rest | network.changes))


def _recognized(path: Path) -> tuple[str, str, dict[str, Any]]:
    """Infer task, name and changes of the network from a weights file without metadata.

    Raises:
        ValueError: If the tensors do not match a known network.
    """
    from convnext.tasks.factory import infer_model
    from convnext.tasks.trained import task_of
    from convnext.weights.sources import read_source

    name, changes = infer_model(read_source(path)[0])
    return task_of(str(path)), name, changes
