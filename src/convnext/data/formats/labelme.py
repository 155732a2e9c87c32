"""LabelMe's json: a file per image, beside it, with rectangles, polygons, circles and masks."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convnext.data.formats.coco_values import is_whole
from convnext.data.formats.imported import (
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
)
from convnext.data.formats.paths import FileIndex
from convnext.data.formats.records import ReadOptions
from convnext.data.formats.tool_json import dataset_of, json_files
from convnext.data.images import BadImage


def read_labelme(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of LabelMe's files below a folder, with their objects.

    Raises:
        ValueError: If there is no such file.
    """
    skipped = Skipped()
    images = []
    for path, content in json_files(index, skipped):
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            images.append(_image(path, content, index, skipped))
    return dataset_of("LabelMe", images, skipped, index)


def _image(
    path: Path, content: Mapping[str, Any], index: FileIndex, skipped: Skipped
) -> ImportedImage:
    width, height = content.get("imageWidth"), content.get("imageHeight")
    size = (width, height) if is_whole(width) and is_whole(height) else None
    name = content.get("imagePath")
    if not isinstance(name, str) or not name:
        name = f"{path.stem}.jpg"
    objects: list[ImportedObject] = []
    groups: dict[tuple[str, str], int] = {}
    for number, shape in enumerate(content["shapes"]):
        where = f"{path}: shape {number}"
        found = _object(shape, where, size, skipped)
        if found is None:
            continue
        # Shapes of one label and one group are the parts of one object.
        group = shape.get("group_id")
        key = (str(found.label), repr(group))
        if group is not None and found.rings and key in groups:
            objects[groups[key]] = _joined(objects[groups[key]], found)
            continue
        if group is not None and found.rings:
            groups[key] = len(objects)
        objects.append(found)
    image: str | Path = name
    if index.find(name, (path.parent,)) is None:
        # `imagePath` may be that of another computer.
        same = index.find(f"{path.stem}.jpg", (path.parent,))
        image = name if same is None else same.path
        if isinstance(image, str) and content.get("imageData"):
            text = (
                f"names the image {name}, which is missing; the json has a copy in `imageData`: "
                "write it to a file beside the json with LabelMe"
            )
            skipped.add("images inside of json files", str(path), text)
    flags = content.get("flags")
    labels = tuple(k for k, v in flags.items() if v is True) if isinstance(flags, dict) else ()
    return ImportedImage(
        file=image,
        where=str(path),
        objects=tuple(objects),
        size=size,
        labels=labels,
        bases=(path.parent, index.root),
    )


def _joined(first: ImportedObject, second: ImportedObject) -> ImportedObject:
    rings = (*first.rings, *second.rings)
    points = np.concatenate([np.array(ring).reshape(-1, 2) for ring in rings])
    return replace(first, rings=rings, box=box_of(points))


def _object(
    shape: Any, where: str, size: tuple[int, int] | None, skipped: Skipped
) -> ImportedObject | None:
    label = shape.get("label") if isinstance(shape, dict) else None
    points = points_of(shape.get("points")) if isinstance(shape, dict) else None
    if not isinstance(label, str | int) or label == "" or points is None:
        skipped.add("incomplete shapes", where, "needs a label and points; left out")
        return None
    kind = str(shape.get("shape_type") or "polygon")
    name = str(label)
    if kind == "rectangle" and len(points) >= 2:
        return ImportedObject(where=where, label=name, box=box_of(points))
    if kind == "circle" and len(points) == 2:
        radius = float(np.linalg.norm(points[1] - points[0]))
        points = ellipse(points[0].tolist(), (radius, radius))
    elif kind == "mask" and len(points) == 2:
        return _mask(shape, name, points, where, size, skipped)
    elif kind not in ("polygon", "oriented_rectangle") or len(points) < 3:
        skipped.skip(kind if kind != "polygon" else "polygon of one or two points", where)
        return None
    return ImportedObject(where=where, label=name, box=box_of(points), rings=(ring_of(points),))


def _mask(
    shape: Mapping[str, Any],
    label: str,
    points: np.ndarray,
    where: str,
    size: tuple[int, int] | None,
    skipped: Skipped,
) -> ImportedObject | None:
    """Return an object with a bitmap between two corners, which LabelMe writes as a PNG."""
    box = box_of(points)
    try:
        bitmap = bitmap_of(base64.b64decode(shape.get("mask") or "", validate=False), where)
    except (ValueError, TypeError, BadImage):
        skipped.add("damaged masks", where, "has a mask that cannot be read; its box is kept")
        return ImportedObject(where=where, label=label, box=box)
    if size is None:
        return ImportedObject(where=where, label=label, box=box)
    runs = runs_of(bitmap, (round(box[0]), round(box[1])), size)
    box = (box[0], box[1], float(bitmap.shape[1]), float(bitmap.shape[0]))
    return ImportedObject(where=where, label=label, box=box, runs=runs)
