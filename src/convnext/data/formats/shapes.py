"""Shapes of labeling tools as boxes, polygons and run lengths."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext.data.formats.coco_values import is_number
from convnext.data.formats.imported import Box
from convnext.data.formats.records import Fault
from convnext.data.masks import encode

# Corners of the polygon that stands for a circle or an ellipse.
NUM_CORNERS = 48
# Of a JSON file of a labeling tool.
MAX_BYTES = 512 * 2**20

Ring = tuple[float, ...]


@dataclass
class Skipped:
    """Faults of shapes, and the number of those without an area, such as points and lines."""

    faults: list[Fault] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, where: str, text: str, *, fatal: bool = False) -> None:
        """Add a fault."""
        self.faults.append(Fault(kind=kind, where=where, text=text, fatal=fatal))

    def skip(self, kind: str, where: str) -> None:
        """Count a shape that is not an object."""
        self.kinds[kind] += 1
        self.first.setdefault(kind, where)

    def all(self) -> tuple[Fault, ...]:
        """Return all faults."""
        return (
            *self.faults,
            *(
                Fault(
                    kind=f"shapes of the kind {kind!r}",
                    where=self.first[kind],
                    text="is not an object with an area; left out",
                    count=count,
                )
                for kind, count in self.kinds.items()
            ),
        )


def points_of(values: Any) -> NDArray[np.float64] | None:
    """Return points (N, 2) from a list of pairs; None if it is not one."""
    if not isinstance(values, list) or not values:
        return None
    if not all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
        for point in values
    ):
        return None
    return np.array(values, np.float64)


def box_of(points: NDArray[np.float64]) -> Box:
    """Return the upright box (x, y, width, height) around points."""
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return x1, y1, x2 - x1, y2 - y1


def ring_of(points: NDArray[np.float64]) -> Ring:
    """Return points as a polygon."""
    return tuple(points.ravel().tolist())


def ellipse(
    center: Sequence[float], radii: Sequence[float], degrees: float = 0.0
) -> NDArray[np.float64]:
    """Return the corners (N, 2) of a polygon with the area of an ellipse."""
    angles = np.arange(NUM_CORNERS) * (2 * math.pi / NUM_CORNERS)
    # The polygon lies inside of the ellipse; a little larger, it has the same area.
    grow = math.sqrt(2 * math.pi / (NUM_CORNERS * math.sin(2 * math.pi / NUM_CORNERS)))
    points = np.stack((radii[0] * np.cos(angles), radii[1] * np.sin(angles)), 1) * grow
    return turn(points, degrees) + np.asarray(center, np.float64)


def turn(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Return points turned clockwise around the origin, as seen on an image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray(points @ np.array(((cos, sin), (-sin, cos))))


def runs_of(bitmap: NDArray[np.uint8], corner: tuple[int, int], size: tuple[int, int]) -> Any:
    """Return COCO's run lengths of a bitmap whose corner is at (x, y) of an image (width, height).

    The part outside the image is cut off.
    """
    (x, y), (width, height) = corner, size
    left, top = max(-x, 0), max(-y, 0)
    part = bitmap[top : max(height - y, 0), left : max(width - x, 0)]
    x, y = max(x, 0), max(y, 0)
    window = (x, y, x + part.shape[1], y + part.shape[0])
    return encode(part, window, (height, width))
