"""COCO's json of objects, read and checked before anything trains on it.

An error in a single image or object becomes a fault with the file, the id and the remedy; the
object is left out or fixed, so that one error in a million does not end a run. Training refuses
faults that make the whole file ambiguous.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from convnext.data.formats.coco_objects import (
    FIX,
    UNUSED,
    by_image,
    count_crowds,
    read_objects,
    read_sound,
)
from convnext.data.formats.coco_tidy import PolygonParser, tidy_ids, tidy_objects
from convnext.data.formats.coco_values import BoxForm, Changes, Json, is_whole
from convnext.data.formats.located import (
    OFF_BY,
    Exif,
    Locator,
    Stored,
    Turns,
    needed_headers,
    turn_objects,
)
from convnext.data.formats.records import Fault, FaultList, Objects, Record
from convnext.data.images import MAX_PIXELS
from convnext.documents import read_json


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """The contents of a file."""

    path: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """The id of each class."""
    records: tuple[Record, ...]
    faults: tuple[Fault, ...]
    placeholders: tuple[str, ...] = ()
    """Classes without objects that name the whole data set, as Roboflow writes them."""
    notes: tuple[str, ...] = ()
    moved: frozenset[str] = frozenset()
    """Names of records whose images were found under another name or in another folder."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where the images of a file are, and how their EXIF orientation is to be read."""

    root: Path
    """The folder that the names of records are relative to."""
    locator: Locator
    exif: Exif = ""


def read_coco(
    path: Path | str,
    *,
    content: Json | None = None,
    images: Images | None = None,
    boxes: BoxForm | None = None,
) -> CocoFile:
    """Read and check a file.

    Args:
        path: The file.
        content: Its content, if it was loaded already by `load_json`; it is changed.
        images: Where its images are; None to read the file alone.
        boxes: What the four numbers of a box are; None to recognize it.

    Raises:
        ValueError: If it is not such a file; the message says why.
    """
    path = Path(path)
    content = load_json(path, as_arrays=True) if content is None else content
    changes, faults = Changes(), FaultList()
    tidy_ids(content, changes)
    files = Files() if images is None else locate(content, images, faults)
    tidy_objects(content, changes, boxes=boxes)
    classes, placeholders = read_categories(path, content, faults)
    listed = _read_images(content["images"], faults)
    values_of = by_image(content["annotations"], listed, classes, faults)
    sound = read_sound(values_of, listed, classes)
    records = tuple(
        _read_record(image, sound.get(key), values_of.get(key, ()), classes, files, faults)
        for key, image in listed.items()
    )
    count_crowds(records, faults)
    labels = [record.objects.labels for record in records]
    used = np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(classes))
    for label, (category_id, name) in enumerate(classes.items()):
        if not used[label]:
            text = f"no object is a {name!r}; remove the category if it is not meant to be there"
            faults.add(UNUSED, f"category {category_id}", text)
    return CocoFile(
        path=path,
        classes=tuple(classes.values()),
        category_ids=tuple(classes),
        records=records,
        faults=tuple(faults.found + changes.faults()),
        placeholders=placeholders,
        notes=() if images is None else tuple(images.locator.notes()),
        moved=frozenset(files.names.values()),
    )


@dataclass
class Files:
    """The files of the images of a json."""

    names: dict[str, str] = field(default_factory=dict)
    """Paths relative to the root by `file_name`, where they differ from it."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Paths by `file_name`, of those that exist."""
    turned: dict[str, Stored] = field(default_factory=dict)
    """The images whose objects were drawn on unturned pixels."""
    headers: dict[str, Stored] = field(default_factory=dict)
    """Headers by `file_name`; none where a sample of a large data set agrees with the json."""


def locate(content: Json, images: Images, faults: FaultList) -> Files:
    """Find the images of a json, and put their sizes into it where it has none or nearly theirs."""
    files = Files()
    listed = [
        v for v in content["images"] if isinstance(v.get("file_name"), str) and v["file_name"]
    ]
    root = os.path.join(images.root, "")
    for value in listed:
        name = value["file_name"]
        found = images.locator.find(name, f"image {value.get('id')}")
        if found is None:
            continue
        files.paths[name] = found
        if str(found) != f"{root}{name}" and found != images.root / name:
            files.names[name] = Path(os.path.relpath(found, images.root)).as_posix()
    faults.found += images.locator.ambiguous
    sizes = {value["file_name"]: stated_size(value) for value in listed}
    known = {name: size for name, size in sizes.items() if size is not None}
    headers = files.headers = needed_headers(files.paths, known)
    turns = Turns(images.exif)
    files.turned = turns.decide(headers, sizes)
    faults.found += turns.faults()
    for value in listed:
        name, where = value["file_name"], f"image {value.get('id')} {value['file_name']}"
        stored, stated = headers.get(name), sizes[value["file_name"]]
        if stored is None:
            continue
        size = (stored.width, stored.height) if name in files.turned else stored.upright
        if stated is None:
            value["width"], value["height"] = size
            text = "has no size in the json; it is taken from the file"
            faults.add("image without size", where, text)
        elif (
            stated != size and max(abs(a - b) for a, b in zip(stated, size, strict=True)) <= OFF_BY
        ):
            value["width"], value["height"] = size
            text = f"has {size[0]} x {size[1]} pixels, but {stated[0]} x {stated[1]} in the json"
            faults.add("image sizes off by a pixel or two", where, f"{text}; the file counts")
    return files


def stated_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (width, height) of an image entry; None if they are missing or too large."""
    width, height = image.get("width"), image.get("height")
    if not is_whole(width) or not is_whole(height) or min(width, height) <= 0:
        return None
    return (width, height) if width * height <= MAX_PIXELS else None


def _read_record(
    image: Mapping[str, Any],
    objects: Objects | None,
    values: Iterable[Mapping[str, Any]],
    classes: Mapping[int, str],
    files: Files,
    faults: FaultList,
) -> Record:
    name = image["file_name"]
    if objects is None:
        objects = read_objects(values, image, classes, faults)
    width, height = image["width"], image["height"]
    stored = files.turned.get(name)
    if stored is not None:
        objects = turn_objects(objects, stored)
        width, height = stored.upright
    return Record(
        id=image["id"],
        file_name=files.names.get(name, name),
        width=width,
        height=height,
        objects=objects,
        where=f"image {image['id']}",
    )


def load_json(path: Path, *, as_arrays: bool = False) -> dict[str, Any]:
    """Return the contents of a file, with lists of images, annotations and categories.

    Args:
        path: The file.
        as_arrays: Store sound polygons as arrays (`PolygonParser`), which cannot be written again.

    Raises:
        ValueError: If it cannot be read, is not JSON, or has no such lists.
    """
    parser = PolygonParser() if as_arrays else None
    content = read_json(path, object_hook=parser)
    if parser is not None:
        parser.finish()
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


def read_categories(
    path: Path, content: Json, faults: FaultList
) -> tuple[dict[int, str], tuple[str, ...]]:
    """Return names by id, in the order of the ids, and those that are only placeholders.

    Categories of one name become one. Roboflow lists the name of the data set as category 0, the
    supercategory of all others.

    Raises:
        ValueError: If there are none, or an id or a name is missing or ambiguous.
    """
    by_id: dict[int, Mapping[str, Any]] = {}
    for value in content["categories"]:
        key: Any = value.get("id")
        name = value.get("name")
        if not is_whole(key) or not isinstance(name, str):
            raise ValueError(f"{path}: the category {value} needs a whole `id` and a `name`")
        if key in by_id and by_id[key]["name"] != name:
            raise ValueError(
                f"{path}: the category id {key} is {by_id[key]['name']!r} and {name!r}"
            )
        by_id[key] = value
    if not by_id:
        raise ValueError(f"{path} has no category: say what the objects are")
    # Texts and lists are not ids, and lists cannot be in a set.
    used = {k for v in content["annotations"] if type(k := v.get("category_id")) is int}
    names: dict[int, str] = {}
    merged: dict[int, int] = {}
    ids_of: dict[str, list[int]] = {}
    for key in sorted(by_id):
        ids_of.setdefault(by_id[key]["name"], []).append(key)
    for name, ids in ids_of.items():
        with_objects = [key for key in ids if key in used]
        kinds = {str(by_id[key].get("supercategory")) for key in with_objects}
        if len(with_objects) > 1 and len(kinds) > 1:
            raise ValueError(
                f"{path}: two categories are called {name!r}, of the supercategories "
                f"{' and '.join(sorted(kinds))}: give them different names if they are "
                "different classes, or the same supercategory if they are one"
            )
        kept = (with_objects or ids[-1:])[0]
        names[kept] = name
        merged |= {key: kept for key in ids if key != kept}
        for key in ids:
            if key != kept:
                text = f"has the name {name!r} of category {kept}; they are read as one class"
                faults.add("categories of one name", f"category {key}", text)
    for value in content["annotations"] if merged else ():
        if is_whole(value.get("category_id")):
            value["category_id"] = merged.get(value["category_id"], value["category_id"])
    above = Counter(str(value.get("supercategory") or "") for value in by_id.values())
    placeholders = tuple(
        name
        for key, name in names.items()
        if key not in used and _is_placeholder(by_id[key], above)
    )
    return dict(sorted(names.items())), placeholders


def _is_placeholder(category: Mapping[str, Any], above: Mapping[str, int]) -> bool:
    """Tell whether a category is the supercategory of all others, and has none itself.

    Args:
        category: The category.
        above: How many categories of the file have each supercategory.
    """
    own, name, others = category.get("supercategory"), category["name"], sum(above.values()) - 1
    below = above.get(name, 0) - (name == (own or ""))
    return own in (None, "", "none") and 0 < others == below


def _read_images(
    values: Sequence[Mapping[str, Any]], faults: FaultList
) -> dict[int, Mapping[str, Any]]:
    images: dict[int, Mapping[str, Any]] = {}
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
        else:
            images[key] = value
    return images
