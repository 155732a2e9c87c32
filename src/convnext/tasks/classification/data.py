"""Classification data sets, recognized by their layout.

    PATH/train/CLASS/*  PATH/val/CLASS/*     folders under any usual names of splits
    PATH/CLASS/*                             folders without a split: some images are held out
    PATH/labels.csv, PATH/data/*.parquet     tables of labels, perhaps with the images inside; also
                                             of several labels or of probabilities for each image
    PATH/train-*.tar    PATH/val-*.tar       WebDataset shards, names in classes.txt
    https://HOST/FOLDER, s3://, gs://, hf:// shards that are fetched as needed, see `remote`
    digits                                   the bundled handwritten digits

A test split is used neither for training nor for validation. File names alone determine which
images are held out, so the split is the same in all runs and on all machines, and hardly changes
when images are added.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from convnext.data.contents import hash_of_text
from convnext.data.formats.class_checks import LAYOUTS, advice_on_names, with_known_format
from convnext.data.formats.class_folders import (
    find_folders,
    find_root,
    has_class_folders,
    listing,
    split_folders,
    subfolders,
)
from convnext.data.formats.label_tables import find_labeled, is_labeled, names_images
from convnext.data.formats.layouts import with_recognized
from convnext.data.formats.named_labels import (
    find_by_file_names,
    find_label_files,
    find_tags,
    has_tags,
    label_files,
)
from convnext.data.formats.parquet import ENDINGS, find_parquet, has_images, table_files
from convnext.data.formats.records import Understood
from convnext.data.formats.tables import TableColumns, find_table, has_own_columns
from convnext.data.formats.text_lists import TABLES
from convnext.data.images import PICTURE, WIDE_MODES, BadImage, Header
from convnext.data.samples import (
    ArraySamples,
    ImageFacts,
    ImageListing,
    LabelKind,
    Samples,
    SplitData,
    Targets,
    check_share,
    groups_of,
    held_out_groups,
    held_out_positions,
    note_copies,
    note_groups,
    straddling_groups,
)
from convnext.data.shards.layout import find_shards, part_of
from convnext.data.shards.remote import find_remote, is_remote
from convnext.names import count_noun, nearest
from convnext.tasks.classification.recipe import LAYOUT_NAMES, ClassificationLoader

# Number of images that `facts` reads.
NUM_HEADERS, NUM_DECODED = 200, 32
# Parquet files that are opened to tell whether they have images.
NUM_TABLES = 8


@dataclass(frozen=True, kw_only=True)
class ClassificationData(SplitData[Samples]):
    """A data set of images with a label each, several labels, or probabilities of the classes."""

    faults: tuple[str, ...] = ()
    """The notes that report something to fix."""
    kind: LabelKind = "single"


@dataclass(frozen=True, kw_only=True)
class DataFacts(ImageFacts):
    """The facts about labeled images; sizes and colors are those of a sample."""

    class_counts: tuple[int, ...]
    """Number of training images per class."""
    kind: LabelKind = "single"
    labels_per_image: float = 1.0
    """The mean number of labels of a training image."""


def open_dataset(
    path: str,
    *,
    val_share: float = 0.2,
    strict: bool = True,
    loader: ClassificationLoader | None = None,
    layout: str = "",
    columns: TableColumns | None = None,
    group: str = "",
    console: Console | None = None,
) -> ClassificationData:
    """Open the data set at `path` without reading any image.

    A class without images in any split is dropped; a class without images in one split is noted.

    Args:
        path: A folder or an address in one of the layouts above, or `digits`.
        val_share: Fraction of each class to hold out if the data has no split of its own.
        strict: Refuse classes that only the validation part has; otherwise note them.
        loader: Settings for caching and fetching remote data.
        layout: "class_folders" accepts any folder names as classes; "file_names" takes them from
            the files.
        columns: The columns of a table that the user names, and the fold to hold out.
        group: A pattern of paths, or the column that `columns` has for it: images of one group stay
            in one split (`groups_of`).
        console: Console for notes about downloads; standard error by default.

    Raises:
        ValueError: If there is nothing at `path` to train and validate on.
    """
    if path == "digits":
        return _digits()
    check_share(val_share)
    try:
        found = find(path, loader, layout=layout, columns=columns, console=console)
        _check_number(found)
    except ValueError as error:
        root = Path(path).expanduser()
        raise with_recognized(with_known_format(error, root), root, layout) from error
    val, notes = found.val, list(found.notes)
    groups = _groups(found, group)
    if val is None:
        found, val = hold_out(found, val_share, notes, groups)
    faults = [*found.faults, *_check_classes(found, val, strict=strict)]
    if groups:
        parts = {"train": found.train, "val": val, "test": found.test or ()}
        faults += straddling_groups({k: [groups[i] for i in which] for k, which in parts.items()})
    return ClassificationData(
        path=path,
        classes=found.classes,
        train=found.take(found.train),
        val=found.take(val),
        notes=(*_understood(found, val).lines(), *notes, *faults),
        faults=tuple(faults),
        test=None if found.test is None else found.take(found.test),
        kind=found.kind,
    )


class Reading(TypedDict, total=False):
    """What the user says about data that can be read in several ways."""

    layout: str
    columns: str
    """As `TableColumns.parse` reads it, and `fold` too."""
    fold: int | str
    group: str


def check_layout(layout: str) -> str:
    """Return a layout that the user gives.

    Raises:
        ValueError: If it is not one of labeled images.
    """
    if layout not in ("", *LAYOUT_NAMES):
        raise ValueError(f"--layout is {layout!r}, but must be {' or '.join(LAYOUT_NAMES)} here")
    return layout


def open_as(
    path: str, *, val_share: float = 0.2, strict: bool = True, **reading: Unpack[Reading]
) -> ClassificationData:
    """Open the data set at `path` as the options of a verb say.

    Raises:
        ValueError: Like `open_dataset`, or if there is no such layout.
    """
    layout, group = check_layout(reading.get("layout", "")), reading.get("group", "")
    columns = TableColumns.parse(reading.get("columns", ""), reading.get("fold", ""), group)
    return open_dataset(
        path, val_share=val_share, strict=strict, layout=layout, columns=columns, group=group
    )


def _understood(found: ImageListing, val: Sequence[int]) -> Understood:
    split = found.split or "none"
    if found.val is None:
        total = len(found.train) + len(val)
        split += f"; {len(val):,} of {total:,} images, chosen by file name in each class, "
        split += "are held out for validation"
    images = {"train": len(found.train), "val": len(val)}
    if found.test is not None:
        split += "; test is kept apart"
        images["test"] = len(found.test)
    said = labels_said(found.kind, found.targets, found.classes)
    return Understood(
        layout=found.layout, split=split, images=images, classes=found.classes, labels=said
    )


def labels_said(kind: LabelKind, targets: Targets | None, classes: Sequence[str]) -> str:
    """Return what was understood of the labels of images; "" if each has one."""
    if targets is None:
        return ""
    if kind == "soft":
        return f"soft labels, a probability of each of {len(classes):,} classes"
    text = f"multi-label, {len(classes):,} classes, {targets.sum(1).mean():.2g} labels an image"
    negative = int((targets.sum(1) == 0).sum())
    none = count_noun(negative, "image")
    return f"{text} on average" + f"; {none} without any label" * bool(negative)


def annotation(samples: Samples, classes: Sequence[str], index: int) -> str:
    """Return a hash of the label of an image, of its labels, or of its probabilities."""
    if samples.targets is None:
        return hash_of_text(classes[samples.labels[index]])
    values = zip(classes, samples.targets[index].tolist(), strict=True)
    return hash_of_text(json.dumps({name: value for name, value in values if value}))


def refusal(data: ClassificationData) -> str:
    """Return why data that was opened without `strict` cannot be trained on; "" if it can."""
    try:
        facts(data)
    except ValueError as error:
        return str(error)
    return ""


def facts(data: ClassificationData) -> DataFacts:
    """Read a sample of the training images.

    Raises:
        ValueError: If none of them can be read.
    """
    n = len(data.train)
    headers: list[Header] = []
    last_error: BadImage | None = None
    attempt = 0
    while not headers and (some := data.train.some(NUM_HEADERS, attempt)):
        for index in some:
            try:
                headers.append(data.train.header(index))
            except BadImage as error:
                last_error = error
        attempt += 1
    if not headers:
        raise ValueError(f"none of the sampled training images is readable: {last_error}")
    found = data.pixel_range if any(h.mode in WIDE_MODES for h in headers) else None
    counts = class_counts(data.train, len(data.classes))
    per_image = counts.sum() / n if data.kind == "multi" else 1.0
    return DataFacts(
        num_train=n,
        num_val=len(data.val),
        num_classes=len(data.classes),
        class_counts=tuple(counts.tolist()),
        image_height=int(statistics.median(h.height for h in headers)),
        image_width=int(statistics.median(h.width for h in headers)),
        grayscale=_is_grayscale(data.train, attempt - 1),
        pixel_range=() if found is None else found.values,
        pixel_sample=found,
        bands=data.band_sample if any(h.num_bands for h in headers) else None,
        kind=data.kind,
        labels_per_image=round(float(per_image), 3),
    )


def class_counts(samples: Samples, num_classes: int) -> NDArray[np.int64]:
    """Return the number of images of each class; of soft labels, the most probable one counts."""
    if samples.kind == "multi" and samples.targets is not None:
        return np.asarray(samples.targets.sum(0), np.int64)
    return np.bincount(np.asarray(samples.labels, np.int64), minlength=num_classes)


def _is_grayscale(samples: Samples, attempt: int) -> bool:
    seen = False
    for index in samples.some(NUM_DECODED, attempt):
        try:
            image = samples.open(index, PICTURE, at_least=64)
        except BadImage:
            continue
        seen = True
        pixels = np.asarray(image).astype(np.int16)
        # In JPEG, the channels of gray pixels may differ by a level or two.
        if np.ptp(pixels, axis=2).max() > 3:
            return False
    return seen


def _digits() -> ClassificationData:
    with (
        resources.as_file(resources.files("convnext.data") / "digits" / "digits.npz") as path,
        np.load(path, allow_pickle=False) as file,
    ):
        levels, labels, is_val = file["images"], file["labels"], file["is_val"]
    images = np.rint(levels * (255 / 16)).astype(np.uint8)  # 17 gray levels
    parts = [
        ArraySamples(f"digits/{name}", images[where], labels[where].tolist())
        for name, where in (("train", ~is_val), ("val", is_val))
    ]
    return ClassificationData(
        path="digits",
        classes=tuple("0123456789"),
        train=parts[0],
        val=parts[1],
        notes=("the built-in UCI handwritten digits, 8 x 8 pixels, with a fixed split",),
    )


def _groups(found: ImageListing, pattern: str) -> Sequence[str]:
    """Return the group of each image by a column of a table, or by a pattern; () for none.

    Raises:
        ValueError: If the pattern is found in no path.
    """
    if found.groups:  # An image without a group is one of its own.
        return [name or f"/{key}" for name, key in zip(found.groups, found.keys, strict=True)]
    return groups_of(found.keys, pattern) if pattern else ()


def hold_out(
    found: ImageListing, share: float, notes: list[str], groups: Sequence[str] = ()
) -> tuple[ImageListing, list[int]]:
    """Move a fraction of each class to validation: the images with the smallest name hashes.

    Images of one of the `groups` stay together.

    Raises:
        ValueError: If no group can be held out.
    """
    train = np.asarray(found.train, np.int64)
    if groups:
        own = [groups[i] for i in found.train]
        places = held_out_groups(own, [found.labels[i] for i in found.train], share)
        notes.append(note_groups(own, places))
        val = train[places].tolist()
        return found.with_train(np.setdiff1d(train, val).tolist()), val
    labels = np.asarray(found.labels)[train]
    held: list[int] = []
    for label in np.unique(labels):
        members = train[labels == label].tolist()
        # A single image stays in training; larger classes have at least one image in each part.
        names = [found.keys[i] for i in members]
        held += [members[position] for position in held_out_positions(names, share)]
    val = sorted(held)
    kept = np.setdiff1d(train, val).tolist()
    notes += note_copies([found.keys[i] for i in found.train])
    return found.with_train(kept), val


def _check_number(found: ImageListing) -> None:
    """Refuse data of one class.

    Raises:
        ValueError: If there are no two classes.
    """
    if len(found.classes) < 2:
        advice = advice_on_names(found.keys)
        raise ValueError(
            f"{found.root} has only one class ({found.classes[0]}); {advice}a classifier needs at "
            "least two folders or labels"
        )


def _check_classes(found: ImageListing, val: Sequence[int], *, strict: bool) -> list[str]:
    """Return the problems with the classes of the two parts, worst first.

    Raises:
        ValueError: If there is nothing to train or to validate on, or, if `strict`, a class occurs
            only in validation.
    """
    if not len(found.train) or not len(val):
        part = "validation" if len(found.train) else "training"
        raise ValueError(f"{found.root} has no images for {part}")
    in_train, in_val = (_classes_in(found, part) for part in (found.train, val))
    listed = set(range(len(found.classes)))
    new = _names(found, in_val - in_train)
    if new and strict:
        raise ValueError(
            f"{found.root}: validation has classes that training lacks: {new}; add training "
            "images of them, or remove them from validation"
        )
    problems = {
        "classes that only validation has": new,
        "classes without any validation image": _names(found, in_train - in_val),
        "listed classes without any image": _names(found, listed - in_train - in_val),
    }
    return [f"{kind}: {names}" for kind, names in problems.items() if names]


def _classes_in(found: ImageListing, which: Sequence[int]) -> set[int]:
    """Return the classes that some of the images have."""
    some = np.asarray(which, np.int64)
    if found.kind == "multi" and found.targets is not None:
        return {int(c) for c in np.flatnonzero(found.targets[some].any(0))}
    return {int(c) for c in np.unique(np.asarray(found.labels)[some])}


def _names(found: ImageListing, labels: set[int]) -> str:
    names = [found.classes[c] for c in sorted(labels)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def find(
    path: str,
    loader: ClassificationLoader | None = None,
    *,
    layout: str = "",
    columns: TableColumns | None = None,
    console: Console | None = None,
) -> ImageListing:
    """List the images below `path` and their classes.

    Args:
        path: A folder or an address.
        layout: "class_folders" accepts any names as classes; "file_names" takes those of files.
        loader: Settings for caching and fetching remote data.
        columns: As for `open_dataset`.
        console: Console for notes about downloads; standard error by default.

    Raises:
        ValueError: If the path does not exist or has no known layout; the message says what was
            found.
    """
    if path.startswith("pipe:"):
        raise ValueError(f"{path} would start a program, which is refused: use an address")
    if path.startswith("hf:") and not is_remote(path):
        raise ValueError(f"{path} is fetched only if it is given as --data: give it there")
    named = TableColumns() if columns is None else columns
    if is_remote(path) or (path.endswith(".txt") and Path(path).expanduser().is_file()):
        named.check_unused(path)
        return find_remote(path, loader or ClassificationLoader(), console=console)
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"there is no file or folder {path}{_near(root)}")
    if root.is_file():
        return _find_file(root, path, named)
    shards = sorted(p for p in listing(root) if p.suffix == ".tar" and p.is_file())
    # A tar next to class folders is probably their archive, unless its name has a split.
    is_source = bool(subfolders(root)) and not any(part_of(p.name) for p in shards)
    if not layout and shards and not is_source and not split_folders(root)[0]:
        named.check_unused(path)
        return find_shards(root, shards)
    table = None if layout else _find_tables(root, named)
    if table is not None:
        return table
    if not layout:
        inner = root if has_tags(root) else find_root(root)[0]
        labels = [] if has_tags(inner) or has_class_folders(root) else label_files(root)
        if not labels and not has_tags(inner):
            return find_folders(root, columns=named)
        named.check_unused(path)
        return find_label_files(root, labels) if labels else find_tags(inner)
    named.check_unused(path)
    if layout == "file_names":
        return find_by_file_names(root)
    return find_folders(root, any_names=True)


def _find_file(root: Path, path: str, columns: TableColumns) -> ImageListing:
    """List the images of a table.

    Raises:
        ValueError: If the file is not a table.
    """
    ending = root.suffix.lower()
    if ending in TABLES and has_own_columns(root, columns):
        return find_table(root, columns)
    if ending in ENDINGS and has_images(root):
        return find_parquet(root, columns)
    if ending in (*TABLES, *ENDINGS, ".jsonl", ".json"):
        return find_labeled(root.parent, root, columns)
    advice = f"use its folder, {root.parent}" if ending == ".tar" else "use a folder"
    raise ValueError(f"{path} is a file; {advice} ({LAYOUTS})")


def _find_tables(root: Path, columns: TableColumns) -> ImageListing | None:
    """List the images of the tables in a folder; None if it has none.

    Raises:
        ValueError: If a table may not be read, or its folders may be the classes instead.
    """
    if has_class_folders(root):
        beside = [p for p in listing(root) if p.suffix.lower() in ENDINGS and _holds_images(p)]
        if beside:
            raise ValueError(
                f"{root} has class folders, and images in {beside[0].name}: give --data "
                f"{beside[0]} for the latter, or --loader.layout class_folders (--layout of `data`)"
            )
        return _find_labels(root, columns)
    tables = table_files(root)[:NUM_TABLES]
    try:
        with_images = next(filter(has_images, tables), None)
    except ValueError as error:
        # The labels may be elsewhere, so that the damaged or unknown file is not needed.
        labeled = _find_labels(root, columns)
        if labeled is None:
            raise
        return replace(labeled, notes=(*labeled.notes, f"not read, and not needed: {error}"))
    if with_images is None:
        return _find_labels(root, columns)
    others = [p for p in listing(root) if p.suffix.lower() in (*TABLES, ".jsonl")]
    named = next((path for path in others if names_images(path)), None)
    if named is not None:
        raise ValueError(
            f"{root} has images in {with_images.relative_to(root)}, and labels of other images in "
            f"{named.name}: give the one to use as --data"
        )
    return find_parquet(root, columns)


def _find_labels(root: Path, columns: TableColumns) -> ImageListing | None:
    """List the images of the tables of labels in a folder; None if it has none.

    Raises:
        ValueError: As `_find_tables`.
    """
    inner, notes = root, list[str]()
    if not is_labeled(root) and not has_tags(root):
        inner, notes = find_root(root)
    if has_tags(inner) or not is_labeled(inner):
        return None
    labeled = find_labeled(inner, columns=columns)
    return replace(labeled, notes=(*notes, *labeled.notes))


def _holds_images(path: Path) -> bool:
    """Whether a file beside class folders has images; one that cannot be read is not data."""
    try:
        return has_images(path)
    except ValueError:
        return False


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    suggestion = nearest(path.name, [p.name for p in listing(path.parent)][:1000])
    return suggestion if "did you mean" in suggestion else ""
