"""YOLO's text files: a line `class cx cy width height` per object, as shares of the image.

images/{train,val,test}  labels/{train,val,test}   also {train,valid,test}/{images,labels}
train/*.jpg  train/*.txt                           labels beside their images
obj_train_data/*.txt, obj.data, obj.names          darknet, and CVAT's YOLO 1.1

The split is that of data.yaml (folders, lists or patterns), else of lists such as train.txt, else
of the folders. The names are in data.yaml, classes.txt or obj.names. A line may instead be a
polygon, an oriented box (read as an upright one) or, with `kpt_shape`, a box with keypoints (which
are left out).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convnext.data.formats.imported import Box, ImportedDataset, ImportedImage, ImportedObject
from convnext.data.formats.paths import FileIndex, normal, split_of_path
from convnext.data.formats.records import Fault, ReadOptions
from convnext.data.formats.yolo_config import Config, find_splits, read_config, read_text
from convnext.names import count_noun

IMAGE_FOLDERS = frozenset(["images", "image", "imgs", "img", "jpegimages"])
# Objects may extend this far beyond the image, in shares of it; they are clipped.
REACH = (-1.0, 2.0)
# Corners of a parallelogram may be off by this share of the image.
SLACK = 0.005


@dataclass(frozen=True)
class Line:
    """A line of numbers of a file of labels."""

    where: str
    number: int
    """The number of the class, as written."""
    values: tuple[float, ...]


@dataclass
class _Labels:
    """The lines of all images, and what is wrong with others."""

    lines: dict[Path, list[Line]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    """Files with a line that cannot be read."""

    def add(self, kind: str, where: str, text: str) -> None:
        self.faults.append(Fault(kind=kind, where=where, text=text))


def read_yolo(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of a folder with their objects.

    Raises:
        ValueError: If there are no images, the names of the classes are missing or ambiguous, or
            the lines can be read in two ways.
    """
    config = read_config(index, options.annotations)
    splits = find_splits(index, config)
    texts = _label_files(index)
    label_of = _pair(index, texts)
    if splits.of:
        for image, path in label_of.items():  # Some data.yaml leave the test images out.
            if path is not None and split_of_path(_relative(image, index.root)) == "test":
                splits.of.setdefault(image, "test")
        images = [image for image in index.images if image in splits.of]
    else:
        images = _of_data(index, label_of)
    if not images:
        raise ValueError(f"{index.root} has no image that belongs to a file of YOLO labels")
    labels = _Labels()
    for image in images:
        path = label_of[image]
        labels.lines[image] = [] if path is None else _read_lines(path, labels)
    kind = _kind_of(labels, config)
    _check_numbers(labels, config, index)
    number_of = {number: position for position, number in enumerate(sorted(config.names))}
    notes = [
        f"{count_noun(len(config.names), 'class', 'classes')} from {config.short(index)}",
        *splits.notes,
    ]
    bare = sum(label_of[image] is None for image in images)
    if bare:
        notes.append(f"{bare:,} of {len(images):,} images have no file of labels: no objects")
    notes += _left_out(index, images, label_of, texts)
    found = []
    for image in images:
        objects = tuple(_objects(labels.lines[image], kind, number_of, labels))
        where = str(label_of[image] or image)
        if not objects and (labels.lines[image] or where in labels.damaged):
            text = "has no line that can be read; its image is left out, rather than called empty"
            labels.add("images without a readable line", where, text)
            continue
        found.append(
            ImportedImage(file=image, where=where, split=splits.of.get(image), objects=objects)
        )
    notes += kind.notes()
    return ImportedDataset(
        kind="YOLO",
        images=found,
        classes=tuple(config.names[number] for number in sorted(config.names)),
        classes_from=config.short(index),
        split_from=splits.source,
        notes=tuple(notes),
        faults=(*splits.faults, *labels.faults),
    )


# ---- which text belongs to which image ----------------------------------------------------------


def _label_files(index: FileIndex) -> dict[str, Path]:
    """Return the texts that may be labels, by their normal path without the ending."""
    special = ("classes", "_classes", "labels", "predefined_classes", "notes", "readme", "license")
    return {
        normal(_relative(path.with_suffix(""), index.root)): path
        for path in index.with_ending(".txt")
        if normal(path.stem).split(".")[0] not in special
    }


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _pair(index: FileIndex, texts: dict[str, Path]) -> dict[Path, Path | None]:
    """Return the file of labels of every image; None for images without one.

    A text in another folder counts only if it belongs to no other image, and is of one split.
    """
    keys = {image: _find_labels(image, index, texts) for image in index.images}
    claimed = set(keys.values())
    free: dict[str, list[str]] = {}
    for key in texts.keys() - claimed:
        free.setdefault(key.rsplit("/", 1)[-1], []).append(key)
    for image, found in keys.items():
        if found is None and free:
            own = normal(_relative(image.with_suffix(""), index.root))
            split = split_of_path(own)
            near = [k for k in free.get(own.rsplit("/", 1)[-1], ()) if split_of_path(k) == split]
            keys[image] = _nearest(own.split("/")[:-1], near)
    return {image: None if key is None else texts[key] for image, key in keys.items()}


def _find_labels(image: Path, index: FileIndex, texts: dict[str, Path]) -> str | None:
    """Return the key of the labels of an image: in labels/ for images/, or beside it."""
    parts = normal(_relative(image.with_suffix(""), index.root)).split("/")
    folders, name = parts[:-1], parts[-1]
    tried = []
    for position in reversed(range(len(folders))):
        if folders[position] in IMAGE_FOLDERS:
            swapped = [*folders[:position], "labels", *folders[position + 1 :]]
            tried.append([*swapped, name])
    tried.append(parts)
    tried += [[*folders, "labels", name], ["labels", *folders, name], ["labels", name]]
    if folders:
        tried += [[*folders[:-1], "labels", name], [*folders[:-1], "labels", folders[-1], name]]
    for key in tried:
        joined = "/".join(key)
        if joined in texts:
            return joined
    return None


def _nearest(folders: Sequence[str], keys: Sequence[str]) -> str | None:
    """Return the text that shares most outer folders with an image; None if several do."""
    shared = {}
    for key in keys:
        pairs = zip(folders, key.split("/")[:-1], strict=False)
        shared[key] = next((i for i, (a, b) in enumerate(pairs) if a != b), len(folders))
    best = [key for key in keys if shared[key] == max(shared.values())]
    return best[0] if len(best) == 1 else None


def _of_data(index: FileIndex, label_of: dict[Path, Path | None]) -> list[Path]:
    """Return the images of folders that have labels; not every picture beside them is data."""
    labeled = {image.parent for image, path in label_of.items() if path is not None}
    return [
        image
        for image in index.images
        if image.parent in labeled
        or split_of_path(_relative(image, index.root))
        or normal(image.parent.name) in IMAGE_FOLDERS
    ]


def _left_out(
    index: FileIndex,
    images: Sequence[Path],
    label_of: dict[Path, Path | None],
    texts: dict[str, Path],
) -> list[str]:
    """Return notes on files that are not used."""
    taken = set(images)
    notes = []
    others = [image for image in index.images if image not in taken]
    if others:
        shown = _relative(others[0], index.root)
        notes.append(f"images that belong to no split: {len(others):,}, such as {shown}; left out")
    used = set(label_of.values())
    strays = [path for path in texts.values() if path not in used and _is_labels(path)]
    if strays:
        notes.append(
            f"files of labels without an image: {len(strays):,}, such as {strays[0]}; left out"
        )
    return notes


def _is_labels(path: Path) -> bool:
    """Tell whether a text begins with a line of labels, or is an empty file in a labels folder."""
    try:
        lines = [line for line in read_text(path).splitlines()[:3] if line.strip()]
    except ValueError:
        return False
    if not lines:
        return "labels" in normal(path.as_posix()).split("/")
    return is_label_line(lines[0])


def is_label_line(line: str) -> bool:
    """Tell whether a line is a class and at least four numbers."""
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        return False
    return len(values) >= 5 and values[0] == int(values[0]) >= 0


# ---- lines --------------------------------------------------------------------------------------


def _read_lines(path: Path, labels: _Labels) -> list[Line]:
    """Return the sound lines of a file."""
    try:
        texts = read_text(path).splitlines()
    except ValueError as error:
        labels.add("damaged files of labels", str(path), f"{error}; its objects are left out")
        labels.damaged.add(str(path))
        return []
    found = []
    for number, text in enumerate(texts, 1):
        words = text.split()
        if not words:
            continue
        where = f"{path}:{number}"
        try:
            found.append(_read_line(words, where))
        except ValueError as error:
            labels.add("damaged lines of labels", f"{where}:", f"{error}; left out")
            labels.damaged.add(str(path))
    return found


def _read_line(words: list[str], where: str) -> Line:
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        raise ValueError(f"{' '.join(words)[:60]!r} is not a line of numbers") from None
    if not np.isfinite(values).all():
        raise ValueError("has a number that is not finite")
    if values[0] != int(values[0]) or values[0] < 0:
        raise ValueError(f"class {words[0]} is not one of the classes, which count from 0")
    if len(values) < 5:
        raise ValueError(
            f"has {len(values)} numbers, not class cx cy width height, nor a class and the pairs "
            "of a polygon of three points and more"
        )
    return Line(where, int(values[0]), tuple(values[1:].tolist()))


def _check_numbers(labels: _Labels, config: Config, index: FileIndex) -> None:
    """Refuse lines that count classes from another number than the names do.

    Raises:
        ValueError: If they seem to; says both readings.
    """
    used = {line.number for lines in labels.lines.values() for line in lines}
    if not used:
        return
    names, where = config.names, config.short(index)
    if 0 in used and 0 not in names:
        raise ValueError(
            f"{where} numbers the classes from {min(names)}, but lines have class 0: either the "
            "names or the lines count from another number; give the names the numbers of the lines"
        )
    count = len(names)
    if list(names) == list(range(count)) and 0 not in used and max(used) == count:
        raise ValueError(
            f"{where} numbers the {count:,} classes from 0, but lines have classes from "
            f"{min(used)} to {count}: either the lines count from 1, or there is one class more "
            f"than names; give the names the numbers of the lines, such as {{1: {names[0]}}}"
        )


@dataclass
class _Kind:
    """What lines of more than four numbers are, decided for the whole data set."""

    keypoints: int = 0
    """How many numbers follow the box; 0 if there are no keypoints."""
    are_oriented: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        texts = {
            "keypoints": "keypoints are left out, and the boxes are read",
            "extra": "have a sixth number (a score or the number of a track); it is left out",
            "oriented": "are oriented boxes; they are read as the upright boxes around them",
        }
        nouns = {"keypoints": "objects have keypoints:", "extra": "lines", "oriented": "objects"}
        return [f"{count:,} {nouns[key]} {texts[key]}" for key, count in self.counts.items()]


def _kind_of(labels: _Labels, config: Config) -> _Kind:
    """Decide what long lines are.

    Raises:
        ValueError: If they may be boxes with keypoints, and data.yaml does not say so.
    """
    lines = [line for found in labels.lines.values() for line in found]
    if config.kpt_shape is not None:
        return _Kind(keypoints=config.kpt_shape[0] * config.kpt_shape[1])
    long = [line for line in lines if len(line.values) >= 6]
    lengths = Counter(len(line.values) for line in long)
    if long and len(lengths) == 1 and 2 * len(long) > len(lines):
        (length,) = lengths
        points = _keypoints(long, length)
        if points is not None:
            odd = "" if length % 2 else " or polygons"
            raise ValueError(
                f"{long[0].where}: the lines have {length + 1} numbers each, which are boxes with "
                f"{points[0]} keypoints{odd}: add `kpt_shape: [{points[0]}, {points[1]}]` to "
                "data.yaml to read the boxes without the keypoints"
                + (", or write polygons of different lengths" if odd else "")
            )
    are_oriented = bool(lines) and all(len(line.values) == 8 for line in lines) and _oriented(lines)
    return _Kind(are_oriented=are_oriented)


def _keypoints(lines: Sequence[Line], length: int) -> tuple[int, int] | None:
    """Return the number of keypoints and of their values, if lines look like boxes with them."""
    values = np.array([line.values for line in lines])
    if (length - 4) % 3 == 0 and length > 4:
        points = values[:, 4:].reshape(len(values), -1, 3)
        if np.isin(points[..., 2], (0, 1, 2)).all() or length % 2:
            return points.shape[1], 3
    if length % 2 == 0 and length > 8 and len(lines) >= 3:
        center, extent = values[:, None, :2], values[:, None, 2:4]
        points = values[:, 4:].reshape(len(values), -1, 2)
        is_in = (np.abs(points - center) <= extent / 2 + 0.02) | (points == 0)
        if is_in.all(-1).mean() > 0.95:
            return points.shape[1], 2
    return None


def _oriented(lines: Sequence[Line]) -> bool:
    """Tell whether lines of four points are rectangles, of which some are not upright."""
    points = np.array([line.values for line in lines]).reshape(-1, 4, 2)
    is_even = np.abs(points[:, 0] + points[:, 2] - points[:, 1] - points[:, 3]).max(1) <= SLACK
    sides = np.abs(points - np.roll(points, -1, 1))
    is_upright = (sides.min(-1) <= SLACK).all(1)
    return bool(is_even.mean() > 0.95 and not is_upright.all())


def _objects(
    lines: Sequence[Line], kind: _Kind, number_of: dict[int, int], labels: _Labels
) -> list[ImportedObject]:
    found = []
    for line in lines:
        try:
            if line.number not in number_of:
                raise ValueError(
                    f"class {line.number} is not one of the {len(number_of):,} classes "
                    f"{_listed(number_of)}"
                )
            found.append(_object(line, kind, number_of[line.number]))
        except ValueError as error:
            labels.add("damaged lines of labels", f"{line.where}:", f"{error}; left out")
    return found


def _listed(number_of: dict[int, int]) -> str:
    numbers = list(number_of)
    if numbers == list(range(len(numbers))):
        return f"from 0 to {numbers[-1]}"
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _object(line: Line, kind: _Kind, label: int) -> ImportedObject:
    """Return the object of a line.

    Raises:
        ValueError: If it is invalid; says why.
    """
    values = line.values
    if kind.keypoints and len(values) == 4 + kind.keypoints:
        kind.counts["keypoints"] += 1
        values = values[:4]
    if len(values) == 5:
        kind.counts["extra"] += 1
        values = values[:4]
    if len(values) % 2:
        raise ValueError(
            f"has {len(values) + 1} numbers, not class cx cy width height, nor a class and the "
            "pairs of a polygon of three points and more"
        )
    if max(values) > REACH[1] or min(values) < REACH[0]:
        far = max(values, key=lambda value: abs(value - 0.5))
        raise ValueError(
            f"{far:g} is not a share of the image in [0, 1]; divide pixels by its size"
        )
    box: Box
    rings: tuple[tuple[float, ...], ...] = ()
    if len(values) == 4:
        cx, cy, w, h = values
        box = (cx - w / 2, cy - h / 2, w, h)
    else:
        points = np.array(values).reshape(-1, 2)
        (x, y), (w, h) = points.min(0).tolist(), np.ptp(points, axis=0).tolist()
        box = (x, y, w, h)
        rings = () if kind.are_oriented else (values,)
        if kind.are_oriented:
            kind.counts["oriented"] += 1
    return ImportedObject(where=line.where, label=label, box=box, rings=rings, relative=True)
