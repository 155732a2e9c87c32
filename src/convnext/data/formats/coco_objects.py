"""The annotations of COCO's json: every error becomes a fault, and ends nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convnext.data.formats.coco_values import are_numbers, is_box, is_number, is_whole
from convnext.data.formats.records import FaultList, Objects, Record
from convnext.data.masks import Mask, area_of, is_flat, num_pixels

# Boxes may extend this many pixels beyond the image because of rounding.
ROUNDING = 1.0
UNUSED = "unused category"
FIX = "`convnext data PATH --task detect --fix` "
# An area beyond these multiples of its box is of another unit.
AREA_RANGE = (0.0005, 5)


def by_image(
    values: Sequence[Mapping[str, Any]],
    images: Mapping[int, Any],
    classes: Mapping[int, str],
    faults: FaultList,
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
            if key == 0:
                text = (
                    "pycocotools takes the id 0 for an object that was not found, and scores it "
                    f"wrongly; {FIX}gives it another"
                )
                faults.add("annotation id 0", where, text)
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


def read_objects(
    values: Iterable[Mapping[str, Any]],
    image: Mapping[str, Any],
    classes: Mapping[int, str],
    faults: FaultList,
) -> Objects:
    width, height = image["width"], image["height"]
    label_of = {category: label for label, category in enumerate(classes)}
    seen: dict[tuple[Any, ...], list[Any]] = {}
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
        whole = (box[2] - box[0]) * (box[3] - box[1])
        area = value.get("area")
        if is_number(area) and area > 0 and not is_area(area, value["bbox"]):
            text = f"has the area {area:g}, which its box cannot have; it is computed"
            faults.add("areas of another unit", where, text)
            area = None
        if not is_number(area) or area <= 0:
            area = whole
            if mask is not None:
                area = area_of(mask, (height, width)) or area
        same = seen.setdefault((value["category_id"], crowd, *value["bbox"]), [])
        if value.get("segmentation") in same:
            text = "is the same object as another annotation: class, box and mask are equal"
            faults.add("objects listed twice", where, text)
        same.append(value.get("segmentation"))
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


def is_area(area: float, box: Sequence[float]) -> bool:
    """Tell whether an object with this box can have an area, in whole pixels."""
    low, high = AREA_RANGE
    whole = box[2] * box[3]
    return low * whole <= area <= high * (box[2] + 1) * (box[3] + 1)


def _read_box(
    value: Any, size: tuple[int, int], where: str, faults: FaultList
) -> tuple[float, float, float, float] | None:
    """Return a box (x, y, width, height) as corners within the image, or None."""
    if not is_box(value):
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


def _read_mask(value: Any, size: tuple[int, int], where: str, faults: FaultList) -> Mask | None:
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
        if len(ring) % 2 or not are_numbers(ring):
            text = "has a polygon that is not pairs of finite numbers; it is left out"
            faults.add("damaged mask", where, text)
        elif len(ring) < 6:
            text = f"has a polygon of {len(ring) // 2} points, of which three make one; left out"
            faults.add("polygon with too few points", where, text)
        elif is_flat(ring):
            text = "has a polygon without an area; it is left out, and the box is kept"
            faults.add("empty mask", where, text)
        else:
            rings.append(np.array(ring, np.float64))
    return tuple(rings) if rings else None


def _read_runs(
    value: Mapping[str, Any], size: tuple[int, int], where: str, faults: FaultList
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
    if not area_of(runs, size):
        faults.add("empty mask", where, "has a mask without a pixel; its box is kept")
        return None
    return runs


def count_crowds(records: Sequence[Record], faults: FaultList) -> None:
    """Tell when an unusual share of the objects are crowd regions, which are not trained on."""
    total = sum(len(record.objects) for record in records)
    crowds = sum(int(record.objects.crowd.sum()) for record in records)
    if crowds >= 10 and crowds > 0.1 * total:
        text = (
            f"{crowds:,} of {total:,} annotations have iscrowd 1: regions of many objects, which "
            "are neither trained on nor scored; if they are single objects, set iscrowd to 0"
        )
        faults.add("many crowd regions", "the annotations:", text)
