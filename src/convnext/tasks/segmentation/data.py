"""Segmentation data sets: images and masks in a folder, their classes and statistics.

File names alone determine which images are held out, so the split is the same in all runs and on
all machines, and hardly changes when images are added.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convnext.data.formats.class_checks import with_known_format
from convnext.data.formats.layouts import is_detection
from convnext.data.formats.mask_folders import VOC, find, is_mask_folder
from convnext.data.formats.mask_pairs import PairListing, Part, files_of
from convnext.data.formats.records import Exif, ReadOptions, Understood
from convnext.data.images import PICTURE, BadImage
from convnext.data.samples import (
    ImageFacts,
    SplitData,
    check_share,
    hold_out_names,
    straddling_names,
)
from convnext.tasks.segmentation.class_lists import cityscapes_ids, read_classes
from convnext.tasks.segmentation.layout import Pairs, open_drawn
from convnext.tasks.segmentation.masks import (
    NONE_16_BIT,
    NUM_MASKS,
    LayerReader,
    MaskReader,
    sample,
    survey,
)
from convnext.tasks.segmentation.values import choose, is_binary

# How many pairs are sampled for `facts`.
NUM_DECODED = 32
# How many validation masks are searched for a labeled pixel.
NUM_VAL = 2_000
# How many masks are sampled if a file lists the classes.
NUM_LISTED = 24


@dataclass(frozen=True, kw_only=True)
class SegmentationData(SplitData[Pairs]):
    """A data set of images with masks."""

    faults: tuple[str, ...] = ()
    """The notes about faults to fix."""

    @property
    def ignore_index(self) -> int:
        """The value of pixels without a class."""
        return self.train.reader.ignore_index


@dataclass(frozen=True, kw_only=True)
class DataFacts(ImageFacts):
    """The facts about images with masks; sizes are those of a sample."""

    pixel_counts: tuple[int, ...]
    """Pixels of each class in a sample of the training masks."""
    reduce_zero_label: bool = False


def open_dataset(
    path: str,
    *,
    val_share: float = 0.2,
    strict: bool = True,
    images: str = "",
    masks: str = "",
    reduce_zero_label: bool | Literal["auto"] = "auto",
    options: ReadOptions | None = None,
) -> SegmentationData:
    """Open the data set at `path`, reading at most a sample of its masks.

    Args:
        path: A folder in one of the layouts of `mask_folders`, or of detection.
        val_share: Fraction of the images to hold out if the data has no split of its own.
        strict: Refuse an empty split; otherwise it is noted.
        images: Pattern of the images; with `masks` it replaces a known layout.
        masks: Pattern of the masks.
        reduce_zero_label: Value 0 means no class; "auto" applies this to ADE20K's layout only.
        options: What the user says about the orientation of masks, and about objects to draw them
            from.

    Raises:
        ValueError: If `path` has no data to train and validate on; the message says why.
    """
    check_share(val_share)
    root = Path(path)
    options = options or ReadOptions()
    is_drawn = options.layout or options.annotations or not is_mask_folder(root)
    if not masks and is_drawn and (options.layout or is_detection(root)):
        return SegmentationData(**open_drawn(path, val_share, replace(options, images=images)))
    found = find(root, images, masks)
    notes = list(found.notes)
    reduced = found.is_ade20k if reduce_zero_label == "auto" else reduce_zero_label
    if reduced:
        notes.append("value 0 of the masks means no class, and class k has the value k + 1")
    found, lossy = _without_lossy(found)
    train, val = found.train, found.val
    if val is None:
        train, val, note = _hold_out(train, val_share, options.group)
        notes += note
    parts = {"train": train, "val": val} | ({"test": found.test} if found.test else {})
    faults = [*lossy, *found.faults]
    faults += [fault for name, part in parts.items() for fault in _partners(name, part)]
    faults += straddling_names({k: list(part.pairs) for k, part in parts.items()}, options.group)
    empty = [name for name in ("train", "val") if not parts[name].pairs]
    if empty and strict:
        detail = f" ({'; '.join(faults)})" if faults else ""
        refused = ValueError(f"{path} has no image with a mask in its {empty[0]} split{detail}")
        raise with_known_format(refused, root)
    faults += [f"there is no image with a mask in the {name} split" for name in empty]
    reader, classes = _reader(found, reduced, notes)
    return SegmentationData(
        path=path,
        classes=classes,
        train=_pairs(root, train, reader, options.exif),
        val=_pairs(root, val, reader, options.exif),
        test=None if found.test is None else _pairs(root, found.test, reader, options.exif),
        has_val=found.val is not None,
        notes=(*_understood(found, parts, classes).lines(), *notes, *faults),
        faults=tuple(faults),
    )


def arguments_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `open_dataset` for the options of a verb; None stands for none."""
    given = {name: value for name, value in options.items() if value is not None}
    known = {f.name for f in fields(ReadOptions)} - {"images"}
    own = {name: given.pop(name) for name in known & given.keys()}
    return {**given, "options": ReadOptions(**own)}


def _understood(
    found: PairListing, parts: Mapping[str, Part], classes: tuple[str, ...]
) -> Understood:
    split = found.split or "none"
    if found.val is None:
        held, total = len(parts["val"].pairs), len(parts["val"].pairs) + len(parts["train"].pairs)
        split += f"; {held:,} of {total:,} images, chosen by file name, are held out "
        split += "for validation"
    split += "; test is kept apart" if found.test is not None else ""
    images = {name: len(part.pairs) for name, part in parts.items()}
    return Understood(layout=found.layout, split=split, images=images, classes=classes)


def refusal(data: SegmentationData) -> str:
    """Return why data that was opened without `strict` cannot be trained on; "" if it can."""
    try:
        facts(data)
    except ValueError as error:
        return str(error)
    return ""


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
            image = data.train.open(index, PICTURE)
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
    _check_val(data)
    return DataFacts(
        num_train=len(data.train),
        num_val=len(data.val),
        num_classes=len(data.classes),
        pixel_counts=tuple(counts.tolist()),
        image_height=int(statistics.median(height for _, height in sizes)),
        image_width=int(statistics.median(width for width, _ in sizes)),
        grayscale=gray,
        reduce_zero_label=data.train.reader.reduce_zero_label,
        pixel_range=() if data.pixel_range is None else data.pixel_range.values,
        pixel_sample=data.pixel_range,
        bands=data.band_sample,
    )


def _check_val(data: SegmentationData) -> None:
    """Refuse validation without a labeled pixel, which would only show after the first epoch.

    Raises:
        ValueError: If no mask of a sample has one, and the sample is the whole split.
    """
    read = 0
    for index in data.val.some(NUM_VAL):
        try:
            mask = data.val.mask(index)
        except BadImage:
            continue
        read += 1
        if (mask != data.ignore_index).any():
            return
    if read and len(data.val) <= NUM_VAL:
        raise ValueError(
            f"no validation mask of {data.path} has a labeled pixel: all pixels are "
            f"{data.ignore_index}, which means no class"
        )


def _ignore_index(num_classes: int) -> int:
    return 255 if num_classes <= 255 else NONE_16_BIT


def _pairs(root: Path, part: Part, reader: MaskReader | LayerReader, exif: Exif) -> Pairs:
    return Pairs(
        root=root,
        names=tuple(part.pairs),
        images=tuple(image for image, _ in part.pairs.values()),
        masks=tuple(mask for _, mask in part.pairs.values()),
        reader=reader,
        exif=exif,
    )


def _hold_out(part: Part, share: float, group: str) -> tuple[Part, Part, list[str]]:
    """Split a part in two by hashes of the names or of the groups; return notes too."""
    held, notes = hold_out_names(list(part.pairs), share, group)
    train = {name: pair for name, pair in part.pairs.items() if name not in held}
    val = {name: pair for name, pair in part.pairs.items() if name in held}
    return replace(part, pairs=train), Part(pairs=val), notes


def _partners(name: str, part: Part) -> list[str]:
    return [
        f"{len(files):,} {what} in the {name} split, left out (such as {files[0]})"
        for what, files in (
            ("images without a mask", part.unpaired_images),
            ("masks without an image", part.unpaired_masks),
        )
        if files
    ]


def _without_lossy(found: PairListing) -> tuple[PairListing, list[str]]:
    """Leave out JPEG masks, whose values are not exact, unless they are black and white."""
    parts = [("train", found.train), ("val", found.val), ("test", found.test)]
    lossy = [mask for _, part in parts if part for mask in part.lossy_masks]
    if not lossy or is_binary(survey(sample(lossy, NUM_LISTED))):
        return found, []
    kept: dict[str, Part | None] = {}
    faults = []
    for name, part in parts:
        kept[name] = part
        if part is not None and part.lossy_masks:
            without = set(part.lossy_masks)
            pairs = {key: pair for key, pair in part.pairs.items() if pair[1] not in without}
            kept[name] = replace(part, pairs=pairs)
            faults.append(
                f"{len(without):,} JPEG masks, whose values are not exact: save them as PNG, in "
                f"the {name} split, left out (such as {part.lossy_masks[0]})"
            )
    train = kept["train"]
    assert train is not None
    return replace(found, train=train, val=kept["val"], test=kept["test"]), faults


def _reader(
    found: PairListing, reduced: bool, notes: list[str]
) -> tuple[MaskReader | LayerReader, tuple[str, ...]]:
    """Return the mask reader and the names of the classes.

    Raises:
        ValueError: If no file lists the classes and the masks do not determine them.
    """
    if found.layer_classes:
        classes = found.layer_classes
        return LayerReader(classes=classes, ignore_index=_ignore_index(len(classes))), classes
    listed = cityscapes_ids() if found.has_label_ids else read_classes(found.folders, 255)
    if len(listed.names) > 255:
        listed = read_classes(found.folders, NONE_16_BIT)
    count = NUM_MASKS if len(listed.names) in (0, 2) else NUM_LISTED
    masks = [
        path
        for part, share in ((found.train, count), (found.val, count // 4))
        if part is not None
        for path in sample(
            [file for _, mask in part.pairs.values() for file in files_of(mask)], share
        )
    ]
    return choose(
        survey(masks),
        listed,
        root=found.root,
        reduced=reduced,
        is_voc=found.layout == VOC,
        notes=notes,
    )
