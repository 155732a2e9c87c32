"""Checks that `train` makes before it reads data: the task, names, and the weights' network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext.api.settings import ONLY_IN_FULL_HELP, make_recipe, short_names, with_local_data
from convnext.atomic import write_text
from convnext.models.config import GIVEN, NetworkConfig
from convnext.names import nearest_names, nearest_path
from convnext.recipes.recipe import Recipe, flatten
from convnext.recipes.schema import NetworkRecipe

if TYPE_CHECKING:
    from convnext.data.formats.tables import MemoryTable

TABLE = "data.csv"
"""The file in a run folder that a table in memory is written to."""
# Fields of the weights' network that the new data and recipe determine instead.
_NOT_TAKEN = {"num_classes", "in_chans", "drop_path_rate", "head_init_scale"}


def keep_table(
    table: MemoryTable, recipe: Recipe, output: Path | None, *, resume: bool
) -> tuple[Recipe, Path]:
    """Write a table in memory into the run folder, so that the run can be resumed.

    Returns:
        The recipe with the written file as its data, and the run folder.

    Raises:
        ValueError: If the folder holds another run, or the run in it has another table.
    """
    from convnext.training.checks import check_folder, mark_folder
    from convnext.training.distributed import is_first_process, started_by_launcher
    from convnext.training.run import new_folder

    check_folder(output, resume=resume)
    if output is None:
        if started_by_launcher():
            raise ValueError(
                "a table in memory needs output=..., a folder in which all processes find it"
            )
        output = new_folder(replace(recipe, data="table"))
    path, text = output / TABLE, table.text()
    if resume and path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{path} has other rows than the given data; leave out data=")
    elif is_first_process():
        mark_folder(output)
        write_text(path, text)
    return replace(recipe, data=str(path)), output


def saved_recipe(output: str | Path | None, *, can_start: bool) -> Path | None:
    """Return the recipe of the run to resume; None if there is no run yet, but one can be started.

    A scheduler repeats the same command: the first time, there is no run yet.

    Raises:
        ValueError: If there is no folder, or nothing in it and nothing to start.
    """
    if not output:
        raise ValueError("--resume needs --output, the folder of the run to resume")
    saved = Path(output) / "recipe.yaml"
    if saved.is_file():
        return saved
    if not can_start:
        if not Path(output).exists():
            raise ValueError(f"there is no run {output}{nearest_path(Path(output))}")
        raise ValueError(f"{output} is not a run folder: it has no recipe.yaml")
    return None


def prepare_resumed(saved: Path, given: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a run with some settings changed.

    Raises:
        ValueError: If a network was given as an object, but the run has another one.
    """
    from convnext.training.distributed import started_by_launcher

    if started_by_launcher():
        # The launcher decides the number of processes; the run may have had another one.
        given = {"run.devices": "auto", "run.num_nodes": 1, **given}
    name = given.get("model", "")
    if not name.startswith(GIVEN):
        return make_recipe(saved, given)
    recipe = make_recipe(saved, {key: value for key, value in given.items() if key != "model"})
    if not recipe.model.endswith(name):  # A dense network has its prefix before it.
        raise ValueError(
            f"the run in {saved.parent} trains {recipe.model}, not {name}; leave out model="
        )
    return recipe


def unused_settings(source: Any, saved: Path, given: Mapping[str, Any]) -> list[str]:
    """Return a note on the settings of a named recipe that a resumed run does not use.

    Args:
        source: A recipe's name, file or object.
        saved: The recipe of the run.
        given: Settings by their full names, which the resumed run does use.
    """
    named, usual, own = (dict(flatten(make_recipe(r, {}))) for r in (source, None, saved))
    differing = [
        f"{name} {value} (saved: {own.get(name)})"
        for name, value in named.items()
        if value not in (usual.get(name), own.get(name)) and name not in given
    ]
    if not differing:
        return []
    name = "the given recipe" if isinstance(source, Recipe) else source
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    return [
        f"the run resumes by its saved recipe {saved}; not used of {name}: "
        f"{', '.join(differing[:5])}{more}"
    ]


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
        given = {**given, "task": task_of(make_recipe(None, asked), given)}
    recipe = with_network_of_tag(with_local_data(make_recipe(source, given)))

    from convnext.models.factory import check_name
    from convnext.tasks.factory import dense_prefix
    from convnext.weights.sources import check_source

    model = "" if recipe.model == "auto" else recipe.model
    backbone = model.removeprefix(dense_prefix(model) or "")
    if model:
        check_name(backbone)
    if model.startswith(GIVEN):
        from convnext.tasks import task_class

        recipe = replace(recipe, model=task_class(recipe.task).default_prefix() + model)
    if recipe.weights != "none":
        check_source(recipe.weights, model=model, backbone=backbone)
        recipe = with_network_of_weights(recipe)
    return recipe


def task_of(recipe: Recipe, given: Mapping[str, Any] | None = None) -> str:
    """Return the task that matches the data's layout, or else the model's name.

    Args:
        recipe: The recipe, with its data and model.
        given: Settings that may say how the data is read, and so the task.

    Raises:
        ValueError: If the data fits several tasks.
    """
    from convnext.tasks import DEFAULT, recognize_task
    from convnext.tasks.factory import task_of_name

    names = {short: short_names().get(short, "") for short in ONLY_IN_FULL_HELP}
    options = {short: (given or {}).get(full) for short, full in names.items()}
    found = recognize_task(recipe.data, options)
    if found == DEFAULT and not Path(recipe.data).is_dir():
        return task_of_name(recipe.model)
    return found


def with_network_of_tag(recipe: Recipe) -> Recipe:
    """Return the recipe with the network that a tag of published weights belongs to.

    A tag such as `coco` does not say which: it is the task's default network, on the backbone
    convnext_tiny or the one that the recipe names.

    Raises:
        ValueError: If that network has no weights of this tag, but others have.
    """
    from convnext.tasks import task_class
    from convnext.tasks.factory import dense_prefix, task_of_name
    from convnext.weights.published import models_of_tag

    tag = recipe.weights
    names = [] if Path(tag).exists() else models_of_tag(tag)
    is_dense = any(dense_prefix(name) is not None for name in names)
    prefix = task_class(recipe.task).default_prefix()
    if recipe.model == "auto":
        backbone = "convnext_tiny"
    elif is_dense and prefix and dense_prefix(recipe.model) is None:
        backbone = recipe.model
    else:
        return recipe
    if prefix + backbone in names or (backbone in names and not is_dense):
        return replace(recipe, model=prefix + backbone)
    if not names:
        return recipe
    own = [name if is_dense else prefix + name for name in names]
    fitting = [name for name in own if task_of_name(name) == recipe.task]
    same = [name for name in fitting if name.removeprefix(dense_prefix(name) or "") == backbone]
    listed = nearest_names(prefix + backbone, same or fitting or own)
    if not fitting:
        raise ValueError(f"the weights {tag!r} are those of {listed}, which do not {recipe.task}")
    raise ValueError(
        f"{prefix}{backbone} has no weights {tag!r}; name a network that has them: --model {listed}"
    )


def with_network_of_weights(recipe: Recipe) -> Recipe:
    """Return the recipe with the network of its weights, adapted to its task.

    Nothing changes if the recipe names a model, or if the weights come from a hub.
    """
    if recipe.model != "auto":
        return recipe
    from convnext.tasks import DEFAULT, task_class
    from convnext.tasks.factory import dense_prefix
    from convnext.weights.checkpoint import find_checkpoint
    from convnext.weights.sources import card_or_none

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
