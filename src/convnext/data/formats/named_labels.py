"""Classes in other places: the tags of CVAT, and the names of the files.

annotations.xml  images/*        one tag for each image
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
from convnext.data.images import readable_extensions, walk_files
from convnext.data.samples import ImageListing, taker
from convnext.documents import open_regular

# Images with several tags are left out up to this fraction.
MAX_SEVERAL = 0.01


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

    Raises:
        ValueError: If images have several tags, or none is found.
    """
    files = FileIndex(Fence(root, advice=INTO_DATA))
    dataset = read_cvat(files, ReadOptions())
    keys: list[str] = []
    names: list[str] = []
    parts: dict[Split, list[int]] = {}
    left: dict[str, list[str]] = {}
    for image in dataset.images:
        path = Locator(files, image.bases or (root,)).find(str(image.file))
        if path is None or len(image.labels) != 1:
            reason = "an image file" if path is None else "one tag"
            left.setdefault(f"images without {reason}", []).append(str(image.file))
            continue
        split = image.split if dataset.split_from and image.split else "train"
        parts.setdefault(split, []).append(len(keys))
        keys.append(path.relative_to(root).as_posix())
        names.append(image.labels[0])
    several = [image for image in dataset.images if len(image.labels) > 1]
    first = f"; leave one tag at each, first at {several[0].where}" if several else ""
    if not keys or len(several) > MAX_SEVERAL * len(dataset.images):
        raise ValueError(
            f"{root}: {len(several):,} of {len(dataset.images):,} images have several tags, and "
            f"{len(keys):,} have one, but a classifier learns one class for each image{first}"
        )
    classes = tuple(sorted(set(names)))
    labels = [classes.index(name) for name in names]
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
        notes=(),
        faults=tuple(faults),
        take=taker(root, keys, labels),
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
