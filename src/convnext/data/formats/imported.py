"""What the layouts of others have in common before they become COCO's json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Found:
    """An object as a file of labels has it."""

    where: str
    """File and line."""
    label: str | int
    """The name of its class, or its number where the source lists names."""
    box: tuple[float, float, float, float]
    """x, y, width, height in pixels; it may leave the image."""
    ring: tuple[float, ...] = ()
    """A polygon in pixels, x0 y0 x1 y1 ...; empty where there is a box only."""
    crowd: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else its annotation should have."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """An image and how its objects are read."""

    image: Path
    name: str
    """What it is to be called."""
    labels: Path
    read: Callable[[tuple[int, int]], tuple[list[Found], list[str]]]
    """From the image's (width, height) to its objects, and to what is wrong with them."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set in a layout of others."""

    kind: str
    splits: Mapping[str, tuple[Listing, ...]]
    """"train" and "val"."""
    classes: tuple[str, ...] | None = None
    """None where the classes are the names of the objects that occur."""
    notes: tuple[str, ...] = ()
    """What a user should know about how it was read."""
