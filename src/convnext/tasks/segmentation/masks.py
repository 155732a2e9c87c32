"""Read mask files as class indices, and read the class names of a data set.

This module defines the meaning of every value: index masks of 1, 8 or 16 bits (palette images by
index, gray RGB images by their value), color masks by a palette, ADE20K's 0 for "no class", and
binary masks by a threshold.

    classes.json        ["road", "car"], or {"classes": [{"id": 0, "name": "road",
                        "color": [128, 64, 128]}, ...]}
    classes.txt         one name per line, in the order of the indices
    objectInfo150.txt   ADE20K's own list
    palette.json        {"road": [128, 64, 128], ..., "void": null}, or with null for no class:
                        {"void": [0, 0, 0]} and "void" not among the classes; or with the value
                        of each class: {"road": 0, "car": 127}
    labelmap.txt        CVAT's and Pascal VOC's list of colors
    _classes.csv        Roboflow's list of values
    class_dict.csv      name,r,g,b
    class_names.txt     labelme's list; codes.txt, label_colors.txt: CamVid's
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import MAX_PIXELS, BadImage, check_stack, identify, upright

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
        with path.open("rb") as stream, identify(stream) as file:
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
        raise BadImage(str(path), f"cannot be read ({' '.join(str(error).split())})") from error


def _raw(image: Image.Image, path: Path) -> Raw:
    mode = image.mode
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


# Names under which a palette lists colors without a class.
NO_CLASS = (
    "ignore", "ignored", "none", "unlabeled", "unlabelled", "void", "__ignore__", "_ignore_"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names in the order of the indices; empty if no file lists them."""

    names: tuple[str, ...] = ()
    palette: Mapping[Color, int] = field(default_factory=dict)
    values: tuple[int, ...] = ()
    """The value of each class in masks of values; () if these are the indices."""
    void: tuple[int, ...] = ()
    """Beside `values`: those that mean no class."""
    source: str = ""
    """The file that lists them."""


def read_classes(folders: Sequence[Path], ignore_index: int) -> Classes:
    """Read the classes from the files in some folders; the first file counts.

    Raises:
        ValueError: If a file is damaged, or two folders list different classes.
    """
    listed = Classes()
    for folder in folders:
        for name, parse in _LISTS.items():
            path = folder / name
            if not path.is_file():
                continue
            found = _read(path, parse, ignore_index)
            if not listed.names:
                listed = found
            elif name == listed.source and found != listed:
                raise ValueError(f"{path} lists other classes than the {name} of another folder")
            break
    palettes = [f / "palette.json" for f in folders if (f / "palette.json").is_file()]
    if not palettes:
        return listed
    return _read(
        palettes[0], lambda text, ignore: _with_palette(text, listed, ignore), ignore_index
    )


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
    return replace(found, source=path.name)


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


def _from_class_names(text: str, ignore_index: int) -> Classes:
    """Read labelme's list, whose `__ignore__` is not a class."""
    names = [line.strip() for line in text.splitlines() if line.strip()]
    kept = (n.strip("_") if n in ("_background_",) else n for n in names if n != "__ignore__")
    return Classes(names=tuple(kept))


def _from_ade20k(text: str, ignore_index: int) -> Classes:
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    rows = [line for line in lines if line[0].strip().isdecimal()]
    return Classes(names=tuple(row[-1].split(";")[0].split(",")[0].strip() for row in rows))


def _from_labelmap(text: str, ignore_index: int) -> Classes:
    """Read CVAT's lines `name:red,green,blue:parts:actions`."""
    rows = [line.split(":") for line in text.splitlines() if line.strip() and line[0] != "#"]
    return _of_colors([(row[0].strip(), _color(row[1].split(","))) for row in rows], ignore_index)


def _from_label_colors(text: str, ignore_index: int) -> Classes:
    """Read CamVid's lines `red green blue name`."""
    rows = [line.split(maxsplit=3) for line in text.splitlines() if line.strip()]
    return _of_colors([(row[3].strip(), _color(row[:3])) for row in rows], ignore_index)


def _from_class_dict(text: str, ignore_index: int) -> Classes:
    """Read a table with the columns name, r, g and b."""
    rows = list(csv.reader(text.splitlines(), skipinitialspace=True))
    if not rows or len(rows[0]) < 4:
        raise ValueError("it needs the columns name, r, g and b")
    return _of_colors([(row[0].strip(), _color(row[1:4])) for row in rows[1:] if row], ignore_index)


def _from_values(text: str, ignore_index: int) -> Classes:
    """Read Roboflow's table of the value of each class in the masks."""
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    if "pixel" not in rows[0][0].lower():
        raise ValueError("its first column is not the value of the pixels")
    pairs = sorted((int(row[0]), row[1].strip()) for row in rows[1:])
    values = tuple(value for value, _ in pairs)
    return Classes(
        names=tuple(name for _, name in pairs),
        values=() if values == tuple(range(len(values))) else values,
    )


# The files that list classes; of several in one folder the first counts.
_LISTS: dict[str, Any] = {
    "classes.json": _from_json,
    "classes.txt": _from_lines,
    "objectInfo150.txt": _from_ade20k,
    "labelmap.txt": _from_labelmap,
    "_classes.csv": _from_values,
    "class_dict.csv": _from_class_dict,
    "class_names.txt": _from_class_names,
    "label_colors.txt": _from_label_colors,
    "codes.txt": _from_lines,
}


def _of_colors(rows: Sequence[tuple[str, Color]], ignore_index: int) -> Classes:
    names = tuple(name for name, _ in rows if name.lower() not in NO_CLASS)
    index = {name: i for i, name in enumerate(names)}
    return Classes(names=names, palette={c: index.get(n, ignore_index) for n, c in rows})


def _with_palette(text: str, listed: Classes, ignore_index: int) -> Classes:
    tree = json.loads(text)
    given = {str(name): value for name, value in tree.items() if value is not None}
    names = listed.names or tuple(n for n in given if n.lower() not in NO_CLASS)
    for name in given:
        if name not in names and name.lower() not in NO_CLASS:
            raise ValueError(f"{name!r} is not among the classes {', '.join(names)}")
    if any(isinstance(value, int) for value in given.values()):
        if not all(isinstance(given.get(name), int) for name in names):
            raise ValueError("it must give each class a color, or each class a value")
        void = (int(value) for name, value in given.items() if name not in names)
        return Classes(
            names=names, values=tuple(int(given[name]) for name in names), void=tuple(void)
        )
    index = {name: i for i, name in enumerate(names)}
    palette = {_color(value): index.get(name, ignore_index) for name, value in given.items()}
    return Classes(names=names, palette=palette)


def _color(value: Any) -> Color:
    red, green, blue = (int(v) for v in value)
    if not all(0 <= v <= 255 for v in (red, green, blue)):
        raise ValueError(f"{value} is not a color")
    return red, green, blue
