"""Classes in other places: the tags of CVAT, and the names of the files.

train.json  images/*             labels in COCO's words, as iNaturalist has them
annotations.xml  images/*        one tag for each image, or several: then the data is multi-label
cat.0.jpg  dog_12.jpg            only if asked for, since other names may look so
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convnext.data.formats.class_checks import LAYOUTS, check_names, classes_of_names
from convnext.data.formats.class_folders import listing
from convnext.data.formats.coco_layout import has_labels_alone
from convnext.data.formats.cvat import read_cvat
from convnext.data.formats.imported import ImportedDataset, ImportedImage
from convnext.data.formats.located import Locator
from convnext.data.formats.mask_folders import mask_files
from convnext.data.formats.paths import INTO_DATA, Fence, FileIndex, split_of, word_split
from convnext.data.formats.records import ReadOptions, Split
from convnext.data.formats.tables import MAX_SEVERAL, listed_labels
from convnext.data.formats.text_lists import listed_split
from convnext.data.images import readable_extensions, walk_files
from convnext.data.samples import ImageListing, LabelKind, taker
from convnext.documents import open_regular, read_json

# The lists of COCO's json, and the ids in them.
LISTS = ("images", "annotations", "categories")
_IDS = ("id", "image_id", "category_id")


def has_tags(root: Path) -> bool:
    """Whether a folder has an xml of CVAT with tags of whole images."""
    for path in listing(root):
        if path.suffix.lower() == ".xml" and path.is_file():
            with open_regular(path) as file:
                head = file.read(1 << 16)
            if b"<annotations" in head[:4096] and b"<tag " in head:
                return True
    return False


def find_tags(root: Path) -> ImageListing:
    """List the images of CVAT's xml files by their tags.

    If more than a few images have several tags, the data is multi-label, and images without a tag
    are negatives of every class.

    Raises:
        ValueError: If no image with a tag is found.
    """
    files = FileIndex(Fence(root, advice=INTO_DATA))
    return _by_tags(files, read_cvat(files, ReadOptions()), layout="tags of CVAT")


def _by_tags(files: FileIndex, dataset: ImportedDataset, *, layout: str) -> ImageListing:
    root = files.root
    keys: list[str] = []
    named: list[dict[str, float]] = []
    parts: dict[Split, list[int]] = {}
    left: dict[str, list[str]] = {}
    several = sum(len(set(image.labels)) > 1 for image in dataset.images)
    is_multi = several > MAX_SEVERAL * len(dataset.images)
    for image in dataset.images:
        path = Locator(files, image.bases or (root,)).find(str(image.file))
        tags = dict.fromkeys(image.labels, 1.0)
        if path is None or (len(tags) != 1 and not is_multi):
            reason = "an image file" if path is None else "one tag"
            left.setdefault(f"images without {reason}", []).append(str(image.file))
            continue
        split = image.split if dataset.split_from and image.split else "train"
        parts.setdefault(split, []).append(len(keys))
        keys.append(path.relative_to(root).as_posix())
        named.append(tags)
    if not any(named):
        raise ValueError(f"{root}: none of {len(dataset.images):,} images has a file and a tag")
    kind: LabelKind = "multi" if is_multi else "single"
    classes, labels, targets = listed_labels(kind, named)
    negative = [key for key, tags in zip(keys, named, strict=True) if not tags]
    notes = [
        f"images without any tag, negatives of every class: {len(negative):,} (such as {key})"
        for key in negative[:1]
    ]
    faults = [
        f"{what}, left out: {len(names):,} (such as {names[0]})" for what, names in left.items()
    ]
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=parts.get("train", []),
        val=parts.get("val"),
        test=parts.get("test"),
        layout=layout,
        split=dataset.split_from,
        notes=(*dataset.notes, *notes),
        faults=tuple(faults),
        take=taker(root, keys, labels, kind, targets),
        kind=kind,
        targets=targets,
    )


def label_files(root: Path) -> list[Path]:
    """Return the json files of a folder that give images labels in COCO's words, without objects.

    iNaturalist and other data sets for fine-grained classification are published so.
    """
    places = [p for p in (root, root / "annotations") if p.is_dir()]
    files = [p for place in places for p in listing(place) if p.suffix.lower() == ".json"]
    return [path for path in files if has_labels_alone(path)]


def find_label_files(root: Path, paths: Sequence[Path]) -> ImageListing:
    """List the images of json files that give them labels in COCO's words.

    Raises:
        ValueError: If two files could be for the same split, a label is not a category, or no image
            with a label is found.
    """
    files = FileIndex(Fence(root, advice=INTO_DATA))
    splits = {path: word_split(path.stem) for path in paths}
    if len(paths) > 1 and (None in splits.values() or len({*splits.values()}) < len(paths)):
        shown = ", ".join(path.relative_to(root).as_posix() for path in paths)
        raise ValueError(
            f"{root} has several files of labels: {shown}; keep one for each split, named for it, "
            "such as train.json and val.json"
        )
    images: list[ImportedImage] = []
    for path in paths:
        content = read_json(path)
        listed, entries, categories = (_entries(path, content, key) for key in LISTS)
        names = _category_names(categories)
        labels: dict[Any, dict[str, None]] = {}
        for number, entry in enumerate(entries):
            name = names.get(entry.get("category_id"))
            if name is None:
                raise ValueError(
                    f"{path}: annotation {number} has the category {entry.get('category_id')!r}, "
                    "which is not among the categories"
                )
            labels.setdefault(entry.get("image_id"), {})[name] = None
        images += [
            ImportedImage(
                file=str(image.get("file_name")),
                where=f"{path}: image {image.get('id')}",
                split=splits[path],
                labels=tuple(labels.get(image.get("id"), ())),
                bases=(path.parent, path.parent / "images", root),
            )
            for image in listed
        ]
    split_from = ", ".join(path.relative_to(root).as_posix() for path in paths)
    dataset = ImportedDataset(
        kind="labels", images=images, split_from=split_from if "train" in splits.values() else ""
    )
    return _by_tags(files, dataset, layout="labels in COCO's words")


def _entries(path: Path, content: Any, key: str) -> list[dict[str, Any]]:
    """Return a list of a json.

    Raises:
        ValueError: If it is not a list of objects whose ids are numbers or texts.
    """
    entries = content.get(key) if isinstance(content, dict) else None
    for number, entry in enumerate(entries if isinstance(entries, list) else [None]):
        ids = [entry.get(name) for name in _IDS] if isinstance(entry, dict) else [()]
        if not all(isinstance(value, int | str | None) for value in ids):
            raise ValueError(f"{path}: {key} {number} is not an object with ids")
    return list(entries or [])


def _category_names(categories: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Return the names of categories by their ids; those that share one have the id in theirs."""
    counts = Counter(str(entry.get("name")) for entry in categories)
    return {
        entry.get("id"): name if counts[name] == 1 else f"{name} ({entry.get('id')})"
        for entry in categories
        for name in (str(entry.get("name")),)
    }


def find_by_file_names(root: Path) -> ImageListing:
    """List the images of a folder by their names, such as cat.0.jpg and dog_12.jpg.

    Raises:
        ValueError: If the names do not begin with a class.
    """
    endings = readable_extensions()
    masks = {path.relative_to(root).as_posix() for path in mask_files(root)}
    files = [f for f in walk_files(root) if Path(f).suffix.lower() in endings and f not in masks]
    train = [file for file in files if split_of(file.split("/")[0]) == "train"] or files
    found = classes_of_names(train)
    if found is None:
        raise ValueError(
            f"the names of the images below {root}, such as {train[0] if train else 'none'}, are "
            f"not CLASS_NUMBER; {LAYOUTS}"
        )
    check_names(root, set(found))
    classes = tuple(sorted(found))
    keys = [file for name in classes for file in found[name]]
    labels = [label for label, name in enumerate(classes) for _ in found[name]]
    rest = sorted(set(files) - set(keys))
    faults = [
        f"images without a class in their name, left out: {len(rest):,} (such as {name})"
        for name in rest[:1]
    ]
    # Lists name the images without their folder.
    below = os.path.commonpath([os.path.dirname(key) for key in keys])
    names = [key[len(below) + 1 :] if below else key for key in keys]
    split, split_from = listed_split(root, names, faults)
    notes = [f"{len(masks):,} masks of the images are left out"] if masks else []
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=split.get("train", range(len(keys))),
        val=split.get("val"),
        test=split.get("test"),
        layout="classes in the names of the files",
        split=split_from,
        notes=tuple(notes),
        faults=tuple(faults),
        take=taker(root, keys, labels),
    )
