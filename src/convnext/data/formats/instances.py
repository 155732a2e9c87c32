"""Instance masks: images whose pixels are the ids of objects, 0 for none, beside each image.

The folders are those of segmentation. Each id is an object of one class; masks of 16 bit and TIFF
are read too. An image may also have a file per object. Masks whose values are the same few in every
image are classes rather than objects, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from convnext.data.formats import mask_folders
from convnext.data.formats.imported import ImportedDataset, ImportedImage, ImportedObject, Skipped
from convnext.data.formats.mask_layers import FOREGROUND, Layers
from convnext.data.formats.mask_pairs import Mask
from convnext.data.formats.paths import FileIndex
from convnext.data.formats.records import SPLITS, ReadOptions
from convnext.data.images import BadImage, opened
from convnext.data.masks import encode
from convnext.data.threads import for_each
from convnext.progress import safe_console

CLASS, KIND = "object", "instance masks"
# Masks that are tried before their values are called ids or classes.
NUM_TRIED = 20
# With fewer objects in each image, the values may as well be classes.
MIN_IDS = 3


def read_instances(index: FileIndex, options: ReadOptions) -> ImportedDataset:
    """List the images of a folder with an object for every id in their masks.

    Raises:
        ValueError: If there are no pairs, or the values of the masks are classes.
    """
    found = mask_folders.find(index.root)
    pairs = [
        (split, image, mask)
        for split in SPLITS
        for image, mask in (getattr(found, split).pairs if getattr(found, split) else {}).values()
    ]
    if not pairs:
        raise ValueError(f"{index.root} has no images with masks of instances")
    skipped = Skipped()
    if not options.layout:
        _check([mask for _, _, mask in pairs[:: max(len(pairs) // NUM_TRIED, 1)]], index.root)
    images = []
    pairs = [pair for pair in pairs if index.fence.allows(pair[1])]
    for (split, image, _), objects in zip(pairs, _read([m for *_, m in pairs]), strict=True):
        if isinstance(objects, BadImage):
            reason = f"{objects.reason}; its image is left out, rather than called empty"
            skipped.add("masks that cannot be read", objects.source, reason)
            continue
        images.append(
            ImportedImage(
                file=image,
                where=str(image),
                split=split if found.split else None,
                objects=objects,
            )
        )
    return ImportedDataset(
        kind=KIND,
        images=images,
        classes=(CLASS,),
        classes_from="the ids of the masks",
        split_from=found.split or "the folders",
        notes=(
            *found.notes,
            f"every value of a mask above 0 is read as an object of the class {CLASS!r}; if the "
            "values are classes, train with --task segment",
        ),
        faults=skipped.all(),
    )


def _check(masks: list[Mask], root: Path) -> None:
    """Refuse masks whose values are classes.

    Raises:
        ValueError: If they are.
    """
    counts = []
    for mask in masks:
        if isinstance(mask, Layers):
            classes = {name for name, _ in mask.files} - {FOREGROUND}
            if classes:
                raise ValueError(
                    f"{root} has a mask for each class ({', '.join(sorted(classes)[:4])}), not for "
                    "each object: train with --task segment"
                )
            return
        try:
            values = np.unique(_ids(mask))
        except BadImage:
            continue
        values = values[values > 0]
        # 255 beside small values means no class.
        is_void = len(values) > 1 and values[-1] == 255 and values[-2] < 254
        if len(values) and (len(values) < values[-1] / 4 or is_void):
            counts = [0]
            break
        counts.append(len(values))
    if not counts or max(counts) < MIN_IDS or len(set(counts)) < min(3, len(counts)):
        raise ValueError(
            f"the values of the masks of {root} look like classes, not like the ids of objects: "
            "train with --task segment, or read them as objects with --layout instances"
        )


def _read(masks: Sequence[Mask]) -> list[tuple[ImportedObject, ...] | BadImage]:
    """Return the objects of each mask, read in threads, or why it cannot be read."""
    found: list[tuple[ImportedObject, ...] | BadImage] = [()] * len(masks)

    def read(position: int) -> None:
        try:
            found[position] = tuple(_objects(masks[position]))
        except BadImage as error:
            found[position] = error

    for_each(read, len(masks), "reading masks", console=safe_console(Console(stderr=True)))
    return found


def _objects(mask: Mask) -> Iterator[ImportedObject]:
    """Yield the objects of an image's mask or masks.

    Raises:
        BadImage: If one cannot be read.
    """
    files = [path for _, path in mask.files] if isinstance(mask, Layers) else [mask]
    for path in files:
        ids = _ids(path)
        yield from _objects_of(ids > 0 if isinstance(mask, Layers) else ids, path)


def _objects_of(ids: NDArray[np.int64] | NDArray[np.bool_], path: Path) -> Iterator[ImportedObject]:
    """Yield an object for every id above 0."""
    rows, columns = np.nonzero(ids > 0)
    values = ids[rows, columns]
    order = np.argsort(values, kind="stable")
    rows, columns, values = rows[order], columns[order], values[order]
    starts = np.flatnonzero(np.diff(values.astype(np.int64), prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        y, x = rows[start:end], columns[start:end]
        top, left, bottom, right = (int(v) for v in (y.min(), x.min(), y.max() + 1, x.max() + 1))
        part = np.zeros((bottom - top, right - left), np.uint8)
        part[y - top, x - left] = 1
        size = (ids.shape[0], ids.shape[1])
        yield ImportedObject(
            where=f"{path}: id {int(values[start])}",
            label=0,
            box=(float(left), float(top), float(right - left), float(bottom - top)),
            runs=encode(part, (left, top, right, bottom), size),
        )


def _ids(path: Path) -> NDArray[np.int64]:
    """Return the values of a mask.

    Raises:
        BadImage: If it cannot be read, or is a stack of slices.
    """
    with opened(path) as image:
        image.load()
        values = np.asarray(image)
        if not np.array_equal(values, np.rint(values)):
            raise BadImage(str(path), "holds fractions, not the ids of objects")
        is_equal = values.ndim == 3 and bool((values == values[..., :1]).all())
        is_color = values.dtype == np.uint8 and values.shape[-1] <= 4
        if values.ndim == 3 and not is_equal and not is_color:
            raise BadImage(str(path), "has several bands of ids; save one band")
        if values.ndim == 3:  # Gray as RGB, or a color for each object.
            weights = np.array([1, 256, 65536], np.int64)
            # A second or fourth band is transparency.
            is_gray = is_equal or values.shape[-1] < 3 or (values[..., :1] == values[..., :3]).all()
            values = values[..., 0] if is_gray else (values[..., :3] * weights).sum(-1)
        return values.astype(np.int64)
