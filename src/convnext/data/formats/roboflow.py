"""Lists of boxes beside the images: Roboflow's text (keras) and table, and CreateML's json.

A line of the text is `image.jpg x1,y1,x2,y2,class x1,y1,x2,y2,class ...`, with the names in
`_classes.txt`. The table has the columns filename, width, height, class, xmin, ymin, xmax, ymax.
CreateML's json lists boxes by their centers, in pixels.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from convnext.data.formats.coco_values import is_number
from convnext.data.formats.imported import ImportedDataset, ImportedImage, ImportedObject
from convnext.data.formats.paths import FileIndex
from convnext.data.formats.records import ReadOptions
from convnext.data.formats.shapes import MAX_BYTES, Skipped
from convnext.data.formats.splits import split_of
from convnext.data.formats.yolo_config import read_text
from convnext.documents import read_json, read_regular

TEXT, TABLE, NAMES = "_annotations.txt", "_annotations.csv", "_classes.txt"
COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
_BOX = re.compile(r"-?[\d.]+,-?[\d.]+,-?[\d.]+,-?[\d.]+,\d+")


def read_keras(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of `_annotations.txt` files, with their objects.

    Raises:
        ValueError: If the names of the classes are missing, or differ between folders.
    """
    skipped = Skipped()
    files = [path for path in index.with_ending(".txt") if path.name.lower() == TEXT]
    lists = {path.parent: _names(path.parent) for path in files}
    named = {folder: names for folder, names in lists.items() if names}
    if not named:
        raise ValueError(f"{files[0].parent} has no {NAMES}; write it, with one name per line")
    if len(set(named.values())) > 1:
        raise ValueError(f"the {NAMES} in {' and '.join(map(str, named))} differ")
    names = next(iter(named.values()))
    images: list[ImportedImage] = []
    for path in files:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip():
                images.append(_line(line.strip(), path, number, len(names), skipped))
    return ImportedDataset(
        kind="Roboflow text",
        images=images,
        classes=names,
        classes_from=NAMES,
        faults=skipped.all(),
    )


def _names(folder: Path) -> tuple[str, ...]:
    path = folder / NAMES
    if not path.is_file():
        return ()
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return tuple(name.strip() for line in lines for name in line.split(","))


def _line(line: str, path: Path, number: int, count: int, skipped: Skipped) -> ImportedImage:
    words = line.split(" ")
    boxes: list[str] = []
    while len(words) > 1 and _BOX.fullmatch(words[-1]):
        boxes.insert(0, words.pop())
    where = f"{path}:{number}"
    objects = []
    for box in boxes:
        x1, y1, x2, y2, label = (float(value) for value in box.split(","))
        if int(label) >= count:
            text = f"class {int(label)} is not one of the {count:,} classes in {NAMES}; left out"
            skipped.add("unknown classes", f"{where}:", text)
            continue
        corners = (min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1))
        objects.append(ImportedObject(where=where, label=int(label), box=corners))
    return ImportedImage(
        file=" ".join(words), where=where, objects=tuple(objects), bases=(path.parent,)
    )


def is_table(path: Path) -> bool:
    """Tell whether a CSV has these columns."""
    try:
        header = [name.strip().strip('"') for name in read_regular(path).split("\n")[0].split(",")]
    except (OSError, UnicodeDecodeError):
        return False
    return set(COLUMNS) <= set(header)


def read_table(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of tables of boxes, with their objects.

    Raises:
        ValueError: If a file cannot be read.
    """
    skipped = Skipped()
    images: dict[tuple[Path, str], ImportedImage] = {}
    for path in index.with_ending(".csv"):
        if not is_table(path):
            continue
        for number, row in enumerate(csv.DictReader(io.StringIO(read_text(path))), 2):
            where = f"{path}:{number}"
            try:
                x1, y1, x2, y2 = (float(row[key]) for key in COLUMNS[4:])
                size = int(float(row["width"])), int(float(row["height"]))
            except (TypeError, ValueError):
                skipped.add("damaged rows", f"{where}:", "needs numbers for the box; left out")
                continue
            name, label = row["filename"], row["class"]
            if not name or not label:
                skipped.add("damaged rows", f"{where}:", "needs a filename and a class; left out")
                continue
            corners = (min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1))
            found = ImportedObject(where=where, label=label, box=corners)
            known = images.get((path, name)) or ImportedImage(
                file=name, where=where, size=size, bases=(path.parent, path.parent / "images")
            )
            images[path, name] = replace(known, objects=(*known.objects, found))
    return ImportedDataset(
        kind="table of boxes", images=tuple(images.values()), faults=skipped.all()
    )


def entries_of(content: Any) -> list[tuple[str, list[Any]]]:
    """Return the names of the images of a file, with their annotations; none if it is another."""
    found = []
    for entry in content if isinstance(content, list) else ():
        if isinstance(entry, dict):
            name = entry.get("image", entry.get("imagefilename"))
            objects = entry.get("annotations", entry.get("annotation"))
            if isinstance(name, str) and isinstance(objects, list):
                found.append((name, objects))
    return found


def read_createml(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of CreateML's files below a folder, with their objects.

    Raises:
        ValueError: If there is no such file.
    """
    skipped = Skipped()
    images = []
    for path in index.with_ending(".json"):
        try:
            entries = entries_of(read_json(path, max_bytes=MAX_BYTES))
        except ValueError as error:
            skipped.add("damaged json", str(path), f"{error}; left out")
            continue
        for name, values in entries:
            where = f"{path}: {name}"
            objects = [
                found
                for number, value in enumerate(values)
                if (found := _centered(value, f"{where} annotation {number}", skipped))
            ]
            images.append(_entry(path, name, where, objects, index))
    if not images:
        raise ValueError(f"{index.root} has no json of CreateML")
    splits = {image.split for image in images}
    has_split = "train" in splits and len(splits) > 1
    return ImportedDataset(
        kind="CreateML",
        images=images,
        split_from="the names of the json files" if has_split else "",
        faults=skipped.all(),
    )


def _entry(
    path: Path, name: str, where: str, objects: list[ImportedObject], index: FileIndex
) -> ImportedImage:
    return ImportedImage(
        file=name,
        where=where,
        objects=tuple(objects),
        split=split_of(path.stem),
        bases=(path.parent, path.parent / "images", index.root, index.root / "images"),
    )


def _centered(value: Any, where: str, skipped: Skipped) -> ImportedObject | None:
    label = value.get("label") if isinstance(value, dict) else None
    spot: Mapping[str, Any] | Any = value.get("coordinates") if isinstance(value, dict) else None
    sides = ("x", "y", "width", "height")
    numbers = [spot.get(side) for side in sides] if isinstance(spot, dict) else []
    if not isinstance(label, str) or not label or not numbers or not all(map(is_number, numbers)):
        text = "needs a label and the coordinates x, y, width, height; left out"
        skipped.add("incomplete annotations", where, text)
        return None
    cx, cy, w, h = (float(number) for number in numbers if is_number(number))
    return ImportedObject(where=where, label=label, box=(cx - w / 2, cy - h / 2, w, h))
