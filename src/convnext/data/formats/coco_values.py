"""Values of COCO's json: numbers, masks, and what the four numbers of a box are.

Most tools write x, y, width, height, but not all; masks, areas and image sizes tell.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard, cast, get_args

import numpy as np
from numpy.typing import NDArray

from convnext.data.formats.records import (
    Fault,
)
from convnext.data.masks import bounds_of, num_pixels

Json = dict[str, Any]
# Beyond, floats no longer tell whole numbers apart.
LIMIT = 2**53
PLAIN = {int, float}


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
    if not {*map(type, values)} <= PLAIN or not -LIMIT < min(values) <= max(values) < LIMIT:
        return False
    return math.isfinite(sum(values))  # What is not finite stays so in a sum.


def is_whole(value: Any) -> TypeGuard[int]:
    """Tell whether a value of a json is a whole number that can be an id or a size."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_box(value: Any) -> TypeGuard[list[float]]:
    """Tell whether a value of a json is four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and are_numbers(value)


def box_array(values: Sequence[Any]) -> NDArray[np.float64]:
    """Return boxes as (N, 4); rows of NaN where a value is not four finite numbers."""
    lists = {*map(type, values)} <= {list} and {*map(len, values)} <= {4}
    if lists and {*map(type, itertools.chain.from_iterable(values))} <= PLAIN:
        # A whole number beyond the range of floats overflows.
        with contextlib.suppress(OverflowError):
            numbers = itertools.chain.from_iterable(values)
            found = np.fromiter(numbers, np.float64, 4 * len(values)).reshape(-1, 4)
            found[~(np.abs(found) < LIMIT).all(1)] = np.nan
            return found
    nothing = (math.nan,) * 4
    rows = [value if is_box(value) else nothing for value in values]
    return np.array(rows, np.float64).reshape(-1, 4)


def mask_bounds(value: Any) -> tuple[float, float, float, float] | None:
    """Return x1 y1 x2 y2 of a sound segmentation; None if there is none."""
    if isinstance(value, tuple):
        return bounds_of(value)
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


BoxForm = Literal["xywh", "xyxy", "cxcywh"]
"""How four numbers are a box: corner and size, two corners, or center and size."""
FORMS = cast("tuple[BoxForm, ...]", get_args(BoxForm))
# Share of the boxes that must agree with their masks or areas for a reading to be taken.
AGREEMENT = 0.9
_TO_CORNERS: dict[BoxForm, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "xywh": lambda b: np.concatenate((b[:, :2], b[:, :2] + b[:, 2:]), 1),
    "xyxy": lambda b: b,
    "cxcywh": lambda b: np.concatenate((b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2), 1),
}
_CALLED: dict[BoxForm, str] = {
    "xywh": "corner and size (x y width height)",
    "xyxy": "two corners (x1 y1 x2 y2)",
    "cxcywh": "center and size (cx cy width height)",
}


def tidy_boxes(content: Json, changes: Changes, form: BoxForm | None) -> None:
    """Find out what the four numbers of the boxes are, and make them x, y, width, height."""
    sizes = {
        image["id"]: (image["width"], image["height"])
        for image in content["images"]
        if is_whole(image.get("id"))
        and all(is_whole(image.get(side)) and image[side] > 0 for side in ("width", "height"))
    }
    annotations = content["annotations"]
    every = box_array([value.get("bbox") for value in annotations])
    rows = [
        row
        for row, (value, x) in enumerate(zip(annotations, every[:, 0].tolist(), strict=True))
        if x == x and type(value.get("image_id")) is int and value["image_id"] in sizes
    ]
    if not rows:
        return
    boxes, values = every[rows], [annotations[row] for row in rows]
    sides = np.array([sizes[value["image_id"]] for value in values], np.float64)
    are_shares = bool(np.abs(boxes).max() <= 1.5 and sides.min() >= 16 and (boxes % 1).any())
    scaled = boxes * np.tile(sides, 2) if are_shares else boxes
    if form is None:
        form = _form_of(values, scaled, sides, changes, are_shares=are_shares)
    if form is None or (form == "xywh" and not are_shares):
        return
    corners = _TO_CORNERS[form](scaled).round(3)
    new = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1).round(3).tolist()
    shares = ", as shares of the image's size" if are_shares else ""
    text = f"has a box of {_CALLED[form]}{shares}, like all of the file; read as such"
    kind = "boxes that are two corners" if form == "xyxy" else "boxes in another form"
    for number, (value, box) in enumerate(zip(values, new, strict=True)):
        value["bbox"] = box
        changes.add(
            "boxes that are shares of the size" if are_shares else kind,
            place_of(value, number),
            text,
        )
        if are_shares:
            _scale(value, sizes[value["image_id"]])


def _scale(value: Json, size: tuple[int, int]) -> None:
    """Make the area and the polygons of an object pixels, if they are shares of the size too."""
    if is_number(value.get("area")) and value["area"] <= 1.5:
        value["area"] = value["bbox"][2] * value["bbox"][3]
    bounds = mask_bounds(value.get("segmentation"))
    rings = value.get("segmentation")
    if isinstance(rings, list | tuple) and bounds is not None and max(bounds) <= 1.5:
        lists = (ring.tolist() if isinstance(ring, np.ndarray) else ring for ring in rings)
        value["segmentation"] = [
            [round(number * size[i % 2], 3) for i, number in enumerate(ring)] for ring in lists
        ]


def _form_of(
    values: Sequence[Json],
    boxes: NDArray[np.float64],
    sides: NDArray[np.float64],
    changes: Changes,
    *,
    are_shares: bool,
) -> BoxForm | None:
    """Return the form of the boxes; None if only the user can tell.

    The masks decide; without any, the areas; without those, whether the boxes lie in the images.
    """
    corners = {form: _TO_CORNERS[form](boxes) for form in FORMS}
    known = list(itertools.islice(_bounds(values), 2000))
    if len(known) >= min(3, len(values)):
        rows, bounds = [i for i, _ in known], np.array([b for _, b in known])
        if are_shares and bounds.max() <= 1.5:
            bounds = bounds * np.tile(sides[rows], 2)
        tolerance = 2 + 0.02 * sides[rows].max(1, keepdims=True)
        agree = {
            form: float((np.abs(c[rows] - bounds) <= tolerance).all(1).mean())
            for form, c in corners.items()
        }
        best = max(agree, key=lambda form: agree[form])
        if agree[best] >= AGREEMENT and agree["xywh"] < 0.5:
            return best
        return "xywh"
    inside = {form: _inside(c, sides) for form, c in corners.items()}
    areas = np.array([v["area"] if is_number(v.get("area")) else 0 for v in values], np.float64)
    if not are_shares and (areas > 0).mean() >= AGREEMENT:
        same = {
            form: float((np.abs(_areas(c) - areas) <= 2 + 0.01 * areas).mean())
            for form, c in corners.items()
        }
        if same["xywh"] < AGREEMENT <= same["xyxy"] and inside["xyxy"] >= 0.95:
            return "xyxy"
        if same["xywh"] >= AGREEMENT and inside["cxcywh"] < 0.95:
            return "xywh"
    if not are_shares and inside["xywh"] >= 0.95:
        return "xywh"
    fitting = [form for form, share in inside.items() if share >= 0.99]
    if len(fitting) == 1 and (len(values) >= 3 or are_shares):
        return fitting[0]
    if are_shares or (len(fitting) > 1 and len(values) >= 10):
        forms = " or as ".join(_CALLED[form] for form in fitting or FORMS)
        what = "shares of the image's size" if are_shares else "pixels"
        text = (
            f"are {what}, which can be read as {forms}; say which with --boxes, "
            f"such as --boxes {(fitting or ['xywh'])[0]}"
        )
        changes.refuse("boxes that can be read in two ways", "the boxes", text)
        return None
    return "xywh"


def _bounds(values: Iterable[Json]) -> Iterable[tuple[int, tuple[float, float, float, float]]]:
    for i, value in enumerate(values):
        bounds = mask_bounds(value.get("segmentation"))
        if bounds is not None:
            yield i, bounds


def _inside(corners: NDArray[np.float64], sides: NDArray[np.float64]) -> float:
    """Return the share of boxes that have an area and lie in their images."""
    slack = 1 + 0.002 * sides
    is_in = (corners[:, :2] >= -slack).all(1) & (corners[:, 2:] <= sides + slack).all(1)
    return float((is_in & (corners[:, 2:] > corners[:, :2]).all(1)).mean())


def _areas(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((corners[:, 2:] - corners[:, :2]).prod(1))
