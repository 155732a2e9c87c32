"""Folders that look like class folders and are not: splits, masks, copies, versions, other formats.

Data sets of some formats are recognized, but cannot be read: what they are, and which conversion
works, is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from convnext.data.formats.mask_layers import looks_like_mask
from convnext.data.formats.paths import is_reserved, kind_of, split_groups, split_of
from convnext.data.images import is_hidden
from convnext.documents import open_regular

LAYOUTS = (
    "supported layouts: train/CLASS/* with val/CLASS/*, CLASS/* without a split, shards "
    "train-*.tar with val-*.tar, a CSV with the columns path and label, Parquet files with images, "
    "or the word digits"
)
# Files of a folder that are opened to tell whether they are masks.
NUM_OPENED = 8
# The folders of data for retrieval, such as Market-1501.
RETRIEVAL = frozenset({"bounding_box_train", "bounding_box_test", "query", "gallery"})
_MASK_NAME = re.compile(r"(.+?)[-_. ]+masks?([-_. ]?\d+)?", re.IGNORECASE)


@dataclass(kw_only=True)
class Part:
    """The images of a split."""

    folder: Path
    files: dict[str, list[str]]
    """The files of each class, relative to `folder`."""
    loose: list[str] = field(default_factory=list)
    """Images outside class folders."""


def check_names(root: Path, names: set[str]) -> None:
    """Refuse folders that are named for splits or annotations rather than classes.

    Raises:
        ValueError: If most of them are.
    """
    in_groups = [n for group in split_groups(names) for found in group.values() for n in found]
    if len(names & RETRIEVAL) > 1:
        in_groups += names & RETRIEVAL
    advice = "if this is data for segmentation or detection, give --task"
    starts = {name: re.split(r"[-_. ]", name, maxsplit=1) for name in in_groups}
    joined = sorted(n for n, parts in starts.items() if len(parts) > 1 and split_of(parts[0]))
    if len({starts[name][-1] for name in joined}) > 1:
        split, rest = starts[joined[0]]
        advice += f"; if {joined[0]} is the split {split} of a class, rename it to {split}/{rest}"
    reserved = sorted({*in_groups, *(name for name in names if is_reserved(name))})
    if len(reserved) > 1 and 2 * len(reserved) >= len(names):
        raise ValueError(
            f"the folders {' and '.join(reserved)} in {root} are named for splits or annotations, "
            f"not for classes: {advice}; if these are classes after all, give --loader.layout "
            f"class_folders (--layout of `data`); {LAYOUTS}"
        )


def check_inner(root: Path, part: Part) -> None:
    """Refuse folders that each hold images/ and masks/.

    Raises:
        ValueError: If most of them do.
    """
    of_samples = [
        name
        for name, files in part.files.items()
        if {"image", "mask"} <= {kind_of(f.split("/")[1]) for f in files if f.count("/") > 1}
    ]
    if 2 * len(of_samples) > len(part.files):
        raise ValueError(
            f"the folders in {root}, such as {of_samples[0]}/, hold images/ and masks/ each, and "
            "are not classes: give --task segment"
        )


def masks_among(part: Part) -> list[str]:
    """Return the files that are masks of others by their names, such as x_mask.png beside x.png."""
    found = []
    for files in part.files.values():
        named = [name for name in files if "mask" in name.lower()]
        stems = {os.path.splitext(name)[0] for name in files} if named else set()
        for name in named:
            match = _MASK_NAME.fullmatch(os.path.splitext(name)[0])
            if match and match[1] in stems:
                found.append(name)
    return found


def leave_out_copy(part: Part, faults: list[str]) -> None:
    """Leave out a class folder that holds folders of the names of all others: a copy of them."""
    for name in list(part.files):
        others = {c for c, files in part.files.items() if files and c != name}
        inner = {file.split("/")[1] for file in part.files[name] if file.count("/") > 1}
        if len(others) > 1 and others <= inner:
            faults.append(
                f"{part.folder.name}/{name}/ repeats the class folders beside it, left out: "
                f"{len(part.files.pop(name)):,} images"
            )
            return


_UNLABELED = re.compile(r"(un|not?[-_ ]?)(labell?ed|annotated|sorted|classified)", re.IGNORECASE)


def leave_out_unlabeled(part: Part, faults: list[str]) -> None:
    """Leave out folders such as unlabeled/ and unsorted/: their images have no class."""
    for name in [name for name in part.files if _UNLABELED.fullmatch(name)]:
        files = part.files.pop(name)
        faults.append(
            f"{part.folder.name}/{name}/ says that its {len(files):,} images have no class; left "
            "out (--loader.layout class_folders, or --layout of `data`, takes it as a class)"
        )


def check_versions(root: Path, part: Part) -> None:
    """Refuse folders that all hold the same folders, such as color/ and grayscale/.

    Raises:
        ValueError: If the folders in them seem to be the classes.
    """
    inner = {
        name: {file.split("/")[1] for file in files if file.count("/") > 1}
        for name, files in part.files.items()
        if files
    }
    first = next(iter(inner.values()), set())
    is_same = len(inner) > 1 and all(names == first for names in inner.values())
    if is_same and len(first) > 1 and not any(map(is_reserved, first)):
        listed = ", ".join(f"{name}/" for name in sorted(inner)[:4])
        raise ValueError(
            f"the folders {listed} in {root} all hold folders of the same names ({some(first)}), "
            f"which seem to be the classes: give one of them, such as {root / min(inner)}; if "
            f"{some(set(inner))} are splits, rename them to train, val and test; if they are "
            "folds, rename them to fold_0, fold_1 and so on; if they are the "
            "classes, give --loader.layout class_folders (--layout of `data`)"
        )


def some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")


def check_masks(part: Part) -> None:
    """Refuse two folders with the same file names, of which one seems to hold masks.

    Raises:
        ValueError: If it does.
    """
    used = {name: sorted(files) for name, files in part.files.items() if files}
    if len(used) != 2:
        return
    stems = [
        {os.path.splitext(file.split("/", 1)[1])[0] for file in files} for files in used.values()
    ]
    if len(stems[0]) < 3 or len(stems[0] & stems[1]) < 0.9 * max(map(len, stems)):
        return
    few = [
        name
        for name, files in used.items()
        if all(looks_like_mask(part.folder / f) for f in files[:: max(len(files) // NUM_OPENED, 1)])
    ]
    if len(few) == 1:
        images, masks = sorted(used, key=lambda name: name in few)
        raise ValueError(
            f"{images}/ and {masks}/ in {part.folder} have files of the same names, and those of "
            f"{masks}/ look like masks: for segmentation, rename the folders to images/ and "
            "masks/; if these are classes, give --loader.layout class_folders (--layout of `data`)"
        )


def classes_of_names(files: Iterable[str]) -> dict[str, list[str]] | None:
    """Return files by what precedes the number in their names; None if that is not a class.

    >>> classes_of_names(["cat.0.jpg", "cat.1.jpg", "big dog_1.png", "big dog_2.png"])
    {'cat': ['cat.0.jpg', 'cat.1.jpg'], 'big dog': ['big dog_1.png', 'big dog_2.png']}
    """
    found: dict[str, list[str]] = {}
    count = 0
    for file in files:
        count += 1
        stem = os.path.splitext(os.path.basename(file))[0]
        match = re.fullmatch(r"(.*[^\W\d_])[-_. (]*\d+\)?", stem)
        if match:
            found.setdefault(match[1], []).append(file)
    fitting = sum(map(len, found.values()))
    is_class = len(found) > 1 and all(len(names) > 1 for names in found.values())
    return found if is_class and fitting >= 0.95 * count else None


def advice_on_names(files: Iterable[str]) -> str:
    """Return what to do if the names of files begin with their classes; "" if they do not."""
    found = classes_of_names(files)
    if found is None:
        return ""
    shown = ", ".join(f"{name} ({len(names):,})" for name, names in sorted(found.items())[:4])
    return (
        f"the names of its images begin with {shown}: if these are the classes, give "
        "--loader.layout file_names (--layout of `data`); "
    )


# Files that are looked at, and those that are opened; keys of a json that are shown.
MAX_FILES, NUM_HEADS, MAX_KEYS = 5000, 20, 6
_AS_FOLDERS = "save each image as train/CLASS/NUMBER.png"
# A pattern of a file's path below the folder, and what the data is.
_FILES: Mapping[str, str] = {
    r"(.*/)?(train|t10k|test|emnist.*)-(images|labels).*-?idx\d-?ubyte(\.gz)?": "these are the idx "
    f"files of MNIST: torchvision.datasets.MNIST and its like read them; {_AS_FOLDERS}",
    r"(.*/)?(data_batch(_\d|\.bin)|batches\.meta|cifar-100-python/.*)": "these are the batches of "
    f"CIFAR: torchvision.datasets.CIFAR10 and CIFAR100 read them; {_AS_FOLDERS}",
    r".*\.(npz|npy|h5|hdf5|pkl|pickle)": f"its images are arrays in a file: {_AS_FOLDERS}",
    r".*\.(parquet|arrow)": "it has Parquet or Arrow files, which are read for classification: one "
    "column of images and one of labels",
    r".*(\.tfrecords?|\.tfrec|\.record|tfrecord-\d+-of-\d+)": "its images are in TFRecord files: "
    "export the data set as folders, COCO or Pascal VOC, or write shards of WebDataset",
    r"(.*/)?data\.mdb|.*\.lmdb": f"its images are in an LMDB data base: {_AS_FOLDERS}",
    r".*\.rec": f"its images are in a RecordIO file: {_AS_FOLDERS}",
    r".*\.nii(\.gz)?|.*\.(nrrd|mha)": "its images are volumes: save each slice as a PNG or TIFF",
    r".*\.(mp4|avi|mov|mkv)": "it has videos: save their frames as images, and name the files by "
    "their video",
    r".*\.(zip|rar|7z|tgz|tar\.gz)": "it has archives: unpack them",
    r".*\.geojson": "its annotations are GeoJSON, such as those of xView: convert them to COCO",
    r".*\.ndjson": "its annotations are an export of Labelbox: convert them to COCO",
    r".*\.odgt": "its annotations are those of CrowdHuman: convert them to COCO",
    r".*\.mat": "its annotations are MATLAB files: scipy.io.loadmat reads them; write labels.csv "
    "with the columns filename, label and split, or COCO for objects",
}


def known_format(root: Path) -> str:
    """Return what a folder that cannot be read holds, and what to do; "" if it is not known."""
    files = list(islice(_files(root), MAX_FILES))
    folders = {part for file in files for part in file.split("/")[:-1]}
    if len(folders & RETRIEVAL) > 1:
        return (
            "this is data for finding persons again, such as Market-1501, which is not a task "
            "here: to classify them, sort the images into train/PERSON/"
        )
    if any(re.fullmatch(r"(.*/)?train/good/[^/]+", file) for file in files) and (
        "ground_truth" in folders
    ):
        return (
            "this is laid out like MVTec AD, whose training images are all good: finding anomalies "
            "is not a task here; to classify or segment, move images with defects into the "
            "training folders"
        )
    for pattern, text in _FILES.items():
        first = next((file for file in files if re.fullmatch(pattern, file, re.IGNORECASE)), None)
        if first is not None:
            return f"{text} (such as {first})"
    for file in files:
        if file.lower().endswith((".json", ".csv")):
            with open_regular(root / file) as stream:
                head = stream.read(4096)
            if re.match(rb"(.*,)?[ \"]*pixels?_?0*[ \",\r\n]", head):
                return f"{file} has images as columns of pixels: {_AS_FOLDERS}"
    if any(re.fullmatch(r"(.*/)?gt/gt\.txt", file) for file in files):
        return "its boxes are tracks, such as those of MOT: convert them to COCO"
    return _unknown_annotations(root, files)


_NAME_OF_IMAGE = re.compile(rb"\.(jpe?g|png|tiff?|bmp|webp)\b", re.IGNORECASE)


def _unknown_annotations(root: Path, files: Sequence[str]) -> str:
    """Return what the first text or json about images has, if it is of no format that is read."""
    for file in [f for f in files if f.lower().endswith((".txt", ".json"))][:NUM_HEADS]:
        with open_regular(root / file) as stream:
            head = stream.read(4096)
        if head.startswith(b"% bbGt"):
            return f"{file} has boxes of Piotr's toolbox (bbGt): convert them to COCO or YOLO"
        if file.lower().endswith(".json") and _NAME_OF_IMAGE.search(head):
            keys = dict.fromkeys(re.findall(rb'"(\w+)"\s*:', head))
            named = ", ".join(key.decode() for key in list(keys)[:MAX_KEYS])
            return (
                f"{file} names images, but has the keys {named or 'of no object'}, which is none "
                "of the formats that `convnext data --help` lists: convert it to one of them"
            )
    return ""


def _files(root: Path) -> Iterator[str]:
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        below = Path(here).relative_to(root)
        yield from ((below / name).as_posix() for name in sorted(files) if not is_hidden(name))


def with_known_format(error: ValueError, root: Path) -> ValueError:
    """Return an error that also says what the data is, if that is known."""
    # What can be read, but not this file, is known from the error.
    is_read = any(ending in str(error) for ending in (".parquet", ".arrow"))
    known = known_format(root) if root.is_dir() and not is_read else ""
    return ValueError(f"{error}. About this data: {known}") if known else error
