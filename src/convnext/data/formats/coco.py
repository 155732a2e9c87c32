"""COCO's json of objects, read and checked before anything trains on it.

An error in a single image or object becomes a fault with the file, the id and the remedy; the
object is left out or fixed, so that one error in a million does not end a run. Training refuses
faults that make the whole file ambiguous.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np

from convnext.data.formats.records import Fault, Objects, Record
from convnext.data.images import MAX_PIXELS
from convnext.data.masks import Mask, area_of, num_pixels

# Boxes may extend this many pixels beyond the image because of rounding.
ROUNDING = 1.0
UNUSED = "unused category"
FIX = "`convnext data PATH --task detect --fix` "


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """The contents of a file."""

    path: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """The id of each class."""
    records: tuple[Record, ...]
    faults: tuple[Fault, ...]


def read_coco(path: Path | str) -> CocoFile:
    """Read and check a file.

    Raises:
        ValueError: If it is not such a file; the message says why.
    """
    path = Path(path)
    content = load_json(path)
    faults = _Faults()
    classes = _read_categories(path, content["categories"])
    images = _read_images(content["images"], faults)
    by_image = _by_image(content["annotations"], images, classes, faults)
    records = tuple(
        Record(
            id=image_id,
            file_name=image["file_name"],
            width=image["width"],
            height=image["height"],
            objects=_read_objects(by_image.get(image_id, ()), image, classes, faults),
        )
        for image_id, image in images.items()
    )
    used = Counter(int(label) for record in records for label in record.objects.labels)
    for label, (category_id, name) in enumerate(classes.items()):
        if not used[label]:
            text = f"no object is a {name!r}; remove the category if it is not meant to be there"
            faults.add(UNUSED, f"category {category_id}", text)
    return CocoFile(
        path=path,
        classes=tuple(classes.values()),
        category_ids=tuple(classes),
        records=records,
        faults=tuple(faults.found),
    )


def load_json(path: Path) -> dict[str, Any]:
    """Return the contents of a file, with lists of images, annotations and categories.

    Raises:
        ValueError: If it cannot be read, is not JSON, or has no such lists.
    """
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(content, list):
        raise ValueError(
            f"{path} is a list, either results of a detector or annotations alone; an annotation "
            "file has images, annotations and categories"
        )
    for name in ("images", "annotations", "categories"):
        values = content.get(name) if isinstance(content, dict) else None
        if not isinstance(values, list):
            raise ValueError(f"{path} has no list {name!r}: it is not COCO's json of objects")
        odd = next((i for i, value in enumerate(values) if not isinstance(value, dict)), None)
        if odd is not None:
            raise ValueError(f"{path}: number {odd} of {name!r} is not an object with names")
    return cast("dict[str, Any]", content)


@dataclass
class _Faults:
    found: list[Fault] = field(default_factory=list)

    def add(self, kind: str, where: str, text: str, *, fatal: bool = False) -> None:
        self.found.append(Fault(kind=kind, where=where, text=text, fatal=fatal))


def _read_categories(path: Path, values: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return names by id, in the order of the ids.

    Raises:
        ValueError: If there are none, or an id or a name is missing or duplicated.
    """
    names: dict[int, str] = {}
    for value in values:
        key: Any = value.get("id")
        name = value.get("name")
        if not is_whole(key) or not isinstance(name, str):
            raise ValueError(f"{path}: the category {value} needs a whole `id` and a `name`")
        if key in names:
            raise ValueError(f"{path}: the category id {key} is {names[key]!r} and {name!r}")
        if name in names.values():
            raise ValueError(f"{path}: two categories are called {name!r}; merge them")
        names[key] = name
    if not names:
        raise ValueError(f"{path} has no category: say what the objects are")
    return dict(sorted(names.items()))


def _read_images(
    values: Sequence[Mapping[str, Any]], faults: _Faults
) -> dict[int, Mapping[str, Any]]:
    images: dict[int, Mapping[str, Any]] = {}
    files: dict[str, int] = {}
    for number, value in enumerate(values):
        key, name = value.get("id"), value.get("file_name")
        where = f"image {key}" if is_whole(key) else f"number {number} of the images"
        if not is_whole(key) or not isinstance(name, str) or not name or "\0" in name:
            text = "needs a whole `id` and a `file_name`; add them"
            faults.add("image without id or file", where, text, fatal=True)
        elif not all(is_whole(value.get(side)) and value[side] > 0 for side in ("width", "height")):
            text = f"{name} needs its `width` and `height`; {FIX}takes them from the file"
            faults.add("image without size", where, text, fatal=True)
        elif value["width"] * value["height"] > MAX_PIXELS:
            text = (
                f"{name} has {value['width']} x {value['height']} pixels by the json, more than "
                f"the {MAX_PIXELS / 1e6:.0f} million that are read; {FIX}takes them from the file"
            )
            faults.add("image too large", where, text, fatal=True)
        elif key in images:
            text = (
                f"is the id of {images[key]['file_name']} and of {name}, so their objects cannot "
                "be told apart; give each image an id of its own"
            )
            faults.add("duplicate image id", where, text, fatal=True)
        elif name in files:
            text = f"{name} is already image {files[name]}; left out with its objects"
            faults.add("duplicate file name", where, text)
        else:
            images[key], files[name] = value, key
    return images


def _by_image(
    values: Sequence[Mapping[str, Any]],
    images: Mapping[int, Any],
    classes: Mapping[int, str],
    faults: _Faults,
) -> dict[int, list[Mapping[str, Any]]]:
    """Return the annotations of each image, without those of unknown images or categories."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    seen: set[int] = set()
    for number, value in enumerate(values):
        key = value.get("id")
        where = f"annotation {key}" if is_whole(key) else f"number {number} of the annotations"
        if not is_whole(key):
            faults.add("annotation without id", where, f"kept; {FIX}numbers it")
        elif key in seen:
            text = f"the id is there more than once; kept; {FIX}gives it another"
            faults.add("duplicate annotation id", where, text)
        else:
            seen.add(key)
        image, category = value.get("image_id"), value.get("category_id")
        if not is_whole(image) or image not in images:
            text = f"is of image {image!r}, which the file does not list; left out"
            faults.add("unknown image", where, text)
        elif not is_whole(category) or category not in classes:
            known = ", ".join(map(str, list(classes)[:5])) + (", ..." if len(classes) > 5 else "")
            text = f"has category {category!r}, but the file has {known}; left out"
            faults.add("unknown category", where, text)
        else:
            found.setdefault(image, []).append(value)
    return found


def _read_objects(
    values: Iterable[Mapping[str, Any]],
    image: Mapping[str, Any],
    classes: Mapping[int, str],
    faults: _Faults,
) -> Objects:
    width, height = image["width"], image["height"]
    label_of = {category: label for label, category in enumerate(classes)}
    kept: list[tuple[int, tuple[float, ...], int, float, bool, Mask | None]] = []
    for value in values:
        where = f"annotation {value.get('id')}"
        box = _read_box(value.get("bbox"), (width, height), where, faults)
        if box is None:
            continue
        crowd = value.get("iscrowd", 0)
        if crowd not in (0, 1):
            text = f"has the iscrowd {crowd!r}, neither 0 nor 1; taken as a single object"
            faults.add("unclear crowd", where, text)
            crowd = 0
        mask = _read_mask(value.get("segmentation"), (height, width), where, faults)
        area = value.get("area")
        if not is_number(area) or area <= 0:
            area = (box[2] - box[0]) * (box[3] - box[1])
            if mask is not None:
                area = area_of(mask, (height, width)) or area
        key = value["id"] if is_whole(value.get("id")) else -1
        kept.append((key, box, label_of[value["category_id"]], float(area), bool(crowd), mask))
    ids, boxes, labels, areas, crowds, masks = zip(*kept, strict=True) if kept else ((),) * 6
    return Objects(
        ids=tuple(ids),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        areas=np.array(areas, np.float64),
        crowd=np.array(crowds, np.bool_),
        masks=tuple(masks),
    )


def _read_box(
    value: Any, size: tuple[int, int], where: str, faults: _Faults
) -> tuple[float, float, float, float] | None:
    """Return a box (x, y, width, height) as corners within the image, or None."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        text = f"has the box {value!r}, not four finite numbers x, y, width, height; left out"
        faults.add("no box", where, text)
        return None
    x, y, w, h = map(float, value)
    if w <= 0 or h <= 0:
        text = f"has a box of {w:g} x {h:g} pixels; left out; {FIX}removes it"
        faults.add("box without area", where, text)
        return None
    width, height = size
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + w, float(width)), min(y + h, float(height))
    if x2 <= x1 or y2 <= y1:
        text = f"has a box at {value}, outside the image of {width} x {height}; left out"
        faults.add("box outside the image", where, text)
        return None
    if max(-x, -y, x + w - width, y + h - height) > ROUNDING:
        text = f"has a box {value} that leaves the image of {width} x {height}; cut at its border"
        faults.add("box over the border", where, text)
    return x1, y1, x2, y2


def _read_mask(value: Any, size: tuple[int, int], where: str, faults: _Faults) -> Mask | None:
    """Return polygons as arrays, run lengths as they are, or None for an object without a mask."""
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        return _read_runs(value, size, where, faults)
    if not isinstance(value, list) or not all(isinstance(ring, list) for ring in value):
        text = "has a segmentation that is neither polygons nor run lengths; its box is kept"
        faults.add("damaged mask", where, text)
        return None
    rings = []
    for ring in value:
        if len(ring) % 2 or not all(map(is_number, ring)):
            text = "has a polygon that is not pairs of finite numbers; it is left out"
            faults.add("damaged mask", where, text)
        elif len(ring) < 6:
            text = f"has a polygon of {len(ring) // 2} points, of which three make one; left out"
            faults.add("polygon with too few points", where, text)
        else:
            rings.append(np.array(ring, np.float64))
    return tuple(rings) if rings else None


def _read_runs(
    value: Mapping[str, Any], size: tuple[int, int], where: str, faults: _Faults
) -> Mask | None:
    given = value.get("size")
    if not isinstance(given, list) or tuple(given) != size:
        text = (
            f"has run lengths of a mask of {given} (height, width) on an image of {list(size)}; "
            "its box is kept"
        )
        faults.add("mask of another size", where, text)
        return None
    counts = value.get("counts")
    runs: dict[str, Any] = {"size": list(size), "counts": counts}
    if isinstance(counts, list) and all(is_whole(count) and count >= 0 for count in counts):
        runs["counts"] = np.array(counts, np.int64)
    elif not isinstance(counts, str):
        counts = None
    if counts is None or num_pixels(runs) != size[0] * size[1]:
        text = "has run lengths that do not fill its image; its box is kept; draw the mask again"
        faults.add("damaged mask", where, text)
        return None
    return runs


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value of a json is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 2**53 and math.isfinite(value)


def is_whole(value: Any) -> TypeGuard[int]:
    """Tell whether a value of a json is a whole number that can be an id or a size."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
