"""CreateML's json: a list of images, each with boxes by their centers, in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convnext.data.formats.coco_values import is_number
from convnext.data.formats.imported import ImportedDataset, ImportedImage, ImportedObject
from convnext.data.formats.paths import FileIndex, split_of
from convnext.data.formats.records import ReadOptions
from convnext.data.formats.shapes import Skipped, read_json


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
            entries = entries_of(read_json(path))
        except ValueError as error:
            skipped.add("damaged json", str(path), f"{error}; left out")
            continue
        for name, values in entries:
            where = f"{path}: {name}"
            objects = [
                found
                for number, value in enumerate(values)
                if (found := _object(value, f"{where} annotation {number}", skipped))
            ]
            images.append(_image(path, name, where, objects, index))
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


def _image(
    path: Path, name: str, where: str, objects: list[ImportedObject], index: FileIndex
) -> ImportedImage:
    return ImportedImage(
        file=name,
        where=where,
        objects=tuple(objects),
        split=split_of(path.stem),
        bases=(path.parent, path.parent / "images", index.root, index.root / "images"),
    )


def _object(value: Any, where: str, skipped: Skipped) -> ImportedObject | None:
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
