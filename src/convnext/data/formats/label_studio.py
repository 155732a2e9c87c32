"""Json of Label Studio, VoTT and Supervisely.

Label Studio    its JSON and JSON-MIN: shares in percent, images under the names of its uploads
VoTT            one export with `assets`, or a json for each asset
Supervisely     ann/NAME.json beside img/NAME
"""

from __future__ import annotations

import base64
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from convnext.data.formats.coco_values import are_numbers, is_number
from convnext.data.formats.imported import (
    MAX_BYTES,
    Box,
    ImportedDataset,
    ImportedImage,
    ImportedObject,
    Skipped,
    bitmap_of,
    box_of,
    ellipse,
    points_of,
    ring_of,
    runs_of,
    turn,
)
from convnext.data.formats.paths import FileIndex
from convnext.data.formats.records import ReadOptions
from convnext.data.formats.tool_json import dataset_of, folders_of_images, json_files
from convnext.data.images import BadImage

# Label Studio writes eight hexadecimal digits before the name of an upload.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
_Entry = Mapping[str, Any]


# ---- Label Studio -------------------------------------------------------------------------------


def read_label_studio(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of Label Studio's JSON or JSON-MIN, with their objects.

    Raises:
        ValueError: If there is no such file.
    """
    skipped = Skipped()
    others: Counter[str] = Counter()
    images = []
    for path, content in json_files(index, skipped):
        for number, task in enumerate(content if isinstance(content, list) else ()):
            where = f"{path}: task {task.get('id', number) if isinstance(task, dict) else number}"
            found = _task(task, where, others) if isinstance(task, dict) else None
            if found is None:
                continue
            file, results = found
            objects: list[ImportedObject] = []
            for region, values in enumerate(skipped.listed(results, where)):
                objects += _result(values, f"{where} region {region}", skipped)
            images.append(
                ImportedImage(
                    file=_upload(file, path, index),
                    where=where,
                    objects=tuple(objects),
                    bases=folders_of_images(path, index),
                )
            )
    notes = [f"{count:,} {what}" for what, count in others.items()]
    return dataset_of("Label Studio", images, skipped, index, notes=tuple(notes))


def _task(task: _Entry, where: str, others: Counter[str]) -> tuple[str, Any] | None:
    """Return the image of a task and its results; None if it has no image."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    keys = ("image", "img", "photo", "picture", "url", "captioning")
    file = next((data[key] for key in keys if isinstance(data.get(key), str)), None)
    if file is None:
        return None
    if not isinstance(task.get("annotations", task.get("completions")), list):
        regions: list[Any] = []  # JSON-MIN: the regions are in an entry for each control.
        for value in task.values():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                regions += value
        return file, regions
    given = [
        entry
        for entry in task.get("annotations", task.get("completions"))
        if isinstance(entry, dict) and not entry.get("was_cancelled")
    ]
    if len(given) > 1:
        others["tasks have several annotations, of which the last is read"] += 1
    if not given:
        others["tasks have no annotation: images without objects"] += 1
    return file, given[-1].get("result") if given else None


def _upload(name: str, path: Path, index: FileIndex) -> str:
    """Return the name of the image of an upload, as far as a file shows it."""
    name = unquote(name.rpartition("?d=")[2])
    last = name.replace("\\", "/").rpartition("/")[2]
    bare = _UPLOAD.sub("", last)
    bases = folders_of_images(path, index)
    if bare != last and index.find(last, bases) is None and index.find(bare, bases) is not None:
        return bare
    return name


def _result(values: Any, where: str, skipped: Skipped) -> list[ImportedObject]:
    """Return an object for each class of a region."""
    if not isinstance(values, dict):
        return []
    value: _Entry = values["value"] if isinstance(values.get("value"), dict) else values
    key = next((k for k in value if k.endswith("labels") and k != "labels"), "labels")
    labels = value.get(key)
    kind = key.removesuffix("labels") or str(values.get("type", "region"))
    if not isinstance(labels, list) or not labels:
        if "choices" in value:
            skipped.skip("choices for the whole image", where)
        elif kind not in ("relation", "textarea"):
            skipped.add("regions without a class", where, "has no class; left out")
        return []
    size = [values.get(key, value.get(key)) for key in ("original_width", "original_height")]
    shape = _shape(value, kind, size)
    if shape is None:
        skipped.skip(kind, where)
        return []
    points, is_box_only = shape
    box = _shares(box_of(points))
    rings = () if is_box_only else (tuple((points / 100).ravel().tolist()),)
    return [
        ImportedObject(where=where, label=str(label), box=box, rings=rings, relative=True)
        for label in labels
    ]


def _shape(value: _Entry, kind: str, size: list[Any]) -> tuple[np.ndarray, bool] | None:
    """Return points (N, 2) in percent, and whether only their box counts; None for other kinds."""
    if kind == "polygon":
        points = points_of(value.get("points"))
        return None if points is None or len(points) < 3 else (points, False)
    sides = ("x", "y", "radiusX", "radiusY") if kind == "ellipse" else ("x", "y", "width", "height")
    numbers = [value.get(side) for side in sides]
    if kind not in ("rectangle", "ellipse") or not are_numbers(numbers):
        return None
    a, b, c, d = (float(number) for number in numbers if is_number(number))
    if kind == "ellipse":
        return ellipse((a, b), (c, d)), False
    points = np.array(((0, 0), (c, 0), (c, d), (0, d)), np.float64)
    angle = value.get("rotation")
    if is_number(angle) and angle:  # Around the first corner, in pixels.
        scale = np.array(size if are_numbers(size) and min(size) > 0 else (1.0, 1.0), np.float64)
        points = turn(points * scale, float(angle)) / scale
    return points + np.array((a, b)), True


def _shares(box: Box) -> Box:
    x, y, w, h = box
    return x / 100, y / 100, w / 100, h / 100


# ---- VoTT ---------------------------------------------------------------------------------------


def read_vott(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of VoTT's json, with their objects.

    Raises:
        ValueError: If there is no such file.
    """
    skipped = Skipped()
    images = []
    for path, content in json_files(index, skipped):
        if not isinstance(content, dict):
            continue
        assets = content.get("assets")
        entries = list(assets.values()) if isinstance(assets, dict) else [content]
        for entry in entries:
            asset = entry.get("asset") if isinstance(entry, dict) else None
            name = asset.get("name") if isinstance(asset, dict) else None
            if not isinstance(name, str) or not isinstance(entry.get("regions"), list):
                continue
            where = f"{path}: {name}"
            objects: list[ImportedObject] = []
            for number, region in enumerate(entry["regions"]):
                objects += _region(region, f"{where} region {number}", skipped)
            images.append(
                ImportedImage(
                    file=name,
                    where=where,
                    objects=tuple(objects),
                    bases=folders_of_images(path, index),
                )
            )
    return dataset_of("VoTT", images, skipped, index)


def _region(region: Any, where: str, skipped: Skipped) -> list[ImportedObject]:
    """Return an object for each tag of a region."""
    region = region if isinstance(region, dict) else {}
    tags, spot = region.get("tags"), region.get("boundingBox")
    sides = ("left", "top", "width", "height")
    numbers = [spot.get(side) for side in sides] if isinstance(spot, dict) else []
    if not isinstance(tags, list) or not tags or not numbers or not are_numbers(numbers):
        skipped.add("incomplete regions", where, "needs tags and a boundingBox; left out")
        return []
    points = [
        (point.get("x"), point.get("y"))
        for point in skipped.listed(region.get("points"), where)
        if isinstance(point, dict)
    ]
    is_polygon = region.get("type") == "POLYGON" and len(points) > 2
    flat = [float(v) for point in points for v in point if is_number(v)]
    rings = (tuple(flat),) if is_polygon and len(flat) == 2 * len(points) else ()
    x, y, w, h = (float(number) for number in numbers)
    return [
        ImportedObject(where=where, label=str(tag), box=(x, y, w, h), rings=rings) for tag in tags
    ]


# ---- Supervisely --------------------------------------------------------------------------------


def read_supervisely(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of Supervisely's json, with their objects.

    Raises:
        ValueError: If there is no such file.
    """
    skipped = Skipped()
    images = []
    for path, content in json_files(index, skipped):
        if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
            continue
        size = content.get("size")
        sides = [size.get(key) for key in ("width", "height")] if isinstance(size, dict) else []
        stated = (int(sides[0]), int(sides[1])) if sides and are_numbers(sides) else None
        objects = [
            found
            for number, value in enumerate(content["objects"])
            if (found := _figure(value, f"{path}: object {number}", stated, skipped))
        ]
        images.append(
            ImportedImage(
                file=path.stem if Path(path.stem).suffix else f"{path.stem}.jpg",
                where=str(path),
                objects=tuple(objects),
                size=stated,
                bases=(path.parent.parent / "img", path.parent, index.root),
            )
        )
    return dataset_of("Supervisely", images, skipped, index)


def _figure(
    value: Any, where: str, size: tuple[int, int] | None, skipped: Skipped
) -> ImportedObject | None:
    """Return the object of a figure; None if it has no area."""
    value = value if isinstance(value, dict) else {}
    label, kind = value.get("classTitle"), str(value.get("geometryType"))
    if not isinstance(label, str) or not label:
        skipped.add("incomplete objects", where, "needs a classTitle; left out")
        return None
    if kind == "bitmap" and size is not None:
        return _bitmap(value.get("bitmap"), label, where, size, skipped)
    spots = value.get("points")
    points = points_of(spots.get("exterior")) if isinstance(spots, dict) else None
    if points is None or kind not in ("rectangle", "polygon"):
        skipped.skip(kind, where)
        return None
    if kind == "rectangle":
        return ImportedObject(where=where, label=label, box=box_of(points))
    if len(points) < 3:
        skipped.skip("polygon of one or two points", where)
        return None
    if isinstance(spots, dict) and spots.get("interior"):
        skipped.add("polygons with holes", where, "has holes, which are filled")
    return ImportedObject(where=where, label=label, box=box_of(points), rings=(ring_of(points),))


def _bitmap(
    value: Any, label: str, where: str, size: tuple[int, int], skipped: Skipped
) -> ImportedObject | None:
    """Return the object of a bitmap: a PNG, compressed, with the position of its corner."""
    value = value if isinstance(value, dict) else {}
    origin = value.get("origin")
    try:
        packed = base64.b64decode(str(value.get("data")), validate=False)
        image = zlib.decompressobj().decompress(packed, MAX_BYTES)
        bitmap = bitmap_of(image, where)
        x, y = (int(v) for v in origin) if isinstance(origin, list) else (0, 0)
    except (ValueError, TypeError, zlib.error, BadImage):
        skipped.add("damaged masks", where, "has a bitmap that cannot be read; left out")
        return None
    box = (float(x), float(y), float(bitmap.shape[1]), float(bitmap.shape[0]))
    return ImportedObject(where=where, label=label, box=box, runs=runs_of(bitmap, (x, y), size))
