"""Imported annotations: the common form of all formats but COCO's json, and how it becomes records.

A reader lists images and their objects as they are written. What all formats share is done here:
images are found and their headers read, shares become pixels, boxes are clipped, the EXIF
orientation is applied, and classes get their numbers. Shapes of labeling tools become boxes,
polygons and run lengths.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext.data.formats.coco_objects import ROUNDING
from convnext.data.formats.coco_values import is_number
from convnext.data.formats.located import (
    OFF_BY,
    Locator,
    Size,
    Stored,
    Turns,
    read_headers,
    turn_objects,
)
from convnext.data.formats.paths import FileIndex, split_of_path
from convnext.data.formats.records import (
    Fault,
    FaultList,
    Objects,
    ReadOptions,
    Record,
    Split,
    no_objects,
    objects_of,
)
from convnext.data.images import as_mode, opened
from convnext.data.masks import Mask, area_of, cut, encode, is_flat

Box = tuple[float, float, float, float]
# Decimal digits of a pixel, given shares with six digits.
DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class ImportedObject:
    """An object as a file has it."""

    where: str
    """Its file and line, or its number in the file."""
    label: str | int
    """The name of its class, or its position if the data set lists names."""
    box: Box
    """x, y, width, height; it may extend beyond the image."""
    rings: tuple[tuple[float, ...], ...] = ()
    """Polygons x0 y0 x1 y1 ...; none for an object with only a box."""
    runs: Mapping[str, Any] | None = None
    """COCO's run lengths of its mask."""
    relative: bool = False
    """Whether box and polygons are shares of the image's size instead of pixels."""
    crowd: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other entries of its annotation."""


@dataclass(frozen=True, kw_only=True)
class ImportedImage:
    """An image as a file has it."""

    file: str | Path
    """Its name in the annotations, or its path if the reader has found it."""
    where: str
    """The file and line or number of its annotations."""
    objects: Sequence[ImportedObject] = ()
    split: Split | None = None
    """The split that the data states for it."""
    size: Size | None = None
    """(width, height) as the annotations state them."""
    labels: tuple[str, ...] = ()
    """The classes of the whole image."""
    bases: tuple[Path, ...] = ()
    """Folders where it may be, the best first."""


@dataclass(frozen=True, kw_only=True)
class ImportedDataset:
    """A data set in one of these formats."""

    kind: str
    images: Sequence[ImportedImage]
    classes: tuple[str, ...] | None = None
    """None if the classes are the names that occur in the annotations."""
    classes_from: str = "the annotations"
    split_from: str = ""
    """Where the split comes from, if the format states it; the folders otherwise."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how it was read."""
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ObjectSource:
    """The records of a data set before the split is made."""

    kind: str
    root: Path
    """The folder that the names of the records are relative to."""
    records: tuple[Record, ...]
    splits: tuple[Split | None, ...]
    """The split of each record, as the data states it."""
    split_from: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    faults: tuple[Fault, ...]


def to_records(dataset: ImportedDataset, index: FileIndex, options: ReadOptions) -> ObjectSource:
    """Return the records of a data set."""
    faults = FaultList(list(dataset.faults))
    found, notes = _find(dataset, index, faults)
    paths = {str(path): path for _, path in found}
    headers, bad = read_headers(paths)
    for error in bad.values():
        faults.add("images that cannot be read", error.source, f"{error.reason}; left out")
    images = [(image, path) for image, path in found if str(path) in headers]
    turns = Turns(options.exif)
    turned = turns.decide(headers, {str(path): image.size for image, path in images})
    faults.found += turns.faults()
    classes, label_of = _classes(dataset)
    records, splits = [], []
    numbers = iter(range(1, 1 << 62))
    for number, (image, path) in enumerate(images, 1):
        stored = headers[str(path)]
        drawn_on = _size(image, stored, faults, turned=str(path) in turned)
        objects, extras = _objects(image.objects, drawn_on, label_of, numbers, faults)
        if str(path) in turned:
            objects = turn_objects(objects, stored)
        name = _name(path, index)
        records.append(
            Record(
                id=number,
                file_name=name,
                width=stored.upright[0],
                height=stored.upright[1],
                objects=objects,
                labels=image.labels,
                where=image.where,
                extras=extras,
            )
        )
        splits.append(image.split if dataset.split_from else split_of_path(name))
    return ObjectSource(
        kind=dataset.kind,
        root=index.root,
        records=tuple(records),
        splits=tuple(splits),
        split_from=dataset.split_from or "the folders",
        classes=classes,
        notes=(*dataset.notes, *notes),
        faults=tuple(faults.found),
    )


def _find(
    dataset: ImportedDataset, index: FileIndex, faults: FaultList
) -> tuple[list[tuple[ImportedImage, Path]], list[str]]:
    """Return the images that exist, each once with all its objects."""
    locators: dict[tuple[Path, ...], Locator] = {}
    by_path: dict[Path, ImportedImage] = {}
    for image in dataset.images:
        if isinstance(image.file, Path):
            path: Path | None = image.file
        else:
            bases = image.bases or (index.root,)
            locator = locators.setdefault(bases, Locator(index, bases))
            path = locator.find(image.file, image.where)
        if path is None:
            text = f"names the image {image.file}, which is not below {index.root}; left out"
            faults.add("missing image files", image.where, f"{text} with its objects")
        elif path in by_path:
            first = by_path[path]
            text = f"is about {path.name}, like {first.where}; their objects are put together"
            faults.add("images listed more than once", image.where, text)
            by_path[path] = replace(first, objects=(*first.objects, *image.objects))
        else:
            by_path[path] = image
    how: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for locator in locators.values():
        faults.found += locator.ambiguous
        how.update(locator.how)
        examples = locator.examples | examples
    notes = [
        f"{count:,} file names differ from the files by {name}, such as {examples[name]}"
        for name, count in how.items()
    ]
    return [(image, path) for path, image in by_path.items()], notes


def _name(path: Path, index: FileIndex) -> str:
    return path.relative_to(index.root).as_posix() if path.is_relative_to(index.root) else str(path)


def _classes(dataset: ImportedDataset) -> tuple[tuple[str, ...], dict[str | int, int]]:
    """Return the classes, and the number of every label that occurs."""
    if dataset.classes is None:
        used = {str(found.label) for image in dataset.images for found in image.objects}
        names = tuple(sorted(used))
        return names, {name: number for number, name in enumerate(names)}
    names = dataset.classes
    numbers: dict[str | int, int] = {number: number for number in range(len(names))}
    return names, numbers | {name: number for number, name in enumerate(names)}


def _size(image: ImportedImage, stored: Stored, faults: FaultList, *, turned: bool) -> Size:
    """Return the (width, height) that the objects were drawn on."""
    size = (stored.width, stored.height) if turned else stored.upright
    if image.size in (None, size):
        return size
    assert image.size is not None
    both = f"says {image.size[0]} x {image.size[1]} pixels, but the image has {size[0]} x {size[1]}"
    if all(abs(a - b) <= OFF_BY for a, b in zip(image.size, size, strict=True)):
        faults.add("image sizes off by a pixel or two", image.where, f"{both}; the file counts")
    elif image.objects:
        text = f"{both}; were the boxes drawn on another size? They are kept"
        faults.add("images whose size differs from the annotations", image.where, text)
    return size


def _objects(
    objects: Sequence[ImportedObject],
    size: Size,
    label_of: Mapping[str | int, int],
    numbers: Any,
    faults: FaultList,
) -> tuple[Objects, tuple[Mapping[str, Any], ...]]:
    """Return the objects of an image, clipped to it, and their other entries."""
    kept: list[tuple[int, Box, int, float, bool, Mask | None]] = []
    extras: list[Mapping[str, Any]] = []
    seen: set[tuple[Any, ...]] = set()
    for found in objects:
        box, rings = _pixels(found, size)
        clipped = clip(box, size)
        shown = ", ".join(f"{value:g}" for value in box)
        of_image = f"the image of {size[0]} x {size[1]}"
        if clipped is None:
            text = f"the box {shown} (x, y, width, height) has no area within {of_image}; left out"
            faults.add("box without area in the image", f"{found.where}:", text)
            continue
        if max(abs(a - b) for a, b in zip(clipped, box, strict=True)) > ROUNDING:
            text = f"the box {shown} (x, y, width, height) extends beyond {of_image}; clipped"
            faults.add("box over the border", f"{found.where}:", text)
        key = (found.label, box, rings, repr(found.runs))
        if key in seen:
            text = "repeats an object of the image: class, box and mask are equal; left out"
            faults.add("objects listed twice", f"{found.where}:", text)
            continue
        seen.add(key)
        mask = _mask(found, rings, size, faults)
        corners = (clipped[0], clipped[1], clipped[0] + clipped[2], clipped[1] + clipped[3])
        area = _area(mask, clipped, size)
        extras.append(found.extra)
        kept.append((next(numbers), corners, label_of[found.label], area, found.crowd, mask))
    if not kept:
        return no_objects(), ()
    return objects_of(kept), tuple(extras) if any(extras) else ()


def _pixels(found: ImportedObject, size: Size) -> tuple[Box, tuple[tuple[float, ...], ...]]:
    if not found.relative:
        return found.box, found.rings
    sides = np.array(size, np.float64)
    x, y, w, h = (np.array(found.box).reshape(2, 2) * sides).round(DIGITS).ravel().tolist()
    rings = tuple(
        tuple((np.array(ring).reshape(-1, 2) * sides).round(DIGITS).ravel().tolist())
        for ring in found.rings
    )
    return (x, y, w, h), rings


def _mask(
    found: ImportedObject, rings: tuple[tuple[float, ...], ...], size: Size, faults: FaultList
) -> Mask | None:
    if found.runs is not None:
        if tuple(found.runs["size"]) != (size[1], size[0]):
            text = "has a mask of another size than its image; its box is kept"
            faults.add("mask of another size", f"{found.where}:", text)
            return None
        return found.runs
    whole = [ring for ring in rings if not is_flat(ring)]
    if len(whole) < len(rings):
        text = "has a polygon whose points lie on one line; it is left out, and the box is kept"
        faults.add("empty mask", f"{found.where}:", text)
    return tuple(np.array(ring, np.float64) for ring in whole) or None


def clip(box: Box, size: Size) -> Box | None:
    """Clip a box (x, y, width, height) to an image; None if nothing is left."""
    x, y, w, h = box
    if not all(map(np.isfinite, box)) or w <= 0 or h <= 0:
        return None
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, size[0]), min(y + h, size[1])
    if x2 <= x1 or y2 <= y1:
        return None
    if (x1, y1) == (x, y) and x + w <= size[0] and y + h <= size[1]:
        return box  # Without rounding errors.
    return x1, y1, x2 - x1, y2 - y1


def _area(mask: Mask | None, box: Box, size: Size) -> float:
    """Return the number of pixels of a mask, or the area of a box."""
    x, y, w, h = box
    pixels = 0
    if isinstance(mask, Mapping):
        pixels = area_of(mask, size[::-1])
    elif mask is not None:
        right, bottom = min(int(np.ceil(x + w)), size[0]), min(int(np.ceil(y + h)), size[1])
        pixels = int(cut(mask, (int(x), int(y), right, bottom)).sum())
    return float(pixels or w * h)


# Corners of the polygon that stands for a circle or an ellipse.
NUM_CORNERS = 48
# Of a JSON file of a labeling tool.
MAX_BYTES = 512 * 2**20

Ring = tuple[float, ...]


@dataclass
class Skipped:
    """Faults of shapes, and the number of those without an area, such as points and lines."""

    faults: list[Fault] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, where: str, text: str, *, fatal: bool = False) -> None:
        """Add a fault."""
        self.faults.append(Fault(kind=kind, where=where, text=text, fatal=fatal))

    def listed(self, value: Any, where: str) -> list[Any]:
        """Return a list of a json; [] and a fault for another value, apart from null."""
        if value is not None and not isinstance(value, list):
            text = f"has a {type(value).__name__} where a list belongs; read as an empty one"
            self.add("values that are not lists", where, text)
        return value if isinstance(value, list) else []

    def skip(self, kind: str, where: str) -> None:
        """Count a shape that is not an object."""
        self.kinds[kind] += 1
        self.first.setdefault(kind, where)

    def all(self) -> tuple[Fault, ...]:
        """Return all faults."""
        return (
            *self.faults,
            *(
                Fault(
                    kind=f"shapes of the kind {kind!r}",
                    where=self.first[kind],
                    text="is not an object with an area; left out",
                    count=count,
                )
                for kind, count in self.kinds.items()
            ),
        )


def points_of(values: Any) -> NDArray[np.float64] | None:
    """Return points (N, 2) from a list of pairs; None if it is not one."""
    if not isinstance(values, list) or not values:
        return None
    if not all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
        for point in values
    ):
        return None
    return np.array(values, np.float64)


def box_of(points: NDArray[np.float64]) -> Box:
    """Return the upright box (x, y, width, height) around points."""
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return x1, y1, x2 - x1, y2 - y1


def ring_of(points: NDArray[np.float64]) -> Ring:
    """Return points as a polygon."""
    return tuple(points.ravel().tolist())


def ellipse(
    center: Sequence[float], radii: Sequence[float], degrees: float = 0.0
) -> NDArray[np.float64]:
    """Return the corners (N, 2) of a polygon with the area of an ellipse."""
    angles = np.arange(NUM_CORNERS) * (2 * math.pi / NUM_CORNERS)
    # The polygon lies inside of the ellipse; a little larger, it has the same area.
    grow = math.sqrt(2 * math.pi / (NUM_CORNERS * math.sin(2 * math.pi / NUM_CORNERS)))
    points = np.stack((radii[0] * np.cos(angles), radii[1] * np.sin(angles)), 1) * grow
    return turn(points, degrees) + np.asarray(center, np.float64)


def turn(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Return points turned clockwise around the origin, as seen on an image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray(points @ np.array(((cos, sin), (-sin, cos))))


def bitmap_of(data: bytes, source: str) -> NDArray[np.uint8]:
    """Return the bitmap (H, W) of a small picture in a json.

    It has the opaque pixels if some are transparent, whatever their color; else those that are not
    black.

    Raises:
        BadImage: If it cannot be read.
    """
    with opened(data, source=source) as image:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        is_clear = image.has_transparency_data and alpha.min() == 0
        found = alpha > 0 if is_clear else np.asarray(as_mode(image, "RGB")).max(-1) > 0
        return found.astype(np.uint8)


def runs_of(bitmap: NDArray[np.uint8], corner: tuple[int, int], size: tuple[int, int]) -> Any:
    """Return COCO's run lengths of a bitmap whose corner is at (x, y) of an image (width, height).

    The part outside the image is cut off.
    """
    (x, y), (width, height) = corner, size
    left, top = max(-x, 0), max(-y, 0)
    part = bitmap[top : max(height - y, 0), left : max(width - x, 0)]
    x, y = max(x, 0), max(y, 0)
    window = (x, y, x + part.shape[1], y + part.shape[0])
    return encode(part, window, (height, width))
