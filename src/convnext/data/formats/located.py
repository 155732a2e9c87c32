"""The image files that annotations name: where they are, their real sizes, and their orientation.

A photo may carry an EXIF orientation, and annotations are drawn either on the turned photo, as
viewers show it, or on the pixels as they are stored. The sizes in the annotations tell which,
except for square photos and half turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from convnext.data.formats.paths import FileIndex, Match
from convnext.data.formats.records import Fault, Objects
from convnext.data.images import BadImage, opened, orientation
from convnext.data.masks import Mask, cut, encode
from convnext.data.threads import for_each

Exif = Literal["", "turned", "unturned"]
Size = tuple[int, int]
# All headers of smaller data sets are read; of larger ones, a sample tells whether that is needed.
MAX_HEADERS = 20_000
NUM_SAMPLE = 500
# Sizes that differ by so little are a rounding of the tool, not another picture.
OFF_BY = 2
# The kind of fault of images whose orientation only the user can tell.
UNCLEAR = "EXIF: objects on turned or unturned pixels"


@dataclass(frozen=True)
class Stored:
    """The header of a file: the size of its pixels as they are stored, and how to turn them."""

    width: int
    height: int
    orientation: int
    """The EXIF orientation, 1 for none."""

    @property
    def upright(self) -> Size:
        """(width, height) as shown, with the orientation applied."""
        turned = self.orientation in (5, 6, 7, 8)
        return (self.height, self.width) if turned else (self.width, self.height)


def read_stored(path: Path) -> Stored:
    """Read the header of an image.

    Raises:
        BadImage: If it cannot be read.
    """
    with opened(path) as image:
        # Pillow applies the orientation of a TIFF itself.
        turn = 1 if image.format == "TIFF" else orientation(image)
        return Stored(*image.size, turn if 1 <= turn <= 8 else 1)


def read_headers(
    paths: Mapping[str, Path], *, console: Console | None = None
) -> tuple[dict[str, Stored], dict[str, BadImage]]:
    """Read headers in threads; return those of images, and the errors of the others."""
    names = list(paths)
    found: dict[str, Stored] = {}
    bad: dict[str, BadImage] = {}

    def read(index: int) -> None:
        name = names[index]
        try:
            found[name] = read_stored(paths[name])
        except BadImage as error:
            bad[name] = error

    for_each(read, len(names), "reading sizes", console=console)
    return found, bad


def needed_headers(paths: Mapping[str, Path], sizes: Mapping[str, Size]) -> dict[str, Stored]:
    """Return the headers of all images, or none if a sample of many agrees with their sizes."""
    names = list(paths)
    if len(names) > MAX_HEADERS and all(sizes.get(name) for name in names):
        step = len(names) // NUM_SAMPLE
        sample, _ = read_headers({name: paths[name] for name in names[::step]})
        if all(s.orientation == 1 and s.upright == sizes[name] for name, s in sample.items()):
            return {}
    return read_headers(paths)[0]


@dataclass
class Locator:
    """Finds images by the names in annotations, and counts the names that had to be read."""

    index: FileIndex
    bases: Sequence[Path]
    """Folders to look in, the best first."""
    how: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    ambiguous: list[Fault] = field(default_factory=list)

    def find(self, name: str, where: str = "") -> Path | None:
        """Return the file of a name, or None."""
        match = self.index.find(name, self.bases)
        if match is None:
            self._explain(name, where, self.index.candidates(name, self.bases))
            return None
        if match.how:
            self.how[match.how] += 1
            self.examples.setdefault(match.how, f"{name} is {self._short(match.path)}")
        return match.path

    def notes(self) -> list[str]:
        """Return a line for every way in which names differ from the files."""
        return [
            f"{count:,} file names differ from the files by {how}, such as {self.examples[how]}"
            for how, count in self.how.items()
        ]

    def _explain(self, name: str, where: str, candidates: Sequence[Match]) -> None:
        if len(candidates) > 1:
            both = " and ".join(self._short(match.path) for match in candidates[:2])
            self.ambiguous.append(
                Fault(
                    kind="ambiguous file name",
                    where=where or name,
                    text=f"{name} fits {both}; write the folder into the file name",
                )
            )

    def _short(self, path: Path) -> str:
        root = self.index.root
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


@dataclass
class Turns:
    """Which images have objects that were drawn on the pixels as stored, before turning."""

    exif: Exif = ""
    unturned: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)

    def decide(
        self, headers: Mapping[str, Stored], sizes: Mapping[str, Size | None]
    ) -> dict[str, Stored]:
        """Return the headers of the images whose objects have to be turned.

        Args:
            headers: Headers by name.
            sizes: (width, height) by name, as the annotations state them; None if they do not.
        """
        for name, stored in headers.items():
            if stored.orientation == 1:
                continue
            stated, raw = sizes.get(name), (stored.width, stored.height)
            if stated == raw != stored.upright:
                self.unturned.append(name)
            elif stated == stored.upright != raw:
                self.turned.append(name)
            else:
                self.unclear.append(name)
        if self.exif == "turned":
            return {}
        # What the sizes of others say holds for those that could be either.
        are_unturned = bool(self.unturned) and not self.turned
        names = [*self.unturned, *(self.unclear if are_unturned else ())]
        if self.exif == "unturned":
            names = [name for name, stored in headers.items() if stored.orientation != 1]
        return {name: headers[name] for name in names}

    def faults(self) -> list[Fault]:
        """Return what the user should know."""
        found = []
        if not self.exif and self.unturned:
            text = (
                "has an EXIF orientation and objects that were drawn on its unturned pixels, as "
                "its size in the annotations shows; they are turned with it (--exif turned reads "
                "them as they are)"
            )
            found.append(_fault("EXIF: objects on unturned pixels", self.unturned, text))
        are_unclear = (not self.turned and not self.unturned) or (self.turned and self.unturned)
        if not self.exif and self.unclear and are_unclear:
            text = (
                "has an EXIF orientation, and its size does not tell whether its objects were "
                "drawn before or after turning; they are read as drawn on the turned image, as "
                "viewers show it: look at --contact-sheet, and give --exif unturned if they are off"
            )
            found.append(_fault(UNCLEAR, self.unclear, text))
        return found


def _fault(kind: str, names: Sequence[str], text: str) -> Fault:
    return Fault(kind=kind, where=names[0], text=text, count=len(names))


def turn_points(points: NDArray[np.float64], stored: Stored) -> NDArray[np.float64]:
    """Return points (N, 2) on stored pixels as points on the upright image."""
    x, y = points[:, 0], points[:, 1]
    w, h = float(stored.width), float(stored.height)
    turned = {
        1: (x, y),
        2: (w - x, y),
        3: (w - x, h - y),
        4: (x, h - y),
        5: (y, x),
        6: (h - y, x),
        7: (h - y, w - x),
        8: (y, w - x),
    }[stored.orientation]
    return np.stack(turned, 1)


_TURN_BITMAP: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda m: m,
    2: lambda m: m[:, ::-1],
    3: lambda m: m[::-1, ::-1],
    4: lambda m: m[::-1],
    5: lambda m: m.T,
    6: lambda m: m[::-1].T,
    7: lambda m: m[::-1, ::-1].T,
    8: lambda m: m.T[::-1],
}


def turn_mask(mask: Mask | None, stored: Stored) -> Mask | None:
    """Return a mask on stored pixels as a mask on the upright image."""
    if mask is None:
        return None
    if isinstance(mask, Mapping):
        bitmap = cut(mask, (0, 0, stored.width, stored.height))
        turned = _TURN_BITMAP[stored.orientation](bitmap)
        height, width = turned.shape
        return encode(turned, (0, 0, width, height), (height, width))
    assert isinstance(mask, Sequence)
    rings: Iterable[NDArray[np.float64]] = (np.asarray(r, np.float64).reshape(-1, 2) for r in mask)
    return tuple(turn_points(ring, stored).ravel() for ring in rings)


def turn_objects(objects: Objects, stored: Stored) -> Objects:
    """Return objects on stored pixels as objects on the upright image."""
    if not len(objects):
        return objects
    corners = turn_points(objects.boxes.reshape(-1, 2), stored).reshape(-1, 2, 2)
    return replace(
        objects,
        boxes=np.concatenate((corners.min(1), corners.max(1)), 1),
        masks=tuple(turn_mask(mask, stored) for mask in objects.masks),
    )
