"""Json of tools and data sets that list images with their objects.

CreateML        [{"image": ..., "annotations": [{"label", "coordinates": {x, y, width, height}}]}]
Datumaro        annotations/SUBSET.json with images/SUBSET/
BDD100K         [{"name": ..., "labels": [{"category", "box2d" or "poly2d"}]}]
metadata.jsonl  Hugging Face's imagefolder with `objects`: boxes as x, y, width, height in pixels
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convnext.data.formats.coco_values import are_numbers, is_box, is_number, is_whole
from convnext.data.formats.imported import (
    MAX_BYTES,
    ImportedDataset,
    ImportedImage,
    ImportedObject,
    Skipped,
    box_of,
    points_of,
    ring_of,
)
from convnext.data.formats.paths import FileIndex, split_of, word_split
from convnext.data.formats.records import ReadOptions
from convnext.data.formats.text_lists import CLASS_NAMES
from convnext.data.formats.yolo_config import read_text
from convnext.documents import read_json

# Hugging Face's names for the classes of `objects`.
_CATEGORIES = ("categories", "category", "labels", "label", "classes", "class", "names", "name")
METADATA = "metadata.jsonl"
_Entry = Mapping[str, Any]


def json_layout(text: bytes) -> str:
    """Return the layout of a json by its beginning; "" if it is none of these."""
    if text[:1] == b"[":
        if re.search(rb'"(rectangle|polygon|brush|ellipse)labels"', text):
            return "label-studio"
        if b'"labels"' in text and (b'"box2d"' in text or b'"poly2d"' in text):
            return "bdd100k"
        has_objects = b'"annotations"' in text or b'"annotation"' in text
        has_images = b'"image"' in text or b'"imagefilename"' in text
        return "createml" if has_objects and has_images and b'"result"' not in text else ""
    if b'"regions"' in text and (b'"assets"' in text or b'"asset"' in text):
        return "vott"
    if b'"classTitle"' in text and b'"geometryType"' in text:
        return "supervisely"
    return "datumaro" if b'"items"' in text and b'"categories"' in text else ""


def has_objects_in_lines(head: bytes) -> bool:
    """Tell whether the first line of a metadata.jsonl has an image and its objects."""
    return b'"file_name"' in head and b'"objects"' in head


def json_files(
    index: FileIndex, skipped: Skipped, ending: str = ".json"
) -> Iterator[tuple[Path, Any]]:
    """Yield the contents of the json files below a folder."""
    for path in index.with_ending(ending):
        try:
            yield path, read_json(path, max_bytes=MAX_BYTES)
        except ValueError as error:
            skipped.add("damaged json", str(path), f"{error}; left out")


def dataset_of(
    kind: str,
    images: list[ImportedImage],
    skipped: Skipped,
    index: FileIndex,
    *,
    classes: tuple[str, ...] | None = None,
    split_from: str = "",
    notes: tuple[str, ...] = (),
) -> ImportedDataset:
    """Return a data set, with the split of the files if several have one.

    Raises:
        ValueError: If it has no image.
    """
    if not images:
        shown = f"; the first fault: {skipped.faults[0]}" if skipped.faults else ""
        raise ValueError(f"{index.root} has no json of {kind}{shown}")
    splits = {image.split for image in images}
    has_split = "train" in splits and len(splits) > 1
    return ImportedDataset(
        kind=kind,
        images=images,
        classes=classes,
        split_from=(split_from or "the names of the json files") if has_split else "",
        notes=notes,
        faults=skipped.all(),
    )


def folders_of_images(path: Path, index: FileIndex) -> tuple[Path, ...]:
    return (path.parent, path.parent / "images", index.root, index.root / "images")


# ---- CreateML -----------------------------------------------------------------------------------


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
    for path, content in json_files(index, skipped):
        for name, values in entries_of(content):
            where = f"{path}: {name}"
            objects = [
                found
                for number, value in enumerate(values)
                if (found := _centered(value, f"{where} annotation {number}", skipped))
            ]
            images.append(
                ImportedImage(
                    file=name,
                    where=where,
                    objects=tuple(objects),
                    split=split_of(path.stem),
                    bases=folders_of_images(path, index),
                )
            )
    return dataset_of("CreateML", images, skipped, index)


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


# ---- Datumaro -----------------------------------------------------------------------------------


def read_datumaro(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of Datumaro's json, with their objects.

    Raises:
        ValueError: If there is no such file, or subsets have different classes.
    """
    skipped = Skipped()
    images: list[ImportedImage] = []
    names: tuple[str, ...] | None = None
    for path, content in json_files(index, skipped):
        if not isinstance(content, dict) or not isinstance(content.get("items"), list):
            continue
        listed = _label_names(content)
        if names is not None and listed != names:
            raise ValueError(f"{path} has other labels than the other subsets: {listed}, {names}")
        names = listed
        images += [
            _item(item, names, path, index, skipped)
            for item in content["items"]
            if isinstance(item, dict) and isinstance(item.get("id"), str)
        ]
    return dataset_of(
        "Datumaro", images, skipped, index, classes=names, split_from="the subsets of Datumaro"
    )


def _label_names(content: _Entry) -> tuple[str, ...]:
    categories = content.get("categories")
    labels = categories.get("label") if isinstance(categories, dict) else None
    entries = labels.get("labels") if isinstance(labels, dict) else None
    entries = entries if isinstance(entries, list) else []
    return tuple(str(entry.get("name")) for entry in entries if isinstance(entry, dict))


def _item(
    item: _Entry, names: tuple[str, ...], path: Path, index: FileIndex, skipped: Skipped
) -> ImportedImage:
    where = f"{path}: {item['id']}"
    image = item.get("image") if isinstance(item.get("image"), dict) else {}
    assert image is not None
    size = image.get("size")
    file = image.get("path") or f"{item['id']}.jpg"
    objects: list[ImportedObject] = []
    for number, value in enumerate(skipped.listed(item.get("annotations"), where)):
        at = f"{where} annotation {number}"
        value = value if isinstance(value, dict) else {}
        label, kind = value.get("label_id"), str(value.get("type"))
        if not isinstance(label, int) or not 0 <= label < len(names):
            skipped.add("incomplete annotations", at, "needs one of the labels; left out")
        elif kind == "bbox" and is_box(box := value.get("bbox")):
            x, y, w, h = (float(v) for v in box)
            objects.append(ImportedObject(where=at, label=label, box=(x, y, w, h)))
        elif kind == "polygon" and (points := _pairs(value.get("points"))) is not None:
            rings = (ring_of(points),)
            objects.append(ImportedObject(where=at, label=label, box=box_of(points), rings=rings))
        else:
            skipped.skip(kind, at)
    has_size = isinstance(size, list) and len(size) == 2 and are_numbers(size)
    return ImportedImage(
        file=str(file),
        where=where,
        objects=tuple(objects),
        size=(int(size[1]), int(size[0])) if has_size and isinstance(size, list) else None,
        split=split_of(path.stem),
        bases=(index.root / "images" / path.stem, *folders_of_images(path, index)),
    )


def _pairs(values: Any) -> np.ndarray | None:
    """Return points (N, 2) of a flat list of three points and more."""
    if not isinstance(values, list) or len(values) < 6 or len(values) % 2:
        return None
    return np.array(values, np.float64).reshape(-1, 2) if are_numbers(values) else None


# ---- BDD100K and imagefolder --------------------------------------------------------------------


def read_bdd100k(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of BDD100K's json, with their boxes and closed polygons.

    Raises:
        ValueError: If there is no such file.
    """
    skipped = Skipped()
    images = []
    for path, content in json_files(index, skipped):
        for entry in content if isinstance(content, list) else ():
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str):
                continue
            where = f"{path}: {name}"
            objects = [
                found
                for number, value in enumerate(skipped.listed(entry.get("labels"), where))
                if (found := _bdd_label(value, f"{where} label {number}", skipped))
            ]
            images.append(
                ImportedImage(
                    file=name,
                    where=where,
                    objects=tuple(objects),
                    split=word_split(path.stem),
                    bases=folders_of_images(path, index),
                )
            )
    return dataset_of("BDD100K", images, skipped, index)


def _bdd_label(value: Any, where: str, skipped: Skipped) -> ImportedObject | None:
    value = value if isinstance(value, dict) else {}
    label, box, polygons = value.get("category"), value.get("box2d"), value.get("poly2d")
    if isinstance(label, str) and isinstance(box, dict):
        numbers = [box.get(key) for key in ("x1", "y1", "x2", "y2")]
        if are_numbers(numbers):
            x1, y1, x2, y2 = (float(v) for v in numbers if is_number(v))
            return ImportedObject(where=where, label=label, box=(x1, y1, x2 - x1, y2 - y1))
    rings = [
        points
        for polygon in skipped.listed(polygons, where)
        if isinstance(polygon, dict) and polygon.get("closed")
        if (points := points_of(polygon.get("vertices"))) is not None and len(points) > 2
    ]
    if isinstance(label, str) and rings:
        box_points = np.concatenate(rings)
        return ImportedObject(
            where=where, label=label, box=box_of(box_points), rings=tuple(map(ring_of, rings))
        )
    skipped.skip("lane or area without a box", where)
    return None


def read_imagefolder(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of Hugging Face's metadata.jsonl, with their objects.

    Raises:
        ValueError: If a line is damaged, or there is no such file.
    """
    skipped = Skipped()
    images = []
    for path in index.with_ending(".jsonl"):
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: is not JSON: {error}") from error
            name = entry.get("file_name") if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise ValueError(f"{where}: needs a `file_name`")
            objects = _listed_objects(entry.get("objects"), where, skipped)
            images.append(
                ImportedImage(
                    file=name,
                    where=where,
                    objects=objects,
                    bases=folders_of_images(path, index),
                )
            )
    labels = {one.label for image in images for one in image.objects}
    notes = ["boxes are read as x, y, width, height in pixels, as COCO has them"]
    classes: tuple[str, ...] | None = None
    numbers = [label for label in labels if isinstance(label, int)]
    if 0 < len(numbers) < len(labels):
        raise ValueError(
            f"{index.root}: some classes of {METADATA} are numbers, such as {numbers[0]}, and "
            "others are names; write one of them for all objects"
        )
    if numbers:
        listed = next((p for p in index.files if p.name == CLASS_NAMES), None)
        names = read_text(listed).split("\n") if listed else []
        classes = tuple(name.strip() for name in names if name.strip())
        if not classes:
            classes = tuple(str(number) for number in range(max(numbers) + 1))
            notes.append(
                f"the classes are numbers; write their names into {CLASS_NAMES}, one per line"
            )
        if min(numbers) < 0:
            raise ValueError(f"{index.root}: the class {min(numbers)} of {METADATA} is below 0")
        if max(numbers) >= len(classes):
            raise ValueError(
                f"{listed} has {len(classes):,} names, but the objects have the class "
                f"{max(numbers)}"
            )
    return dataset_of(
        "imagefolder with objects", images, skipped, index, classes=classes, notes=tuple(notes)
    )


def _listed_objects(value: Any, where: str, skipped: Skipped) -> tuple[ImportedObject, ...]:
    """Return the objects of a line: a list of objects, or a list for each of their entries."""
    if isinstance(value, dict):
        key = next((k for k in _CATEGORIES if isinstance(value.get(k), list)), None)
        boxes = value.get("bbox", value.get("boxes"))
        labels = value[key] if key else []
        if not isinstance(boxes, list) or len(boxes) != len(labels):
            text = "needs as many boxes as categories in `objects`; its image is left empty"
            skipped.add("incomplete annotations", f"{where}:", text)
            return ()
        pairs = list(zip(boxes, labels, strict=True))
    else:
        pairs = [
            (one.get("bbox"), next((one[k] for k in _CATEGORIES if k in one), None))
            for one in skipped.listed(value, f"{where}:")
            if isinstance(one, dict)
        ]
    found = []
    for number, (box, label) in enumerate(pairs):
        if not is_box(box) or not (is_whole(label) or (isinstance(label, str) and label)):
            text = "needs a box of four numbers and a class; left out"
            skipped.add("incomplete annotations", f"{where} object {number}:", text)
            continue
        x, y, w, h = (float(v) for v in box)
        found.append(ImportedObject(where=where, label=label, box=(x, y, w, h)))
    return tuple(found)
