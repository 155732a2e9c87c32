"""Masks in several files for an image: one for each class, or one for each object.

masks/CLASS/x.png                  a binary mask for each class, in a folder or by x_CLASS.png
ID/images/x.png  ID/masks/*.png    a folder for each image, with a mask for each object
x.png  x_mask.png  x_mask_1.png    several masks beside an image
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convnext.data.formats.paths import kind_of
from convnext.data.images import BadImage, opened, readable_extensions

BACKGROUND, FOREGROUND = "background", "foreground"
# Names that follow an image's name in this many different ways are not classes.
MAX_CLASSES = 64
# A file with few values, or whose two main values cover most of it, may be a mask.
FEW_VALUES, MAIN_SHARE = 64, 0.6
# The mask of one class is black and white; more than two values below this are indices.
MIN_WHITE = 64
# Pixels on each side that are looked at.
NUM_PIXELS = 128
# Folders that are looked at to tell whether each is one image.
NUM_TRIED = 5


@dataclass(frozen=True)
class Layers:
    """Masks of one image, each with the class of its foreground; the last one is on top."""

    files: tuple[tuple[str, Path], ...]

    def __str__(self) -> str:
        first = str(self.files[0][1]) if self.files else "no mask"
        return first if len(self.files) < 2 else f"{first} and {len(self.files) - 1:,} more"


Layered = dict[str, tuple[Path, Layers]]


def layer_files(images: Mapping[str, Path], masks: Mapping[str, Path]) -> Layered | None:
    """Return images with the masks of their classes or objects; None if the names do not fit.

    Args:
        images: Image files by their names relative to their folder, without the ending.
        masks: Mask files, likewise.
    """
    found: dict[str, list[tuple[str, Path]]] = {}
    for name, path in masks.items():
        split = _image_and_rest(name, images)
        if split is not None:
            found.setdefault(split[0], []).append((split[1], path))
    num_found = sum(map(len, found.values()))
    if 2 * num_found < len(masks) or not num_found:
        return None
    rests = Counter(rest for layers in found.values() for rest, _ in layers)
    by_object = all(re.fullmatch(r"[\W_]*\d*", rest) for rest in rests)
    # The same few names recur from image to image if they are classes.
    if not by_object and (len(rests) > MAX_CLASSES or len(rests) > num_found / 2):
        return None
    return {
        name: (
            images[name],
            Layers(
                tuple((FOREGROUND if by_object else rest, path) for rest, path in sorted(layers))
            ),
        )
        for name, layers in sorted(found.items())
    }


def classes_of(pairs: Iterable[tuple[Path, object]]) -> tuple[str, ...]:
    """Return the classes of pairs with layers, the background first; () if there are none."""
    names = {name for _, mask in pairs if isinstance(mask, Layers) for name, _ in mask.files}
    return (BACKGROUND, *sorted(names - {BACKGROUND})) if names else ()


def _image_and_rest(name: str, images: Mapping[str, Path]) -> tuple[str, str] | None:
    """Split the name of a mask into its image's and the name of a class or the number of an object.

    >>> _image_and_rest("road/7", {"7": Path()}), _image_and_rest("7_road", {"7": Path()})
    (('7', 'road'), ('7', 'road'))
    """
    folder, _, file = name.rpartition("/")
    if folder and file in images:
        return file, folder
    first, _, rest = folder.partition("/")
    if rest and f"{rest}/{file}" in images:
        return f"{rest}/{file}", first
    for match in reversed(list(re.finditer(r"[-_. ]+", name))):
        if name[: match.start()] in images:
            return name[: match.start()], name[match.end() :]
    return None


def image_folders(root: Path) -> Layered | None:
    """Return the images of folders that each hold one, with a mask for each object; else None."""
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    tried = [_parts(root / name) for name in names[:NUM_TRIED]]
    if len(names) < 2 or not all(parts is not None and len(parts[0]) == 1 for parts in tried):
        return None
    found: Layered = {}
    for name in names:
        parts = _parts(root / name)
        if parts is None:
            continue
        images, masks = parts
        if len(images) == 1:
            found[name] = (images[0], Layers(tuple((FOREGROUND, mask) for mask in masks)))
    return found


def _parts(folder: Path) -> tuple[list[Path], list[Path]] | None:
    """Return the files in images/ and masks/ of a folder; None if it does not have both."""
    kinds = {kind_of(p.name): p for p in folder.iterdir() if p.is_dir()}
    images, masks = kinds.get("image"), kinds.get("mask")
    if images is None or masks is None:
        return None
    endings = readable_extensions()
    files = [
        sorted(p for p in part.iterdir() if p.suffix.lower() in endings) for part in (images, masks)
    ]
    return (files[0], files[1]) if files[0] else None


def looks_like_mask(path: Path) -> bool:
    """Whether a file has the few values of a mask, rather than the many of a photo."""
    try:
        with opened(path) as image:
            pixels = np.asarray(image.convert("L") if image.format == "JPEG" else image)
            is_lossy = image.format == "JPEG"
    except BadImage:
        return False
    step = max(max(pixels.shape[:2]) // NUM_PIXELS, 1)
    pixels = pixels[::step, ::step]
    if is_lossy:
        return float(np.mean((pixels < 32) | (pixels > 223))) > 0.9
    values = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
    _, counts = np.unique(values, axis=0, return_counts=True)
    main = np.sort(counts)[-2:].sum()
    return len(counts) <= FEW_VALUES or bool(main >= MAIN_SHARE * len(values))


def has_indices(path: Path) -> bool:
    """Whether a mask holds more values than a background and a foreground, and small ones."""
    try:
        with opened(path) as image:
            if image.mode not in ("L", "P", "I;16"):
                return False
            values = np.unique(np.asarray(image))
    except BadImage:
        return False
    return len(values) > 2 and int(values[-1]) < MIN_WHITE
