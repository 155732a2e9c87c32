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
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.contents import hash_of_objects
from convnext.data.formats.coco_objects import UNUSED
from convnext.data.formats.opening import open_objects
from convnext.data.formats.records import (
    Fault,
    Objects,
    ReadOptions,
    Record,
    Understood,
    no_objects,
)
from convnext.data.images import PICTURE, BadImage, Header, Mode, decode, read_header, spread
from convnext.data.samples import (
    ImageFacts,
    SplitData,
    check_share,
    straddling_names,
)


@dataclass(frozen=True)
class DetectionImages:
    """A sequence of images with objects."""

    root: Path
    """The folder of the images."""
    records: Sequence[Record]
    category_ids: tuple[int, ...] = ()
    """The id of each label in the json of these images; -1 if it has no such class."""
    are_files: ClassVar[bool] = True

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


@dataclass(frozen=True, kw_only=True)
class ObjectTable:
    """The objects of many images, one row per object, in the order of the images."""

    images: NDArray[np.int64]
    """(M,) the position of the image of each."""
    boxes: NDArray[np.float64]
    """(M, 4) as x1 y1 x2 y2 in pixels."""
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    short_sides: NDArray[np.float64]
    """(M,) the short side of the image of each."""

    @property
    def extents(self) -> NDArray[np.float64]:
        """(M, 2) the width and height of each box."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def sides(self) -> NDArray[np.float64]:
        """(M,) the square roots of the areas of the boxes, as shares of the short side."""
        return np.asarray(np.sqrt(self.extents.prod(1)) / self.short_sides)


def table_of(records: Sequence[Record], *, crowds: bool = False) -> ObjectTable:
    """Return the objects of images as one table, of crowd regions only if they are asked for."""
    found = [record.objects for record in records]
    counts = [len(objects) for objects in found]
    none = no_objects()
    crowd = np.concatenate([none.crowd, *(objects.crowd for objects in found)])
    kept = slice(None) if crowds else ~crowd
    short = np.array([min(record.width, record.height) for record in records], np.float64)
    return ObjectTable(
        images=np.arange(len(found)).repeat(counts)[kept],
        boxes=np.concatenate([none.boxes, *(objects.boxes for objects in found)])[kept],
        labels=np.concatenate([none.labels, *(objects.labels for objects in found)])[kept],
        areas=np.concatenate([none.areas, *(objects.areas for objects in found)])[kept],
        crowd=crowd[kept],
        short_sides=short.repeat(counts)[kept],
    )


NUM_DECODED = 32
COCO = "COCO"
# The beginning of the note that counts the faults; the doctor lists them instead.
FAULTS = "the annotations have faults"


@dataclass(frozen=True, kw_only=True)
class DetectionData(SplitData[DetectionImages]):
    """A data set of images with objects; its notes start with layout, split and classes."""

    category_ids: tuple[int, ...]
    """The id of each class in the json."""
    understood: Understood | None = None
    faults: tuple[Fault, ...] = ()
    """Faults of the files."""


@dataclass(frozen=True, kw_only=True)
class DataFacts(ImageFacts):
    """The facts about images with objects."""

    num_empty: int
    """Training images without an object."""
    num_objects: int
    """Objects in the training images, without crowd regions."""
    max_objects: int
    """Maximum number of objects in one training image."""
    has_masks: bool
    object_sides: tuple[float, float, float]
    """The 10th, 50th and 90th percentiles of object sizes: the square root of width times height,
    as a share of the image's short side."""


def open_dataset(
    path: str,
    *,
    val_share: float = 0.2,
    strict: bool = True,
    options: ReadOptions | None = None,
) -> DetectionData:
    """Open the data set at `path` without decoding its images.

    Args:
        path: A folder in one of the layouts of `convnext.data.formats.layouts`, or a json.
        val_share: Share of the images held out if the data has no split of its own.
        strict: Refuse files with fatal faults; otherwise they are noted.
        options: What the user says about data that can be read in several ways.

    Raises:
        ValueError: If there is nothing at `path` to train and validate on; the message says why.
    """
    check_share(val_share)
    opened = open_objects(Path(path), val_share, options or ReadOptions())
    parts = {
        split: DetectionImages(part.root, part.records, part.category_ids)
        for split, part in opened.parts.items()
    }
    nothing = DetectionImages(opened.root, (), opened.category_ids)
    train, val = parts.get("train", nothing), parts.get("val", nothing)
    notes = list(opened.notes)
    if opened.understood.layout != COCO:
        notes.append(f"`convnext data {path} --to coco --output DIR` writes it as COCO's json")
    faults = opened.faults
    names: dict[str, list[str]] = {k: [r.file_name for r in i.records] for k, i in parts.items()}
    faults += tuple(
        Fault(kind="groups in several splits", where=path, text=f"has {text}")
        for text in straddling_names(names, options.group if options else "")
    )
    if strict:
        _refuse_fatal(path, opened.faults)
        _check(path, "train", train, opened.faults)
        _check(path, "val", val, opened.faults)
    kinds: Counter[str] = Counter()
    for fault in faults:
        if fault.kind != UNUSED:
            kinds[fault.kind] += fault.count
    if kinds:
        listed = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(3))
        notes.append(f"{FAULTS}: {listed}; `convnext data {path}` lists them all")
    return DetectionData(
        path=path,
        classes=opened.classes,
        category_ids=opened.category_ids,
        train=train,
        val=val,
        test=parts.get("test"),
        has_val=opened.has_val,
        understood=opened.understood,
        notes=(*opened.understood.lines(), *notes),
        faults=faults,
    )


def _refuse_fatal(path: str, faults: Sequence[Fault]) -> None:
    fatal = [fault for fault in faults if fault.fatal]
    if fatal:
        more = f"{len(fatal) - 1:,} more such faults; " if len(fatal) > 1 else ""
        raise ValueError(
            f"{fatal[0].where} {fatal[0].text} "
            f"({more}`convnext data {path} --task detect` lists all)"
        )


def refusal(data: DetectionData) -> str:
    """Return why data that was opened without `strict` cannot be trained on; "" if it can."""
    try:
        _refuse_fatal(data.path, data.faults)
        _check(data.path, "train", data.train, data.faults)
        _check(data.path, "val", data.val, data.faults)
        facts(data)
    except ValueError as error:
        return str(error)
    return ""


def facts(data: DetectionData) -> DataFacts:
    """Collect facts from all objects and a sample of the training images.

    Raises:
        ValueError: If none of the sampled images can be read.
    """
    gray, readable = True, 0
    last: BadImage | None = None
    for index in data.train.some(NUM_DECODED):
        try:
            image = data.train.open(index, PICTURE)
        except BadImage as error:
            last = error
            continue
        readable += 1
        pixels = np.asarray(image)[::4, ::4].astype(np.int16)
        gray = gray and int(np.ptp(pixels, axis=2).max(initial=0)) <= 8
    if not readable:
        raise ValueError(f"none of the training images that were tried can be used: {last}")
    records = data.train.records
    table = table_of(records)
    counts = np.bincount(table.images, minlength=len(records)).tolist()
    small, middle, large = np.quantile(table.sides, (0.1, 0.5, 0.9)).tolist()
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
        pixel_range=() if data.pixel_range is None else data.pixel_range.values,
        pixel_sample=data.pixel_range,
        bands=data.band_sample,
    )


def annotation(images: DetectionImages, classes: Sequence[str], index: int) -> str:
    """Return a hash of the objects of an image."""
    return hash_of_objects(images.objects(index), classes)


def join(parts: Sequence[DetectionImages]) -> DetectionImages:
    """Return the images of several splits as one sequence.

    If the splits have ids in common, those of each split follow the highest one before it.
    """
    first = parts[0]
    ids = [record.id for part in parts for record in part.records]
    coincide = len(set(ids)) < len(ids)
    records: list[Record] = []
    start = 0
    for part in parts:
        for record in part.records:
            if part.root != first.root:
                path = (part.root / record.file_name).absolute()
                record = replace(record, file_name=str(path))
            records.append(replace(record, id=record.id + start) if coincide else record)
        start = max((record.id for record in records), default=0)
    return DetectionImages(first.root, records, first.category_ids)


def ids_of(
    wanted: Sequence[str], classes: Sequence[str], category_ids: Sequence[int]
) -> tuple[int, ...]:
    """Return the ids of the wanted classes; -1 for those that are not among `classes`."""
    ids = dict(zip(classes, category_ids, strict=True))
    return tuple(ids.get(name, -1) for name in wanted)


def _check(path: str, name: str, images: DetectionImages, faults: Sequence[Fault]) -> None:
    """Raise a ValueError if a split has no images or no objects, or none of its files exists."""
    count = sum(fault.count for fault in faults)
    why = f"; {count:,} faults, the first: {faults[0]}" if faults else ""
    if not len(images):
        raise ValueError(f"{path} has no image in its {name} split{why}")
    if all(record.objects.crowd.all() for record in images.records):
        raise ValueError(f"{path} has no object that can be used in its {name} split{why}")
    tried = images.some(NUM_DECODED)
    if not any((images.root / images.records[i].file_name).exists() for i in tried):
        raise ValueError(
            f"the images of {path} are missing: looked for {images.source(0)}. Put them into "
            "images/ beside the json, or correct `file_name` in it"
        )
