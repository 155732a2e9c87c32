"""Values of COCO's json: what is a number, a box or a mask, and the count of what is changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from convnext.data.formats.records import Fault
from convnext.data.masks import bounds_of, num_pixels

Json = dict[str, Any]
# Beyond, floats no longer tell whole numbers apart.
LIMIT = 2**53
_PLAIN = {int, float}


@dataclass
class Changes:
    """What was changed, by kind, with the first place of each kind."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    fatal: list[Fault] = field(default_factory=list)

    def add(self, kind: str, where: str, text: str) -> None:
        """Count a change."""
        self.counts[kind, text] += 1
        self.first.setdefault((kind, text), []).append(where)

    def refuse(self, kind: str, where: str, text: str) -> None:
        """Add a fault that only the user can decide."""
        self.fatal.append(Fault(kind=kind, where=where, text=text, fatal=True))

    def faults(self) -> list[Fault]:
        """Return a fault per kind."""
        return self.fatal + [
            Fault(kind=kind, where=self.first[kind, text][0], text=text, count=count)
            for (kind, text), count in self.counts.items()
        ]


def place_of(value: Mapping[str, Any], number: int, noun: str = "annotation") -> str:
    """Return the name of an annotation or an image in messages."""
    key = value.get("id")
    return f"{noun} {key}" if is_whole(key) else f"number {number} of the {noun}s"


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value of a json is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < LIMIT and math.isfinite(value)


def are_numbers(values: list[Any]) -> TypeGuard[list[float]]:
    """Tell whether all values of a list are finite numbers; quick, since files have millions."""
    if not values:
        return True
    if not {*map(type, values)} <= _PLAIN or not -LIMIT < min(values) <= max(values) < LIMIT:
        return False
    return math.isfinite(sum(values))  # What is not finite stays so in a sum.


def is_whole(value: Any) -> TypeGuard[int]:
    """Tell whether a value of a json is a whole number that can be an id or a size."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_box(value: Any) -> TypeGuard[list[float]]:
    """Tell whether a value of a json is four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and are_numbers(value)


def mask_bounds(value: Any) -> tuple[float, float, float, float] | None:
    """Return x1 y1 x2 y2 of a sound segmentation; None if there is none."""
    if isinstance(value, list):
        rings = [ring for ring in value if isinstance(ring, list) and len(ring) >= 6]
        if not rings or any(len(ring) % 2 or not are_numbers(ring) for ring in rings):
            return None
        return bounds_of(rings)
    if not isinstance(value, dict):
        return None
    size = value.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(map(is_whole, size))):
        return None
    counts = value.get("counts")
    if not isinstance(counts, str) and not (
        isinstance(counts, list) and all(is_whole(c) and c >= 0 for c in counts)
    ):
        return None
    return bounds_of(value) if num_pixels(value) == size[0] * size[1] else None
