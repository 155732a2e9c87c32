"""What the readers of all formats return: images with their annotations, and faults.

The doctor, the converters and the tasks read data through these types, so that `convnext data`
reports exactly what training uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from convnext.data.masks import Mask


Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An error in a file, or something that was left out."""

    kind: str
    """The kind of fault, for counting, such as "box without area"."""
    where: str
    """The place: a file and its line, or an id, such as "annotation 12"."""
    text: str
    """What is wrong, how it was handled, and what to do."""
    fatal: bool = False
    """Whether training is refused until it is fixed."""
    count: int = 1
    """How many places have this fault, if `where` is the first of them."""

    def __str__(self) -> str:
        return f"{self.where} {self.text}"


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects of an image, one row per object."""

    ids: tuple[int, ...]
    boxes: NDArray[np.float64]
    """(M, 4) as x1 y1 x2 y2 in pixels."""
    labels: NDArray[np.int64]
    """(M,) from 0, in the order of the classes."""
    areas: NDArray[np.float64]
    """(M,) in square pixels."""
    crowd: NDArray[np.bool_]
    """(M,) whether it is a crowd: a region of objects that are not labeled one by one."""
    masks: tuple[Mask | None, ...]
    """Polygons or run lengths; None for an object with only a box."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, keep: NDArray[np.bool_]) -> Objects:
        """Return the objects that a mask (M,) keeps."""
        return Objects(
            ids=tuple(key for key, kept in zip(self.ids, keep, strict=True) if kept),
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            areas=self.areas[keep],
            crowd=self.crowd[keep],
            masks=tuple(mask for mask, kept in zip(self.masks, keep, strict=True) if kept),
        )


def objects_of(
    rows: Sequence[tuple[int, Sequence[float], int, float, bool, Mask | None]],
) -> Objects:
    """Return objects from rows of id, box, label, area, crowd and mask."""
    ids, boxes, labels, areas, crowds, masks = zip(*rows, strict=True) if rows else ((),) * 6
    return Objects(
        ids=tuple(ids),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        areas=np.array(areas, np.float64),
        crowd=np.array(crowds, np.bool_),
        masks=tuple(masks),
    )


def no_objects() -> Objects:
    """Return the objects of an image without any."""
    return objects_of(())


@dataclass(frozen=True, kw_only=True)
class Record:
    """An image and its annotations."""

    id: int
    file_name: str
    """The image file, relative to the root of the images."""
    width: int
    """Width in pixels, with the EXIF orientation applied; 0 if the format does not state it."""
    height: int
    objects: Objects = field(default_factory=no_objects)
    labels: tuple[str, ...] = ()
    """The classes of the whole image."""
    mask: Path | None = None
    """The file with the class of every pixel."""
    where: str = ""
    """The file, and its line or id, that the annotations come from."""
    extras: tuple[Mapping[str, Any], ...] = ()
    """Other entries of each object, such as `difficult`; () if there are none."""


Exif = Literal["", "turned", "unturned"]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the user says about data that can be read in several ways. Empty: recognize it."""

    layout: str = ""
    """The name of a layout."""
    annotations: str = ""
    """Annotation files, separated by commas, relative to the data or the current folder."""
    images: str = ""
    """The folder of the images, if it is not below the data."""
    exif: Exif = ""
    """Whether objects were drawn on images with the EXIF orientation applied or not."""
    boxes: Literal["", "xywh", "xyxy", "cxcywh"] = ""
    """What the four numbers of a COCO box are: corner and size, corners, or center and size."""
    difficult: Literal["keep", "crowd", "drop"] = "keep"
    """How to treat VOC's difficult objects."""
    allow_outside: bool = False
    """Read files outside the data folder that annotations or links name."""
    group: str = ""
    """A pattern of paths: images of one group stay in one split (`samples.groups_of`)."""


@dataclass(frozen=True, kw_only=True)
class Understood:
    """What was understood of a data set, in the words of the first lines of every verb."""

    layout: str
    """The layout, such as "YOLO" or "class folders"."""
    split: str
    """Where the split comes from, such as "folders train/ and val/" or "data.yaml"."""
    images: Mapping[str, int]
    """The number of images of each split."""
    classes: Sequence[str]
    labels: str = ""
    """The labels of images, unless each has one."""
    left_out: Sequence[str] = ()
    """What was left out, and why, one line each."""

    def lines(self) -> tuple[str, ...]:
        """Return the lines for the user."""
        counts = ", ".join(f"{name} {count:,}" for name, count in self.images.items())
        shown = ", ".join(map(repr, self.classes[:8])) + (", ..." if len(self.classes) > 8 else "")
        return (
            f"layout: {self.layout}",
            f"split: {self.split} ({counts} images)",
            f"classes: {len(self.classes):,}, in this order: {shown}",
            *([f"labels: {self.labels}"] if self.labels else []),
            *(f"left out: {line}" for line in self.left_out),
        )


@dataclass
class FaultList:
    """Faults in the order in which they were found."""

    found: list[Fault] = field(default_factory=list)

    def add(self, kind: str, where: str, text: str, *, fatal: bool = False) -> None:
        """Add a fault."""
        self.found.append(Fault(kind=kind, where=where, text=text, fatal=fatal))
