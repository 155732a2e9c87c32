"""Read mask files as class indices, and survey the values in a sample of masks.

This module defines the meaning of every value: index masks of 1, 8 or 16 bits (palette images by
index, gray RGB images by their value), color masks by a palette, ADE20K's 0 for "no class", and
binary masks by a threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.bands import BandImage
from convnext.data.formats.mask_layers import MIN_WHITE, Layers
from convnext.data.formats.mask_pairs import LOSSY
from convnext.data.images import (
    MAX_PIXELS,
    BadImage,
    check_stack,
    identify,
    reason_of,
    spread,
    upright,
)
from convnext.documents import open_regular

Labels = NDArray[np.int32]
Color = tuple[int, int, int]

# The "no class" value in 16-bit masks, for any number of classes.
NONE_16_BIT = 65_535
# Pillow's modes whose values are indices.
_INDEX_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N")
_COLOR_MODES = ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


class Raw(NamedTuple):
    """A mask file as stored."""

    values: NDArray[np.int32]
    """Indices (H, W), or colors (H, W, 3)."""
    mode: str
    """Pillow's mode of the file."""
    palette: Mapping[int, Color]
    """The color of each used index of a palette image; empty for other images."""


@dataclass(frozen=True, kw_only=True)
class MaskReader:
    """How the values of a mask become class indices.

    A value that is neither a class nor `ignore_index` is refused, naming the file.
    """

    num_classes: int
    ignore_index: int = 255
    reduce_zero_label: bool = False
    """Value 0 means no class, and class k has the value k + 1."""
    values: tuple[int, ...] = ()
    """The value of each class in order; () if the values are the indices."""
    void: tuple[int, ...] = ()
    """Beside `values`: those that mean no class."""
    threshold: int = 0
    """Values from this one on are class 1, all others class 0; 0 for exact values."""
    palette: Mapping[Color, int] = field(default_factory=dict)
    """Class index of each color, for color masks."""
    by_shade: bool = False
    """Palette images are black and white by their colors, whatever the indices."""

    def read(self, path: Path, size: tuple[int, int] | None = None) -> Labels:
        """Return the class of every pixel, (H, W), of a mask file.

        Args:
            path: The file.
            size: Width and height of its image.

        Raises:
            BadImage: If it cannot be read, has another size, or has a value without a class.
        """
        raw = read_mask(path, size)
        values = raw.values
        if raw.palette and self.by_shade:
            values = shades(raw, path)
        if values.ndim == 3 or (self.palette and (raw.palette or raw.mode in _COLOR_MODES)):
            found = self._from_palette(raw) if raw.palette else None
            if found is not None:
                return found
            if not raw.palette:
                return self._from_colors(values, path)
        if self.threshold:
            return (values >= self.threshold).astype(np.int32)
        if self.values:
            return self._from_values(values, path)
        values[values == NONE_16_BIT] = self.ignore_index
        if self.reduce_zero_label:
            none = (values == 0) | (values == self.ignore_index)
            values = np.where(none, self.ignore_index, values - 1)
        self._check(values, path)
        return values

    def _from_palette(self, raw: Raw) -> Labels | None:
        """Return the classes of a palette image by its colors; None if some are not listed."""
        table: dict[int, int] = {}
        for index, color in raw.palette.items():
            if color in self.palette:
                table[index] = self.palette[color]
            elif index == 255:
                table[index] = self.ignore_index
            else:
                return None
        lookup = np.zeros(256, np.int32)
        for index, label in table.items():
            lookup[index] = label
        found: Labels = lookup[raw.values]
        return found

    def _from_values(self, values: NDArray[np.int32], path: Path) -> Labels:
        table = dict.fromkeys(self.void, self.ignore_index)
        table |= {value: label for label, value in enumerate(self.values)}
        known = np.array(sorted(table), np.int32)
        position = np.searchsorted(known, values).clip(0, len(known) - 1)
        wrong = known[position] != values
        if wrong.any():
            value, count = int(values[wrong][0]), int(wrong.sum())
            listed = ", ".join(map(str, self.values[:10]))
            raise BadImage(
                str(path),
                f"has the value {value} in {count:,} pixels, which is not a class; the values of "
                f"the classes are {listed}",
            )
        labels = np.array([table[value] for value in known.tolist()], np.int32)
        found: Labels = labels[position]
        return found

    def _from_colors(self, values: NDArray[np.int32], path: Path) -> Labels:
        if not self.palette:
            raise BadImage(
                str(path),
                "is a color image, not class indices; say which color is which class in "
                'palette.json beside the folders, such as {"road": [128, 64, 128], "void": null}',
            )
        if values.ndim == 2:
            values = np.repeat(values[..., None], 3, axis=2)
        codes = (values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2]
        known = {(r << 16) | (g << 8) | b: index for (r, g, b), index in self.palette.items()}
        found, inverse = np.unique(codes, return_inverse=True)
        for code in found.tolist():
            if code not in known:
                color = (code >> 16, code >> 8 & 255, code & 255)
                raise BadImage(str(path), f"has the color {color}, which is not in the palette")
        table = np.array([known[code] for code in found.tolist()], dtype=np.int32)
        return table[inverse].reshape(codes.shape)

    def _check(self, values: Labels, path: Path) -> None:
        wrong = (values != self.ignore_index) & ((values < 0) | (values >= self.num_classes))
        if wrong.any():
            value, count = int(values[wrong][0]), int(wrong.sum())
            value += int(self.reduce_zero_label)
            raise BadImage(
                str(path),
                f"has the value {value} in {count:,} pixels, but there are {self.num_classes} "
                f"classes from {int(self.reduce_zero_label)}, and {self.ignore_index} means none",
            )


@dataclass(frozen=True, kw_only=True)
class LayerReader:
    """Reads an image's binary masks of several files; where they overlap, the last is on top."""

    classes: tuple[str, ...]
    """The background first."""
    ignore_index: int = 255
    reduce_zero_label: bool = False

    @property
    def num_classes(self) -> int:
        """The number of classes, background included."""
        return len(self.classes)

    def read(self, mask: Path | Layers, size: tuple[int, int] | None = None) -> Labels:
        """Return the class of every pixel, (H, W).

        Raises:
            BadImage: If a mask cannot be read, has another size, or is in color.
        """
        files = mask.files if isinstance(mask, Layers) else ((self.classes[1], mask),)
        labels = None if size is None else np.zeros(size[::-1], np.int32)
        for name, path in files:
            values = read_mask(path, size).values
            if values.ndim == 3:
                raise BadImage(str(path), "is a color image, not the mask of one class")
            if labels is None:
                labels = np.zeros(values.shape, np.int32)
            found = np.unique(values)
            if len(found) > 2 and int(found[-1]) < MIN_WHITE:
                raise BadImage(
                    str(path),
                    f"has the values {', '.join(map(str, found[:8].tolist()))}, but is taken for "
                    f"the mask of {name!r} alone; say with --segment.images and --segment.masks "
                    "which file belongs to which image",
                )
            # Masks of 0 and 255 may have gray edges.
            labels[values > int(values.max(initial=0)) // 2] = self.classes.index(name)
        if labels is None:
            raise BadImage(str(mask), "has no mask file to tell its size")
        return labels


def shades(raw: Raw, path: Path) -> NDArray[np.int32]:
    """Return a palette image in black and white as 0 and 255.

    Raises:
        BadImage: If it has another color.
    """
    table = np.zeros(256, np.int32)
    for index, color in raw.palette.items():
        if color not in (BLACK, WHITE):
            raise BadImage(
                str(path), f"has the color {color}, but the other palettes are black and white"
            )
        table[index] = color[0]
    found: NDArray[np.int32] = table[raw.values]
    return found


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Raw:
    """Return a mask file as stored; colors that are all gray are returned as indices.

    Raises:
        BadImage: If it cannot be read, has another size than its image, holds fractions, or is a
            stack of slices.
    """
    try:
        with open_regular(path) as stream, identify(stream) as file:
            if file.width * file.height > MAX_PIXELS:
                raise BadImage(str(path), f"declares {file.width:,} x {file.height:,} pixels")
            check_stack(file, str(path))
            file.load()
            image = upright(file)
            if size is not None and image.size != size:
                raise BadImage(
                    str(path),
                    f"has {image.width} x {image.height} pixels, but its image {size[0]} x "
                    f"{size[1]}",
                )
            return _raw(image, path)
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage(str(path), "there is no such file") from error
    # Pillow's plugins may raise almost any exception for a damaged file.
    except Exception as error:
        raise BadImage(str(path), f"cannot be read ({reason_of(error, path)})") from error


def _raw(image: Image.Image, path: Path) -> Raw:
    mode = image.mode
    if isinstance(image, BandImage):  # Gray RGB of 16 bits, or bands that Pillow would drop.
        first = image.values[..., 0]
        is_whole = np.array_equal(first, np.rint(first))
        if not is_whole or not (image.values == first[..., None]).all():
            raise BadImage(
                str(path),
                f"has {image.num_bands} bands of {image.values.dtype}, not class indices; save the "
                "index of each class as one band",
            )
        return Raw(first.astype(np.int32), "I;16", {})
    if mode == "P":
        indices = np.asarray(image)
        colors = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        used = [i for i in np.unique(indices).tolist() if i < len(colors)]
        palette = {i: (int(c[0]), int(c[1]), int(c[2])) for i in used for c in [colors[i]]}
        return Raw(indices.astype(np.int32), mode, palette)
    if mode in _INDEX_MODES:
        return Raw(np.asarray(image).astype(np.int32), mode, {})
    if mode == "F":
        values = np.asarray(image)
        if not np.array_equal(values, np.rint(values)):
            raise BadImage(
                str(path),
                "holds fractions, not class indices; save the index of each class as a PNG of 8 "
                "bits",
            )
        return Raw(values.astype(np.int32), mode, {})
    if image.has_transparency_data and mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        low, high = image.getchannel("A").getextrema()
        if low != high:
            raise BadImage(
                str(path),
                "is transparent in places, and what lies below cannot be seen; save it without "
                "transparency",
            )
    pixels = np.asarray(image.convert("RGB")).astype(np.int32)
    is_gray = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    return Raw(np.ascontiguousarray(pixels[..., 0]) if is_gray else pixels, mode, {})


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
    unreadable: str = ""
    """The first mask that cannot be read, and why."""
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
        except BadImage as error:
            found.unreadable = found.unreadable or str(error)
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
