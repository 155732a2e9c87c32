"""Boxes in texts that are not YOLO's: Roboflow's list, WIDER FACE, KITTI, DOTA and VisDrone.

_annotations.txt         `image.jpg x1,y1,x2,y2,class x1,y1,x2,y2,class ...`, names in _classes.txt
*_bbx_gt.txt             WIDER FACE: the image, the number of boxes, and `x y width height ...`
label_2/ID.txt           KITTI: `Car 0.0 0 -1.5 x1 y1 x2 y2 ...`, with image_2/ID.png
labelTxt/ID.txt          DOTA: four corners, a name and a difficulty
annotations/ID.txt       VisDrone: `x,y,width,height,score,class,truncation,occlusion`
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convnext.data.formats.imported import (
    ImportedDataset,
    ImportedImage,
    ImportedObject,
    Skipped,
    box_of,
)
from convnext.data.formats.paths import FileIndex, split_of
from convnext.data.formats.records import ReadOptions
from convnext.data.formats.yolo_config import read_text
from convnext.data.images import readable_extensions

TEXT, NAMES = "_annotations.txt", "_classes.txt"
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"
_BOX = re.compile(rf"(?:{_NUMBER},){{4}}\d+", re.ASCII)


def read_keras(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of `_annotations.txt` files, with their objects.

    Raises:
        ValueError: If the names of the classes are missing, or differ between folders.
    """
    skipped = Skipped()
    files = [path for path in index.with_ending(".txt") if path.name.lower() == TEXT]
    lists = {path.parent: _names(path.parent) for path in files}
    named = {folder: names for folder, names in lists.items() if names}
    if not named:
        raise ValueError(f"{files[0].parent} has no {NAMES}; write it, with one name per line")
    if len(set(named.values())) > 1:
        raise ValueError(f"the {NAMES} in {' and '.join(map(str, named))} differ")
    names = next(iter(named.values()))
    images: list[ImportedImage] = []
    for path in files:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip():
                images.append(_line(line.strip(), path, number, len(names), skipped))
    return ImportedDataset(
        kind="Roboflow text",
        images=images,
        classes=names,
        classes_from=NAMES,
        faults=skipped.all(),
    )


def _names(folder: Path) -> tuple[str, ...]:
    path = folder / NAMES
    if not path.is_file():
        return ()
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return tuple(name.strip() for line in lines for name in line.split(","))


def _line(line: str, path: Path, number: int, count: int, skipped: Skipped) -> ImportedImage:
    words = line.split(" ")
    boxes: list[str] = []
    while len(words) > 1 and _BOX.fullmatch(words[-1]):
        boxes.insert(0, words.pop())
    where = f"{path}:{number}"
    objects = []
    for box in boxes:
        x1, y1, x2, y2, label = (float(value) for value in box.split(","))
        if int(label) >= count:
            text = f"class {int(label)} is not one of the {count:,} classes in {NAMES}; left out"
            skipped.add("unknown classes", f"{where}:", text)
            continue
        corners = (min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1))
        objects.append(ImportedObject(where=where, label=int(label), box=corners))
    return ImportedImage(
        file=" ".join(words), where=where, objects=tuple(objects), bases=(path.parent,)
    )


# ---- a text per image --------------------------------------------------------------------------

VISDRONE = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus",
    "motor",
)  # fmt: skip
# KITTI's regions without labels.
DONT_CARE = "DontCare"
_IMAGE_FOLDERS = ("image_2", "images", "image", "img", "JPEGImages")


@dataclass
class _Lines:
    """What the lines of a format hold, and what was left out of them."""

    skipped: Skipped = field(default_factory=Skipped)
    left_out: Counter[str] = field(default_factory=Counter)
    num_oriented: int = 0


_Parse = Callable[[str, str, _Lines], ImportedObject | None]


def text_layout(path: Path, head: bytes) -> str:
    """Return the layout of a text by its first lines; "" if it is none of these."""
    if path.name.lower() == TEXT:
        return "roboflow-text"
    lines = [line.strip() for line in head.decode("utf-8-sig", "replace").splitlines()]
    lines = [line for line in lines if line]
    if len(lines) > 2 and _is_image(lines[0]) and lines[1].isdecimal() and _wider(lines[2]):
        return "wider-face"
    if lines and lines[0].lower().startswith(("imagesource:", "gsd:")):
        return "dota"
    first = lines[0] if lines else ""
    if _kitti_values(first):
        return "kitti"
    if _dota_values(first):
        return "dota"
    return "visdrone" if _visdrone_values(first) else ""


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in readable_extensions()


def _floats(words: list[str]) -> list[float]:
    """Return words as numbers; [] if one is not."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return []
    return values if np.isfinite(values).all() else []


def _wider(line: str) -> list[float]:
    values = _floats(line.split())
    return values if len(values) >= 4 else []


def _kitti_values(line: str) -> list[float]:
    words = line.split()
    is_named = len(words) in (15, 16) and not _floats(words[:1])
    return _floats(words[1:]) if is_named else []


def _dota_values(line: str) -> list[float]:
    words = line.split()
    is_named = len(words) in (9, 10) and not _floats(words[8:9])
    return _floats(words[:8]) if is_named else []


def _visdrone_values(line: str) -> list[float]:
    words = line.rstrip(",").split(",")
    values = _floats(words) if len(words) == 8 else []
    is_row = len(values) == 8 and all(value == int(value) for value in values)
    return values if is_row and values[4] in (0, 1) and 0 <= values[5] <= 11 else []


def _kitti(line: str, where: str, lines: _Lines) -> ImportedObject | None:
    values = _kitti_values(line)
    if not values:
        lines.skipped.add("damaged lines", f"{where}:", "is not a line of KITTI; left out")
        return None
    name = line.split()[0]
    if name == DONT_CARE:
        lines.left_out[f"regions {DONT_CARE}"] += 1
        return None
    x1, y1, x2, y2 = values[3:7]
    return ImportedObject(where=where, label=name, box=(x1, y1, x2 - x1, y2 - y1))


def _dota(line: str, where: str, lines: _Lines) -> ImportedObject | None:
    if line.lower().startswith(("imagesource:", "gsd:")):
        return None
    values = _dota_values(line)
    if not values:
        lines.skipped.add("damaged lines", f"{where}:", "is not a line of DOTA; left out")
        return None
    words = line.split()
    lines.num_oriented += 1
    is_difficult = words[9:] == ["1"]
    return ImportedObject(
        where=where,
        label=words[8],
        box=box_of(np.array(values).reshape(4, 2)),
        extra={"difficult": 1} if is_difficult else {},
    )


def _visdrone(line: str, where: str, lines: _Lines) -> ImportedObject | None:
    values = _visdrone_values(line)
    if not values:
        lines.skipped.add("damaged lines", f"{where}:", "is not a line of VisDrone; left out")
        return None
    label = int(values[5])
    if not 1 <= label <= len(VISDRONE) or not values[4]:
        lines.left_out["regions to ignore and others"] += 1
        return None
    x, y, w, h = values[:4]
    return ImportedObject(where=where, label=label - 1, box=(x, y, w, h))


def read_kitti(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of KITTI's labels, with their objects; raises like `_read_texts`."""
    return _read_texts("KITTI", "kitti", _kitti, index)


def read_dota(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of DOTA's labels, with their objects; raises like `_read_texts`."""
    return _read_texts("DOTA", "dota", _dota, index)


def read_visdrone(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of VisDrone's annotations, with their objects; raises like `_read_texts`."""
    return _read_texts("VisDrone", "visdrone", _visdrone, index, VISDRONE)


def _read_texts(
    kind: str, layout: str, parse: _Parse, index: FileIndex, names: tuple[str, ...] | None = None
) -> ImportedDataset:
    """List the images of texts, one for each image.

    Raises:
        ValueError: If there are none.
    """
    lines = _Lines()
    images = []
    folders = set()
    for path in index.with_ending(".txt"):
        text = read_text(path)
        is_one = text_layout(path, text[:4096].encode()) == layout
        if not is_one and (text.strip() or path.parent not in folders):
            continue
        folders.add(path.parent)
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                found.append(parse(line.strip(), f"{path}:{number}", lines))
        images.append(
            ImportedImage(
                file=f"{path.stem}.png",
                where=str(path),
                objects=tuple(one for one in found if one is not None),
                bases=_folders_of_images(path),
            )
        )
    if not images:
        raise ValueError(f"{index.root} has no texts of {kind}")
    notes = [f"{count:,} {what} are left out" for what, count in lines.left_out.items()]
    if lines.num_oriented:
        notes.append(
            f"{lines.num_oriented:,} boxes of four corners are read as the upright boxes around "
            "them"
        )
    return ImportedDataset(
        kind=kind,
        images=images,
        classes=names,
        classes_from=f"the list of {kind}" if names else "the annotations",
        notes=tuple(notes),
        faults=lines.skipped.all(),
    )


def _folders_of_images(path: Path) -> tuple[Path, ...]:
    beside = [path.parent.parent / name for name in _IMAGE_FOLDERS]
    return (*(folder for folder in beside if folder.is_dir()), path.parent, path.parent.parent)


def read_wider(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of WIDER FACE's lists, with their faces.

    Raises:
        ValueError: If a list is damaged.
    """
    skipped = Skipped()
    images = []
    for path in index.with_ending(".txt"):
        text = read_text(path)
        if text_layout(path, text[:4096].encode()) != "wider-face":
            continue
        words = path.stem.lower().split("_")
        split = next((found for word in words if (found := split_of(word))), None)
        lines = [line.strip() for line in text.splitlines()]
        position = 0
        while position < len(lines):
            if not lines[position]:
                position += 1
                continue
            where = f"{path}:{position + 1}"
            count = lines[position + 1] if position + 1 < len(lines) else ""
            if not _is_image(lines[position]) or not count.isdecimal():
                raise ValueError(
                    f"{where}: must be the name of an image, with the number of its faces in the "
                    "next line"
                )
            faces = []
            # An image without faces has one line of zeros.
            for number in range(position + 2, position + 2 + max(int(count), 1)):
                values = _wider(lines[number]) if number < len(lines) else []
                if int(count) and not values:
                    text_of = "is not `x y width height ...`; left out"
                    skipped.add("damaged lines", f"{path}:{number + 1}:", text_of)
                elif int(count):
                    x, y, w, h = values[:4]
                    box = (x, y, w, h)
                    faces.append(
                        ImportedObject(where=f"{path}:{number + 1}", label="face", box=box)
                    )
            images.append(
                ImportedImage(
                    file=lines[position],
                    where=where,
                    objects=tuple(faces),
                    split=split,
                    bases=(*sorted(index.root.glob("*/images")), index.root),
                )
            )
            position += 2 + int(count)
            # A line of zeros after a count of 0.
            if not int(count) and position < len(lines) and not _is_image(lines[position]):
                position += 1
    splits = {image.split for image in images}
    return ImportedDataset(
        kind="WIDER FACE",
        images=images,
        split_from="the names of the lists" if "train" in splits and len(splits) > 1 else "",
        faults=skipped.all(),
    )
