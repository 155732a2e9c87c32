"""VIA's json and table (VGG Image Annotator): regions of images in one file per folder.

A project of VIA 3 is read as the entries of VIA 2 that say the same. Its regions of videos and
sounds are refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext.data.formats.coco_values import is_number
from convnext.data.formats.imported import (
    ImportedDataset,
    ImportedImage,
    ImportedObject,
    Skipped,
    box_of,
    ellipse,
    ring_of,
)
from convnext.data.formats.paths import FileIndex, split_of
from convnext.data.formats.records import ReadOptions
from convnext.data.formats.text_lists import cells_of
from convnext.data.formats.tool_json import dataset_of, folders_of_images, json_files
from convnext.data.formats.yolo_config import read_text

# Attributes that usually hold the class, the best first.
CLASS_NAMES = ("class", "label", "name", "category", "type", "object", "class_name")
ONLY_CLASS = "object"
# The columns of VIA's table.
SHAPE, LABEL = "region_shape_attributes", "region_attributes"
HEAD = 1 << 12
# Numbers of VIA 3: the shapes, the type of an image file, and attributes with options to check.
_SHAPES = {
    1: "point", 2: "rect", 3: "circle", 4: "ellipse", 5: "line", 6: "polyline", 7: "polygon",
    8: "extreme rect", 9: "extreme circle",
}  # fmt: skip
_IMAGE_FILE, _CHECKBOX = 2, 2


def regions_of(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of the images of a file; none if it is not VIA's."""
    if isinstance(content, dict) and isinstance(content.get("_via_img_metadata"), dict):
        content = content["_via_img_metadata"]
    if not isinstance(content, dict):
        return
    for value in content.values():
        if isinstance(value, dict) and isinstance(value.get("filename"), str):
            yield value


def read_via(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of VIA's files below a folder, with their objects.

    Raises:
        ValueError: If there is no such file, or several attributes could be the class.
    """
    skipped = Skipped()
    found: list[tuple[Path, Mapping[str, Any]]] = []
    for path in index.with_ending(".csv"):
        if is_via_table(read_text(path)[:HEAD].encode()):
            found += [(path, entry) for entry in _regions_of_table(path, skipped)]
    for path, content in json_files(index, skipped):
        entries = _of_project(path, content, skipped) if is_project(content) else None
        found += [(path, entry) for entry in entries or regions_of(content)]
    attribute = _class_attribute(found)
    notes = [
        f"the class is the region attribute {attribute!r}"
        if attribute
        else f"regions have no attributes, so all objects are of the class {ONLY_CLASS!r}"
    ]
    images = [_image(path, entry, attribute, index, skipped) for path, entry in found]
    return dataset_of("VIA", images, skipped, index, notes=tuple(notes))


def is_via_table(head: bytes) -> bool:
    """Tell whether a table has the columns that VIA writes."""
    return all(name in head.partition(b"\n")[0] for name in (SHAPE.encode(), LABEL.encode()))


def _regions_of_table(path: Path, skipped: Skipped) -> list[Mapping[str, Any]]:
    """Return the entries of a table as the json has them: a row is a region of an image."""
    entries: dict[str, dict[str, Any]] = {}
    header, *body = [row for row in cells_of(path, read_text(path), ",") if row]
    names = [name.strip("# ") for name in header]
    for number, cells in enumerate(body, 2):
        row = dict(zip(names, cells, strict=False))
        name = row.get("filename")
        if not name:
            skipped.add("damaged rows", f"{path}:{number}:", "needs a filename; left out")
            continue
        entry = entries.setdefault(name, {"filename": name, "regions": []})
        try:
            shape, label = (json.loads(row.get(key) or "{}") for key in (SHAPE, LABEL))
        except ValueError:
            text = f"{SHAPE} and {LABEL} must be JSON; left out"
            skipped.add("damaged rows", f"{path}:{number}:", text)
            continue
        if shape:  # An image without regions has a row with an empty one.
            entry["regions"].append({"shape_attributes": shape, "region_attributes": label})
    return list(entries.values())


def is_project(content: Any) -> bool:
    """Tell whether a json is a project of VIA 3."""
    keys = ("metadata", "file", "view", "attribute")
    return isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in keys)


def _of_project(path: Path, project: Mapping[str, Any], skipped: Skipped) -> list[dict[str, Any]]:
    """Return the entries of a project of VIA 3 as VIA 2 writes them.

    Raises:
        ValueError: If it is of videos or sounds, a view shows several files at once, or attributes
            have the same name or options without numbers.
    """
    entries: dict[str, dict[str, Any]] = {}
    for key, view in project["view"].items():
        numbers = view.get("fid_list") if isinstance(view, dict) else None
        if not isinstance(numbers, list) or len(numbers) != 1:
            raise ValueError(
                f"{path}: view {key} shows {len(numbers or ())} files at once; regions are read of "
                "views of one image"
            )
        file = project["file"].get(str(numbers[0]))
        if not isinstance(file, dict) or not isinstance(file.get("fname"), str):
            skipped.add("damaged views", f"{path}: view {key}", "names no file; left out")
            continue
        if file.get("type", _IMAGE_FILE) != _IMAGE_FILE:
            raise ValueError(
                f"{path}: {file['fname']} is a video or a sound; save the frames as images, and "
                "annotate these"
            )
        entries[str(key)] = {"filename": _name_of(file), "regions": []}
    attributes = _attributes_of(path, project)
    for key, region in project["metadata"].items():
        where = f"{path}: metadata {key}"
        if not isinstance(region, dict) or not isinstance(region.get("xy"), list):
            skipped.add("incomplete regions", where, "needs a list xy; left out")
            continue
        if region.get("z"):
            raise ValueError(f"{where} is a time in a video or a sound, not a region of an image")
        entry = entries.get(str(region.get("vid")))
        if entry is None:
            skipped.add("incomplete regions", where, "names no view that exists; left out")
        elif not region["xy"]:
            skipped.skip("note on a whole image", where)
        else:
            shape = _shape(region["xy"])
            own = _values(region.get("av"), attributes, where, skipped)
            entry["regions"].append({"shape_attributes": shape, "region_attributes": own})
    return list(entries.values())


def _name_of(file: Mapping[str, Any]) -> str:
    """Return the path of a file if the project has one, rather than its last part alone."""
    name, source = str(file["fname"]), file.get("src")
    if isinstance(source, str) and "://" not in source and source.endswith(name):
        return source
    return name


def _shape(xy: list[Any]) -> dict[str, Any]:
    """Return a shape of VIA 3, its number and coordinates, in the words of VIA 2."""
    kind = _SHAPES.get(int(xy[0]), str(xy[0])) if is_number(xy[0]) else str(xy[0])
    x, y = xy[1::2], xy[2::2]
    if kind.startswith("extreme") and _are_pairs(x, y):
        points = np.array((x, y), np.float64).T
        if kind == "extreme circle" and len(points) == 3:
            return _circle_through(points)
        left, top, width, height = box_of(points)
        return {"name": "rect", "x": left, "y": top, "width": width, "height": height}
    if kind == "polygon":
        return {"name": kind, "all_points_x": x, "all_points_y": y}
    keys = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r")}
    keys["ellipse"] = ("cx", "cy", "rx", "ry")
    return {"name": kind, **dict(zip(keys.get(kind, ()), xy[1:], strict=False))}


def _circle_through(points: NDArray[np.float64]) -> dict[str, Any]:
    """Return the circle through three points (3, 2); one without a radius if they are in line."""
    first, rest = points[0], points[1:]
    matrix, square = 2 * (rest - first), (rest**2).sum(1) - (first**2).sum()
    if abs(np.linalg.det(matrix)) < 1e-9:
        return {"name": "circle"}
    center = np.linalg.solve(matrix, square)
    radius = float(np.hypot(*(first - center)))
    return {"name": "circle", "cx": float(center[0]), "cy": float(center[1]), "r": radius}


@dataclass(frozen=True)
class _Attribute:
    """An attribute of VIA 3."""

    name: str
    is_checkbox: bool
    options: Mapping[str, Any]
    """The words of its options by their numbers; empty for free text."""


def _attributes_of(path: Path, project: Mapping[str, Any]) -> dict[str, _Attribute]:
    """Return the attributes that regions of a project use, by their numbers.

    Raises:
        ValueError: If two have the same name, or options are not listed by numbers.
    """
    values = [r.get("av") for r in project["metadata"].values() if isinstance(r, dict)]
    used = {key for value in values if isinstance(value, dict) for key in value}
    found: dict[str, _Attribute] = {}
    numbers: dict[str, str] = {}
    for key, own in project["attribute"].items():
        if key not in used or not isinstance(own, dict):
            continue
        name, options = str(own.get("aname") or key), own.get("options") or {}
        if not isinstance(options, dict):
            raise ValueError(
                f"{path}: the options of the attribute {name!r} are a {type(options).__name__}, "
                'but must be an object that names them by number, such as {"0": "cat"}'
            )
        if name in numbers:
            raise ValueError(
                f"{path}: the attributes {numbers[name]} and {key} are both called {name!r}; "
                "rename one, or remove it"
            )
        numbers[name] = key
        found[key] = _Attribute(name, own.get("type") == _CHECKBOX, options)
    return found


def _values(
    values: Any, attributes: Mapping[str, _Attribute], where: str, skipped: Skipped
) -> dict[str, Any]:
    """Return the attributes of a region by their names, with the words of their options."""
    found: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else ():
        own = attributes.get(key, _Attribute(key, False, {}))
        chosen = str(value).split(",") if own.is_checkbox else [str(value)]
        unknown = [part for part in chosen if part and own.options and part not in own.options]
        if unknown:
            text = (
                f"names the option {unknown[0]!r} of {own.name!r}, which does not exist; left out"
            )
            skipped.add("unknown options", where, text)
        elif own.is_checkbox:
            found[own.name] = {str(own.options.get(part, part)): True for part in chosen if part}
        else:
            found[own.name] = own.options.get(str(value), value)
    return found


def _regions(entry: Mapping[str, Any]) -> list[Any]:
    regions = entry.get("regions")
    if isinstance(regions, dict):
        return list(regions.values())
    return regions if isinstance(regions, list) else []


def _class_attribute(found: list[tuple[Path, Mapping[str, Any]]]) -> str:
    """Return the region attribute with the class; "" if there is none.

    Raises:
        ValueError: If there are several.
    """
    counts: Counter[str] = Counter()
    for _, entry in found:
        for region in _regions(entry):
            own = region.get("region_attributes") if isinstance(region, dict) else None
            if isinstance(own, dict):
                counts.update(key for key, value in own.items() if value not in ("", {}, None))
    if len(counts) <= 1:
        return next(iter(counts), "")
    usual = [key for key in counts if key.lower() in CLASS_NAMES]
    if len(usual) == 1:
        return usual[0]
    raise ValueError(
        f"{found[0][0]}: the class could be the region attribute "
        f"{' or '.join(map(repr, sorted(usual or counts)))}; call the one with the class 'class', "
        "or remove the others"
    )


def _image(
    path: Path, entry: Mapping[str, Any], attribute: str, index: FileIndex, skipped: Skipped
) -> ImportedImage:
    name = str(entry["filename"])
    objects = [
        found
        for number, region in enumerate(_regions(entry))
        if (found := _object(region, attribute, f"{path}: {name} region {number}", skipped))
    ]
    return ImportedImage(
        file=name,
        where=f"{path}: {name}",
        objects=tuple(objects),
        split=split_of(path.stem),
        bases=folders_of_images(path, index),
    )


def _object(region: Any, attribute: str, where: str, skipped: Skipped) -> ImportedObject | None:
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        skipped.add("incomplete regions", where, "needs shape_attributes; left out")
        return None
    label = _label(region.get("region_attributes"), attribute)
    if label is None:
        text = f"needs one value of the attribute {attribute!r}; left out"
        skipped.add("regions without a class", where, text)
        return None
    kind = str(shape.get("name"))
    names = {
        "rect": ("x", "y", "width", "height"),
        "circle": ("cx", "cy", "r"),
        "ellipse": ("cx", "cy", "rx", "ry"),
    }.get(kind, ())
    numbers = [shape.get(name) for name in names]
    if not all(map(is_number, numbers)):
        skipped.add("incomplete regions", where, f"needs {' '.join(names)}; left out")
        return None
    values = [float(number) for number in numbers if is_number(number)]
    if kind == "rect":
        x, y, w, h = values
        return ImportedObject(where=where, label=label, box=(x, y, w, h))
    if kind == "circle":
        points = ellipse(values[:2], (values[2], values[2]))
    elif kind == "ellipse":
        angle = shape.get("theta", 0)
        points = ellipse(values[:2], values[2:], np.degrees(angle) if is_number(angle) else 0)
    elif kind == "polygon":
        x_all, y_all = shape.get("all_points_x"), shape.get("all_points_y")
        if not _are_pairs(x_all, y_all):
            text = "needs all_points_x and all_points_y of three points and more; left out"
            skipped.add("incomplete regions", where, text)
            return None
        points = np.array((x_all, y_all), np.float64).T
    else:
        skipped.skip(kind, where)
        return None
    return ImportedObject(where=where, label=label, box=box_of(points), rings=(ring_of(points),))


def _are_pairs(x: Any, y: Any) -> bool:
    return (
        isinstance(x, list)
        and isinstance(y, list)
        and len(x) == len(y) >= 3
        and all(map(is_number, [*x, *y]))
    )


def _label(attributes: Any, attribute: str) -> str | None:
    """Return the class of a region: a text, or the one option that is checked."""
    if not attribute:
        return ONLY_CLASS
    value = attributes.get(attribute) if isinstance(attributes, dict) else None
    if isinstance(value, dict):
        chosen = [key for key, is_on in value.items() if is_on]
        value = chosen[0] if len(chosen) == 1 else None
    return str(value).strip() if isinstance(value, str | int) and str(value).strip() else None
