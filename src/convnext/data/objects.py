"""Images with objects: the classes, boxes and masks of a data set, and facts about them.

Detection trains on them, and segmentation on masks that are drawn from them. The names of the files
alone decide which images are held out. This split is the same in every run and on every machine,
and hardly changes when images are added.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.formats.coco import UNUSED, CocoFile, read_coco
from convnext.data.formats.coco_layout import CocoFiles, find, image_root
from convnext.data.formats.records import Fault, Objects, Record
from convnext.data.images import BadImage, Header, Mode, decode, read_header
from convnext.data.samples import held_out, spread


@dataclass(frozen=True)
class DetectionImages:
    """A sequence of images with objects."""

    root: Path
    """The folder of the images."""
    records: Sequence[Record]
    category_ids: tuple[int, ...] = ()
    """The id of each label in the json of these images; -1 if it has no such class."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> list[str]:
        """The files of the images, relative to `root`."""
        return [record.file_name for record in self.records]

    @property
    def images(self) -> list[Path]:
        """The paths of the images."""
        return [self.root / record.file_name for record in self.records]

    @property
    def has_masks(self) -> bool:
        """Whether any object has a mask, rather than a box alone."""
        return any(mask is not None for record in self.records for mask in record.objects.masks)

    def source(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.root / self.records[index].file_name)

    def size(self, index: int) -> tuple[int, int]:
        """Return the (width, height) of an image according to the json."""
        return self.records[index].width, self.records[index].height

    def objects(self, index: int) -> Objects:
        """Return the objects of an image."""
        return self.records[index].objects

    def header(self, index: int) -> Header:
        """Read the header of an image, without decoding it.

        Raises:
            BadImage: If it cannot be read.
        """
        return read_header(self.root / self.records[index].file_name)

    def open(self, index: int, mode: Mode) -> Image.Image:
        """Return an image.

        Raises:
            BadImage: If it cannot be read, or its size differs from the json.
        """
        image = decode(self.root / self.records[index].file_name, mode=mode)
        if image.size != self.size(index):
            wanted = " x ".join(map(str, self.size(index)))
            raise BadImage(
                self.source(index),
                f"has {image.width} x {image.height} pixels, but {wanted} in the json",
            )
        return image

    def some(self, count: int) -> list[int]:
        """Return up to `count` indices as a sample of all images, spread evenly."""
        return spread(len(self), count)


NUM_DECODED = 32


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """A data set with its split."""

    path: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """The id of each class in the json."""
    train: DetectionImages
    val: DetectionImages
    notes: tuple[str, ...]
    """Notes for the user on how it was read."""
    faults: tuple[Fault, ...] = ()
    """Faults of the files."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The facts that `auto` depends on. Sizes are medians over the training images."""

    num_train: int
    num_val: int
    num_empty: int
    """Training images without an object."""
    num_classes: int
    num_objects: int
    """Objects in the training images, without crowd regions."""
    max_objects: int
    """Maximum number of objects in one training image."""
    has_masks: bool
    image_height: int
    image_width: int
    object_sides: tuple[float, float, float]
    """The 10th, 50th and 90th percentiles of object sizes: the square root of width times height,
    as a share of the image's short side."""
    grayscale: bool


def open_dataset(path: str, *, val_share: float = 0.2, strict: bool = True) -> DetectionData:
    """Open the data set at `path` without reading its images.

    Args:
        path: A folder in one of the layouts of `convnext.data.formats.coco_layout`, or a json.
        val_share: Share of the images held out if the data has no split of its own.
        strict: Refuse files with fatal faults; otherwise they are noted.

    Raises:
        ValueError: If there is nothing at `path` to train and validate on; the message says why.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"val_share is {val_share}, but must lie between 0 and 1")
    root = Path(path)
    found = find(root)
    notes = list(found.notes)
    train, val = _open(found, root, val_share, notes)
    parts = {"train": train, "val": val}
    faults = tuple(dict.fromkeys(fault for part in (train, val) for fault in _named(part[0])))
    fatal = [fault for fault in faults if fault.fatal]
    if fatal and strict:
        more = f"{len(fatal) - 1:,} more such faults; " if len(fatal) > 1 else ""
        raise ValueError(
            f"{fatal[0].where} {fatal[0].text} "
            f"({more}`convnext data {path} --task detect` lists all)"
        )
    if strict:
        for name, (_, images) in parts.items():
            _check(path, name, images)
    kinds = Counter(fault.kind for fault in faults if fault.kind != UNUSED)
    if kinds:
        listed = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(3))
        notes.append(f"the json has faults: {listed}; `convnext data {path}` lists them all")
    return DetectionData(
        path=path,
        classes=train[0].classes,
        category_ids=train[0].category_ids,
        train=train[1],
        val=val[1],
        notes=tuple(notes),
        faults=faults,
    )


def facts(data: DetectionData) -> DataFacts:
    """Collect facts from all objects and a sample of the training images.

    Raises:
        ValueError: If none of the sampled images can be read.
    """
    gray, readable = True, 0
    last: BadImage | None = None
    for index in data.train.some(NUM_DECODED):
        try:
            image = data.train.open(index, "RGB")
        except BadImage as error:
            last = error
            continue
        readable += 1
        pixels = np.asarray(image)[::4, ::4].astype(np.int16)
        gray = gray and int(np.ptp(pixels, axis=2).max(initial=0)) <= 8
    if not readable:
        raise ValueError(f"none of the training images that were tried can be used: {last}")
    records = data.train.records
    sides = [_sides(record) for record in records]
    counts = [len(found) for found in sides]
    small, middle, large = np.quantile(np.concatenate(sides), (0.1, 0.5, 0.9)).tolist()
    return DataFacts(
        num_train=len(records),
        num_val=len(data.val),
        num_empty=counts.count(0),
        num_classes=len(data.classes),
        num_objects=sum(counts),
        max_objects=max(counts),
        has_masks=data.train.has_masks,
        image_height=int(statistics.median(record.height for record in records)),
        image_width=int(statistics.median(record.width for record in records)),
        object_sides=(small, middle, large),
        grayscale=gray,
    )


def _sides(record: Record) -> NDArray[np.float64]:
    """Return the sizes of an image's objects as shares of its short side."""
    boxes = record.objects.boxes[~record.objects.crowd].astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(np.sqrt(sides.prod(1)) / min(record.width, record.height))


Part = tuple[CocoFile, DetectionImages]


def _open(found: CocoFiles, root: Path, val_share: float, notes: list[str]) -> tuple[Part, Part]:
    train = read_coco(found.train)
    folder = image_root(train, root, "train")
    if found.val is None:
        held = held_out([record.file_name for record in train.records], val_share)
        parts = [
            DetectionImages(
                folder,
                [r for r in train.records if (r.file_name in held) is out],
                train.category_ids,
            )
            for out in (False, True)
        ]
        notes.append(
            f"there is no split: {len(held):,} of {len(train.records):,} images, chosen by their "
            "names, are held out for validation"
        )
        return (train, parts[0]), (train, parts[1])
    val = read_coco(found.val)
    val = _by_class_names(val, train)
    images = DetectionImages(image_root(val, root, "val"), val.records, val.category_ids)
    return (train, DetectionImages(folder, train.records, train.category_ids)), (val, images)


def _by_class_names(val: CocoFile, train: CocoFile) -> CocoFile:
    """Return the validation file with labels in the order of the training classes, its own ids.

    Raises:
        ValueError: If it has objects of a class that the training file does not have.
    """
    if val.classes == train.classes:
        return val
    label_of = {name: label for label, name in enumerate(train.classes)}
    used = {int(label) for record in val.records for label in record.objects.labels}
    unknown = [val.classes[label] for label in sorted(used) if val.classes[label] not in label_of]
    if unknown:
        raise ValueError(
            f"{val.path} has objects of {unknown[0]!r}, which is not among the categories of "
            f"{train.path} ({', '.join(train.classes[:8])}): give both files the same categories"
        )
    labels = np.array([label_of.get(name, -1) for name in val.classes], np.int64)

    def relabel(objects: Objects) -> Objects:
        return replace(objects, labels=labels[objects.labels])

    records = tuple(replace(record, objects=relabel(record.objects)) for record in val.records)
    ids = ids_of(train.classes, val.classes, val.category_ids)
    return replace(val, classes=train.classes, category_ids=ids, records=records)


def ids_of(
    wanted: Sequence[str], classes: Sequence[str], category_ids: Sequence[int]
) -> tuple[int, ...]:
    """Return the ids of the wanted classes; -1 for those that are not among `classes`."""
    ids = dict(zip(classes, category_ids, strict=True))
    return tuple(ids.get(name, -1) for name in wanted)


def _named(file: CocoFile) -> list[Fault]:
    """Return the faults of a file, prefixed with its name."""
    return [replace(fault, where=f"{file.path.name}: {fault.where}") for fault in file.faults]


def _check(path: str, name: str, images: DetectionImages) -> None:
    """Raise a ValueError if a split has no images or no objects, or none of its files exists."""
    if not len(images):
        raise ValueError(f"{path} has no image in its {name} split")
    if all(record.objects.crowd.all() for record in images.records):
        raise ValueError(f"{path} has no object that can be used in its {name} split")
    tried = images.some(NUM_DECODED)
    if not any((images.root / images.records[i].file_name).exists() for i in tried):
        raise ValueError(
            f"the images of {path} are missing: looked for {images.source(0)}. Put them into "
            "images/ beside the json, or correct `file_name` in it"
        )
