"""Masks as COCO's run lengths: a few hundred bytes each, whatever the size of the image.

Runs go down the columns, background first. Their lengths are a list of integers ("uncompressed")
or COCO's string ("compressed"). Both are read; the string is written, because COCO's own tools
accept it in results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 60
"""The maximum length of a number in COCO's string."""
Window = tuple[int, int, int, int]
"""Columns and rows x1 y1 x2 y2; x2 and y2 are excluded."""


class RunLengths(TypedDict):
    """A mask in the format of COCO's results."""

    size: list[int]
    """Height and width."""
    counts: str


def encode(mask: NDArray[Any]) -> RunLengths:
    """Return the run lengths of a mask (H, W); all nonzero values are inside."""
    height, width = mask.shape
    inside = np.asarray(mask, bool)
    columns = np.flatnonzero(inside.any(0))
    if not len(columns):
        return {"size": [height, width], "counts": _write_counts([height * width])}
    first, last = int(columns[0]), int(columns[-1]) + 1
    # Only columns that are not empty are transposed.
    values = np.zeros((last - first) * height + 2, bool)
    values[1:-1] = inside[:, first:last].T.ravel()
    bounds = np.flatnonzero(values[1:] != values[:-1]) + first * height
    counts = np.diff(bounds, prepend=0, append=height * width).tolist()
    if not counts[-1]:  # The mask reaches the last pixel.
        counts.pop()
    return {"size": [height, width], "counts": _write_counts(counts)}


def decode(runs: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of run lengths.

    Raises:
        ValueError: If they are damaged.
    """
    height, width = _size(runs)
    counts = _counts(runs, height * width)
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(values.reshape(width, height).T)


def decode_window(runs: Mapping[str, Any]) -> tuple[NDArray[np.bool_], Window]:
    """Return the part of a mask that is not empty, and its window in the image.

    Raises:
        ValueError: If the run lengths are damaged.
    """
    height, width = _size(runs)
    counts = _counts(runs, height * width)
    ends = np.cumsum(counts)
    starts, stops = ends[0 : len(ends) // 2 * 2 : 2], ends[1::2]
    starts, stops = starts[starts < stops], stops[starts < stops]
    if not len(starts):
        return np.zeros((0, 0), bool), (0, 0, 0, 0)
    x1, x2 = int(starts[0] // height), int((stops[-1] - 1) // height) + 1
    clipped = np.diff(ends.clip(x1 * height, x2 * height), prepend=x1 * height)
    values = np.repeat(np.arange(len(clipped)) % 2 == 1, clipped)
    part = values.reshape(x2 - x1, height).T
    rows = np.flatnonzero(part.any(1))
    y1, y2 = int(rows[0]), int(rows[-1]) + 1
    return np.ascontiguousarray(part[y1:y2]), (x1, y1, x2, y2)


def compress(runs: Mapping[str, Any]) -> RunLengths:
    """Return run lengths with COCO's string instead of a list of counts.

    Raises:
        ValueError: If they are damaged.
    """
    height, width = _size(runs)
    return {
        "size": [height, width],
        "counts": _write_counts(_counts(runs, height * width).tolist()),
    }


def area(runs: Mapping[str, Any]) -> int:
    """Return the number of pixels inside."""
    height, width = _size(runs)
    return int(_counts(runs, height * width)[1::2].sum())


def _size(runs: Mapping[str, Any]) -> tuple[int, int]:
    if "size" not in runs or "counts" not in runs:
        raise ValueError(f"run lengths have 'size' and 'counts', not {sorted(runs)}")
    height, width = runs["size"]
    return int(height), int(width)


def _counts(runs: Mapping[str, Any], num_pixels: int) -> NDArray[np.int64]:
    counts = runs["counts"]
    if isinstance(counts, str | bytes):
        counts = read_counts(counts)
    lengths = np.asarray(counts, np.int64)
    if (len(lengths) and lengths.min() < 0) or lengths.sum() != num_pixels:
        raise ValueError(
            f"damaged run lengths: they add up to {lengths.sum():,} pixels, the image has "
            f"{num_pixels:,}"
        )
    return lengths


def read_counts(text: str | bytes) -> list[int]:
    """Read COCO's string, six bits per character from "0" on; the inverse of `_write_counts`.

    Raises:
        ValueError: If a number is too long.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("ascii") if isinstance(text, str) else text:
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # More characters of this number follow.
            if shift >= MAX_BITS:  # Otherwise one endless number would take forever.
                raise ValueError(f"damaged run lengths: a number has more than {MAX_BITS} bits")
            continue
        if bits & 16:  # The number is negative.
            value -= 1 << shift
        value += counts[-2] if len(counts) > 2 else 0
        if abs(value) > 1 << MAX_BITS:
            raise ValueError(f"damaged run lengths: a number has more than {MAX_BITS} bits")
        counts.append(value)
        value = shift = 0
    return counts


def _write_counts(counts: Sequence[int]) -> str:
    """Write COCO's string; from the fourth count on, the difference to the count two before."""
    characters: list[int] = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits = value & 31
            value >>= 5
            is_last = value == (-1 if bits & 16 else 0)
            characters.append(48 + bits + (0 if is_last else 32))
            if is_last:
                break
    return bytes(characters).decode("ascii")
