"""Read mask files as class indices, and read the class names of a data set.

This module defines the meaning of every value: index masks of 1, 8 or 16 bits (palette images by
index), color masks by a palette, ADE20K's 0 for "no class", and 0 with 255 for binary masks.

    classes.json        ["road", "car"], or {"classes": [{"id": 0, "name": "road",
                        "color": [128, 64, 128]}, ...]}
    classes.txt         one name per line, in the order of the indices
    objectInfo150.txt   ADE20K's own list
    palette.json        {"road": [128, 64, 128], ..., "void": null}, or with null for no class:
                        {"void": [0, 0, 0]} and "void" not among the classes
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext.data.images import MAX_PIXELS, BadImage, identify, upright

Labels = NDArray[np.int32]
Color = tuple[int, int, int]

# The "no class" value in 16-bit masks, for any number of classes.
NONE_16_BIT = 65_535
# Pillow's modes whose values are indices.
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, kw_only=True)
class MaskReader:
    """How the values of a mask become class indices.

    A value that is neither a class nor `ignore_index` is refused, naming the file.
    """

    num_classes: int
    ignore_index: int = 255
    reduce_zero_label: bool = False
    """Value 0 means no class, and class k has the value k + 1."""
    binary: bool = False
    """Value 255 is class 1, as in binary masks."""
    palette: Mapping[Color, int] = field(default_factory=dict)
    """Class index of each color, for color masks."""

    def read(self, path: Path, size: tuple[int, int] | None = None) -> Labels:
        """Return the class of every pixel, (H, W), of a mask file.

        Args:
            path: The file.
            size: Width and height of its image.

        Raises:
            BadImage: If it cannot be read, has another size, or has a value without a class.
        """
        values = read_values(path, size)
        if values.ndim == 3:
            return self._from_colors(values, path)
        if self.binary:
            values = np.where(values == 255, 1, values)
        values[values == NONE_16_BIT] = self.ignore_index
        if self.reduce_zero_label:
            none = (values == 0) | (values == self.ignore_index)
            values = np.where(none, self.ignore_index, values - 1)
        self._check(values, path)
        return values

    def _from_colors(self, values: NDArray[np.int32], path: Path) -> Labels:
        if not self.palette:
            raise BadImage(
                str(path),
                "is a color image, not class indices; say which color is which class in "
                'palette.json beside the folders, such as {"road": [128, 64, 128], "void": null}',
            )
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


def read_values(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.int32]:
    """Return the content of a mask file: indices (H, W), or colors (H, W, 3).

    Raises:
        BadImage: If it cannot be read, or has another size than its image.
    """
    try:
        with path.open("rb") as stream, identify(stream) as file:
            if file.width * file.height > MAX_PIXELS:
                raise BadImage(str(path), f"declares {file.width:,} x {file.height:,} pixels")
            file.load()
            image = upright(file)
            if size is not None and image.size != size:
                raise BadImage(
                    str(path),
                    f"has {image.width} x {image.height} pixels, but its image {size[0]} x "
                    f"{size[1]}",
                )
            if image.mode in _INDEX_MODES:
                return np.asarray(image).astype(np.int32)
            return np.asarray(image.convert("RGB")).astype(np.int32)
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage(str(path), "there is no such file") from error
    # Pillow's plugins may raise almost any exception for a damaged file.
    except Exception as error:
        raise BadImage(str(path), f"cannot be read ({' '.join(str(error).split())})") from error


# Names under which a palette lists colors without a class.
NO_CLASS = ("ignore", "ignored", "none", "unlabeled", "unlabelled", "void")


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names in the order of the indices; empty if no file lists them."""

    names: tuple[str, ...] = ()
    palette: Mapping[Color, int] = field(default_factory=dict)
    source: str = ""
    """The file that lists them."""


def read_classes(root: Path, ignore_index: int) -> Classes:
    """Read the classes from the files next to the folders.

    Raises:
        ValueError: If a file is damaged.
    """
    listed = Classes()
    for name, parse in (
        ("classes.json", _from_json),
        ("classes.txt", _from_lines),
        ("objectInfo150.txt", _from_ade20k),
    ):
        path = root / name
        if path.is_file():
            listed = _read(path, parse, ignore_index)
            break
    path = root / "palette.json"
    if not path.is_file():
        return listed
    return _read(path, lambda text, ignore: _with_palette(text, listed, ignore), ignore_index)


def _read(path: Path, parse: Any, ignore_index: int) -> Classes:
    try:
        found: Classes = parse(path.read_text(encoding="utf-8-sig"), ignore_index)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f'{path} does not list classes ({error}); write ["road", "car"], or one name per line '
            "in classes.txt"
        ) from error
    if len(set(found.names)) < len(found.names):
        raise ValueError(f"{path} lists a class twice")
    return Classes(names=found.names, palette=found.palette, source=path.name)


def _from_json(text: str, ignore_index: int) -> Classes:
    tree = json.loads(text)
    entries = tree["classes"] if isinstance(tree, dict) and "classes" in tree else tree
    if isinstance(entries, dict):
        entries = [{"id": int(key), "name": name} for key, name in entries.items()]
    rows = [e if isinstance(e, dict) else {"id": i, "name": e} for i, e in enumerate(entries)]
    rows = sorted(rows, key=lambda row: int(row["id"]))
    if [int(row["id"]) for row in rows] != list(range(len(rows))):
        raise ValueError("the ids must be 0, 1, 2 ... without gaps")
    palette = {_color(row["color"]): int(row["id"]) for row in rows if row.get("color")}
    return Classes(names=tuple(str(row["name"]) for row in rows), palette=palette)


def _from_lines(text: str, ignore_index: int) -> Classes:
    return Classes(names=tuple(line.strip() for line in text.splitlines() if line.strip()))


def _from_ade20k(text: str, ignore_index: int) -> Classes:
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    rows = [line for line in lines if line[0].strip().isdecimal()]
    return Classes(names=tuple(row[-1].split(";")[0].split(",")[0].strip() for row in rows))


def _with_palette(text: str, listed: Classes, ignore_index: int) -> Classes:
    tree = json.loads(text)
    colors = {str(name): _color(value) for name, value in tree.items() if value is not None}
    names = listed.names or tuple(n for n in colors if n.lower() not in NO_CLASS)
    for name in colors:
        if name not in names and name.lower() not in NO_CLASS:
            raise ValueError(f"{name!r} is not among the classes {', '.join(names)}")
    index = {name: i for i, name in enumerate(names)}
    palette = {color: index.get(name, ignore_index) for name, color in colors.items()}
    return Classes(names=names, palette=palette)


def _color(value: Any) -> Color:
    red, green, blue = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"{value} is not a color")
    return red, green, blue
