"""Labelled images wherever they lie: in folders, in tar shards, or in memory.

A `Samples` is a sequence by index; what reads from it never asks which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.images import BadImage, Header, Mode, as_mode, decode, read_header


class Samples(ABC):
    """A sequence of labelled images."""

    labels: list[int]
    """Position of each image's class in `ClassificationData.classes`."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def source(self, index: int) -> str:
        """Return where an image lies, for messages: a path, `shard!member`, or a name."""

    @abstractmethod
    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        """Return an image; `at_least` as in `decode`.

        Raises:
            BadImage: If it cannot be read.
        """

    @abstractmethod
    def header(self, index: int) -> Header:
        """Return what an image declares to be, without decoding it.

        Raises:
            BadImage: If it cannot be read.
        """

    @abstractmethod
    def num_bytes(self, index: int) -> int:
        """Return how much an image takes where it lies; 0 if it is gone."""


class FolderSamples(Samples):
    """Image files below a folder."""

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[int]) -> None:
        self.root = root
        self.names = list(names)
        self.labels = list(labels)

    def source(self, index: int) -> str:
        return str(self.root / self.names[index])

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        return decode(self.source(index), mode=mode, at_least=at_least)

    def header(self, index: int) -> Header:
        return read_header(self.source(index))

    def num_bytes(self, index: int) -> int:
        path = Path(self.source(index))
        return path.stat().st_size if path.is_file() else 0


@dataclass(frozen=True)
class Member:
    """A file inside a tar, by its place."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes, fewer if the tar has been cut since."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}!{self.name}"


class ShardSamples(Samples):
    """Images inside uncompressed tar files, read by their place and not in sequence."""

    def __init__(self, members: Sequence[Member], labels: Sequence[int]) -> None:
        self.members = list(members)
        self.labels = list(labels)

    def source(self, index: int) -> str:
        return str(self.members[index])

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        source = self.source(index)
        return decode(self._bytes(index), mode=mode, at_least=at_least, source=source)

    def header(self, index: int) -> Header:
        return read_header(self._bytes(index), source=self.source(index))

    def num_bytes(self, index: int) -> int:
        return self.members[index].size

    def _bytes(self, index: int) -> bytes:
        try:
            return self.members[index].read()
        except OSError as error:
            raise BadImage(self.source(index), f"the shard cannot be read ({error})") from error


class ArraySamples(Samples):
    """Greyscale images in memory."""

    def __init__(self, name: str, images: NDArray[np.uint8], labels: Sequence[int]) -> None:
        self.name = name
        self.images = images  # (n, H, W)
        self.labels = list(labels)

    def source(self, index: int) -> str:
        return f"{self.name}/{index:04d}"

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        return as_mode(Image.fromarray(self.images[index]), mode)

    def header(self, index: int) -> Header:
        height, width = self.images[index].shape
        return Header(width=width, height=height, mode="L", format="array")

    def num_bytes(self, index: int) -> int:
        return int(self.images[index].nbytes)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The images below a path. `train` and `val` are positions in `keys` and `labels`."""

    root: Path
    classes: tuple[str, ...]
    keys: Sequence[str]
    """Names relative to the root."""
    labels: Sequence[int]
    train: Sequence[int]
    val: Sequence[int] | None
    """None where the data has no split of its own."""
    notes: tuple[str, ...]
    faults: tuple[str, ...]
    """As in `ClassificationData`, but not repeated in `notes`."""
    take: Callable[[Sequence[int]], Samples]
    """Return some of the images as samples."""

    def with_train(self, train: Sequence[int]) -> Found:
        """Return the same with fewer training images."""
        return replace(self, train=train)
