"""Reading, changing and writing of recipes: YAML, options, nested and flat settings.

A recipe file has only the differences from the defaults, or from the file named by its key `base`.
Each task has its own recipe class (`recipe_type`), which defines the settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from convnext.documents import parse_yaml, read_regular
from convnext.names import nearest
from convnext.recipes.schema import A, Auto, recipe_type, recipe_types
from convnext.recipes.schema import Recipe as Recipe
from convnext.recipes.schema import ResolvedRecipe as ResolvedRecipe


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a recipe."""

    hint: Any
    """Its type, including `auto` if it is allowed."""
    shown: str
    """Its type in messages."""
    default: Any
    help: str
    bounds: tuple[float | None, float | None]
    resolves: bool
    """Whether its task resolves `auto`; otherwise `auto` may stay."""
    tasks: tuple[str, ...]
    """Tasks that use it."""


@cache
def all_settings() -> Mapping[str, Setting]:
    """Return the settings of all tasks by their full names, section by section."""
    found: dict[str, Setting] = {}
    for task, kind in recipe_types().items():
        for name, setting in _settings_of(kind(), "", task):
            had = found.get(name)
            found[name] = replace(had, tasks=(*had.tasks, task)) if had else setting
    sections = list(dict.fromkeys(name.rpartition(".")[0] for name in found))
    names = sorted(found, key=lambda name: sections.index(name.rpartition(".")[0]))
    return {name: found[name] for name in names}


def flatten(recipe: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("section.field", value) for every setting, in the order of definition."""
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if is_dataclass(value):
            yield from flatten(value, f"{prefix}{f.name}.")
        elif f.name != "notes":
            yield f"{prefix}{f.name}", value


def change_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with some settings replaced, given by their full names.

    Changing `task` returns a recipe of that task with the values that were set in this one.

    Raises:
        ValueError: If a name is unknown (the nearest one is suggested), or the task does not use
            the setting.
    """
    task = changes.get("task", recipe.task)
    if task != recipe.task:
        usual = dict(flatten(type(recipe)()))
        own = {name: value for name, value in flatten(recipe) if value != usual[name]}
        recipe, changes = recipe_type(task)(notes=recipe.notes), own | dict(changes)
    known = dict(flatten(recipe))
    for name, value in changes.items():
        if name not in known:
            raise ValueError(_unknown(name, recipe))
        section, _, leaf = name.rpartition(".")
        part = replace(getattr(recipe, section), **{leaf: value}) if section else value
        recipe = replace(recipe, **{section or leaf: part})
    return recipe


def check_ranges(recipe: Recipe) -> None:
    """Check the ranges of numeric settings.

    Raises:
        ValueError: If a value is out of range; the message has the setting, its value and bounds.
    """
    known = all_settings()
    for name, value in flatten(recipe):
        low, high = known[name].bounds
        if isinstance(value, str) or (low is None and high is None):
            continue
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise ValueError(f"{name} is {value}, but must be {bounds}")


def as_resolved(recipe: Recipe) -> ResolvedRecipe:
    """Return a recipe without `auto` as a resolved recipe.

    Raises:
        ValueError: If a setting is still `auto`.
    """
    known = all_settings()
    left = [n for n, value in flatten(recipe) if known[n].resolves and value == "auto"]
    if left:
        raise ValueError(f"the recipe still has auto for {', '.join(left)}; resolve it first")
    return cast("ResolvedRecipe", recipe)


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    folder = resources.files("convnext.recipes") / "presets"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())


def read_recipe(source: str | Path) -> Recipe:
    """Read a recipe from a YAML file, or a bundled one by its name.

    Raises:
        ValueError: If it does not exist or is not valid YAML, a key is unknown (the nearest one is
            suggested), the task does not use a setting, or a value has the wrong type.
    """
    return recipe_from_dict(_read_tree(source), where=str(source))


def recipe_from_dict(tree: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Build a recipe from nested mappings, checking every key and type.

    Runs of version 0.1.0 saved settings that their task never used. These are left out and counted
    in a note of the recipe; in any other recipe they are an error.
    """
    try:
        default = recipe_type(tree.get("task", ""))()
        values = parse_settings(tree)
        unused = [name for name in values if default.task not in all_settings()[name].tasks]
        if unused and _is_saved(values, default):
            values = {name: value for name, value in values.items() if name not in unused}
            count = f"{len(unused)} setting{'s' if len(unused) > 1 else ''}"
            note = f"{where}: ignored {count} that {default.noun} does not use"
            default = replace(default, notes=(note,))
        return change_recipe(default, values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def parse_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings of any task by their full names, with their types checked.

    Raises:
        ValueError: If a key is unknown (the nearest one is suggested) or a value has the wrong
            type.
    """
    from jsonargparse import ArgumentError

    _check_keys(tree)
    try:
        return parsed_settings(_settings_parser().parse_object(_with_lists(tree), defaults=False))
    except ArgumentError as error:
        raise ValueError(explain(error)) from error


def as_list(hint: Any, text: str) -> str:
    """Return the text of an option as a list if its type is a tuple: "0,4095" as "[0,4095]".

    Other types, and the words that a type allows beside tuples, such as `auto`, are unchanged.
    """
    parts = (hint, *get_args(hint))
    words = {word for part in parts if get_origin(part) is Literal for word in get_args(part)}
    if text in words or not text or not any(get_origin(part) is tuple for part in parts):
        return text
    inner = text.strip()
    if inner.startswith("(") and inner.endswith(")"):
        inner = inner[1:-1]
    return text if inner.startswith(("[", "{")) else f"[{inner}]"


def _with_lists(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with lists that are written as text in brackets."""
    known, found = all_settings(), dict(tree)
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in known:
            found[key] = _with_lists(value, f"{name}.")
        elif isinstance(value, str) and name in known:
            found[key] = as_list(known[name].hint, value)
    return found


@cache
def _settings_parser() -> Any:
    return recipe_parser()


def recipe_parser(prog: str = "convnext train") -> Any:
    """Return a jsonargparse parser with a `--section.field` option for every setting."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, prog=prog)
    kinds = (*recipe_types().values(), Recipe)  # Recipe last, for its general sections.
    sections: dict[str, Any] = {f.name: f.default_factory for k in kinds for f in fields(k)}
    groups: dict[str, Any] = {}
    for name, setting in all_settings().items():
        section = name.rpartition(".")[0]
        if section not in groups:
            title = str(sections.get(section, Recipe).__doc__).partition("\n")[0].rstrip(".")
            groups[section] = parser.add_argument_group(title)
        groups[section].add_argument(
            f"--{name}", type=setting.hint, default=setting.default, help=setting.help
        )
    return parser


def parsed_settings(namespace: Any) -> dict[str, Any]:
    """Return the settings in a parsed namespace by their full names."""
    known = all_settings()
    return {name: value for name, value in namespace.items() if name in known}


def to_dict(recipe: Recipe | ResolvedRecipe) -> dict[str, Any]:
    """Return nested plain values for YAML and JSON."""
    tree = asdict(recipe)
    del tree["notes"]
    return _plain(tree)  # type: ignore[no-any-return]


def to_yaml(recipe: Recipe | ResolvedRecipe) -> str:
    """Return every setting as YAML, in the order of definition."""
    import yaml

    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def explain(error: Exception, types: Mapping[str, str] | None = None) -> str:
    """Return a parser's error about a value as one line with the setting, its types and value.

    Args:
        error: The error.
        types: The types of options that are not settings, as annotations in text.
    """
    message = one_line(error)
    wrong = re.match(r'Parser key "([\w.]+)"', message)
    if wrong is None:
        return message
    name = wrong.group(1)
    value = message.rpartition("Given value: ")[2] if "Given value: " in message else None
    value = value or message.rpartition("Got value: ")[2]
    known = all_settings()
    if name in known:
        return f"{name} is {value}, but must be {known[name].shown}"
    hint = (types or {}).get(name, "another type")
    return f"{name} is {value}, but must be {_in_words(hint)}"


# Types of settings as error messages write them.
_WORDS = {
    r"\b(A|Auto)\b": "'auto'",
    r"tuple\[float, float\]": "a list of two numbers (such as [0.5,1])",
    r"tuple\[int, int\]": "a list of two integers (such as [384,600])",
    r"tuple\[float, \.\.\.\]": "a list of numbers (such as [0.5,1])",
    r"tuple\[int, \.\.\.\]": "a list of integers (such as [400,500])",
    r"tuple\[str, \.\.\.\]": "a list of names (such as [wandb,mlflow])",
    r"dict\[str, Any\]": "a mapping (such as {kernel_size: 5})",
    r"\bfloat\b": "a number",
    r"\bint\b": "an integer",
    r"\bbool\b": "true or false",
    r"\bstr\b": "text",
    r"Literal\[(.*?)\]": r"one of \1",
    r" \| ": " or ",
}


def _in_words(hint: str) -> str:
    for pattern, words in _WORDS.items():
        hint = re.sub(pattern, words, hint)
    return hint


def one_line(error: Exception) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())


def _settings_of(part: Any, prefix: str, task: str) -> Iterator[tuple[str, Setting]]:
    kind: Any = type(part)
    hints, texts = get_type_hints(kind), _docs_of(kind)
    for f in fields(part):
        value, hint = getattr(part, f.name), hints[f.name]
        if is_dataclass(value):
            yield from _settings_of(value, f"{prefix}{f.name}.", task)
        elif f.name != "notes":
            shown, resolves = str(f.type), A in getattr(hint, "__parameters__", ())
            if f.name == "task":
                hint = Literal[tuple(recipe_types())]
            if get_origin(hint) is Literal:  # Its choices, also if the annotation is an alias.
                shown = f"Literal{[*get_args(hint)]}"
            yield (
                f"{prefix}{f.name}",
                Setting(
                    hint=_with_auto(hint) if resolves else hint,
                    shown=_in_words(shown),
                    default=value,
                    help=texts.get(f.name, ""),
                    bounds=f.metadata.get("bounds", (None, None)),
                    resolves=resolves,
                    tasks=(task,),
                ),
            )


def _with_auto(hint: Any) -> Any:
    """Return a type with `A` replaced by `auto`, merged into a literal of all choices."""
    hint = hint[Auto]
    parts = get_args(hint)
    if all(get_origin(part) is Literal for part in parts):
        return Literal[tuple(value for part in reversed(parts) for value in get_args(part))]
    return hint


@cache
def _docs_of(kind: type) -> dict[str, str]:
    """Return the docstrings of the fields of a dataclass, including inherited ones."""
    from docstring_parser import parse_from_object

    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            for p in parse_from_object(base).params:
                found[p.arg_name] = " ".join((p.description or "").split())
    return found


def _unknown(name: str, recipe: Recipe) -> str:
    if name in all_settings():
        return f"{recipe.noun} does not use {name}"
    return f"a recipe has no setting {name!r}{nearest(name, dict(flatten(recipe)))}"


def _is_saved(values: Mapping[str, Any], default: Recipe) -> bool:
    """Whether a run saved the settings: it saves all of them, unlike a handwritten recipe."""
    own = [name for name, _ in flatten(default)]
    return sum(name in values for name in own) > len(own) / 2


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _read_tree(source: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    import yaml

    path = _find(source)
    if path.resolve() in above:
        raise ValueError(f"{path} is its own base, through {', '.join(map(str, above))}")
    try:
        tree = parse_yaml(read_regular(path)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must have settings `name: value`, not a {type(tree).__name__}")
    _check_names(tree, str(path))
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ValueError(f"{path}: base is {base!r}, but must be the name of a recipe")
    beside = path.parent / f"{base}.yaml"
    below = _read_tree(beside if beside.is_file() else base, (*above, path.resolve()))
    return _merge(below, tree)


def _check_names(tree: Mapping[Any, Any], where: str) -> None:
    """Check that all keys of a recipe are text.

    Raises:
        ValueError: Names the first other key.
    """
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ValueError(f"{where} has the key {key!r}; the names of settings are text")
        if isinstance(value, Mapping):
            _check_names(value, where)


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in recipe_names():
        return Path(str(resources.files("convnext.recipes") / "presets" / f"{source}.yaml"))
    if path.is_dir():
        raise ValueError(f"{source} is a folder, not a recipe; for data write --data {source}")
    raise ValueError(f"there is no recipe {str(source)!r}{nearest(str(source), recipe_names())}")


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) else value
    return merged


def _check_keys(tree: Mapping[str, Any]) -> None:
    known: dict[str, set[str]] = {"": set()}
    for name in all_settings():
        section, _, leaf = name.rpartition(".")
        known.setdefault(section, set()).add(leaf)
        known[""].add(section or leaf)
    for key, value in tree.items():
        if key not in known[""]:
            raise ValueError(f"there is no setting {key!s}{nearest(key, known[''])}")
        if key not in known:
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} is a section of settings, not {value!r}")
        for leaf in value:
            if leaf not in known[key]:
                raise ValueError(f"there is no setting {key}.{leaf!s}{nearest(leaf, known[key])}")
