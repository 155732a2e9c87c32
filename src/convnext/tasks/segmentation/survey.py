"""A survey of the values in a sample of masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext.data.formats.mask_pairs import LOSSY
from convnext.data.images import BadImage
from convnext.data.samples import spread
from convnext.tasks.segmentation.masks import (
    BLACK,
    NONE_16_BIT,
    WHITE,
    Color,
    Raw,
    read_mask,
    shades,
)

# How many masks are sampled.
NUM_MASKS = 200
# How many of them are looked at more closely.
NUM_DETAILED = 24


@dataclass(kw_only=True)
class Survey:
    """What a sample of masks holds."""

    counts: Counter[int] = field(default_factory=Counter)
    """Pixels of each value."""
    numbers: Counter[int] = field(default_factory=Counter)
    """Masks by n, if their values above 0 are 1 to n; 0 for all others that are not empty."""
    colored: Path | None = None
    """The first mask in color."""
    colors: Counter[Color] = field(default_factory=Counter)
    """Pixels of each color of the masks in color."""
    palettes: dict[int, set[Color]] = field(default_factory=dict)
    """Colors of each index of palette images."""
    is_wide: bool = False
    """Whether masks have more than 8 bits."""
    is_lossy: bool = False
    by_shade: bool = False
    num_objects: int = 0
    """Maximum number of values other than 0 in a mask."""
    num_tested: int = 0
    """Masks of which it was tested whether the values are ids of objects."""
    num_id_like: int = 0
    """Those of them whose values are compact regions, numbered without large gaps."""
    num_colored: int = 0
    masks: list[NDArray[np.int32]] = field(default_factory=list)
    """The values of some masks, to look for edges."""

    @property
    def values(self) -> set[int]:
        """The values that occur."""
        return set(self.counts)


def sample(masks: Sequence[Path], count: int) -> list[Path]:
    """Return up to `count` masks, spread evenly."""
    return [masks[index] for index in spread(len(masks), count)]


def survey(masks: Iterable[Path]) -> Survey:
    """Read masks; those that cannot be read are left out."""
    found = Survey()
    raws: list[tuple[Path, Raw]] = []
    for path in masks:
        try:
            raws.append((path, read_mask(path)))
        except BadImage:
            continue
    for _, raw in raws:
        for value, color in raw.palette.items():
            found.palettes.setdefault(value, set()).add(color)
    found.by_shade = _is_black_and_white(found.palettes)
    for path, raw in raws:
        found.is_lossy = found.is_lossy or path.suffix.lower() in LOSSY
        found.is_wide = found.is_wide or raw.mode.startswith("I") or raw.mode == "F"
        _add(found, path, shades(raw, path) if raw.palette and found.by_shade else raw.values)
    return found


def _add(found: Survey, path: Path, values: NDArray[np.int32]) -> None:
    if values.ndim == 3:
        found.colored = found.colored or path
        if found.num_colored < NUM_DETAILED:
            found.num_colored += 1
            codes = (values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2]
            for code, count in zip(*map(np.ndarray.tolist, _counts(codes)), strict=True):
                found.colors[(code >> 16, code >> 8 & 255, code & 255)] += count
        return
    present, counts = _counts(values)
    ids = present[(present > 0) & (present != NONE_16_BIT)]
    if len(ids):
        found.numbers[len(ids) if int(ids[-1]) == len(ids) else 0] += 1
    found.counts.update(dict(zip(present.tolist(), counts.tolist(), strict=True)))
    num_objects = int((present > 0).sum())
    found.num_objects = max(found.num_objects, num_objects)
    if num_objects > 1 and found.num_tested < NUM_DETAILED:
        found.num_tested += 1
        found.num_id_like += _is_id_like(values, present)
    if len(found.masks) < NUM_DETAILED:
        found.masks.append(values)


def _counts(values: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the values that occur, and how often."""
    if values.min(initial=0) < 0 or values.max(initial=0) > NONE_16_BIT:
        unique, numbers = np.unique(values, return_counts=True)
        return unique.astype(np.intp), numbers.astype(np.intp)
    counts = np.bincount(values.ravel())
    present = np.flatnonzero(counts)
    return present, counts[present]


def _is_black_and_white(palettes: dict[int, set[Color]]) -> bool:
    """Whether palette images are black and white with indices that do not say so, such as 251."""
    colors = {color for found in palettes.values() for color in found}
    if WHITE not in colors or not colors <= {BLACK, WHITE}:
        return False
    usual: tuple[dict[int, set[Color]], ...] = (
        {0: {BLACK}, 1: {WHITE}},
        {0: {BLACK}, 255: {WHITE}},
    )
    return palettes not in usual


def _is_id_like(values: NDArray[np.int32], present: NDArray[np.intp]) -> bool:
    """Whether the values are numbered without large gaps, each a compact region."""
    ids = present[present > 0]
    if len(ids) < 2 or int(ids[-1]) > 2 * len(ids) + 8:
        return False
    rows, columns = np.nonzero(values)
    positions = np.searchsorted(ids, values[rows, columns])
    area = np.bincount(positions, minlength=len(ids))
    boxes = np.ones(len(ids), np.int64)
    for where in (rows, columns):
        low = np.full(len(ids), np.iinfo(np.int64).max)
        high = np.zeros(len(ids), np.int64)
        np.minimum.at(low, positions, where)
        np.maximum.at(high, positions, where)
        boxes *= high - low + 1
    return bool(np.mean(area / boxes) > 0.45)
