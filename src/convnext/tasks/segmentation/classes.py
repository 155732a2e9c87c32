"""The classes of a data set: their names, and the colours that stand for them in colour masks.

classes.json        ["road", "car"], or {"classes": [{"id": 0, "name": "road",
                    "color": [128, 64, 128]}, ...]}
classes.txt         a name in each line, in the order of the indices
objectInfo150.txt   ADE20K's own list
palette.json        {"road": [128, 64, 128], ..., "void": null}, or with null for no class:
                    {"void": [0, 0, 0]} and "void" not among the classes
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnext.tasks.segmentation.masks import Color

# Names under which a palette lists colours of no class.
NO_CLASS = ("ignore", "ignored", "none", "unlabeled", "unlabelled", "void")


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names in the order of the indices; none where no file lists them."""

    names: tuple[str, ...] = ()
    palette: Mapping[Color, int] = field(default_factory=dict)
    source: str = ""
    """The file that lists them."""


def read_classes(root: Path, ignore_index: int) -> Classes:
    """Return what the files beside the folders say of the classes.

    Raises:
        ValueError: If a file is damaged.
    """
    listed = Classes()
    for name, parse in (
        ("classes.json", _from_json),
        ("classes.txt", _from_lines),
        ("objectInfo150.txt", _from_ade20k),
    ):
        path = root / name
        if path.is_file():
            listed = _read(path, parse, ignore_index)
            break
    path = root / "palette.json"
    if not path.is_file():
        return listed
    return _read(path, lambda text, ignore: _with_palette(text, listed, ignore), ignore_index)


def _read(path: Path, parse: Any, ignore_index: int) -> Classes:
    try:
        found: Classes = parse(path.read_text(encoding="utf-8-sig"), ignore_index)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f'{path} does not list classes ({error}); write ["road", "car"], or a name in each '
            "line of classes.txt"
        ) from error
    if len(set(found.names)) < len(found.names):
        raise ValueError(f"{path} lists a class twice")
    return Classes(names=found.names, palette=found.palette, source=path.name)


def _from_json(text: str, ignore_index: int) -> Classes:
    tree = json.loads(text)
    entries = tree["classes"] if isinstance(tree, dict) and "classes" in tree else tree
    if isinstance(entries, dict):
        entries = [{"id": int(key), "name": name} for key, name in entries.items()]
    rows = [e if isinstance(e, dict) else {"id": i, "name": e} for i, e in enumerate(entries)]
    rows = sorted(rows, key=lambda row: int(row["id"]))
    if [int(row["id"]) for row in rows] != list(range(len(rows))):
        raise ValueError("the ids must be 0, 1, 2 ... without gaps")
    palette = {_color(row["color"]): int(row["id"]) for row in rows if row.get("color")}
    return Classes(names=tuple(str(row["name"]) for row in rows), palette=palette)


def _from_lines(text: str, ignore_index: int) -> Classes:
    return Classes(names=tuple(line.strip() for line in text.splitlines() if line.strip()))


def _from_ade20k(text: str, ignore_index: int) -> Classes:
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    rows = [line for line in lines if line[0].strip().isdecimal()]
    return Classes(names=tuple(row[-1].split(";")[0].split(",")[0].strip() for row in rows))


def _with_palette(text: str, listed: Classes, ignore_index: int) -> Classes:
    tree = json.loads(text)
    colors = {str(name): _color(value) for name, value in tree.items() if value is not None}
    names = listed.names or tuple(n for n in colors if n.lower() not in NO_CLASS)
    for name in colors:
        if name not in names and name.lower() not in NO_CLASS:
            raise ValueError(f"{name!r} is not among the classes {', '.join(names)}")
    index = {name: i for i, name in enumerate(names)}
    palette = {color: index.get(name, ignore_index) for name, color in colors.items()}
    return Classes(names=names, palette=palette)


def _color(value: Any) -> Color:
    red, green, blue = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"{value} is no colour")
    return red, green, blue
