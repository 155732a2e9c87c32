"""A mask file to class indices: exactly as stored, checked, and never interpolated.

What a value means is decided here once: index masks of 1, 8 or 16 bits (palette images by their
index), colour masks by a palette, ADE20K's zero for "no class", and 0 with 255 for binary masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext.data.images import MAX_PIXELS, BadImage, identify, upright

Labels = NDArray[np.int32]
Color = tuple[int, int, int]

# The value of no class in masks of 16 bits, whatever the number of classes.
NONE_16_BIT = 65_535
# Pillow's modes whose values are indices already.
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, kw_only=True)
class MaskReader:
    """How the values of a mask become class indices.

    Every value that is none of a class, nor `ignore_index`, is refused by its file's name.
    """

    num_classes: int
    ignore_index: int = 255
    reduce_zero_label: bool = False
    """Value 0 means no class, and class k has the value k + 1."""
    binary: bool = False
    """Value 255 is class 1, as in masks of one foreground."""
    palette: Mapping[Color, int] = field(default_factory=dict)
    """Class index of each colour, for masks in colour."""

    def read(self, path: Path, size: tuple[int, int] | None = None) -> Labels:
        """Return the class of every pixel, (H, W), of a mask file.

        Args:
            path: The file.
            size: Width and height of the image that it belongs to.

        Raises:
            BadImage: If it cannot be read, has another size, or a value that is no class.
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
                "is a colour image, not class indices; say which colour is which class in "
                'palette.json beside the folders, such as {"road": [128, 64, 128], "void": null}',
            )
        codes = (values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2]
        known = {(r << 16) | (g << 8) | b: index for (r, g, b), index in self.palette.items()}
        found, inverse = np.unique(codes, return_inverse=True)
        for code in found.tolist():
            if code not in known:
                color = (code >> 16, code >> 8 & 255, code & 255)
                raise BadImage(str(path), f"has the colour {color}, which is not in the palette")
        table = np.array([known[code] for code in found.tolist()], dtype=np.int32)
        return table[inverse].reshape(codes.shape)

    def _check(self, values: Labels, path: Path) -> None:
        wrong = (values != self.ignore_index) & ((values < 0) | (values >= self.num_classes))
        if wrong.any():
            value, count = int(values[wrong][0]), int(wrong.sum())
            value += int(self.reduce_zero_label)
            raise BadImage(
                str(path),
                f"has the value {value} on {count:,} pixels, but there are {self.num_classes} "
                f"classes, from {int(self.reduce_zero_label)} on, and {self.ignore_index} for none",
            )


def read_values(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.int32]:
    """Return what a mask file holds: indices (H, W), or colours (H, W, 3).

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
    # Pillow's plugins let almost any exception escape from a damaged file.
    except Exception as error:
        raise BadImage(str(path), f"cannot be read ({' '.join(str(error).split())})") from error
