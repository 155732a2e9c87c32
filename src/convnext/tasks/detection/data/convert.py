"""Conversion of Pascal VOC and YOLO to COCO JSON: `convnext data SOURCE --to coco --output DIR`.

DIR/instances_{train,val}.json    with the same categories in both, numbered from 1
DIR/images/{train,val}/           the images, as hard links where the file system supports them

Invalid files and lines are left out and reported.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from convnext.atomic import write_text
from convnext.data.formats.coco import ROUNDING
from convnext.data.formats.records import ImportedDataset, ImportedImage, ImportedObject
from convnext.data.formats.voc import Difficult, is_voc, read_voc
from convnext.data.formats.yolo import is_yolo, read_yolo
from convnext.data.images import BadImage, read_header
from convnext.data.masks import cut
from convnext.data.threads import for_each

NUM_EXAMPLES = 8
ACCEPTED = (
    "accepted are Pascal VOC (JPEGImages/ and Annotations/*.xml) and YOLO (images/ and labels/ "
    "with *.txt)"
)


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """Result of a conversion."""

    source: str
    kind: str
    """"Pascal VOC" or "YOLO"."""
    output: str
    classes: tuple[str, ...]
    num_images: dict[str, int]
    """Number of images by split; `num_objects` likewise."""
    num_objects: dict[str, int]
    linked: bool
    """Whether the images are hard links to those of the source."""
    faults: tuple[str, ...]
    """Faults, each with file and line."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print a readable report with the next commands."""
        for note in self.notes:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        for split, images in self.num_images.items():
            console.print(
                f"{self.output}/instances_{split}.json: {images:,} images with "
                f"{self.num_objects[split]:,} objects",
                markup=False,
                soft_wrap=True,
            )
        how = "hard links: editing one file edits the other" if self.linked else "copies"
        console.print(f"{self.output}/images: {how}", markup=False, soft_wrap=True)
        if self.faults:
            console.print(f"\n[bold red]faults[/]: {len(self.faults):,}")
        for line in self.faults[:NUM_EXAMPLES]:
            console.print(f"  {line}", markup=False, soft_wrap=True)
        if len(self.faults) > NUM_EXAMPLES:
            more = len(self.faults) - NUM_EXAMPLES
            console.print(f"  and {more:,} more; --json lists them all")
        console.print(
            f"\nnext: convnext data {self.output} --contact-sheet sheet.png\n"
            f"      convnext train --task detect --data {self.output}",
            markup=False,
            soft_wrap=True,
        )


def to_coco(
    path: str | Path,
    output: str | Path,
    *,
    difficult: Difficult = "keep",
    val_share: float = 0.2,
    console: Console | None = None,
) -> ConvertReport:
    """Convert a data set to COCO's format.

    Args:
        path: A folder of Pascal VOC or YOLO.
        output: A new or empty folder.
        difficult: How to treat VOC's difficult objects: "keep", "crowd" (neither trained on nor
            counted) or "drop".
        val_share: Fraction of the images to hold out if the data has no split.
        console: Console of the progress bar; None for no output.

    Raises:
        ValueError: If `path` is neither, it has no images, or `output` is not empty.
    """
    root, target = Path(path), Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty; choose another folder")
    source = open_source(root, difficult=difficult, val_share=val_share)
    faults: list[str] = []
    read = {
        split: _read(listings, f"reading {split}", faults, console)
        for split, listings in source.splits.items()
    }
    everything = [found for images in read.values() for _, _, found in images]
    classes = source.classes or tuple(
        sorted({str(found.label) for objects in everything for found in objects})
    )
    if not classes:
        shown = f"; the first fault: {faults[0]}" if faults else ""
        raise ValueError(f"{root} has no readable object{shown}")
    number_of: Mapping[str | int, int] = {
        key: number
        for number, name in enumerate(classes, 1)
        for key in ((number - 1) if source.classes else name,)
    }
    contents = {
        split: _content(images, classes, number_of, faults) for split, images in read.items()
    }
    linked = True
    for split, images in read.items():
        title = f"writing {split} images"
        linked &= _place(images, target / "images" / split, title, console)
    for split, content in contents.items():
        text = json.dumps(content, ensure_ascii=False)
        write_text(target / f"instances_{split}.json", text)
    return ConvertReport(
        source=str(path),
        kind=source.kind,
        output=str(output),
        classes=classes,
        num_images={split: len(content["images"]) for split, content in contents.items()},
        num_objects={split: len(content["annotations"]) for split, content in contents.items()},
        linked=linked,
        faults=tuple(faults),
        notes=source.notes,
    )


def open_source(
    root: Path, *, difficult: Difficult = "keep", val_share: float = 0.2
) -> ImportedDataset:
    """Open a data set by the layout of its folder.

    Raises:
        ValueError: If it has neither layout, or no images.
    """
    if not root.is_dir():
        raise ValueError(f"the folder {root} does not exist")
    if not 0 < val_share < 1:
        raise ValueError(f"val_share is {val_share}, but must be between 0 and 1")
    if is_voc(root):
        return read_voc(root, difficult=difficult, val_share=val_share)
    # VOC archives have a folder per year inside.
    inner = sorted(path for path in root.glob("*/VOC20*") if is_voc(path))
    inner += sorted(path for path in root.glob("VOC20*") if is_voc(path))
    if inner:
        raise ValueError(f"{root} is not a Pascal VOC folder, but {inner[0]} is; use that one")
    if is_yolo(root):
        return read_yolo(root, val_share=val_share)
    raise ValueError(f"{root} is in no layout that can be converted; {ACCEPTED}")


Read = tuple[ImportedImage, tuple[int, int], list[ImportedObject]]
"""An image, its (width, height), and its objects."""


def _read(
    listings: Sequence[ImportedImage], title: str, faults: list[str], console: Console | None
) -> list[Read]:
    """Read sizes and labels in threads; leave out images that cannot be read."""
    found: list[Read | None] = [None] * len(listings)
    problems: list[list[str]] = [[] for _ in listings]

    def read(index: int) -> None:
        listing = listings[index]
        try:
            header = read_header(listing.image)
        except BadImage as error:
            problems[index].append(f"{error}; left out with its objects")
            return
        size = (header.width, header.height)
        objects, problems[index] = listing.read(size)
        found[index] = listing, size, objects

    for_each(read, len(listings), title, console=console)
    faults += [line for lines in problems for line in lines]
    return [one for one in found if one is not None]


def _content(
    images: Sequence[Read],
    classes: Sequence[str],
    number_of: Mapping[str | int, int],
    faults: list[str],
) -> dict[str, Any]:
    """Return the content of a JSON file."""
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (listing, (width, height), objects) in enumerate(images, 1):
        listed.append({"id": image_id, "file_name": listing.name, "width": width, "height": height})
        for found in objects:
            box = clip(found.box, (width, height))
            if box is None:
                faults.append(
                    f"{found.where}: the box {_numbers(found.box)} (x, y, width, height) has no "
                    f"area within the image of {width} x {height}; left out"
                )
                continue
            if max(abs(a - b) for a, b in zip(box, found.box, strict=True)) > ROUNDING:
                faults.append(
                    f"{found.where}: the box {_numbers(found.box)} (x, y, width, height) extends "
                    f"beyond the image of {width} x {height}; clipped"
                )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": number_of[found.label],
                    "bbox": list(box),
                    "area": _area(found, box, (width, height)),
                    "iscrowd": int(found.crowd),
                    "segmentation": [list(found.ring)] if found.ring else [],
                    **found.extra,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"images": listed, "annotations": annotations, "categories": categories}


def clip(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
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


def _area(
    found: ImportedObject, box: tuple[float, float, float, float], size: tuple[int, int]
) -> float:
    """Return the number of pixels of a polygon, or the area of a box."""
    if found.ring:
        x, y, w, h = box
        window = (
            int(x),
            int(y),
            min(int(np.ceil(x + w)), size[0]),
            min(int(np.ceil(y + h)), size[1]),
        )
        pixels = int(cut((found.ring,), window).sum())
        if pixels:
            return float(pixels)
    return float(box[2] * box[3])


def _place(images: Sequence[Read], folder: Path, title: str, console: Console | None) -> bool:
    """Link or copy the images into a folder; return whether all are links."""
    copied = []
    for parent in {(folder / listing.name).parent for listing, _, _ in images} | {folder}:
        parent.mkdir(parents=True, exist_ok=True)

    def place(index: int) -> None:
        listing = images[index][0]
        target, origin = folder / listing.name, listing.image.resolve()
        try:
            os.link(origin, target)
        except OSError:  # Another file system, or one without hard links.
            shutil.copy2(origin, target)
            copied.append(index)

    for_each(place, len(images), title, console=console)
    return not copied


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
