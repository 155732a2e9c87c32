"""Images with objects, by their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from convnext.data.formats.coco import Objects, Record
from convnext.data.images import BadImage, Header, Mode, decode, read_header
from convnext.data.samples import spread


@dataclass(frozen=True)
class DetectionImages:
    """A sequence of images with objects."""

    root: Path
    """Below which the images lie."""
    records: Sequence[Record]
    category_ids: tuple[int, ...] = ()
    """Of each label, in the json of these images; -1 where it has no such class."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> list[str]:
        """The files of the images, below `root`."""
        return [record.file_name for record in self.records]

    @property
    def images(self) -> list[Path]:
        """Where the images lie."""
        return [self.root / record.file_name for record in self.records]

    @property
    def has_masks(self) -> bool:
        """Whether any object has a mask, rather than a box alone."""
        return any(mask is not None for record in self.records for mask in record.objects.masks)

    def source(self, index: int) -> str:
        """Return where an image lies."""
        return str(self.root / self.records[index].file_name)

    def size(self, index: int) -> tuple[int, int]:
        """Return the (width, height) of an image by the json."""
        return self.records[index].width, self.records[index].height

    def objects(self, index: int) -> Objects:
        """Return what is on an image."""
        return self.records[index].objects

    def header(self, index: int) -> Header:
        """Return what an image declares to be, without decoding it.

        Raises:
            BadImage: If it cannot be read.
        """
        return read_header(self.root / self.records[index].file_name)

    def open(self, index: int, mode: Mode) -> Image.Image:
        """Return an image.

        Raises:
            BadImage: If it cannot be read, or has another size than its objects were drawn on.
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
        """Return up to `count` images to judge all by, spread evenly."""
        return spread(len(self), count)
