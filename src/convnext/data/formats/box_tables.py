"""Tables of boxes as tools and competitions write them, a row for each object.

filename,width,height,class,xmin,ymin,xmax,ymax             Roboflow, TensorFlow, VoTT and others
ImageID,...,LabelName,...,XMin,XMax,YMin,YMax,...           Open Images, with class-descriptions.csv
image_id,width,height,"[x, y, width, height]"               a box in one column
path,x1,y1,x2,y2,class                                      RetinaNet's, without a header
class,x,y,width,height,image,image width,image height       makesense.ai, without a header
split,gs://.../image,class,x1,y1,,,x2,y2,,                   AutoML, without a header, in shares
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convnext.data.formats.imported import (
    Box,
    ImportedDataset,
    ImportedImage,
    ImportedObject,
    Skipped,
)
from convnext.data.formats.located import Size
from convnext.data.formats.paths import SPLIT_WORDS, FileIndex, split_of, words_of
from convnext.data.formats.records import ReadOptions, Split
from convnext.data.formats.text_lists import cells_of
from convnext.data.formats.yolo_config import read_text
from convnext.data.images import readable_extensions
from convnext.documents import open_regular

ONLY_CLASS = "object"
# AutoML's word for an image without a split.
UNASSIGNED = "UNASSIGNED"
# The names of the columns, in lowercase and without signs.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "image": (
        "filename", "imageid", "image", "imagename", "imagepath", "path", "file", "filepath",
        "fname", "img", "imgname", "imagefilename",
    ),
    "class": ("class", "label", "labelname", "classname", "category", "name", "categoryname"),
    "x1": ("xmin", "x1", "bboxx1", "left", "xtl"),
    "y1": ("ymin", "y1", "bboxy1", "top", "ytl"),
    "x2": ("xmax", "x2", "bboxx2", "right", "xbr"),
    "y2": ("ymax", "y2", "bboxy2", "bottom", "ybr"),
    "x": ("x", "bboxx"), "y": ("y", "bboxy"),
    "w": ("w", "bboxwidth", "bboxw"), "h": ("h", "bboxheight", "bboxh"),
    "width": ("width", "imagewidth", "imgwidth"), "height": ("height", "imageheight", "imgheight"),
    "box": ("bbox", "box"),
    "crowd": ("isgroupof",),
}  # fmt: skip
# Classes of Open Images by their codes.
DESCRIPTIONS = "class-descriptions"
# Rows that are looked at to recognize a table.
NUM_ROWS = 20
HEAD = 1 << 16


@dataclass(frozen=True)
class _Columns:
    """Where each value is, and how the box is written."""

    at: Mapping[str, int]
    has_header: bool
    box: str
    """`corners`, `sides` (x, y, width, height) or `list`."""


def is_table(path: Path) -> bool:
    """Tell whether a table has an image and a box in each row."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
    except OSError:
        return False
    lines = head.decode("utf-8-sig", "replace").splitlines()[: NUM_ROWS + 1]
    return _columns(cells_of(path, "\n".join(lines), is_whole=False)) is not None


def _columns(rows: Sequence[Sequence[str]]) -> _Columns | None:
    """Return the columns of a table by its first rows; None if it is another table."""
    rows = [row for row in rows if row]
    if not rows:
        return None
    header = ["".join(c for c in cell.lower() if c.isalnum()) for cell in rows[0]]
    at = {}
    for role, names in _NAMES.items():
        found = next((name for name in names if name in header), None)
        if found is not None:
            at[role] = header.index(found)
    if "image" in at:
        if {"x1", "y1", "x2", "y2"} <= at.keys():
            return _Columns(at, True, "corners")
        boxes = [row[at["box"]] for row in rows[1:] if "box" in at and len(row) > at["box"]]
        if "box" in at and all(map(_list_of_four, boxes)):
            return _Columns(at, True, "list")
        if {"x", "y"} <= at.keys():
            w, h = at.get("w", at.get("width")), at.get("h", at.get("height"))
            if w is not None and h is not None:
                kept = {k: v for k, v in at.items() if k not in ("width", "height")}
                return _Columns({**kept, "w": w, "h": h}, True, "sides")
    return _without_header(rows)


def _without_header(rows: Sequence[Sequence[str]]) -> _Columns | None:
    names: tuple[str, ...]
    if all(len(row) == 6 and _is_image(row[0]) for row in rows) and all(
        _numbers(row[1:5]) or not any(row[1:]) for row in rows
    ):
        names = ("image", "x1", "y1", "x2", "y2", "class")
        return _Columns({name: i for i, name in enumerate(names)}, False, "corners")
    if all(len(row) == 8 and _is_image(row[5]) for row in rows) and all(
        _numbers([*row[1:5], *row[6:]]) for row in rows
    ):
        names = ("class", "x", "y", "w", "h", "image", "width", "height")
        return _Columns({name: i for i, name in enumerate(names)}, False, "sides")
    # AutoML's rows list corners, of which two are empty.
    if all(len(row) == 11 and _is_image(row[1]) for row in rows) and all(
        _numbers([row[3], row[4], row[7], row[8]]) or not any(row[3:]) for row in rows
    ):
        at = {"image": 1, "class": 2, "x1": 3, "y1": 4, "x2": 7, "y2": 8}
        return _Columns(at, False, "corners")
    return None


def _is_image(name: str) -> bool:
    return Path(name.strip()).suffix.lower() in readable_extensions()


def _numbers(cells: Sequence[str]) -> list[float]:
    """Return cells as numbers; [] if one is not."""
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return []
    return values if np.isfinite(values).all() else []


def _list_of_four(cell: str) -> list[float]:
    """Return a box written as "[x, y, width, height]"; [] for anything else."""
    try:
        values = json.loads(cell)
    except ValueError:
        return []
    is_box = isinstance(values, list) and len(values) == 4
    return _numbers([str(value) for value in values]) if is_box else []


def read_table(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of tables of boxes, with their objects.

    Raises:
        ValueError: If a file cannot be read.
    """
    skipped = Skipped()
    notes: list[str] = []
    images: dict[tuple[Path, str], ImportedImage] = {}
    objects: dict[tuple[Path, str], list[ImportedObject]] = {}
    names = _descriptions(index)
    split_from = "the names of the tables"
    for path in index.with_ending(".csv", ".tsv"):
        if not is_table(path):
            continue
        found = cells_of(path, read_text(path))
        columns = _columns(found[: NUM_ROWS + 1])
        assert columns is not None
        split = _split_of_table(path)
        split_column = _split_column(found, columns)
        rows = list(_rows(path, found, columns, skipped))
        boxes = [box for _, _, box, _ in rows if box is not None]
        is_relative = bool(boxes) and max(max(abs(v) for v in box) for box in boxes) <= 1.001
        if is_relative:
            notes.append(f"{path.name}: the boxes are shares of the image's size")
        if "class" not in columns.at:
            notes.append(
                f"{path.name}: no column has classes, so all objects are of the class "
                f"{ONLY_CLASS!r}"
            )
        for where, name, box, row in rows:
            if (path, name) not in images:
                images[path, name] = ImportedImage(
                    file=name,
                    where=where,
                    size=_size(row, columns),
                    split=split if split_column is None else _split_of_cell(row[split_column]),
                    bases=(path.parent, path.parent / "images", index.root),
                )
            if box is not None:
                label = row[columns.at["class"]].strip() if "class" in columns.at else ONLY_CLASS
                crowd = "crowd" in columns.at and row[columns.at["crowd"]].strip() == "1"
                one = ImportedObject(
                    where=where,
                    label=names.get(label, label),
                    box=box,
                    relative=is_relative,
                    crowd=crowd,
                )
                objects.setdefault((path, name), []).append(one)
        if split_column is not None:
            split_from = "a column of the table"
    splits = {image.split for image in images.values()}
    return ImportedDataset(
        kind="table of boxes",
        images=tuple(replace(one, objects=objects.get(key, ())) for key, one in images.items()),
        split_from=split_from if "train" in splits and len(splits) > 1 else "",
        notes=tuple(notes),
        faults=skipped.all(),
    )


def _rows(
    path: Path, rows: Sequence[Sequence[str]], columns: _Columns, skipped: Skipped
) -> Iterator[tuple[str, str, Box | None, Sequence[str]]]:
    """Yield the place, the image, the box and the cells of each row; None without an object."""
    at = columns.at
    width = max(at.values()) + 1
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and columns.has_header):
            continue
        where = f"{path}:{number}"
        if len(row) < width:
            skipped.add("damaged rows", f"{where}:", f"has {len(row)} columns; left out")
            continue
        name = row[at["image"]].strip()
        label = row[at["class"]].strip() if "class" in at else ONLY_CLASS
        if columns.box == "list":
            values, cells = _list_of_four(row[at["box"]]), [row[at["box"]]]
        else:
            keys = ("x1", "y1", "x2", "y2") if columns.box == "corners" else ("x", "y", "w", "h")
            cells = [row[at[key]] for key in keys]
            values = _numbers(cells)
        if name and not any(cell.strip() for cell in cells):
            yield where, name, None, row  # An image without objects.
            continue
        if not values or not name or not label:
            text = "needs a filename, a class and numbers for the box; left out"
            skipped.add("damaged rows", f"{where}:", text)
            continue
        a, b, c, d = values
        if columns.box == "corners":
            yield where, name, (min(a, c), min(b, d), abs(c - a), abs(d - b)), row
        else:
            yield where, name, (a, b, c, d), row


def _size(row: Sequence[str], columns: _Columns) -> Size | None:
    at = columns.at
    if not {"width", "height"} <= at.keys():
        return None
    sides = _numbers([row[at["width"]], row[at["height"]]])
    return (int(sides[0]), int(sides[1])) if sides and min(sides) >= 1 else None


def _split_column(rows: Sequence[Sequence[str]], columns: _Columns) -> int | None:
    """Return the column whose values all name a split, with training among them."""
    body = [row for row in rows[int(columns.has_header) :] if row]
    for i in range(min(map(len, body), default=0)):
        if i not in columns.at.values():
            cells = {row[i].strip() for row in body}
            splits = {_split_of_cell(cell) for cell in cells if cell != UNASSIGNED}
            if None not in splits and "train" in splits and len(splits) > 1:
                return i
    return None


def _split_of_cell(cell: str) -> Split | None:
    return split_of(cell.strip())


def _split_of_table(path: Path) -> Split | None:
    """Return the split that a word of a table's name stands for, if only one does."""
    words = set(words_of(path.stem))
    found = [split for split, known in SPLIT_WORDS.items() if words & set(known)]
    return found[0] if len(found) == 1 else None


def _descriptions(index: FileIndex) -> dict[str, str]:
    """Return the names of Open Images' codes, such as /m/01yrx for Cat."""
    names: dict[str, str] = {}
    for path in index.with_ending(".csv"):
        if DESCRIPTIONS in path.name.lower():
            for row in cells_of(path, read_text(path), ","):
                if len(row) == 2 and row[0].startswith("/"):
                    names[row[0].strip()] = row[1].strip()
    return names
