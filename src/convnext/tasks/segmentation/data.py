"""Segmentation data sets: images and masks in a folder, their classes and statistics.

File names alone determine which images are held out, so the split is the same in all runs and on
all machines, and hardly changes when images are added.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from convnext.data.formats.coco_layout import is_detection
from convnext.data.images import BadImage
from convnext.data.samples import held_out, note_copies
from convnext.tasks.segmentation.layout import PairListing, Pairs, Part, find, is_segmentation
from convnext.tasks.segmentation.masks import (
    NONE_16_BIT,
    Classes,
    MaskReader,
    read_classes,
    read_values,
)

# Number of masks sampled for `facts`, and for the classes if no file lists them.
NUM_MASKS = 200
NUM_DECODED = 32
# If fewer than one in this many values occurs, values above 256 are not class indices.
SPARSE = 4


@dataclass(frozen=True, kw_only=True)
class SegmentationData:
    """A data set with its split."""

    path: str
    classes: tuple[str, ...]
    train: Pairs
    val: Pairs
    notes: tuple[str, ...]
    """Notes for the user about how the data was read."""
    faults: tuple[str, ...] = ()
    """The notes about faults to fix."""

    @property
    def ignore_index(self) -> int:
        """The value of pixels without a class."""
        return self.train.reader.ignore_index


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The facts that `auto` uses. Sizes are medians over a sample of the training images."""

    num_train: int
    num_val: int
    num_classes: int
    pixel_counts: tuple[int, ...]
    """Pixels of each class in a sample of the training masks."""
    image_height: int
    image_width: int
    grayscale: bool
    reduce_zero_label: bool = False


def open_dataset(
    path: str,
    *,
    val_share: float = 0.2,
    strict: bool = True,
    images: str = "",
    masks: str = "",
    reduce_zero_label: bool | Literal["auto"] = "auto",
) -> SegmentationData:
    """Open the data set at `path`, reading at most a sample of its masks.

    Args:
        path: A folder in one of the layouts of `layout`, or of detection.
        val_share: Fraction of the images to hold out if the data has no split of its own.
        strict: Refuse an empty split; otherwise it is noted.
        images: Pattern of the images; with `masks` it replaces a known layout.
        masks: Pattern of the masks.
        reduce_zero_label: Value 0 means no class; "auto" applies this to ADE20K's layout only.

    Raises:
        ValueError: If `path` has no data to train and validate on; the message says why.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"val_share is {val_share}, but must be between 0 and 1")
    root = Path(path)
    if not images and not is_segmentation(root) and is_detection(root):
        # Imported here because few data sets need it, and it imports more than the others.
        from convnext.tasks.segmentation.layout import open_drawn

        return SegmentationData(**open_drawn(path, val_share))
    found = find(root, images, masks)
    notes = list(found.notes)
    reduced = found.is_ade20k if reduce_zero_label == "auto" else reduce_zero_label
    if reduced:
        notes.append("value 0 of the masks means no class, and class k has the value k + 1")
    train, val = found.train, found.val
    if val is None:
        train, val = _hold_out(train, val_share)
        notes.append(
            f"there is no split: {len(val.pairs):,} of {len(found.train.pairs):,} images, chosen "
            "by name, are held out for validation"
        )
        notes += note_copies(list(found.train.pairs))
    faults = [*_partners("train", train), *_partners("val", val)]
    empty = [name for name, part in (("train", train), ("val", val)) if not part.pairs]
    if empty and strict:
        detail = f" ({'; '.join(faults)})" if faults else ""
        raise ValueError(f"{path} has no image with a mask in its {empty[0]} split{detail}")
    faults += [f"there is no image with a mask in the {name} split" for name in empty]
    reader, classes = _reader(root, found, reduced, notes)
    return SegmentationData(
        path=path,
        classes=classes,
        train=_pairs(root, train, reader),
        val=_pairs(root, val, reader),
        notes=(*notes, *faults),
        faults=tuple(faults),
    )


def facts(data: SegmentationData) -> DataFacts:
    """Gather the facts from a sample of the training pairs.

    Raises:
        ValueError: If no sampled pair can be read, or no mask has a labeled pixel.
    """
    sizes, gray = [], True
    counts = np.zeros(len(data.classes), dtype=np.int64)
    last: BadImage | None = None
    for index in data.train.some(NUM_DECODED):
        try:
            image = data.train.open(index, "RGB")
            mask = data.train.mask(index, image.size)
        except BadImage as error:
            last = error
            continue
        sizes.append(image.size)
        known = mask[mask != data.ignore_index]
        counts += np.bincount(known, minlength=len(data.classes))
        pixels = np.asarray(image)[::4, ::4].astype(np.int16)
        gray = gray and int(np.ptp(pixels, axis=2).max(initial=0)) <= 8
    if not sizes:
        raise ValueError(f"none of the sampled training pairs can be used: {last}")
    if not counts.any() and len(sizes) == len(data.train):
        raise ValueError(
            f"no training mask of {data.path} has a labeled pixel: all pixels are "
            f"{data.ignore_index}, which means no class; give the classes the values 0, 1, 2 ..."
        )
    return DataFacts(
        num_train=len(data.train),
        num_val=len(data.val),
        num_classes=len(data.classes),
        pixel_counts=tuple(counts.tolist()),
        image_height=int(statistics.median(height for _, height in sizes)),
        image_width=int(statistics.median(width for width, _ in sizes)),
        grayscale=gray,
        reduce_zero_label=data.train.reader.reduce_zero_label,
    )


def _pairs(root: Path, part: Part, reader: MaskReader) -> Pairs:
    return Pairs(
        root=root,
        names=tuple(part.pairs),
        images=tuple(image for image, _ in part.pairs.values()),
        masks=tuple(mask for _, mask in part.pairs.values()),
        reader=reader,
    )


def _hold_out(part: Part, share: float) -> tuple[Part, Part]:
    """Split a part in two by hashes of the names."""
    held = held_out(list(part.pairs), share)
    train = {name: pair for name, pair in part.pairs.items() if name not in held}
    val = {name: pair for name, pair in part.pairs.items() if name in held}
    return replace(part, pairs=train), Part(pairs=val)


def _partners(name: str, part: Part) -> list[str]:
    return [
        f"{len(files):,} {what} in the {name} split, left out (such as {files[0]})"
        for what, files in (
            ("images without a mask", part.unpaired_images),
            ("masks without an image", part.unpaired_masks),
            ("JPEG masks, whose values are not exact: save them as PNG,", part.lossy_masks),
        )
        if files
    ]


def _reader(
    root: Path, found: PairListing, reduced: bool, notes: list[str]
) -> tuple[MaskReader, tuple[str, ...]]:
    """Return the mask reader and the names of the classes.

    Raises:
        ValueError: If no file lists the classes and the masks do not determine them.
    """
    listed = read_classes(root, 255)
    if listed.names:
        if len(listed.names) == 2 and not listed.palette and not reduced:
            values, colored = _values(found)
            if colored is None and _is_binary(values):
                notes.append(
                    f"the masks have only 0 and 255: {listed.names[0]} and {listed.names[1]}"
                )
                return MaskReader(num_classes=2, binary=True, ignore_index=254), listed.names
        ignore_index = 255 if len(listed.names) <= 255 else NONE_16_BIT
        if ignore_index != 255:
            listed = read_classes(root, ignore_index)
        return (
            MaskReader(
                num_classes=len(listed.names),
                ignore_index=ignore_index,
                reduce_zero_label=reduced,
                palette=listed.palette,
            ),
            listed.names,
        )
    return _reader_by_values(root, found, reduced, notes, listed)


def _reader_by_values(
    root: Path, found: PairListing, reduced: bool, notes: list[str], listed: Classes
) -> tuple[MaskReader, tuple[str, ...]]:
    values, colored = _values(found)
    if colored is not None:
        raise ValueError(
            f"{colored} is a color image, not class indices; list the color of each class in "
            f'{root / "palette.json"}, such as {{"road": [128, 64, 128], "void": [0, 0, 0]}}'
        )
    if _is_binary(values) and not reduced:
        notes.append("the masks have only 0 and 255: background and foreground")
        return MaskReader(num_classes=2, binary=True, ignore_index=254), (
            "background",
            "foreground",
        )
    ignore_index = 255 if max(values - {NONE_16_BIT}, default=0) <= 255 else NONE_16_BIT
    known = sorted(values - {ignore_index, NONE_16_BIT} - ({0} if reduced else set()))
    if not known:
        raise ValueError(f"the sampled masks under {root} have no labeled pixel")
    count = known[-1] + (0 if reduced else 1)
    if count > 256 and len(known) < count // SPARSE:
        raise ValueError(
            f"the masks under {root} have values up to {known[-1]:,}, but only {len(known):,} "
            "different ones; if these are classes, give them the values 0, 1, 2 ..., or list all "
            "classes in classes.txt"
        )
    names = tuple(f"class {k + int(reduced)}" for k in range(count))
    notes.append(
        f"no classes.txt or classes.json names the classes: the mask values show {count} classes; "
        f"{ignore_index} means no class"
    )
    reader = MaskReader(num_classes=count, ignore_index=ignore_index, reduce_zero_label=reduced)
    return reader, names


def _is_binary(values: set[int]) -> bool:
    return values <= {0, 255} and 255 in values


def _values(found: PairListing) -> tuple[set[int], Path | None]:
    """Return the values in a sample of the training masks, and the first mask in color."""
    masks = [mask for _, mask in found.train.pairs.values()]
    values: set[int] = set()
    for mask in masks[:: max(1, len(masks) // NUM_MASKS)]:
        try:
            read = read_values(mask)
        except BadImage:
            continue
        if read.ndim == 3:
            return values, mask
        values |= set(np.unique(read).tolist())
    return values, None
