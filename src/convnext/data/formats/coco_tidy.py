"""COCO's json as tools really write it, brought into COCO's own form before it is read.

Ids as text or floats become whole numbers, images listed once per object become one image, boxes
that are corners or shares of the size become x, y, width, height in pixels, and so on. The reader
and `--fix` share these steps, so that what is read and what is written are the same. Every step
counts what it changes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext.data.formats.coco_values import (
    LIMIT,
    PLAIN,
    BoxForm,
    Changes,
    Json,
    are_numbers,
    box_array,
    is_box,
    is_number,
    is_whole,
    mask_bounds,
    place_of,
    tidy_boxes,
)
from convnext.data.masks import FLAT, is_flat

# With fewer objects, all of them may well be crowds.
MIN_CROWDS = 3


class PolygonParser:
    """Checks the polygons of a json once, while it is parsed, and stores them as arrays.

    It is the `object_hook` of a decoder. A segmentation becomes a tuple of arrays if it is a list
    of polygons that need neither a remedy nor a message: pairs of finite numbers, three or more,
    not all on one line. Every other value stays what it is in the json, for the steps that follow.
    Lists of numbers take four times the memory and are checked in pure Python, so that this happens
    in large groups, before all of them are in memory.
    """

    GROUP = 4096

    def __init__(self) -> None:
        self._waiting: list[Json] = []

    def __call__(self, value: Json) -> Json:
        """Return an object of the json; its polygons may become arrays later."""
        if type(value.get("segmentation")) is list:
            self._waiting.append(value)
            if len(self._waiting) == self.GROUP:
                self.finish()
        return value

    def finish(self) -> None:
        """Convert the polygons that are waiting."""
        values, self._waiting = self._waiting, []
        values = [value for value in values if {*map(type, value["segmentation"])} == {list}]
        if not _are_plain(values):
            values = [value for value in values if all(map(are_numbers, value["segmentation"]))]
        if not values:
            return
        counts = [len(value["segmentation"]) for value in values]
        rings = [ring for value in values for ring in value["segmentation"]]
        lengths = np.fromiter(map(len, rings), np.int64, len(rings))
        numbers = itertools.chain.from_iterable(rings)
        points = np.fromiter(numbers, np.float64, int(lengths.sum()))
        ends = lengths.cumsum()
        starts = ends - lengths
        is_sound = (lengths >= 6) & (lengths % 2 == 0)
        long = np.flatnonzero(is_sound)
        if len(long):
            is_bad = ~(np.abs(points) < LIMIT)
            before = np.concatenate(([0], is_bad.cumsum()))
            is_sound &= before[ends] == before[starts]
            long = np.flatnonzero(is_sound)
            for i in long[~_are_corners(points, starts[long])].tolist():
                is_sound[i] = not is_flat(rings[i])
        views = [points[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        ring = 0
        sound = is_sound.tolist()
        for value, count in zip(values, counts, strict=True):
            if all(sound[ring : ring + count]):
                value["segmentation"] = tuple(views[ring : ring + count])
            ring += count


def _are_plain(values: Sequence[Json]) -> bool:
    """Tell whether all polygons hold whole numbers and floats alone, which floats can hold."""
    rings = itertools.chain.from_iterable(value["segmentation"] for value in values)
    kinds = {*map(type, itertools.chain.from_iterable(rings))}
    if kinds == {float}:
        return True
    if not kinds <= PLAIN:
        return False
    rings = itertools.chain.from_iterable(value["segmentation"] for value in values)
    return max(map(abs, itertools.chain.from_iterable(rings)), default=0) < LIMIT


def _are_corners(points: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell of each polygon whether its first three points are clearly not on one line."""
    x0, y0, x1, y1, x2, y2 = points[starts + np.arange(6)[:, None]]
    cross = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    lengths = (np.abs(x1 - x0) + np.abs(y1 - y0)) * (np.abs(x2 - x0) + np.abs(y2 - y0))
    return np.asarray(np.abs(cross) > FLAT * lengths)


def tidy_ids(content: Json, changes: Changes) -> None:
    """Make whole numbers of ids and sizes, and one image of the entries of one file, in place."""
    _tidy_categories(content, changes)
    _tidy_images(content, changes)
    _tidy_references(content, changes)
    _merge_images(content, changes)


def tidy_objects(content: Json, changes: Changes, *, boxes: BoxForm | None = None) -> None:
    """Bring boxes and masks into COCO's form, in place; the sizes of the images must be known.

    Args:
        content: The content, after `tidy_ids`.
        changes: Counts what is changed.
        boxes: The form of the boxes; None to recognize it.
    """
    annotations = content["annotations"]
    have_text = _have_text(annotations)
    for number, value in enumerate(annotations):
        if (
            have_text
            or type(value.get("segmentation")) is list
            or type(value.get("iscrowd", 0)) is not int
            or type(value.get("area")) is str
        ):
            _tidy_annotation(value, place_of(value, number), changes)
    tidy_boxes(content, changes, boxes)
    sides = box_array([value.get("bbox") for value in annotations])[:, 2:]
    has_box = np.asarray((sides > 0).all(1))
    for number, value in enumerate(annotations):
        if not has_box[number] or type(value.get("segmentation")) is list:
            _complete(value, place_of(value, number), changes)
    _tidy_crowds(content, changes)


def _have_text(annotations: list[Json]) -> bool:
    """Tell whether a number of any box is written as text."""
    boxes = (box for value in annotations if isinstance(box := value.get("bbox"), list))
    return str in {*map(type, itertools.chain.from_iterable(boxes))}


def _whole(value: Any) -> Any:
    """Return a whole number that is written as text or as a float; other values as they are."""
    if isinstance(value, str):
        try:
            number = float(value) if any(c in value for c in ".eE") else int(value)
        except ValueError:
            return value
        return _whole(number) if number == number and abs(number) < 2**53 else value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _number(value: Any) -> Any:
    """Return a number that is written as text; other values as they are."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if is_number(number) else value
    return value


def _put(value: Json, key: str, new: Any, changes: Changes, kind: str, where: str) -> None:
    """Replace an entry and count it, if it is another value or of another type."""
    if new is not value.get(key):
        value[key] = new
        changes.add(kind, where, "is read as a number")


def _tidy_categories(content: Json, changes: Changes) -> None:
    for value in content["categories"]:
        where = f"category {value.get('id')!r}"
        if "id" in value:
            _put(value, "id", _whole(value["id"]), changes, "ids that are not whole numbers", where)
        name = value.get("name")
        if is_number(name):
            value["name"] = str(name)
            changes.add("class names that are numbers", where, "is read as text")
    _number_texts(content["categories"], content["annotations"], "category_id", changes)


def _tidy_images(content: Json, changes: Changes) -> None:
    for number, value in enumerate(content["images"]):
        where = place_of(value, number, "image")
        if "id" in value:
            _put(value, "id", _whole(value["id"]), changes, "ids that are not whole numbers", where)
        for side in ("width", "height"):
            if isinstance(value.get(side), str | float):
                kind = "sizes that are not whole numbers"
                _put(value, side, _whole(value[side]), changes, kind, where)


def _tidy_references(content: Json, changes: Changes) -> None:
    keys = ("id", "image_id", "category_id")
    annotations = content["annotations"]
    kinds = {type(value.get(key)) for key in keys for value in annotations}
    for number, value in enumerate(annotations if kinds & {str, float} else ()):
        for key in keys:
            if isinstance(value.get(key), str | float):
                where, kind = place_of(value, number), "ids that are not whole numbers"
                _put(value, key, _whole(value[key]), changes, kind, where)
    _number_texts(content["images"], content["annotations"], "image_id", changes)


def _number_texts(values: list[Json], annotations: list[Json], key: str, changes: Changes) -> None:
    """Give numbers to images or categories whose ids are words, and to what refers to them."""
    words = [value["id"] for value in values if isinstance(value.get("id"), str) and value["id"]]
    if not words:
        return
    used = [value["id"] for value in values if is_whole(value.get("id"))]
    free = itertools.count(max(used, default=0) + 1)
    number_of = {word: next(free) for word in dict.fromkeys(words)}
    for value in values:
        if isinstance(value.get("id"), str) and value["id"] in number_of:
            changes.add("ids that are words", f"{value['id']!r}", "is replaced by a number")
            value["id"] = number_of[value["id"]]
    for value in annotations:
        found = value.get(key)
        if isinstance(found, str) and found in number_of:
            value[key] = number_of[found]


def _merge_images(content: Json, changes: Changes) -> None:
    """Make one image of the entries of one file, which some tools write once per object."""
    first: dict[str, Json] = {}
    new_id: dict[int, int] = {}
    count_of = Counter(v["id"] for v in content["images"] if is_whole(v.get("id")))
    kept = []
    for value in content["images"]:
        key, name = value.get("id"), value.get("file_name")
        is_clear = is_whole(key) and isinstance(name, str) and name and count_of[key] == 1
        known = first.get(name) if is_clear and isinstance(name, str) else None
        if known is None:
            kept.append(value)
            if is_clear and isinstance(name, str):
                first[name] = value
            continue
        new_id[value["id"]] = known["id"]
        text = "is a file that was listed before; the objects of both entries are put together"
        changes.add("images listed more than once", f"image {key}", text)
    content["images"] = kept
    for value in content["annotations"] if new_id else ():
        if is_whole(value.get("image_id")):
            value["image_id"] = new_id.get(value["image_id"], value["image_id"])


def _tidy_annotation(value: Json, where: str, changes: Changes) -> None:
    """Bring one annotation's numbers and polygons into form."""
    box = value.get("bbox")
    if isinstance(box, list) and str in map(type, box):
        numbers = [_number(number) for number in box]
        if all(map(is_number, numbers)):
            value["bbox"] = numbers
            changes.add("boxes written as text", where, "is read as numbers")
    crowd = value.get("iscrowd")
    if isinstance(crowd, bool | str | float):
        new = int(crowd) if isinstance(crowd, bool) else _whole(crowd)
        _put(value, "iscrowd", new, changes, "iscrowd that is not a number", where)
    if isinstance(value.get("area"), str):
        _put(value, "area", _number(value["area"]), changes, "areas written as text", where)
    rings = value.get("segmentation")
    if not isinstance(rings, list) or not rings:
        return
    if not isinstance(rings[0], list) and all(map(is_number, map(_number, rings))):
        value["segmentation"] = rings = [[_number(number) for number in rings]]
        changes.add("polygons without brackets", where, "is read as one polygon")
    flat = [_flat(ring) for ring in rings]
    if any(one is not None and one is not ring for one, ring in zip(flat, rings, strict=True)):
        value["segmentation"] = [
            ring if one is None else one for one, ring in zip(flat, rings, strict=True)
        ]
        changes.add("polygons in another form", where, "is read as a list of numbers")


def _flat(ring: Any) -> list[Any] | None:
    """Return a ring of points or of texts as a list of numbers; None if it is not one."""
    if not isinstance(ring, list):
        return None
    if are_numbers(ring):
        return ring
    if ring and all(isinstance(point, list) and len(point) == 2 for point in ring):
        ring = [number for point in ring for number in point]
    numbers = [_number(number) for number in ring]
    return numbers if all(map(is_number, numbers)) else None


def _complete(value: Json, where: str, changes: Changes) -> None:
    """Take the box from the mask where it is missing, and the rectangle of two corners."""
    box, rings = value.get("bbox"), value.get("segmentation")
    if isinstance(rings, list) and any(len(r) == 4 for r in rings if isinstance(r, list)):
        value["segmentation"] = [_rectangle(ring, box) for ring in rings]
        if value["segmentation"] != rings:
            text = "has the two corners of a rectangle as its polygon; read as that rectangle"
            changes.add("polygons of two corners", where, text)
    has_box = is_box(box) and box[2] > 0 and box[3] > 0
    if has_box:
        return
    bounds = mask_bounds(value.get("segmentation"))
    if bounds is not None and bounds[2] > bounds[0] and bounds[3] > bounds[1]:
        x1, y1, x2, y2 = bounds
        value["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        changes.add("objects without a box", where, "has a mask; its box is that of the mask")
    elif is_box(box) and box[2] and box[3]:
        x, y, w, h = box
        value["bbox"] = [min(x, x + w), min(y, y + h), abs(w), abs(h)]
        changes.add("boxes with negative sides", where, "is read from its other corner")


def _rectangle(ring: Any, box: Any) -> Any:
    """Return the rectangle of two corners, if the object's box is the same or missing."""
    if not (isinstance(ring, list) and len(ring) == 4 and all(map(is_number, ring))):
        return ring
    x1, y1, x2, y2 = ring
    if is_box(box) and box[2] > 0 and box[3] > 0:
        corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        if all(abs(a - b) <= 2 for a, b in zip(ring, box, strict=True)):
            x1, y1, x2, y2 = corners
        elif not all(
            abs(a - b) <= 2
            for a, b in zip(
                (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), corners, strict=True
            )
        ):
            return ring
    if x1 == x2 or y1 == y2:
        return ring
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _tidy_crowds(content: Json, changes: Changes) -> None:
    """Read crowd regions as objects where a tool marks every brush mask as a crowd.

    CVAT does; its annotations have attributes with `occluded`.
    """
    crowds = [value for value in content["annotations"] if value.get("iscrowd") == 1]
    if not crowds:
        return
    is_cvat = all(
        isinstance(value.get("segmentation"), dict)
        and isinstance(value.get("attributes"), dict)
        and "occluded" in value["attributes"]
        for value in crowds
    )
    if not is_cvat and len(crowds) < max(len(content["annotations"]), MIN_CROWDS):
        return
    why = "CVAT marks every brush mask so" if is_cvat else "like all objects of the file"
    for number, value in enumerate(crowds):
        value["iscrowd"] = 0
        text = f"is marked as a crowd, {why}; read as a single object"
        changes.add("objects marked as crowds", place_of(value, number), text)
