"""CVAT's xml for images, version 1.1: boxes, polygons, masks, ellipses and tags in one file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from convnext.data.formats.imported import (
    ImportedDataset,
    ImportedImage,
    ImportedObject,
    Skipped,
    box_of,
    ellipse,
    ring_of,
    runs_of,
    turn,
)
from convnext.data.formats.paths import FileIndex, split_of
from convnext.data.formats.records import ReadOptions
from convnext.documents import BadXml, Node, parse

MAX_BYTES = 1024 * 2**20


def read_cvat(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of CVAT's xml files below a folder, with their objects and tags.

    Raises:
        ValueError: If there is no such file, or it is for a video.
    """
    skipped = Skipped()
    images: list[ImportedImage] = []
    names: dict[str, None] = {}
    turned: Counter[str] = Counter()
    for path in index.with_ending(".xml"):
        try:
            root = parse(path, "annotations", max_bytes=MAX_BYTES)
        except BadXml as error:
            if "begins with <" not in str(error):
                skipped.add("damaged xml", str(error), "left out")
            continue
        if any(node.name == "track" for node in root.children):
            raise ValueError(
                f"{path} has the tracks of a video; export the task from CVAT as `CVAT for images "
                "1.1`, with the images"
            )
        names |= dict.fromkeys(_labels(root))
        images += [
            _image(node, path, index, skipped, turned)
            for node in root.children
            if node.name == "image"
        ]
    if not images:
        raise ValueError(f"{index.root} has no xml with CVAT's images")
    used = {str(found.label) for image in images for found in image.objects}
    tags = sum(len(image.labels) for image in images)
    notes = []
    if tags:
        notes.append(f"{tags:,} tags of whole images are left out; boxes, polygons and masks count")
    if turned["box"]:
        notes.append(f"{turned['box']:,} turned boxes are read as the upright boxes around them")
    splits = {image.split for image in images}
    has_split = "train" in splits and len(splits) > 1
    return ImportedDataset(
        kind="CVAT",
        images=images,
        classes=(*names, *sorted(used - names.keys())) or None,
        classes_from="the labels of the xml",
        split_from="the subsets of the xml" if has_split else "",
        notes=tuple(notes),
        faults=skipped.all(),
    )


def _labels(root: Node) -> list[str]:
    """Return the names of the labels in the order of the task."""
    found: list[str] = []

    def collect(node: Node) -> None:
        if node.name == "label" and node.child("name") is not None:
            # Parts of a skeleton are not classes of their own.
            if not node.value("parent"):
                found.append(node.value("name"))
            return
        for child in node.children:
            collect(child)

    meta = root.child("meta")
    if meta is not None:
        collect(meta)
    return found


def _image(
    node: Node, path: Path, index: FileIndex, skipped: Skipped, turned: Counter[str]
) -> ImportedImage:
    where = f"{path}:{node.line}"
    name = node.attributes.get("name", "")
    try:
        size = int(node.attributes["width"]), int(node.attributes["height"])
    except (KeyError, ValueError):
        size = None
    objects = []
    tags = []
    for shape in node.children:
        place = f"{path}:{shape.line}"
        label = shape.attributes.get("label", "")
        if shape.name == "tag":
            tags.append(label)
            continue
        try:
            found = _object(shape, label, place, size, turned)
        except (KeyError, ValueError) as error:
            text = f"<{shape.name}> has no valid {error}; left out"
            skipped.add("incomplete shapes", f"{place}:", text)
            continue
        if found is None:
            skipped.skip(shape.name, f"{place}:")
        else:
            objects.append(found)
    return ImportedImage(
        file=name,
        where=where,
        objects=tuple(objects),
        split=split_of(node.attributes.get("subset", "")),
        size=size,
        labels=tuple(tags),
        bases=(path.parent / "images", path.parent, index.root),
    )


def _object(
    shape: Node, label: str, where: str, size: tuple[int, int] | None, turned: Counter[str]
) -> ImportedObject | None:
    """Return the object of a shape; None if it has no area.

    Raises:
        KeyError: If an attribute is missing.
        ValueError: If an attribute is not a number.
    """
    own = shape.attributes
    if not label:
        raise KeyError("label")
    angle = float(own.get("rotation", 0))
    if shape.name == "box":
        x1, y1, x2, y2 = (float(own[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        if not angle:
            box = (min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1))
            return ImportedObject(where=where, label=label, box=box)
        turned["box"] += 1
        center = np.array(((x1 + x2) / 2, (y1 + y2) / 2))
        corners = np.array(((x1, y1), (x2, y1), (x2, y2), (x1, y2)))
        box = box_of(turn(corners - center, angle) + center)
        return ImportedObject(where=where, label=label, box=box)
    if shape.name == "polygon":
        points = np.array([pair.split(",") for pair in own["points"].split(";")], np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
            raise ValueError("points")
    elif shape.name == "ellipse":
        cx, cy, rx, ry = (float(own[key]) for key in ("cx", "cy", "rx", "ry"))
        points = ellipse((cx, cy), (rx, ry), angle)
    elif shape.name == "mask":
        return _mask(shape, label, where, size)
    else:
        return None
    return ImportedObject(where=where, label=label, box=box_of(points), rings=(ring_of(points),))


def _mask(shape: Node, label: str, where: str, size: tuple[int, int] | None) -> ImportedObject:
    """Return an object with CVAT's run lengths: row by row in its window, background first."""
    own = shape.attributes
    left, top, width, height = (int(float(own[k])) for k in ("left", "top", "width", "height"))
    counts = [int(count) for count in own["rle"].split(",")]
    if min(counts) < 0 or sum(counts) != width * height or size is None:
        raise ValueError("rle")
    values = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8)
    bitmap = values.reshape(height, width)
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    if not len(rows):
        raise ValueError("rle")
    x, y = left + int(columns[0]), top + int(rows[0])
    box = (
        float(x),
        float(y),
        float(columns[-1] - columns[0] + 1),
        float(rows[-1] - rows[0] + 1),
    )
    return ImportedObject(
        where=where, label=label, box=box, runs=runs_of(bitmap, (left, top), size)
    )
