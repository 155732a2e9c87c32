"""Classes in other places: the tags of CVAT, and the names of the files.

annotations.xml  images/*        one tag for each image, or several: then the data is multi-label
cat.0.jpg  dog_12.jpg            only if asked for, since other names may look so
"""

from __future__ import annotations

from pathlib import Path

from convnext.data.formats.class_checks import LAYOUTS, check_names, classes_of_names
from convnext.data.formats.class_folders import listing
from convnext.data.formats.cvat import read_cvat
from convnext.data.formats.located import Locator
from convnext.data.formats.paths import INTO_DATA, Fence, FileIndex, split_of
from convnext.data.formats.records import ReadOptions, Split
from convnext.data.formats.tables import MAX_SEVERAL, listed_labels
from convnext.data.images import readable_extensions, walk_files
from convnext.data.samples import ImageListing, LabelKind, taker
from convnext.documents import open_regular


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
    dataset = read_cvat(files, ReadOptions())
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
        layout="tags of CVAT",
        split=dataset.split_from,
        notes=tuple(notes),
        faults=tuple(faults),
        take=taker(root, keys, labels, kind, targets),
        kind=kind,
        targets=targets,
    )


def find_by_file_names(root: Path) -> ImageListing:
    """List the images of a folder by their names, such as cat.0.jpg and dog_12.jpg.

    Raises:
        ValueError: If the names do not begin with a class.
    """
    endings = readable_extensions()
    files = [f for f in walk_files(root) if Path(f).suffix.lower() in endings]
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
    return ImageListing(
        root=root,
        classes=classes,
        keys=keys,
        labels=labels,
        train=range(len(keys)),
        val=None,
        layout="classes in the names of the files",
        notes=(),
        faults=tuple(faults),
        take=taker(root, keys, labels),
    )
