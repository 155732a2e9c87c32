"""Pairs of an image and its mask, by their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from convnext.data.images import Header, Mode, decode, read_header
from convnext.data.samples import spread
from convnext.tasks.segmentation.masks import NONE_16_BIT, Labels


class Reader(Protocol):
    """How a mask becomes class indices."""

    @property
    def num_classes(self) -> int: ...

    @property
    def ignore_index(self) -> int: ...

    @property
    def reduce_zero_label(self) -> bool: ...

    def read(self, mask: Any, size: tuple[int, int] | None = None) -> Labels:
        """Return the class of every pixel, (H, W), for an image of `size` (width, height).

        Raises:
            BadImage: If it cannot be read, or does not go with the image.
        """
        ...


@dataclass(frozen=True)
class Relabelled:
    """A reader whose classes are those of a network, which may be more and in another order."""

    reader: Reader
    table: tuple[int, ...]
    """The network's class for each of the reader's."""
    num_classes: int

    @property
    def ignore_index(self) -> int:
        """A value that is no class of the network's."""
        return 255 if self.num_classes <= 255 else NONE_16_BIT

    @property
    def reduce_zero_label(self) -> bool:
        """As of the reader."""
        return self.reader.reduce_zero_label

    def read(self, mask: Any, size: tuple[int, int] | None = None) -> Labels:
        """Return the network's class of every pixel, (H, W); errors are the reader's."""
        labels = self.reader.read(mask, size)
        known = labels != self.reader.ignore_index
        found = np.full_like(labels, self.ignore_index)
        found[known] = np.array(self.table, labels.dtype)[labels[known]]
        return found


@dataclass(frozen=True)
class Pairs:
    """A sequence of images with masks."""

    root: Path
    names: Sequence[str]
    """Of each pair, such as the image's path below its folder, without the ending."""
    images: Sequence[Path]
    masks: Sequence[Any]
    """What the reader makes masks of: files, or objects that are drawn."""
    reader: Reader

    def __len__(self) -> int:
        return len(self.images)

    def source(self, index: int) -> str:
        """Return where an image lies."""
        return str(self.images[index])

    def mask_source(self, index: int) -> str:
        """Return where a mask lies."""
        return str(self.masks[index])

    def header(self, index: int) -> Header:
        """Return what an image declares to be, without decoding it.

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

        Raises:
            BadImage: If the mask cannot be read, or does not go with the image.
        """
        return self.reader.read(self.masks[index], size)

    def some(self, count: int) -> list[int]:
        """Return up to `count` pairs to judge all by, spread evenly."""
        return spread(len(self), count)
