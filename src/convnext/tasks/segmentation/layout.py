"""Pairs of images and masks, and the conversion of masks to class indices.

From a COCO JSON of objects, masks are drawn: one class per category, and a background class.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from convnext.data.bands import turned
from convnext.data.contents import hash_of_file, hash_of_objects, hash_of_text
from convnext.data.formats.mask_layers import Layers
from convnext.data.formats.records import Exif, Objects, ReadOptions, Record
from convnext.data.images import QUARTER_TURNS, BadImage, Header, Mode, decode, read_header, spread
from convnext.data.masks import cut
from convnext.data.objects import DetectionImages, open_dataset
from convnext.tasks.segmentation.masks import NONE_16_BIT, Labels


class Reader(Protocol):
    """Converts masks to class indices."""

    @property
    def num_classes(self) -> int: ...

    @property
    def ignore_index(self) -> int: ...

    @property
    def reduce_zero_label(self) -> bool: ...

    def read(self, mask: Any, size: tuple[int, int] | None = None) -> Labels:
        """Return the class of every pixel, (H, W), for an image of `size` (width, height).

        Raises:
            BadImage: If it cannot be read, or does not match the image.
        """
        ...


@dataclass(frozen=True)
class Relabeled:
    """A reader with the classes of a network, which may be more and in another order."""

    reader: Reader
    table: tuple[int, ...]
    """The network's class for each class of the reader; -1 for a class that it does not know."""
    num_classes: int

    @property
    def ignore_index(self) -> int:
        """A value that is not a class of the network."""
        return 255 if self.num_classes <= 255 else NONE_16_BIT

    @property
    def reduce_zero_label(self) -> bool:
        """The `ignore_index` of the reader."""
        return self.reader.reduce_zero_label

    def read(self, mask: Any, size: tuple[int, int] | None = None) -> Labels:
        """Return the network's class of every pixel, (H, W); raises like the reader."""
        labels = self.reader.read(mask, size)
        known = labels != self.reader.ignore_index
        found = np.full_like(labels, self.ignore_index)
        table = [self.ignore_index if label < 0 else label for label in self.table]
        found[known] = np.array(table, labels.dtype)[labels[known]]
        return found


@dataclass(frozen=True)
class Pairs:
    """A sequence of images with masks."""

    root: Path
    names: Sequence[str]
    """The name of each pair, such as the image's path under its folder without the extension."""
    images: Sequence[Path]
    masks: Sequence[Any]
    """The sources of the masks: files, or objects to draw."""
    reader: Reader
    exif: Exif = ""
    """Whether masks were drawn on images turned by EXIF; "" to recognize it by their sizes."""
    are_files: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: Sequence[int]) -> Pairs:
        """Return some of the pairs."""
        return replace(
            self,
            names=tuple(self.names[i] for i in positions),
            images=tuple(self.images[i] for i in positions),
            masks=tuple(self.masks[i] for i in positions),
        )

    def source(self, index: int) -> str:
        """Return the location of an image."""
        return str(self.images[index])

    def header(self, index: int) -> Header:
        """Read the header of an image, without decoding it.

        Raises:
            BadImage: If it cannot be read.
        """
        return read_header(self.images[index])

    def open(self, index: int, mode: Mode) -> Image.Image:
        """Return an image.

        Raises:
            BadImage: If it cannot be read.
        """
        return decode(self.images[index], mode=mode)

    def mask(self, index: int, size: tuple[int, int] | None = None) -> Labels:
        """Return the class of every pixel, (H, W) of int32; `size` is the image's (width, height).

        A mask that was drawn before the image was turned is turned like it.

        Raises:
            BadImage: If the mask cannot be read, or does not match the image.
        """
        mask = self.masks[index]
        if isinstance(mask, Drawing):  # Its objects are turned.
            return self.reader.read(mask, size)
        if self.exif == "unturned":
            return self._unturned(mask, size, self.header(index).orientation)
        try:
            return self.reader.read(mask, size)
        except BadImage:
            if self.exif or size is None or size[0] == size[1]:
                raise
            turn = self.header(index).orientation
            if turn not in QUARTER_TURNS:
                raise
            with suppress(BadImage):  # The first error is the one to report.
                return self._unturned(mask, size, turn)
            raise

    def _unturned(self, mask: Any, size: tuple[int, int] | None, turn: int) -> Labels:
        """Return a mask, which was drawn on the image as it is stored, turned like the image."""
        if size is not None and turn in QUARTER_TURNS:
            size = size[::-1]
        return np.ascontiguousarray(turned(self.reader.read(mask, size), turn))

    def is_unturned(self, index: int) -> bool:
        """Whether a mask has the size of its image before, but not after it is turned by EXIF."""
        header, mask = self.header(index), self.masks[index]
        if not isinstance(mask, Path) or header.orientation not in QUARTER_TURNS:
            return False
        return read_header(mask).size == (header.height, header.width) != header.size

    def some(self, count: int) -> list[int]:
        """Return up to `count` pairs as a sample of all, spread evenly."""
        return spread(len(self), count)


def join(parts: Sequence[Pairs]) -> Pairs:
    """Return the pairs of several splits of a data set."""
    first = parts[0]
    return Pairs(
        root=first.root,
        names=tuple(name for part in parts for name in part.names),
        images=tuple(image for part in parts for image in part.images),
        masks=tuple(mask for part in parts for mask in part.masks),
        reader=first.reader,
        exif=first.exif,
    )


BACKGROUND = "background"


@dataclass(frozen=True)
class Drawing:
    """The annotations to draw the mask of an image from."""

    path: str
    record: Record

    def __str__(self) -> str:
        return f"{self.path}: image {self.record.id}"


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Draws objects as class indices: the background is 0, each category is its label + 1.

    Larger objects are drawn first, so that small ones stay visible. Crowd regions, and the boxes of
    objects without a mask, have no class where no other object covers them.
    """

    num_classes: int
    ignore_index: int
    reduce_zero_label: bool = False

    def read(self, mask: Drawing, size: tuple[int, int] | None = None) -> Labels:
        """Return the class of every pixel, (H, W).

        Raises:
            BadImage: If the image does not have the size (width, height) given in the JSON.
        """
        record = mask.record
        if size not in (None, (record.width, record.height)):
            reason = f"has {record.width} x {record.height} pixels in the JSON file, not {size}"
            raise BadImage(str(mask), reason)
        labels = np.zeros((record.height, record.width), np.int32)
        objects = record.objects
        for index in _order(objects):
            own = objects.masks[index]
            if own is None:
                x1, y1, x2, y2 = _window(objects.boxes[index], record)
                labels[y1:y2, x1:x2] = self.ignore_index
                continue
            is_one = not objects.crowd[index]
            value = int(objects.labels[index]) + 1 if is_one else self.ignore_index
            labels[cut(own, (0, 0, record.width, record.height)) > 0] = value
        return labels


def open_drawn(path: str, val_share: float, options: ReadOptions) -> dict[str, Any]:
    """Return the classes, pairs and notes of COCO annotations as segmentation data.

    Raises:
        ValueError: Like `open_dataset` of detection, or if the objects have only boxes.
    """
    data = open_dataset(path, val_share=val_share, options=options)
    records = (*data.train.records, *data.val.records)
    if all(mask is None for record in records for mask in record.objects.masks):
        raise ValueError(
            f"the objects of {path} have only boxes, and masks cannot be drawn from them; train a "
            "detector: --task detect"
        )
    classes = (BACKGROUND, *data.classes)
    reader = Drawer(num_classes=len(classes), ignore_index=255 if len(classes) <= 255 else 65_535)
    note = "masks are drawn from the annotated objects; all other pixels are `background`"
    return {
        "path": path,
        "classes": classes,
        "train": _pairs(path, data.train, reader),
        "val": _pairs(path, data.val, reader),
        "test": None if data.test is None else _pairs(path, data.test, reader),
        "has_val": data.has_val,
        "notes": (*data.notes, note),
    }


def _pairs(path: str, images: DetectionImages, reader: Drawer) -> Pairs:
    return Pairs(
        root=images.root,
        names=tuple(str(Path(name).with_suffix("")) for name in images.names),
        images=tuple(images.images),
        masks=tuple(Drawing(path, record) for record in images.records),
        reader=reader,
    )


def annotation(pairs: Pairs, classes: Sequence[str], index: int) -> str:
    """Return a hash of the mask of an image, or of the objects that it is drawn from."""
    mask = pairs.masks[index]
    if isinstance(mask, Drawing):
        return hash_of_objects(mask.record.objects, classes[1:])
    if isinstance(mask, Layers):
        return hash_of_text(repr([(name, hash_of_file(path)) for name, path in mask.files]))
    return hash_of_file(mask)


def _order(objects: Objects) -> list[int]:
    """Return the drawing order: regions without a class, then objects from large to small."""
    none = [mask is None or bool(c) for mask, c in zip(objects.masks, objects.crowd, strict=True)]
    return sorted(range(len(objects)), key=lambda i: (not none[i], -objects.areas[i], i))


def _window(box: np.ndarray, record: Record) -> tuple[int, int, int, int]:
    """Return the pixels that a box touches: x1 y1 x2 y2."""
    (x1, y1), (x2, y2) = np.floor(box[:2]).tolist(), np.ceil(box[2:]).tolist()
    return int(x1), int(y1), min(int(x2), record.width), min(int(y2), record.height)
