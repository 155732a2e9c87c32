"""Read the names, colors and values of the classes from files beside the masks.

classes.json        ["road", "car"], or {"classes": [{"id": 0, "name": "road",
                    "color": [128, 64, 128]}, ...]}
classes.txt         one name per line, in the order of the indices
objectInfo150.txt   ADE20K's own list
palette.json        {"road": [128, 64, 128], ..., "void": null}, or with null for no class:
                    {"void": [0, 0, 0]} and "void" not among the classes; or with the value
                    of each class: {"road": 0, "car": 127}
labelmap.txt        CVAT's and Pascal VOC's list of colors
_classes.csv        Roboflow's list of values
class_dict.csv      name,r,g,b
class_names.txt     labelme's list; codes.txt, label_colors.txt: CamVid's
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convnext.documents import read_regular
from convnext.tasks.segmentation.masks import Color

# Names under which a palette lists colors without a class.
NO_CLASS = (
    "ignore", "ignored", "none", "unlabeled", "unlabelled", "void", "__ignore__", "_ignore_"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names in the order of the indices; empty if no file lists them."""

    names: tuple[str, ...] = ()
    palette: Mapping[Color, int] = field(default_factory=dict)
    values: tuple[int, ...] = ()
    """The value of each class in masks of values; () if these are the indices."""
    void: tuple[int, ...] = ()
    """Beside `values`: those that mean no class."""
    source: str = ""
    """The file that lists them."""


# The ids of the 19 classes of Cityscapes in *_labelIds.png; the others are not evaluated.
_CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
# Ids up to 33, and the license plate's, which is written as 255.
_NUM_IDS = 34


def cityscapes_ids() -> Classes:
    """Return the 19 classes of Cityscapes by the ids of its labels."""
    values = tuple(_CITYSCAPES.values())
    void = (*(value for value in range(_NUM_IDS) if value not in values), 255)
    return Classes(
        names=tuple(_CITYSCAPES), values=values, void=void, source="Cityscapes' list of label ids"
    )


def read_classes(folders: Sequence[Path], ignore_index: int) -> Classes:
    """Read the classes from the files in some folders; the first file counts.

    Raises:
        ValueError: If a file is damaged, or two folders list different classes.
    """
    listed = Classes()
    for folder in folders:
        for name, parse in _LISTS.items():
            path = folder / name
            if not path.is_file():
                continue
            found = _read(path, parse, ignore_index)
            if not listed.names:
                listed = found
            elif name == listed.source and found != listed:
                raise ValueError(f"{path} lists other classes than the {name} of another folder")
            break
    palettes = [f / "palette.json" for f in folders if (f / "palette.json").is_file()]
    if not palettes:
        return listed
    return _read(
        palettes[0], lambda text, ignore: _with_palette(text, listed, ignore), ignore_index
    )


def _read(path: Path, parse: Any, ignore_index: int) -> Classes:
    try:
        found: Classes = parse(read_regular(path), ignore_index)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f'{path} does not list classes ({error}); write ["road", "car"], or one name per line '
            "in classes.txt"
        ) from error
    if len(set(found.names)) < len(found.names):
        raise ValueError(f"{path} lists a class twice")
    return replace(found, source=path.name)


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


def _from_class_names(text: str, ignore_index: int) -> Classes:
    """Read labelme's list, whose `__ignore__` is not a class."""
    names = [line.strip() for line in text.splitlines() if line.strip()]
    kept = (n.strip("_") if n in ("_background_",) else n for n in names if n != "__ignore__")
    return Classes(names=tuple(kept))


def _from_ade20k(text: str, ignore_index: int) -> Classes:
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    rows = [line for line in lines if line[0].strip().isdecimal()]
    return Classes(names=tuple(row[-1].split(";")[0].split(",")[0].strip() for row in rows))


def _from_labelmap(text: str, ignore_index: int) -> Classes:
    """Read CVAT's lines `name:red,green,blue:parts:actions`."""
    rows = [line.split(":") for line in text.splitlines() if line.strip() and line[0] != "#"]
    return _of_colors([(row[0].strip(), _color(row[1].split(","))) for row in rows], ignore_index)


def _from_label_colors(text: str, ignore_index: int) -> Classes:
    """Read CamVid's lines `red green blue name`."""
    rows = [line.split(maxsplit=3) for line in text.splitlines() if line.strip()]
    return _of_colors([(row[3].strip(), _color(row[:3])) for row in rows], ignore_index)


def _from_class_dict(text: str, ignore_index: int) -> Classes:
    """Read a table with the columns name, r, g and b."""
    rows = list(csv.reader(text.splitlines(), skipinitialspace=True))
    if not rows or len(rows[0]) < 4:
        raise ValueError("it needs the columns name, r, g and b")
    return _of_colors([(row[0].strip(), _color(row[1:4])) for row in rows[1:] if row], ignore_index)


def _from_values(text: str, ignore_index: int) -> Classes:
    """Read Roboflow's table of the value of each class in the masks."""
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    if "pixel" not in rows[0][0].lower():
        raise ValueError("its first column is not the value of the pixels")
    pairs = sorted((int(row[0]), row[1].strip()) for row in rows[1:])
    values = tuple(value for value, _ in pairs)
    return Classes(
        names=tuple(name for _, name in pairs),
        values=() if values == tuple(range(len(values))) else values,
    )


# The files that list classes; of several in one folder the first counts.
_LISTS: dict[str, Any] = {
    "classes.json": _from_json,
    "classes.txt": _from_lines,
    "objectInfo150.txt": _from_ade20k,
    "labelmap.txt": _from_labelmap,
    "_classes.csv": _from_values,
    "class_dict.csv": _from_class_dict,
    "class_names.txt": _from_class_names,
    "label_colors.txt": _from_label_colors,
    "codes.txt": _from_lines,
}


def _of_colors(rows: Sequence[tuple[str, Color]], ignore_index: int) -> Classes:
    names = tuple(name for name, _ in rows if name.lower() not in NO_CLASS)
    index = {name: i for i, name in enumerate(names)}
    return Classes(names=names, palette={c: index.get(n, ignore_index) for n, c in rows})


def _with_palette(text: str, listed: Classes, ignore_index: int) -> Classes:
    tree = json.loads(text)
    given = {str(name): value for name, value in tree.items() if value is not None}
    names = listed.names or tuple(n for n in given if n.lower() not in NO_CLASS)
    for name in given:
        if name not in names and name.lower() not in NO_CLASS:
            raise ValueError(f"{name!r} is not among the classes {', '.join(names)}")
    if any(isinstance(value, int) for value in given.values()):
        if not all(isinstance(given.get(name), int) for name in names):
            raise ValueError("it must give each class a color, or each class a value")
        void = (int(value) for name, value in given.items() if name not in names)
        return Classes(
            names=names, values=tuple(int(given[name]) for name in names), void=tuple(void)
        )
    index = {name: i for i, name in enumerate(names)}
    palette = {_color(value): index.get(name, ignore_index) for name, value in given.items()}
    return Classes(names=names, palette=palette)


def _color(value: Any) -> Color:
    red, green, blue = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"{value} is not a color")
    return red, green, blue
