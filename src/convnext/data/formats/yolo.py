"""YOLO's text files: a line `class cx cy width height` per object, as shares of the image.

images/{train,val}   labels/{train,val}     the names in data.yaml, another *.yaml, or classes.txt
{train,valid}/images {train,valid}/labels   the same, as exported by labeling tools
images               labels                 without a split: a share is held out

A line may instead be `class x0 y0 x1 y1 x2 y2 ...`, a polygon.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from convnext.data.formats.coco import is_whole
from convnext.data.formats.coco_layout import SPLITS
from convnext.data.formats.records import ImportedDataset, ImportedImage, ImportedObject
from convnext.data.images import readable_extensions
from convnext.data.samples import held_out

MAX_BYTES = 16 * 2**20
# Shares may extend beyond the image because of rounding.
TOLERANCE = 0.01
# Decimal digits of a pixel, given shares with six digits.
DIGITS = 3


def is_yolo(root: Path) -> bool:
    """Tell whether a folder is in one of these layouts."""
    return any(labels.is_dir() for _, labels in _folders(root, "train").values())


def read_yolo(root: Path, *, val_share: float = 0.2) -> ImportedDataset:
    """List the images of a folder; their objects are read one by one.

    Raises:
        ValueError: If there are no images, or the names of the classes are missing or ambiguous.
    """
    classes, names_file = read_names(root)
    notes = [f"{len(classes):,} classes from {names_file.relative_to(root)}"]
    splits: dict[str, tuple[ImportedImage, ...]] = {}
    for split in SPLITS:
        for name, (images, labels) in _folders(root, split).items():
            if images.is_dir() and name:
                splits[split] = _listings(images, labels, classes)
                if name == "test":
                    notes.append("the folder `test` is used for validation")
                break
    if "train" not in splits:
        flat = _listings(root / "images", root / "labels", classes)
        held = held_out([listing.name for listing in flat], val_share)
        splits = {
            part: tuple(listing for listing in flat if (listing.name in held) is out)
            for part, out in (("train", False), ("val", True))
        }
        notes.append(
            f"there is no split: {len(held):,} of {len(flat):,} images, chosen by their names, "
            "are held out for validation"
        )
    if not any(splits.values()):
        raise ValueError(f"{root} has no image in images/ that can be read")
    for listings in splits.values():
        bare = sum(not listing.labels.exists() for listing in listings)
        if bare:
            notes.append(f"{bare:,} of {len(listings):,} images have no file of labels: no objects")
    notes += _unmatched_labels(splits)
    return ImportedDataset(kind="YOLO", splits=splits, classes=classes, notes=tuple(notes))


def read_names(root: Path) -> tuple[tuple[str, ...], Path]:
    """Return the names of the classes, and the file that lists them.

    Raises:
        ValueError: If there is no such file, or it is invalid.
    """
    for file in [root / "data.yaml", *sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml"))]:
        if not file.is_file():
            continue
        try:
            content = yaml.safe_load(_read(file))
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            raise ValueError(f"{file}{line}: is not YAML; correct it") from error
        if isinstance(content, dict) and "names" in content:
            return _names(content["names"], file), file
    candidates = [root / "classes.txt", root / "labels" / "classes.txt", root / "obj.names"]
    for file in candidates:
        if file.is_file():
            lines = [line.strip() for line in _read(file).splitlines()]
            while lines and not lines[-1]:
                lines.pop()
            return _names(lines, file), file
    raise ValueError(
        f"{root} does not say what its classes are called; write a classes.txt with one name per "
        "line, or a data.yaml with `names`"
    )


def read_objects(
    path: Path, size: tuple[int, int], num_classes: int
) -> tuple[list[ImportedObject], list[str]]:
    """Return the objects of a file for an image of `size` (width, height), and the faults."""
    if not path.exists():
        return [], []
    try:
        lines = _read(path).splitlines()
    except ValueError as error:
        return [], [f"{error}; its objects are left out"]
    found, faults = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_object(line.split(), f"{path}:{number}", size, num_classes))
            except ValueError as error:
                faults.append(f"{path}:{number}: {error}; left out")
    return found, faults


def _object(
    words: list[str], where: str, size: tuple[int, int], num_classes: int
) -> ImportedObject:
    """Return the object of a line.

    Raises:
        ValueError: If it is invalid; the message says why.
    """
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        raise ValueError(f"{' '.join(words)[:60]!r} is not a line of numbers") from None
    if not np.isfinite(values).all():
        raise ValueError("has a number that is not finite")
    label = int(values[0])
    if label != values[0] or not 0 <= label < num_classes:
        raise ValueError(
            f"class {words[0]} is not one of the {num_classes:,} classes from 0 to "
            f"{num_classes - 1}"
        )
    if len(values) == 6:
        raise ValueError(
            "has six numbers: labels have five (class cx cy width height), detections also a score"
        )
    if len(values) < 5 or len(values) % 2 == 0:
        raise ValueError(
            f"has {len(values)} numbers, not class cx cy width height, nor a class and the pairs "
            "of a polygon of three points and more"
        )
    shares = values[1:]
    if shares.min() < -TOLERANCE or shares.max() > 1 + TOLERANCE:
        raise ValueError(
            f"{shares.max():g} is not a share of the image in [0, 1]; divide pixels by its size"
            if shares.max() > 1 + TOLERANCE
            else f"{shares.min():g} is not a share of the image in [0, 1]"
        )
    sides = np.array(size, np.float64)
    if len(shares) == 4:
        corner, extent = (shares[:2] - shares[2:] / 2) * sides, shares[2:] * sides
        ring: tuple[float, ...] = ()
    else:
        points = (shares.reshape(-1, 2) * sides).round(DIGITS)
        corner, extent = points.min(0), np.ptp(points, axis=0)
        ring = tuple(points.ravel().tolist())
    x, y, w, h = np.concatenate((corner, extent)).round(DIGITS).tolist()
    return ImportedObject(where=where, label=label, box=(x, y, w, h), ring=ring)


def _folders(root: Path, split: str) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and labels of a split, by the name of the split's folder."""
    found = {}
    for name in SPLITS[split]:
        nested = (root / name / "images", root / name / "labels")
        usual = (root / "images" / name, root / "labels" / name)
        found[name] = nested if nested[1].is_dir() else usual
    return found | {"": (root / "images", root / "labels")}


def _listings(images: Path, labels: Path, classes: tuple[str, ...]) -> tuple[ImportedImage, ...]:
    endings = readable_extensions()

    def of(path: Path) -> ImportedImage:
        name = path.relative_to(images)
        file = (labels / name).with_suffix(".txt")
        return ImportedImage(
            image=path,
            name=name.as_posix(),
            labels=file,
            read=lambda size: read_objects(file, size, len(classes)),
        )

    return tuple(
        of(path)
        for path in sorted(images.rglob("*"))
        if path.suffix.lower() in endings and not path.name.startswith(".")
    )


def _unmatched_labels(splits: dict[str, tuple[ImportedImage, ...]]) -> list[str]:
    """Return notes on files of labels without an image."""
    known = {listing.labels for listings in splits.values() for listing in listings}
    folders = {path.parent for path in known if path.parent.is_dir()}
    found = sorted(
        path
        for folder in folders
        for path in folder.glob("*.txt")
        if path not in known and path.name != "classes.txt"
    )
    if not found:
        return []
    return [f"files of labels without an image: {len(found):,}, such as {found[0]}; left out"]


def _names(value: Any, file: Path) -> tuple[str, ...]:
    """Return names by their numbers.

    Raises:
        ValueError: If they are not names numbered from 0.
    """
    if isinstance(value, dict):
        if sorted(value, key=str) != sorted(range(len(value)), key=str) or not all(
            is_whole(key) for key in value
        ):
            raise ValueError(f"{file}: the numbers of `names` must be 0, 1, 2 and so on")
        value = [value[number] for number in range(len(value))]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{file}: `names` must list the names of the classes")
    if not all(isinstance(name, str | int) for name in value):
        raise ValueError(f"{file}: `names` must be words, not lists")
    names = tuple(str(name) for name in value)
    twice = next((name for name in names if not name or names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file}: the class name {twice!r} is empty or a duplicate")
    return names


def _read(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ValueError: If it cannot be read, or is far too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path}: is larger than {MAX_BYTES >> 20} MB, too large for labels")
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from error
