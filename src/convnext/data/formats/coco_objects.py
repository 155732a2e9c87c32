"""The annotations of COCO's json: every error becomes a fault, and ends nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext.data.formats.coco_values import are_numbers, box_array, is_box, is_number, is_whole
from convnext.data.formats.records import (
    FaultList,
    Objects,
    Record,
    objects_of,
)
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
    if _are_known(values, images, classes):
        for value in values:
            found.setdefault(value["image_id"], []).append(value)
        return found
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


def _are_known(
    values: Sequence[Mapping[str, Any]], images: Mapping[int, Any], classes: Mapping[int, str]
) -> bool:
    """Tell whether all annotations have ids of their own, and known images and categories."""
    ids: list[Any]
    ids, image_ids, category_ids = (
        [value.get(key) for value in values] for key in ("id", "image_id", "category_id")
    )
    if not {*map(type, ids), *map(type, image_ids), *map(type, category_ids)} <= {int}:
        return False
    known = set(ids)
    return (
        len(known) == len(ids)
        and 0 not in known
        and max(map(abs, known), default=0) < 2**63
        and set(image_ids) <= images.keys()
        and set(category_ids) <= classes.keys()
    )


def read_sound(
    values_of: Mapping[int, Sequence[Mapping[str, Any]]],
    images: Mapping[int, Mapping[str, Any]],
    classes: Mapping[int, str],
) -> dict[int, Objects]:
    """Return the objects of the images whose annotations are all sound, as `read_objects` would.

    All annotations are checked together, which takes a tenth of the time. An image with one of
    which `read_objects` would tell something, or whose mask is in another form, is left to it.
    """
    keys = [key for key in images if values_of.get(key)]
    if not keys:
        return {}
    values = [value for key in keys for value in values_of[key]]
    counts = np.array([len(values_of[key]) for key in keys])
    starts = counts.cumsum() - counts
    sides = np.array([(images[key]["width"], images[key]["height"]) for key in keys], np.float64)
    limits = sides.repeat(counts, 0)
    boxes = box_array([value.get("bbox") for value in values])
    ends = boxes[:, :2] + boxes[:, 2:]
    # As `max(x, 0.0)` and `min(x, limit)`, which keep a negative zero and the first of two equals.
    corners = np.concatenate(
        (np.where(boxes[:, :2] < 0, 0.0, boxes[:, :2]), np.where(limits < ends, limits, ends)), 1
    )
    is_sound = (boxes[:, 2:] > 0).all(1) & (corners[:, 2:] > corners[:, :2]).all(1)
    is_sound &= (-boxes[:, :2] <= ROUNDING).all(1) & (ends - limits <= ROUNDING).all(1)
    crowds = [value.get("iscrowd", 0) for value in values]
    is_sound &= np.array([type(crowd) is int and crowd in (0, 1) for crowd in crowds])
    areas = np.array([_area(value.get("area")) for value in values], np.float64)
    has_area = areas > 0
    is_sound &= ~has_area | _are_areas(areas, boxes)
    masks: list[Any] = [value.get("segmentation") for value in values]
    masks = [None if type(mask) is list and not mask else mask for mask in masks]
    is_sound &= np.array([mask is None or type(mask) is tuple for mask in masks])
    labels = {category: label for label, category in enumerate(classes)}
    label_of = np.array([labels[value["category_id"]] for value in values], np.int64)
    image_of = np.arange(len(keys)).repeat(counts)
    is_sound &= ~_are_repeated(image_of, label_of, boxes)
    wholes = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    areas[~has_area] = wholes[~has_area]
    is_crowd = np.array([crowd == 1 for crowd in crowds])
    ids = [key if is_whole(key := value.get("id")) else -1 for value in values]
    found = {}
    for image in np.flatnonzero(np.logical_and.reduceat(is_sound, starts)).tolist():
        start = int(starts[image])
        rows = slice(start, start + int(counts[image]))
        for row in range(rows.start, rows.stop) if not has_area[rows].all() else ():
            if not has_area[row] and masks[row] is not None:
                size = int(sides[image, 1]), int(sides[image, 0])
                areas[row] = area_of(masks[row], size) or areas[row]
        found[keys[image]] = Objects(
            ids=tuple(ids[rows]),
            boxes=corners[rows],
            labels=label_of[rows],
            areas=areas[rows],
            crowd=is_crowd[rows],
            masks=tuple(masks[rows]),
        )
    return found


def _area(value: Any) -> float:
    """Return an area; 0 if it is not a number."""
    return value if is_number(value) else 0.0


def _are_areas(areas: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell of each object what `is_area` tells."""
    low, high = AREA_RANGE
    wholes = boxes[:, 2] * boxes[:, 3]
    most = high * (boxes[:, 2] + 1) * (boxes[:, 3] + 1)
    return np.asarray((low * wholes <= areas) & (areas <= most))


def _are_repeated(
    images: NDArray[np.int64], labels: NDArray[np.int64], boxes: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Tell of each object whether another of its image may have the same class and box."""
    # Sums of products that differ tell objects apart; a negative zero is a zero.
    factors = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
    found = images.astype(np.uint64) * factors[0] + labels.astype(np.uint64) * factors[1]
    for column in (boxes + 0.0).T:
        found = (found ^ (found >> np.uint64(29))) * factors[2]
        found += np.ascontiguousarray(column).view(np.uint64)
    order = found.argsort(kind="stable")
    is_same = found[order[1:]] == found[order[:-1]]
    repeated = np.zeros(len(found), np.bool_)
    repeated[order[1:][is_same]] = True
    repeated[order[:-1][is_same]] = True
    return repeated


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
        segmentation = _as_lists(value.get("segmentation"))
        if segmentation in same:
            text = "repeats another annotation: class, box and mask are equal; left out"
            faults.add("objects listed twice", where, text)
            continue
        same.append(segmentation)
        key = value["id"] if is_whole(value.get("id")) else -1
        kept.append((key, box, label_of[value["category_id"]], float(area), bool(crowd), mask))
    return objects_of(kept)


def _as_lists(segmentation: Any) -> Any:
    """Return polygons as they are in the json, for comparison."""
    is_parsed = isinstance(segmentation, tuple)
    return [ring.tolist() for ring in segmentation] if is_parsed else segmentation


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
    if isinstance(value, tuple):  # Polygons that were checked when the file was parsed.
        return value
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
