"""Imported annotations: the common form of other formats before they become COCO's json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ImportedObject:
    """An object in a file of labels."""

    where: str
    """Its file and line."""
    label: str | int
    """The name of its class, or its number if the source lists names."""
    box: tuple[float, float, float, float]
    """x, y, width, height in pixels; it may extend beyond the image."""
    ring: tuple[float, ...] = ()
    """A polygon in pixels, x0 y0 x1 y1 ...; empty for an object with only a box."""
    crowd: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other entries of its annotation."""


@dataclass(frozen=True, kw_only=True)
class ImportedImage:
    """An image and the function that reads its objects."""

    image: Path
    name: str
    """The name that it will get."""
    labels: Path
    read: Callable[[tuple[int, int]], tuple[list[ImportedObject], list[str]]]
    """Maps the image's (width, height) to its objects and their faults."""


@dataclass(frozen=True, kw_only=True)
class ImportedDataset:
    """A data set in another format."""

    kind: str
    splits: Mapping[str, tuple[ImportedImage, ...]]
    """"train" and "val"."""
    classes: tuple[str, ...] | None = None
    """None if the classes are the names that occur in the annotations."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how it was read."""
