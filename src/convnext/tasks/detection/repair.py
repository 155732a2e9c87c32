"""Fixes of the content of a COCO JSON file, in place, where no decision is needed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convnext.data.formats.coco import stated_size
from convnext.data.formats.coco_objects import ROUNDING, is_area
from convnext.data.formats.coco_values import is_box, is_number, is_whole
from convnext.data.formats.located import OFF_BY, Stored, turn_mask, turn_points
from convnext.data.formats.records import Fault
from convnext.data.masks import area_of, num_pixels

# Sizes whose aspect ratios differ by less may be of the same picture, resized.
SAME_SHAPE = 0.01

Json = dict[str, Any]
Size = tuple[int, int]


@dataclass
class Log:
    """Changes by kind, and faults left to the user."""

    found: dict[str, list[str]] = field(default_factory=dict)
    left: list[Fault] = field(default_factory=list)

    def add(self, kind: str, where: str) -> None:
        self.found.setdefault(kind, []).append(where)

    def leave(self, kind: str, where: str, text: str) -> None:
        self.left.append(Fault(kind=kind, where=where, text=text))


def fix_images(
    content: Json, sizes: Mapping[str, Size | None], log: Log, unturned: Collection[str] = ()
) -> set[int]:
    """Correct image sizes, and remove images without a file, with their annotations.

    Args:
        content: Content of the JSON file.
        sizes: (width, height) of the files that exist; None for those that are not images.
        log: Log of the changes.
        unturned: Files whose objects were drawn before the EXIF orientation was applied.

    Returns:
        Ids of the images whose boxes cannot be checked: by their id or their size they may belong
        to another picture.
    """
    objects: dict[int, list[Json]] = {}
    for annotation in content["annotations"]:
        if is_whole(annotation.get("image_id")):
            objects.setdefault(annotation["image_id"], []).append(annotation)
    num_of = Counter(image["id"] for image in content["images"] if is_whole(image.get("id")))
    doubtful = {key for key, number in num_of.items() if number > 1}
    kept, gone = [], set()
    for image in content["images"]:
        key, name = image.get("id"), image.get("file_name")
        if not is_whole(key) or not isinstance(name, str) or not name or key in doubtful:
            kept.append(image)
            continue
        where = f"image {key} {name}"
        if name not in sizes:
            log.add("image file is missing: removed with its objects", where)
            gone.add(key)
            continue
        kept.append(image)
        size = sizes[name]
        if size is None:
            text = "is not a readable image: replace the file"
            log.leave("image that cannot be read", where, text)
        elif name not in unturned and not _fix_size(image, size, objects.get(key, []), log):
            doubtful.add(key)
    content["images"] = kept
    content["annotations"] = [
        annotation
        for annotation in content["annotations"]
        if not (is_whole(annotation.get("image_id")) and annotation["image_id"] in gone)
    ]
    return doubtful


def _fix_size(image: Json, size: Size, objects: list[Json], log: Log) -> bool:
    """Use the size of the file; return False if the objects may belong to another size."""
    width, height = image.get("width"), image.get("height")
    if (width, height) == size:
        return True
    if is_whole(width) and is_whole(height) and _is_close((width, height), size):
        image["width"], image["height"] = size
        log.add("image size off by a pixel or two: taken from the file", f"image {image['id']}")
        return True
    where = f"image {image['id']} {image['file_name']}"
    stated = stated_size(image)
    both = f"{width} x {height} in the JSON file, {size[0]} x {size[1]} in the image file"
    reason = _doubt(stated, size, objects)
    if reason:
        text = f"has {both}, and {reason}: correct the objects or the size"
        log.leave("image whose size differs from the JSON file", where, text)
        return False
    image["width"], image["height"] = size
    log.add("image size: taken from the file", f"{where} ({both})")
    return True


def _is_close(stated: Size, size: Size) -> bool:
    return all(abs(a - b) <= OFF_BY for a, b in zip(stated, size, strict=True))


def turn_images(content: Json, turned: Mapping[str, Stored], log: Log) -> None:
    """Turn the objects of images that were drawn before the EXIF orientation was applied."""
    stored_of: dict[int, Stored] = {}
    for image in content["images"]:
        name = image.get("file_name")
        stored = turned.get(name) if isinstance(name, str) else None
        if stored is not None and is_whole(image.get("id")):
            image["width"], image["height"] = stored.upright
            stored_of[image["id"]] = stored
            log.add("EXIF: objects turned with their image", f"image {image['id']}")
    for value in content["annotations"]:
        key = value.get("image_id")
        if is_whole(key) and key in stored_of:
            _turn(value, stored_of[key])


def _turn(value: Json, stored: Stored) -> None:
    if is_box(value.get("bbox")):
        x, y, w, h = value["bbox"]
        corners = turn_points(np.array([[x, y], [x + w, y + h]], np.float64), stored)
        (x1, y1), (x2, y2) = corners.min(0).tolist(), corners.max(0).tolist()
        value["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    mask = value.get("segmentation")
    if not mask or not _is_whole_mask(mask, (stored.width, stored.height)):
        return
    new = turn_mask(mask, stored)
    if isinstance(new, Mapping):
        value["segmentation"] = {"size": list(new["size"]), "counts": list(new["counts"])}
    else:
        assert isinstance(new, Sequence)
        value["segmentation"] = [np.asarray(ring).tolist() for ring in new]


def _doubt(stated: Size | None, size: Size, objects: list[Json]) -> str:
    """Return why the objects may not belong to the file's size; empty if they do."""
    sizes = [
        tuple(mask["size"])
        for mask in (annotation.get("segmentation") for annotation in objects)
        if isinstance(mask, dict) and isinstance(mask.get("size"), list)
    ]
    if any(found != size[::-1] for found in sizes):
        return "it has masks of another size"
    corners = [annotation["bbox"] for annotation in objects if is_box(annotation.get("bbox"))]
    if not _fit(corners, size):
        return "boxes lie outside the image file"
    if stated is None or sizes or not _fit(corners, stated):
        return ""
    if stated == size[::-1]:
        return "one is the other rotated"
    if objects and abs(stated[0] * size[1] / (stated[1] * size[0]) - 1) < SAME_SHAPE:
        return "one is the other resized"
    return ""


def _fit(boxes: list[list[float]], size: Size) -> bool:
    return all(x + w <= size[0] + ROUNDING and y + h <= size[1] + ROUNDING for x, y, w, h in boxes)


def fix_annotations(
    content: Json, category_ids: Collection[int], doubtful: Collection[int], log: Log
) -> None:
    """Fix annotations, and remove those that are unusable.

    Args:
        content: Content of the JSON file.
        category_ids: Ids of all categories.
        doubtful: Ids of images whose size is unreliable.
        log: Log of the changes.
    """
    sizes = {
        image["id"]: None if image["id"] in doubtful else stated_size(image)
        for image in content["images"]
        if is_whole(image.get("id"))
    }
    # An unknown image may be one whose id is not an integer, such as "5".
    is_clear = len(content["images"]) == sum(
        is_whole(image.get("id")) for image in content["images"]
    )
    values = content["annotations"]
    used = [value["id"] for value in values if is_whole(value.get("id"))]
    free = itertools.count(max(used, default=0) + 1)
    seen: set[int] = set()
    seen_objects: dict[tuple[Any, ...], list[Any]] = {}
    kept = []
    for number, value in enumerate(values):
        key, image = value.get("id"), value.get("image_id")
        where = f"annotation {key}" if is_whole(key) else f"number {number} of the annotations"
        if not is_whole(image) or image not in sizes:
            if not is_clear:
                kept.append(value)
                continue
            log.add("annotation of an unknown image: removed", where)
        elif not is_whole(value.get("category_id")) or value["category_id"] not in category_ids:
            log.add("annotation of an unknown category: removed", where)
        elif _is_repeated(value, seen_objects):
            log.add("object listed twice: removed", where)
        elif _fix_box(value, sizes[image], where, log):
            _fix_polygons(value, where, log)
            _fix_area(value, sizes[image], where, log)
            if not is_whole(key) or key in seen or key == 0:
                value["id"] = next(free)
                kind = "duplicate annotation id" if is_whole(key) else "annotation without id"
                kind = "annotation id 0" if key == 0 else kind
                log.add(f"{kind}: renumbered", f"{where} is now {value['id']}")
            seen.add(value["id"])
            kept.append(value)
    content["annotations"] = kept


def _is_repeated(value: Json, seen: dict[tuple[Any, ...], list[Any]]) -> bool:
    """Tell whether an object has the image, class, box and mask of an earlier one."""
    box = value.get("bbox")
    if not is_box(box):
        return False
    key = (value["image_id"], value["category_id"], value.get("iscrowd", 0) == 1, *box)
    same = seen.setdefault(key, [])
    if value.get("segmentation") in same:
        return True
    same.append(value.get("segmentation"))
    return False


def _fix_box(value: Json, size: Size | None, where: str, log: Log) -> bool:
    """Clip a box to its image; return False if nothing is left of it."""
    if not is_box(value.get("bbox")):
        return True
    x, y, w, h = value["bbox"]
    if w <= 0 or h <= 0:
        log.add("box without area: removed", where)
        return False
    if size is None or max(-x, -y, x + w - size[0], y + h - size[1]) <= ROUNDING:
        return True
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, size[0]), min(y + h, size[1])
    if x2 <= x1 or y2 <= y1:
        log.add("box outside the image: removed", where)
        return False
    value["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    if not value.get("segmentation"):
        value["area"] = (x2 - x1) * (y2 - y1)
    log.add("box beyond the image: clipped", where)
    return True


def _fix_polygons(value: Json, where: str, log: Log) -> None:
    rings = value.get("segmentation")
    if not isinstance(rings, list):
        return
    short = [isinstance(ring, list) and len(ring) < 6 and len(ring) % 2 == 0 for ring in rings]
    if any(short):
        value["segmentation"] = [ring for ring, out in zip(rings, short, strict=True) if not out]
        log.add("polygon with too few points: removed, the box is kept", where)


def _fix_area(value: Json, size: Size | None, where: str, log: Log) -> None:
    area = value.get("area")
    if size is None or not is_box(value.get("bbox")):
        return
    if is_number(area) and area > 0 and is_area(area, value["bbox"]):
        return
    mask = value.get("segmentation")
    found = value["bbox"][2] * value["bbox"][3]
    if mask and _is_whole_mask(mask, size):
        found = area_of(mask, size[::-1]) or found
    value["area"] = float(found)
    kind = "area of another unit" if is_number(area) and area > 0 else "missing area"
    log.add(f"{kind}: computed", where)


def _is_whole_mask(mask: Any, size: Size) -> bool:
    if isinstance(mask, list):
        return all(
            isinstance(ring, list) and len(ring) % 2 == 0 and all(map(is_number, ring))
            for ring in mask
        )
    counts = mask.get("counts") if isinstance(mask, dict) else None
    is_counts = isinstance(counts, str) or (isinstance(counts, list) and all(map(is_whole, counts)))
    return is_counts and mask.get("size") == [*size[::-1]] and num_pixels(mask) == size[0] * size[1]
