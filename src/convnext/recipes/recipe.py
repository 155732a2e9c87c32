"""How a network is trained: one typed tree of frozen dataclasses, YAML in and out.

A field that reads `auto` is chosen by the task when it has seen the data, the weights and the
device; what it chose and why is printed, and the run keeps the resolved recipe. A recipe file
holds only what differs from the defaults here, or from the file that its key `base` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from convnext.names import nearest
from convnext.recipes.schema import (
    RANGES,
    AugmentRecipe,
    DetectRecipe,
    EmaRecipe,
    InputRecipe,
    LoaderRecipe,
    LossRecipe,
    NetworkRecipe,
    OptimRecipe,
    RunRecipe,
    ScheduleRecipe,
    SegmentRecipe,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a run."""

    task: Literal["classify", "detect", "segment"] = "classify"
    model: str = "auto"
    """A name of `convnext models`, or `timm/<name>`."""
    weights: str = "none"
    """Where training starts: `none`, a tag of `convnext models`, a path, or a hub id."""
    data: str = "digits"
    """A folder, an address of shards, or `digits` for the data set that comes along."""
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    input: InputRecipe = field(default_factory=InputRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    segment: SegmentRecipe = field(default_factory=SegmentRecipe)
    detect: DetectRecipe = field(default_factory=DetectRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    ema: EmaRecipe = field(default_factory=EmaRecipe)
    loader: LoaderRecipe = field(default_factory=LoaderRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)


# The section that only one task has.
SECTION_OF_TASK = {"segment": "segment", "detect": "detect"}


def check_ranges(recipe: Recipe) -> None:
    """Check the settings that are numbers.

    Raises:
        ValueError: Naming the setting, its value and its bounds.
    """
    for name, value in flatten(recipe):
        low, high = RANGES.get(name, (None, None))
        if isinstance(value, str) or (low is None and high is None):
            continue
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise ValueError(f"{name} is {value}, but must be {bounds}")


def flatten(recipe: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("section.field", value) for every leaf, in the order of the definition."""
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if is_dataclass(value):
            yield from flatten(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def change_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with some leaves replaced, named as `flatten` names them.

    Raises:
        ValueError: If a name is unknown; the nearest one is suggested.
    """
    known = dict(flatten(recipe))
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"a recipe has no setting {name!r}{nearest(name, known)}")
        section, _, leaf = name.rpartition(".")
        part = replace(getattr(recipe, section), **{leaf: value}) if section else value
        recipe = replace(recipe, **{section or leaf: part})
    return recipe


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("convnext.recipes") / "presets"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())


def read_recipe(source: str | Path) -> Recipe:
    """Read a recipe: a YAML file of differences, or the name of one that comes along.

    Raises:
        ValueError: If there is none, it is not valid YAML, a key is unknown (the nearest one is
            suggested), or a value has the wrong type.
    """
    return recipe_from_dict(_read_tree(source), where=str(source))


def recipe_from_dict(tree: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Build a recipe from nested mappings, checking every key and type."""
    from jsonargparse import ArgumentError

    _check_keys(tree, Recipe(), where)
    try:
        parser = recipe_parser()
        return as_recipe(parser.parse_object(dict(tree)))
    except ArgumentError as error:
        raise ValueError(f"{where}: {explain(error)}") from error


def recipe_parser(prog: str = "convnext train") -> Any:
    """Return a jsonargparse parser with a `--section.field` option for every leaf."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, prog=prog)
    with _docstrings_of_fields():
        parser.add_class_arguments(Recipe)
    return parser


@contextmanager
def _docstrings_of_fields() -> Iterator[None]:
    """Let jsonargparse read the docstrings of fields; its settings then are what they were."""
    from jsonargparse import set_parsing_settings
    from jsonargparse._optionals import get_docstring_parse_options  # Nothing public reads it.

    before = get_docstring_parse_options()["attribute_docstrings"]  # type: ignore[no-untyped-call]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        yield
    finally:
        set_parsing_settings(docstring_parse_attribute_docstrings=before)


def as_recipe(namespace: Any) -> Recipe:
    """Turn what the parser returned into a `Recipe`."""
    parser = recipe_parser()
    return Recipe(**parser.instantiate(namespace).as_dict())


def number(value: float | str) -> float:
    """Return a setting that is no longer `auto`."""
    assert not isinstance(value, str), "the recipe must be resolved first"
    return value


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return nested plain values, as YAML and JSON know them, without sections of other tasks."""
    tree = asdict(recipe)
    for section in SECTION_OF_TASK.values():
        if section != SECTION_OF_TASK.get(recipe.task):
            del tree[section]
    return _plain(tree)  # type: ignore[no-any-return]


def to_yaml(recipe: Recipe) -> str:
    """Return every setting as YAML, in the order of the definition."""
    import yaml

    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def explain(error: Exception) -> str:
    """Return the parser's message about a value as one line: the setting, its types, the value."""
    message = one_line(error)
    wrong = re.match(r'Parser key "([\w.]+)"', message)
    if wrong is None:
        return message
    name = wrong.group(1)
    value = message.rpartition("Given value: ")[2] if "Given value: " in message else None
    value = value or message.rpartition("Got value: ")[2]
    section, _, leaf = name.rpartition(".")
    owner = getattr(Recipe(), section) if section else Recipe()
    expected = next((f.type for f in fields(owner) if f.name == leaf), "another type")
    expected = str(expected).replace("Auto", "'auto'").replace("Literal", "one of ")
    return f"{name} is {value}, but must be {expected.replace(' | ', ' or ')}"


def one_line(error: Exception) -> str:
    """Return an error's message without its line breaks."""
    return " ".join(str(error).split())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _read_tree(source: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    import yaml

    path = _find(source)
    if path.resolve() in above:
        raise ValueError(f"{path} is its own base, by way of {', '.join(map(str, above))}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold settings as `name: value`, not a {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    beside = path.parent / f"{base}.yaml"
    below = _read_tree(beside if beside.is_file() else base, (*above, path.resolve()))
    return _merge(below, tree)


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in recipe_names():
        return Path(str(resources.files("convnext.recipes") / "presets" / f"{source}.yaml"))
    raise ValueError(f"there is no recipe {str(source)!r}{nearest(str(source), recipe_names())}")


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) else value
    return merged


def _check_keys(tree: Mapping[str, Any], like: Any, where: str, prefix: str = "") -> None:
    known = {f.name: getattr(like, f.name) for f in fields(like)}
    for key, value in tree.items():
        if key not in known:
            raise ValueError(f"{where}: there is no setting {prefix}{key!s}{nearest(key, known)}")
        if is_dataclass(known[key]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {prefix}{key} is a section of settings, not {value!r}")
            _check_keys(value, known[key], where, f"{prefix}{key}.")
