"""A data set of objects from its files: the layout, the records of each split, and all faults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convnext.data.formats import coco_layout
from convnext.data.formats.coco import CocoFile, Images, load_json, read_coco
from convnext.data.formats.coco_objects import UNUSED
from convnext.data.formats.imported import ObjectSource, to_records
from convnext.data.formats.layouts import READERS, choose, file_index, with_recognized
from convnext.data.formats.located import Locator
from convnext.data.formats.paths import FileIndex, split_of_path
from convnext.data.formats.records import (
    SPLITS,
    Fault,
    Objects,
    ReadOptions,
    Record,
    Split,
    Understood,
)
from convnext.data.samples import hold_out_names


@dataclass(frozen=True, kw_only=True)
class Part:
    """The images of one split."""

    root: Path
    records: Sequence[Record]
    category_ids: tuple[int, ...]
    """The id of each class in the file of these images; -1 if it has no such class."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The contents of a data set."""

    root: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    parts: Mapping[Split, Part]
    understood: Understood
    has_val: bool
    """Whether the data states which images are for validation."""
    notes: tuple[str, ...]
    faults: tuple[Fault, ...]


def open_objects(path: Path, val_share: float, options: ReadOptions) -> Opened:
    """Read the annotations of a data set in any layout.

    Raises:
        ValueError: If there is no data set, or its annotations can be read in two ways.
    """
    root = path.expanduser()
    try:
        return _open(root, val_share, options)
    except ValueError as error:
        raise with_recognized(error, root, options.layout) from error


def _open(root: Path, val_share: float, options: ReadOptions) -> Opened:
    layout = choose(root, options.layout or ("coco" if _is_json(options.annotations) else ""))
    index = file_index(root, options)
    if layout == "coco":
        return _open_coco(root, index, val_share, options)
    source = to_records(READERS[layout](index, options), index, options)
    return _open_imported(source, index, val_share, options.group)


def _is_json(annotations: str) -> bool:
    return annotations.lower().endswith(".json")


def _open_imported(source: ObjectSource, index: FileIndex, val_share: float, group: str) -> Opened:
    ids = tuple(range(1, len(source.classes) + 1))
    by_split, split_from, left_out = _divide(
        source.records, source.splits, source.split_from, val_share, group=group
    )
    parts = {
        split: Part(root=source.root, records=records, category_ids=ids)
        for split, records in by_split.items()
    }
    return Opened(
        root=source.root,
        classes=source.classes,
        category_ids=ids,
        parts=parts,
        has_val="val" in source.splits,
        understood=_understood(source.kind, split_from, parts, source.classes, left_out),
        notes=source.notes,
        faults=source.faults,
    )


def _understood(
    kind: str,
    split_from: str,
    parts: Mapping[Split, Part],
    classes: tuple[str, ...],
    left_out: Sequence[str] = (),
) -> Understood:
    return Understood(
        layout=kind,
        split=split_from,
        images={split: len(part.records) for split, part in parts.items()},
        classes=classes,
        left_out=left_out,
    )


def _divide(
    records: Sequence[Record],
    splits: Sequence[Split | None],
    split_from: str,
    val_share: float,
    *,
    has_test: bool = False,
    group: str = "",
) -> tuple[dict[Split, list[Record]], str, list[str]]:
    """Return the records of each split: as the data states it, or with a share held out."""
    found: dict[Split, list[Record]] = {}
    rest = []
    for record, split in zip(records, splits, strict=True):
        if split is None:
            rest.append(record)
        else:
            found.setdefault(split, []).append(record)
    left_out = []
    if rest and "train" in found:
        left_out.append(
            f"{len(rest):,} images that belong to no split, such as {rest[0].file_name}"
        )
    elif rest:
        found["train"] = rest
    elif "train" not in found and found:
        # A folder of one split alone, such as `--data DATA/valid`.
        found = {"train": [record for records in found.values() for record in records]}
    stated = ", ".join(split for split in SPLITS if split in found)
    if "val" in found or "train" not in found:
        return _ordered(found), f"{split_from} ({stated})", left_out
    train = found["train"]
    names = [record.file_name for record in train]
    held, notes = hold_out_names(names, val_share, group)
    found["train"] = [record for record in train if record.file_name not in held]
    found["val"] = [record for record in train if record.file_name in held]
    has_test = has_test or "test" in found
    why = f"{split_from} ({stated}), without validation" if has_test else "none"
    text = (
        f"{why}; {len(held):,} of {len(train):,} images, chosen by file name, are held out for "
        "validation"
    )
    return _ordered(found), "; ".join((text, *notes)), left_out


def _ordered(found: Mapping[Split, list[Record]]) -> dict[Split, list[Record]]:
    return {split: found[split] for split in SPLITS if split in found}


def _open_coco(root: Path, index: FileIndex, val_share: float, options: ReadOptions) -> Opened:
    found = coco_layout.find(root, index, options.annotations)
    if found is None:
        raise ValueError(f"{root} has no COCO JSON file with objects; {coco_layout.ACCEPTED}")
    files = {
        split: _read_file(path, split if found.is_split else None, root, index, options)
        for split, path in found.files.items()
    }
    missing = _leave_to_others(files)
    faults = missing + list(
        dict.fromkeys(
            replace(fault, where=f"{file.path.name}: {fault.where}")
            for file, _ in files.values()
            for fault in file.faults
        )
    )
    notes = [
        f"{_short(path, index)} is another COCO json; ignored (--annotations takes it)"
        for path in found.ignored
    ]
    notes += dict.fromkeys(note for file, _ in files.values() for note in file.notes)
    _drop_placeholders(files, notes, faults)
    train = files["train"][0]
    by_split: dict[Split, tuple[CocoFile, Path]] = {
        split: (_by_class_names(file, train), folder) for split, (file, folder) in files.items()
    }
    parts = {
        split: Part(root=folder, records=file.records, category_ids=file.category_ids)
        for split, (file, folder) in by_split.items()
    }
    names = ", ".join(_short(file.path, index) for file, _ in files.values())
    split_from, left_out = names, list[str]()
    has_val = "val" in parts
    if "val" not in parts:
        folder = parts["train"].root
        stated: list[Split | None] = [
            split_of_path(_within(folder / record.file_name, index)) for record in train.records
        ]
        if len(files) > 1 or "train" not in stated:
            stated = ["train"] * len(train.records)
        where = "the folders of the images" if len(files) == 1 else names
        has_val = "val" in stated
        divided, split_from, left_out = _divide(
            train.records, stated, where, val_share, has_test="test" in parts, group=options.group
        )
        parts |= {
            split: Part(root=folder, records=records, category_ids=train.category_ids)
            for split, records in divided.items()
        }
    parts = {split: parts[split] for split in SPLITS if split in parts}
    return Opened(
        root=index.root,
        classes=train.classes,
        category_ids=train.category_ids,
        parts=parts,
        has_val=has_val,
        understood=_understood("COCO", split_from, parts, train.classes, left_out),
        notes=tuple(notes),
        faults=tuple(faults),
    )


def _short(path: Path, index: FileIndex) -> str:
    return path.relative_to(index.root).as_posix() if path.is_relative_to(index.root) else path.name


def _within(path: Path, index: FileIndex) -> str:
    return path.relative_to(index.root).as_posix() if path.is_relative_to(index.root) else ""


def _read_file(
    path: Path, split: Split | None, root: Path, index: FileIndex, options: ReadOptions
) -> tuple[CocoFile, Path]:
    """Return the contents of a json, and the folder of its images."""
    content = load_json(path, as_arrays=True)
    images = coco_images(path, content, split, root, index, options)
    return read_coco(path, content=content, images=images, boxes=options.boxes or None), images.root


def coco_images(
    path: Path,
    content: Mapping[str, Any],
    split: Split | None,
    root: Path,
    index: FileIndex,
    options: ReadOptions,
) -> Images:
    """Return where the images of a json are; `root` of it is the likeliest folder."""
    folders = coco_layout.image_folders(path, file_names(content), root, split)
    if options.images:
        folders = [Path(options.images), *folders]
    return Images(root=folders[0], locator=Locator(index, tuple(folders)), exif=options.exif)


def file_names(content: Mapping[str, Any]) -> list[str]:
    """Return the names of the images of a json, as far as they are text."""
    names = (image.get("file_name") for image in content["images"])
    return [name for name in names if isinstance(name, str) and name]


def _leave_to_others(files: dict[Split, tuple[CocoFile, Path]]) -> list[Fault]:
    """Leave out images that are missing, but have the name of an image of another split.

    Returns:
        A fault for each.
    """
    if not any(file.moved for file, _ in files.values()):
        return []
    paths = {
        split: {
            record.file_name: os.path.abspath(folder / record.file_name) for record in file.records
        }
        for split, (file, folder) in files.items()
    }
    faults = []
    for split, (file, folder) in list(files.items()):
        others = {
            path
            for other in files.keys() - {split}
            for name, path in paths[other].items()
            if name not in files[other][0].moved
        }
        gone = {name for name in file.moved & paths[split].keys() if paths[split][name] in others}
        if gone:
            kept_records = tuple(r for r in file.records if r.file_name not in gone)
            files[split] = (replace(file, records=kept_records), folder)
            faults += [
                Fault(
                    kind="missing image files",
                    where=f"{file.path.name}: {name}",
                    text="is missing; another split has an image of this name; left out",
                )
                for name in sorted(gone)
            ]
    return faults


def _drop_placeholders(
    files: dict[Split, tuple[CocoFile, Path]], notes: list[str], faults: list[Fault]
) -> None:
    """Leave out a category that only names the data set and has no object in any file."""
    unused = set.intersection(*(set(file.placeholders) for file, _ in files.values()))
    notes += [
        f"the category {name!r} has no object and is the supercategory of all others, as "
        "Roboflow writes it; left out"
        for name in sorted(unused)
    ]
    if not unused:
        return
    for split, (file, folder) in files.items():
        kept = [i for i, name in enumerate(file.classes) if name not in unused]
        wanted = tuple(file.classes[i] for i in kept)
        ids = {file.category_ids[i] for i in range(len(file.classes)) if i not in kept}
        gone = {f"{file.path.name}: category {key}" for key in ids}
        faults[:] = [f for f in faults if not (f.kind == UNUSED and f.where in gone)]
        files[split] = (_with_classes(file, wanted), folder)


def _by_class_names(file: CocoFile, train: CocoFile) -> CocoFile:
    """Return a file with labels in the order of the training classes, and its own ids.

    Raises:
        ValueError: If it has objects of a class that the training file does not have.
    """
    if file.classes == train.classes:
        return file
    used = {int(label) for record in file.records for label in record.objects.labels}
    unknown = [
        file.classes[label] for label in sorted(used) if file.classes[label] not in train.classes
    ]
    if unknown:
        raise ValueError(
            f"{file.path} has objects of {unknown[0]!r}, which is not among the categories of "
            f"{train.path} ({', '.join(train.classes[:8])}): give both files the same categories"
        )
    return _with_classes(file, train.classes)


def _with_classes(file: CocoFile, classes: tuple[str, ...]) -> CocoFile:
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of.get(name, -1) for name in file.classes], np.int64)

    def relabel(objects: Objects) -> Objects:
        return replace(objects, labels=labels[objects.labels])

    records = tuple(replace(record, objects=relabel(record.objects)) for record in file.records)
    ids = dict(zip(file.classes, file.category_ids, strict=True))
    own_ids = tuple(ids.get(name, -1) for name in classes)
    return replace(file, classes=classes, category_ids=own_ids, records=records)
